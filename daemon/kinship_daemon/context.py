"""What every step may read: configuration, home, hub, lineage, policy, files, ledger, clock."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path

from kinship_daemon.config import Config
from kinship_daemon.device import resolve_device
from kinship_daemon.errors import Stopped
from kinship_daemon.evaluate.settings import Settings
from kinship_daemon.execute.evaluation import Evaluators
from kinship_daemon.file_cache import FileCache
from kinship_daemon.home import Home
from kinship_daemon.hub.records import Hub
from kinship_daemon.report import Advance, Reporter
from kinship_daemon.sampling import Sampler
from kinship_daemon.weights.checkpoint import Checkpoint
from kinship_daemon.weights.descendant import Descendant, descend
from kinship_daemon.weights.gram import Ledger
from kinship_daemon.weights.recipe import Coefficients
from kinship_policies.policy import Policy
from kinship_storage.lineage import Lineage
from kinship_storage.records import Model, Status

__all__ = ["Context", "Rows"]


@dataclass
class Rows:
    """
    The Gram ledger in use, which is replaced as leaves join.

    Attributes:
        combined: What models are made of, by id; true for this ledger only.
    """

    ledger: Ledger
    combined: dict[str, Coefficients] = field(default_factory=dict)

    def use(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.combined.clear()


@dataclass(frozen=True)
class Context:
    """
    One open home at work. Steps read it; only `commit` writes, and only to the lineage.

    Attributes:
        base: The base's row in the lineage.
        base_folder: Where its files lie.
        began: When this process opened the home, UTC.
        now: The clock, UTC.
        stop: Set when the daemon is to stop; ends every wait.
        dry_run: Write nothing to any hub.
    """

    config: Config
    home: Home
    hub: Hub
    lineage: Lineage
    policy: Policy
    settings: Settings
    evaluators: Evaluators
    report: Reporter
    files: FileCache
    rows: Rows
    base: Model
    base_folder: Path
    now: Callable[[], datetime]
    began: datetime
    stop: threading.Event = field(default_factory=threading.Event)
    dry_run: bool = False

    @property
    def ledger(self) -> Ledger:
        return self.rows.ledger

    @cached_property
    def device(self) -> str:
        """Where inner products are computed."""
        return resolve_device(self.config.kinship.device)

    @cached_property
    def base_checkpoint(self) -> Checkpoint:
        return Checkpoint.open(self.base_folder)

    @cached_property
    def base_architectures(self) -> list[str]:
        """Its transformers classes."""
        return (self.base_checkpoint.config() or {}).get("architectures") or []

    @cached_property
    def sampler(self) -> Sampler | None:
        """What samples of descendants are compared by; None where triage.sample is 0."""
        fraction = self.config.triage.sample
        return Sampler.of(self.base_folder, fraction, self.home.sample) if fraction else None

    def population_models(self, *statuses: Status) -> list[Model]:
        """Fine-tunes and merges with one of these statuses, ordered by generation and name."""
        return [model for model in self.lineage.models(status=statuses) if model.kind != "base"]

    def descendants(self, leaves: Mapping[str, Model]) -> dict[str, Descendant]:
        """Open leaves by weights identity."""
        return {
            weights: descend(self.base_checkpoint, self.files.folder(leaf))
            for weights, leaf in leaves.items()
        }

    @contextmanager
    def progress(self, label: str, total: int | None, unit: str) -> Iterator[Advance]:
        """As `Reporter.progress`; a daemon that is to stop is stopped at the next advance."""
        with self.report.progress(label, total, unit) as advance:

            def checked(done: int, total: int | None = None, /, *, label: str = "") -> None:
                if self.stop.is_set():
                    raise Stopped
                advance(done, total, label=label)

            yield checked

    @property
    def today(self) -> str:
        """The UTC day that budgets belong to."""
        return f"{self.now():%Y-%m-%d}"

    def spent(self, name: str) -> float:
        """How much of a daily budget is used up since midnight UTC."""
        return self.lineage.spent(name, self.today)

    def midnight(self) -> datetime:
        """When the next day's budgets begin."""
        return (self.now() + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
