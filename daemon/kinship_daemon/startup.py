"""From a configuration to a daemon ready to work; what can be wrong is found here first."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

from kinship_daemon import demo
from kinship_daemon.activity import recording
from kinship_daemon.base_model import base_here, base_repo, known_base
from kinship_daemon.config import Config
from kinship_daemon.context import Context, Rows
from kinship_daemon.daemon_log import logging_to
from kinship_daemon.device import resolve_device
from kinship_daemon.errors import KinshipError, Transient, UsageError
from kinship_daemon.evaluate.settings import Settings
from kinship_daemon.evaluation_check import check_base, forgets_changed_documents, with_documents
from kinship_daemon.execute.evaluation import Evaluators
from kinship_daemon.execute.open import open_executor
from kinship_daemon.execute.site import Workshop
from kinship_daemon.file_cache import FileCache, FileHashes
from kinship_daemon.home import Home, state_directory
from kinship_daemon.hub.bases import Base, resolve_base
from kinship_daemon.hub.open import open_hub
from kinship_daemon.hub.records import Hub, Repo
from kinship_daemon.report import Reporter, count
from kinship_daemon.retry import try_again
from kinship_daemon.steps.living import living
from kinship_daemon.steps.publish import tidy
from kinship_daemon.steps.rungs import no_race
from kinship_daemon.weights import gram
from kinship_daemon.weights.checkpoint import Checkpoint
from kinship_daemon.weights.recipe import Recipe, check
from kinship_policies.registry import make
from kinship_storage.errors import LineageError
from kinship_storage.lineage import Lineage
from kinship_storage.records import Model, Split
from kinship_storage.rows import stamp

__all__ = [
    "SECRET",
    "check_token",
    "devices_here",
    "evaluates_here",
    "evaluation_settings",
    "home_of",
    "opened",
    "the_base",
    "webhook_secret",
    "workshop_for",
]

SECRET = "KINSHIP_WEBHOOK_SECRET"  # noqa: S105 - the variable's name

_MAY_PUBLISH = "may_publish"  # the last namespace that the hub said so of


@contextmanager
def opened(
    config: Config,
    report: Reporter,
    *,
    check_evaluation: bool = False,
    dry_run: bool = False,
    stop: threading.Event | None = None,
    now: Callable[[], datetime] | None = None,
) -> Iterator[Context]:
    """
    Hold the home and open all that the steps share. Mistakes show before anything is fetched.

    Args:
        check_evaluation: Load the evaluation's tasks and ask the base one question, once per
            settings: it takes seconds, and minutes for a large base.
        stop: Set when the daemon is to stop; ends every wait for the hub.
        now: The clock, UTC; the machine's by default.

    Raises:
        Stopped: asked for meanwhile.
        UsageError: policy, method, task, base or hub do not exist.
        KinshipError: the home is held or cannot be written, or belongs to another base.
        Transient: the hub cannot be reached and the base is not here yet.
    """
    stop, now = stop or threading.Event(), now or _utc
    policy = make(config.policy.use, config.policy.settings)
    _check(config, dry_run=dry_run)
    settings = evaluation_settings(config)
    home = home_of(config)
    is_new = not home.path.exists()
    workshop = workshop_for(config, settings, home, stop)
    with (
        home.hold(),
        _nothing_left(home) if is_new else nullcontext(),
        logging_to(home.log, report) as logged,
        recording(logged, home.activity, {"pid": os.getpid(), "started": stamp(now())}) as reporter,
        Lineage.open(home.lineage, now=now) as lineage,
        forgets_changed_documents(lineage),
        closing(_evaluators(config, workshop, reporter, stop)) as evaluators,
    ):
        lineage.recover()
        tidy(home, lineage)
        sha256 = FileHashes(lineage, stop)
        hub = _hub(config, home, sha256, stop)
        if not dry_run:
            _check_right(config, hub, lineage, reporter)
        repo = base_repo(the_base(config), hub, home, lineage)
        settings = with_documents(evaluators, settings, lineage, reporter, load=check_evaluation)
        model, folder = _base(config, repo, hub, home, lineage, reporter, sha256)
        if check_evaluation:
            check_base(evaluators, settings, model, folder, lineage, reporter, sha256)
        try_again(config, settings, lineage, reporter)
        _say_new_scores(settings, lineage, reporter)
        if config.evaluate.race and (needs := no_race(config, policy)):
            reporter.event("race", f"there is none: {needs} needs all selection documents")
        lineage.put("hub", hub.name)
        clock = now
        yield Context(
            config=config,
            home=home,
            hub=hub,
            lineage=lineage,
            policy=policy,
            settings=settings,
            evaluators=evaluators,
            report=reporter,
            files=FileCache(
                home,
                hub,
                lineage,
                reporter,
                sha256=sha256,
                disk_gb=config.limits.disk_gb,
                keep=lambda: living(lineage, settings),
                day=lambda: f"{clock():%Y-%m-%d}",
            ),
            rows=Rows(_ledger(home, folder, model)),
            base=model,
            base_folder=folder,
            now=now,
            began=now(),
            stop=stop,
            dry_run=dry_run,
        )


def _check(config: Config, *, dry_run: bool) -> None:
    """All that can be wrong in a configuration before a home is held or a hub asked."""
    check(_recipe(config), ())
    for device in devices_here(config):
        resolve_device(device)
    webhook_secret(config)
    if not dry_run:
        check_token(config)
    the_base(config)


def devices_here(config: Config) -> set[str]:
    """Kinds of devices, as the config names them, that this machine must have."""
    return {config.kinship.device} | ({config.evaluate.device} if evaluates_here(config) else set())


def evaluates_here(config: Config) -> bool:
    """Whether it is this machine on whose devices models are evaluated."""
    return config.executor.use in {"inline", "local"}


def _recipe(config: Config) -> Recipe:
    """One such as the config's method makes."""
    return Recipe(config.merge.method, ("a", "b"), config.merge.parameters)


@contextmanager
def _nothing_left(home: Home) -> Iterator[None]:
    """Where a first start fails before there is anything to keep, no home is left, but its log."""
    try:
        yield
    except BaseException:
        fetched = home.cache.is_dir() and any(home.cache.iterdir())
        if not fetched and not _has_base(home):
            log = home.evaluation_log
            log_text = log.read_bytes() if log.is_file() else b""
            shutil.rmtree(home.path, ignore_errors=True)
            if log_text:
                log.parent.mkdir(parents=True)
                log.write_bytes(log_text)
        raise


def _has_base(home: Home) -> bool:
    """Whether its lineage is to be kept; so is one that cannot be read now."""
    if not home.lineage.is_file():
        return False
    try:
        with Lineage.open(home.lineage, now=_utc, readonly=True) as lineage:
            return known_base(lineage) is not None
    except LineageError:
        return True


def check_token(config: Config) -> None:
    """
    Publishing to the Hub takes a token; better known now than when the first merge has passed.

    Raises:
        UsageError: publish.namespace is set and there is none.
    """
    if config.publish.namespace is None or not config.hub.startswith(("http://", "https://")):
        return
    from kinship_daemon.hub.client import machine_token, token_advice  # noqa: PLC0415 - slow to import

    if machine_token(config.hub) is None:
        raise UsageError(
            f"publish.namespace is {config.publish.namespace}, but there is no token for "
            f"{config.hub}; {token_advice(config.hub)}"
        )


def webhook_secret(config: Config) -> str | None:
    """
    What the Hub must send with its messages; None where no webhook is wanted.

    Raises:
        UsageError: watch.webhook_port is set, the secret is not.
    """
    if config.watch.webhook_port is None:
        return None
    secret = os.environ.get(SECRET, "")
    if not secret:
        raise UsageError(
            f"watch.webhook_port is {config.watch.webhook_port}, but {SECRET} is not set; set it "
            "to the secret that the Hub's webhook was given"
        )
    return secret


def _check_right(config: Config, hub: Hub, lineage: Lineage, report: Reporter) -> None:
    """
    That the token may publish; a hub that is away now says so when it is back.

    Once it might, a refusal may be a bad hour of the hub's: it is said, and publishing is tried.
    """
    if config.publish.namespace is None:
        return
    right = f"{config.publish.namespace} on {hub.name}"
    try:
        hub.may_write(config.publish.namespace)
    except Transient as error:
        report.event("warning", f"whether the token may publish is not known yet: {error}")
    except KinshipError as error:
        if lineage.get(_MAY_PUBLISH) != right:
            raise
        report.event("warning", f"the token may not publish now, as it might before: {error}")
    else:
        lineage.put(_MAY_PUBLISH, right)


def _say_new_scores(settings: Settings, lineage: Lineage, report: Reporter) -> None:
    """Under new evaluation settings everyone is scored again; nothing is said where nobody is."""
    current = {split: settings.fingerprint(split) for split in get_args(Split)}
    before = lineage.get("settings") or {}
    lineage.put("settings", current)
    old = lineage.mean_scores("selection", before.get("selection", ""))
    lacking = old.keys() - lineage.mean_scores("selection", current["selection"]).keys()
    if lacking:
        models = count(len(lacking), "model")
        report.event("warning", f"the evaluation settings changed; {models} to be scored again")


def the_base(config: Config) -> Base:
    if config.base == "demo":
        return Base(name="demo", id=demo.BASE, revision=None, path=None)
    return resolve_base(config.base)


def home_of(config: Config) -> Home:
    return Home(config.home or state_directory() / the_base(config).name)


def evaluation_settings(config: Config) -> Settings:
    """What this machine makes of the config's: a worker elsewhere must not make more of it."""
    settings = Settings.of(config.evaluate, config.seed)
    if settings.resolved_device() == "cuda":
        return settings.but(device="cuda")
    return settings.but(device="cpu", threads=settings.resolved_threads())


def workshop_for(
    config: Config, settings: Settings, home: Home, stop: threading.Event | None = None
) -> Workshop:
    """
    What an executor is given of this machine.

    Raises:
        UsageError: A device that is named is not there.
    """
    return Workshop(
        home.evaluation_log,
        settings.worker_devices(),
        options=config.executor.model_dump(),
        hub=str(home.demo_hub) if config.hub == "demo" else config.hub,
        stop=stop or threading.Event(),
    )


def _evaluators(
    config: Config, workshop: Workshop, report: Reporter, stop: threading.Event
) -> Evaluators:
    workshop = replace(workshop, say=lambda words: report.event("executor", words))
    return Evaluators(open_executor(config.executor.use, workshop), stop)


def _utc() -> datetime:
    return datetime.now(UTC)


def _hub(config: Config, home: Home, sha256: FileHashes, stop: threading.Event) -> Hub:
    where = config.hub
    if where == "demo":
        demo.install(home.demo_hub)
        where = str(home.demo_hub)
    connections = config.watch.connections
    return open_hub(where, sha256=sha256, stop=stop, connections=connections)


def _base(
    config: Config,
    repo: Repo | None,
    hub: Hub,
    home: Home,
    lineage: Lineage,
    report: Reporter,
    sha256: FileHashes,
) -> tuple[Model, Path]:
    """The base's row and its folder, fit for the method."""
    model, folder = base_here(the_base(config), repo, hub, home, lineage, report, sha256)
    check(_recipe(config), tuple(Checkpoint.open(folder).tensors))
    return model, folder


def _ledger(home: Home, folder: Path, base: Model) -> gram.Ledger:
    assert base.weights is not None
    if home.ledger.is_file():
        ledger = gram.Ledger.load(home.ledger)
        if ledger.base == base.weights:
            return ledger
    return gram.start(Checkpoint.open(folder), base.weights)
