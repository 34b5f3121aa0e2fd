"""What the steps of a cycle share (home, hub, lineage, policy, worker), and how one is taken."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from kinship_daemon.config import Config
from kinship_daemon.device import resolve_device
from kinship_daemon.disk_space import bytes_on_disk, make_room
from kinship_daemon.durable import hash_file
from kinship_daemon.errors import BudgetReached, KinshipError, ModelError, Stopped
from kinship_daemon.evaluate.records import Settings
from kinship_daemon.evaluate.worker import Evaluator
from kinship_daemon.home import Home
from kinship_daemon.hub.files import wanted
from kinship_daemon.hub.records import Hub, Repo, UnknownRepo
from kinship_daemon.report import Reporter
from kinship_daemon.sampling import Sampler
from kinship_daemon.weights.checkpoint import Checkpoint
from kinship_daemon.weights.descendant import Descendant, descend
from kinship_daemon.weights.gram import Ledger
from kinship_daemon.weights.recipe import Coefficients
from kinship_policies.policy import Policy
from kinship_storage.lineage import Lineage
from kinship_storage.records import Model, Status

_T = TypeVar("_T")

__all__ = ["BudgetReached", "Daemon", "Stopped", "cached_hash"]


@dataclass
class Daemon:
    """
    One open home at work. `ledger` is replaced as leaves join; everything else stays.

    Attributes:
        base: The base's row in the lineage.
        base_folder: Where its files lie.
        dry_run: Write nothing to any hub.
        held: Models at work now, whose files must not make room for others.
        now: The clock, UTC.
        combined: What models are made of, by id; true for this ledger only.
    """

    config: Config
    home: Home
    hub: Hub
    lineage: Lineage
    policy: Policy
    settings: Settings
    evaluator: Evaluator
    report: Reporter
    base: Model
    base_folder: Path
    ledger: Ledger
    now: Callable[[], datetime]
    stop: threading.Event = field(default_factory=threading.Event)
    dry_run: bool = False
    combined: dict[str, Coefficients] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)

    def use_ledger(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.combined.clear()

    @cached_property
    def device(self) -> str:
        """Where inner products are computed."""
        return resolve_device(self.config.kinship.device)

    @cached_property
    def base_checkpoint(self) -> Checkpoint:
        return Checkpoint.open(self.base_folder)

    @cached_property
    def sampler(self) -> Sampler | None:
        """What samples of descendants are compared by; None where triage.sample is 0."""
        fraction = self.config.triage.sample
        return Sampler.of(self.base_folder, fraction, self.home.sample) if fraction else None

    def step(
        self,
        kind: str,
        key: str,
        model: Model | None,
        work: Callable[[], _T],
        record: Callable[[_T], None],
        *,
        redo: bool = False,
    ) -> bool:
        """
        Take one step: `work` does it, `record` writes it together with the job's `done`.

        A step done before is not done again. A ModelError quarantines the model.

        Args:
            key: Names the step by its inputs, so that repeating it is harmless.
            redo: Take it again although it was done before: its result is gone.

        Returns:
            Whether the step is done, now or earlier.

        Raises:
            Stopped: before the step, if the daemon was asked to stop.
            KinshipError: from `work`, Transient or not; the job stays to be tried again.
        """
        if self.stop.is_set():
            raise Stopped
        job = self.lineage.start(key, kind, None if model is None else model.id)
        if job.status == "done" and redo:
            self.lineage.fail(key, "done before, but its result is gone")
            job = self.lineage.start(key, kind, None if model is None else model.id)
        if job.status in {"done", "quarantined"}:
            return job.status == "done"
        try:
            result = work()
        except (ModelError, UnknownRepo) as error:
            if model is None:
                self.lineage.fail(key, str(error))
                raise
            self.quarantine(model, str(error), key)
            return False
        except (KinshipError, Stopped) as error:
            self.lineage.fail(key, str(error) or "stopped")
            raise
        with self.lineage.finish(key):
            record(result)
        return True

    def population_models(self, *statuses: Status) -> list[Model]:
        """Fine-tunes and merges with one of these statuses, ordered by generation and name."""
        return [model for model in self.lineage.models(status=statuses) if model.kind != "base"]

    def quarantine(self, model: Model, reason: str, key: str) -> None:
        """Set a model aside for good, with the reason; the loop goes on without it."""
        with self.lineage.transaction():
            self.lineage.enqueue(key, "quarantine", model.id)
            self.lineage.fail(key, reason, quarantined=True)
            self.lineage.update_model(model.id, status="quarantined", reason=reason)
        self.report.event("quarantine", f"{model.id}: {reason}", model=model.id, reason=reason)

    def sha256(self, path: Path) -> str:
        return cached_hash(self.lineage)(path)

    def leaf_folder(self, leaf: Model) -> Path:
        """
        Where a leaf's files lie; those of a fine-tune are fetched again if they are gone.

        Raises:
            ModelError: the bytes there are not those that were admitted.
            NoRoom: they do not fit into limits.disk_gb.
        """
        known = self.lineage.get(f"folder:{leaf.id}")
        if known is not None and self._unchanged(leaf, Path(str(known))):
            return Path(str(known))
        if leaf.repo is None:
            raise ModelError(f"the weights of {leaf.id} are gone")
        try:
            repo = self.hub.repo(leaf.repo, leaf.revision)
            folder = self.fetch(leaf, repo)
        except UnknownRepo as error:
            raise ModelError(f"the bytes that were admitted are gone: {error}") from None
        if not self._unchanged(leaf, folder):
            raise ModelError(f"{leaf.id} changed in {folder} since it was admitted")
        self.lineage.put(f"folder:{leaf.id}", str(folder))
        return folder

    def fetch(self, model: Model, repo: Repo, *, newcomer: bool = False) -> Path:
        """
        A fine-tune's files, in the home's cache where the hub is not a folder itself.

        Args:
            newcomer: As `make_room`.

        Raises:
            NoRoom: they do not fit into limits.disk_gb.
            ModelError, UnknownRepo, Transient: as `Hub.fetch`.
        """
        size = sum(file.size for file in wanted(repo.files))
        with (
            self.holding(model.id),
            self.report.progress(f"fetch {model.id}", size, "bytes") as advance,
        ):
            if not self.hub.copies:
                return self.hub.fetch(repo, self.home.cache, advance)
            make_room(self, size, model.id, newcomer=newcomer)
            before = bytes_on_disk(self, model.id)
            try:
                return self.hub.fetch(repo, self.home.cache, advance)
            finally:
                self.spend("download_bytes", max(0, bytes_on_disk(self, model.id) - before))

    @contextmanager
    def holding(self, *models: str) -> Iterator[None]:
        """Keep the files of these models on disk inside the block."""
        before = set(self.held)
        self.held.update(models)
        try:
            yield
        finally:
            self.held = before

    def spent(self, what: str) -> int:
        """How much of a daily budget is used up since midnight UTC."""
        day, amount = self.lineage.get(f"spent:{what}") or (None, 0)
        return int(amount) if day == f"{self.now():%Y-%m-%d}" else 0

    def spend(self, what: str, amount: int) -> None:
        self.lineage.put(f"spent:{what}", [f"{self.now():%Y-%m-%d}", self.spent(what) + amount])

    def descendants(self, leaves: Mapping[str, Model]) -> dict[str, Descendant]:
        """Open fine-tunes by weights identity."""
        return {
            weights: descend(self.base_checkpoint, self.leaf_folder(leaf))
            for weights, leaf in leaves.items()
        }

    def _unchanged(self, leaf: Model, folder: Path) -> bool:
        return all(
            (folder / file.path).is_file() and self.sha256(folder / file.path) == file.sha256
            for file in self.lineage.files(leaf.id)
        )


def cached_hash(lineage: Lineage) -> Callable[[Path], str]:
    """sha256 of files, hashed once for as long as size and modification time stay."""

    def sha256(path: Path) -> str:
        stat = path.stat()
        name = path.resolve()
        known = lineage.file_hash(name, stat.st_size, stat.st_mtime_ns)
        if known is None:
            known = hash_file(path)
            lineage.remember_hash(name, stat.st_size, stat.st_mtime_ns, known)
        return known

    return sha256
