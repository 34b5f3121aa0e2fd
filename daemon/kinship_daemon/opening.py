"""From a configuration to a daemon ready to work; what can be wrong is found here first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

from kinship_daemon import demo
from kinship_daemon.config import Config, Task
from kinship_daemon.daemon import Daemon, cached_hash
from kinship_daemon.device import resolve_device
from kinship_daemon.errors import KinshipError, UsageError
from kinship_daemon.evaluate.records import Settings, Split, TaskSpec
from kinship_daemon.evaluate.worker import Evaluator
from kinship_daemon.home import Home, state_directory
from kinship_daemon.hub.bases import Base, resolve_base
from kinship_daemon.hub.files import wanted
from kinship_daemon.hub.licence import declared
from kinship_daemon.hub.open import open_hub
from kinship_daemon.hub.records import Hub
from kinship_daemon.report import Reporter
from kinship_daemon.weights import gram
from kinship_daemon.weights.checkpoint import Checkpoint, weights_identity
from kinship_daemon.weights.recipe import Recipe, check
from kinship_policies.registry import make
from kinship_storage.lineage import Lineage
from kinship_storage.records import File, Model

__all__ = ["evaluation_settings", "home_of", "opened", "the_base"]


@contextmanager
def opened(config: Config, report: Reporter, *, dry_run: bool = False) -> Iterator[Daemon]:
    """
    Hold the home and open all that the steps share.

    Raises:
        UsageError: policy, method, task, base or hub do not exist.
        KinshipError: the home is held or cannot be written, or belongs to another base.
        Transient: the hub cannot be reached and the base is not here yet.
    """
    policy = make(config.policy.use, config.policy.settings)
    for device in {config.kinship.device, config.evaluate.device}:
        resolve_device(device)
    base = the_base(config)
    home = home_of(config)
    with home.hold(), Lineage.open(home.lineage, now=_utc) as lineage:
        lineage.recover()
        hub = _hub(config, home, lineage)
        model, folder = _base(base, hub, home, lineage, report)
        settings = evaluation_settings(config)
        checkpoint = Checkpoint.open(folder)
        recipe = Recipe(config.merge.method, ("a", "b"), config.merge.parameters)
        check(recipe, tuple(checkpoint.tensors))
        with Evaluator(settings, log=home.evaluation_log) as evaluator:
            lineage.put(
                "settings", {split: settings.fingerprint(split) for split in get_args(Split)}
            )
            yield Daemon(
                config=config,
                home=home,
                hub=hub,
                lineage=lineage,
                policy=policy,
                settings=settings,
                evaluator=evaluator,
                report=report,
                base=model,
                base_folder=folder,
                ledger=_ledger(home, folder, model),
                now=_utc,
                dry_run=dry_run,
            )


def the_base(config: Config) -> Base:
    if config.base == "demo":
        return Base(name="demo", id=demo.BASE, revision=None, path=None)
    return resolve_base(config.base)


def home_of(config: Config) -> Home:
    return Home(config.home or state_directory() / the_base(config).name)


def evaluation_settings(config: Config) -> Settings:
    evaluate = config.evaluate
    return Settings(
        selection=_specs(evaluate.selection),
        validation=_specs(evaluate.validation),
        limit=evaluate.limit,
        batch_size=evaluate.batch_size,
        device=evaluate.device,
        dtype=evaluate.dtype,
        seed=config.seed,
        time_limit_seconds=evaluate.time_limit_minutes * 60,
        include_path=evaluate.include_path,
        apply_chat_template=evaluate.apply_chat_template,
        threads=evaluate.threads,
    )


def _specs(tasks: tuple[Task, ...]) -> tuple[TaskSpec, ...]:
    return tuple(TaskSpec(**task.model_dump()) for task in tasks)


def _utc() -> datetime:
    return datetime.now(UTC)


def _hub(config: Config, home: Home, lineage: Lineage) -> Hub:
    where = config.hub
    if where == "demo":
        demo.install(home.demo_hub)
        where = str(home.demo_hub)
    return open_hub(where, sha256=cached_hash(lineage))


def _base(
    base: Base, hub: Hub, home: Home, lineage: Lineage, report: Reporter
) -> tuple[Model, Path]:
    """The base's row and folder; fetched and written down the first time, held to it ever after."""
    known = lineage.models(kind="base")
    if known and known[0].id != base.id:
        raise UsageError(
            f"home {home.path} is that of base {known[0].id}, not {base.id}; use another --home"
        )
    folder = base.path or _fetched(known[0] if known else None, base, hub, home, lineage, report)
    checkpoint = Checkpoint.open(folder)
    sha256 = cached_hash(lineage)
    hashes = {name: sha256(folder / name) for name in checkpoint.files}
    weights = weights_identity(hashes)
    if known:
        if known[0].weights != weights:
            raise KinshipError(
                f"the base in {folder} has changed since {home.path} was made; "
                "put the old one back, or use another --home"
            )
        return known[0], folder
    repo = None if base.path else hub.repo(base.id, base.revision)
    model = Model(
        id=base.id,
        kind="base",
        status="admitted",
        repo=base.id,
        revision=repo.revision if repo else weights,
        weights=weights,
        parameters=checkpoint.parameters,
        license=declared(repo.card) if repo else None,
    )
    files = [
        File(path=name, size=(folder / name).stat().st_size, sha256=value)
        for name, value in sorted(hashes.items())
    ]
    with lineage.transaction():
        lineage.put("base", base.id)
        lineage.put("hub", hub.name)
        if repo and repo.gated:
            lineage.put(f"gated:{base.id}", True)
        lineage.put(f"folder:{base.id}", str(folder))
        lineage.add_model(model, files)
    return model, folder


def _fetched(
    known: Model | None, base: Base, hub: Hub, home: Home, lineage: Lineage, report: Reporter
) -> Path:
    folder = lineage.get(f"folder:{base.id}")
    if folder is not None and Path(str(folder)).is_dir():
        return Path(str(folder))
    repo = hub.repo(base.id, known.revision if known else base.revision)
    size = sum(file.size for file in wanted(repo.files))
    with report.progress(f"fetch {base.id}", size, "bytes") as advance:
        return hub.fetch(repo, home.cache, advance)


def _ledger(home: Home, folder: Path, base: Model) -> gram.Ledger:
    assert base.weights is not None
    if home.ledger.is_file():
        ledger = gram.Ledger.load(home.ledger)
        if ledger.base == base.weights:
            return ledger
    return gram.start(Checkpoint.open(folder), base.weights)
