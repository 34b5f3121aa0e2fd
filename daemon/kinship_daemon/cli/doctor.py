"""`doctor`: is everything in place for `run` with this configuration?"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import closing
from importlib.metadata import version
from itertools import chain
from pathlib import Path

import click
import torch

from kinship_daemon import demo
from kinship_daemon.base_model import known_base
from kinship_daemon.bugs import bugs_noted
from kinship_daemon.cli.options import config_options, echo_json, format_option, load_config, now
from kinship_daemon.config import Config
from kinship_daemon.errors import KinshipError, UsageError
from kinship_daemon.evaluate.task_files import TaskFiles
from kinship_daemon.evaluate.verdict import FEW_DOCUMENTS
from kinship_daemon.execute.open import open_executor
from kinship_daemon.home import Home
from kinship_daemon.hub.files import weight_files
from kinship_daemon.hub.open import open_hub
from kinship_daemon.hub.records import Hub
from kinship_daemon.layout import echo_hanging
from kinship_daemon.report import amount, count
from kinship_daemon.startup import (
    check_token,
    devices_here,
    evaluates_here,
    evaluation_settings,
    home_of,
    the_base,
    webhook_secret,
    workshop_for,
)
from kinship_daemon.web.webhook import PATH
from kinship_policies import registry
from kinship_storage.lineage import Lineage

__all__ = ["doctor_command", "oddities"]

_PACKAGES = (
    "kinship-daemon",
    "torch",
    "transformers",
    "safetensors",
    "lm-eval",
    "huggingface_hub",
    "apscheduler",
    "sqlite-utils",
)

# A line of the report: good (None: it would run, but hardly as meant), what was looked at, what
# was found and what would help.
_Line = tuple[bool | None, str, str]
_HOURS = 24
_COLOURS = {True: "green", False: "red", None: "yellow"}
_MARKS = {True: "ok ", False: "BAD", None: "odd"}


@click.command("doctor")
@config_options
@click.option("--estimate", "timed", is_flag=True, help="Also what a run will take; see estimate.")
@format_option()
def doctor_command(
    config_file: Path | None,
    overrides: tuple[str, ...],
    timed: bool,
    form: str,
    **flags: str | None,
) -> None:
    """Device, memory, disk, hub, token, versions. Exit 3 if something would stop a run."""
    config = load_config(config_file, overrides=overrides, **flags)  # type: ignore[arg-type]
    bad, lines = 0, []
    for good, what, found in chain(_look(config), _estimate(config) if timed else ()):
        bad += good is False
        lines.append({"verdict": _MARKS[good].strip().lower(), "about": what, "found": found})
        if form == "text":
            mark = click.style(_MARKS[good], fg=_COLOURS[good])
            echo_hanging(f"{mark} {what:<9} ", found)
    if form == "json":
        echo_json(lines)
    if bad:
        raise KinshipError(f"{bad} of the above would stop a run")


def _look(config: Config) -> Iterator[_Line]:
    yield True, "versions", ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    yield True, "python", f"{platform.python_version()} on {platform.platform()}"
    yield _device(config)
    yield from _executor(config)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield True, "memory", f"{memory / 1e9:.1f} GB, {os.cpu_count()} cores"
    yield _home(config)
    yield _bugs(config)
    yield _policy(config)
    yield from _tasks(config)
    yield from _webhook(config)
    yield from _hub(config)
    yield from ((None, "config", oddity) for oddity in oddities(config))
    yield from ((None, "limits", each) for each in _beyond(config))


def _estimate(config: Config) -> Iterator[_Line]:
    """As `estimate`, which this imports; what stops it is told, and stops no run by itself."""
    from kinship_daemon.cli.estimate import estimated  # noqa: PLC0415 - seldom asked for
    from kinship_daemon.estimate import estimate_lines  # noqa: PLC0415

    try:
        found = estimated(config)
    except KinshipError as error:
        yield None, "estimate", str(error)
        return
    for about, words in estimate_lines(config, found):
        yield True, about, words


def _device(config: Config) -> _Line:
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        return True, "device", f"{name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
    if "cuda" in devices_here(config):
        return False, "device", "config asks for cuda and torch sees none; set device: auto or cpu"
    return True, "device", "cpu (torch sees no CUDA device)"


def _executor(config: Config) -> Iterator[_Line]:
    """Who would evaluate, and on what."""
    name = config.executor.use
    try:
        settings = evaluation_settings(config)
        workshop = workshop_for(config, settings, home_of(config))
        with closing(open_executor(name, workshop)) as executor:
            yield from ((True, "executor", f"{name}: {place}") for place in executor.describe())
    except KinshipError as error:
        yield False, "executor", str(error)


def _home(config: Config) -> _Line:
    home = home_of(config)
    there = _existing(home.path)
    free = shutil.disk_usage(there).free / 1e9
    if not os.access(there, os.W_OK):
        return False, "home", f"{home.path}: {there} is not writable; choose another with --home"
    its, wanted = _base_of(home), the_base(config).id
    if its not in {None, wanted}:
        return False, "home", f"{home.path} is that of base {its}, not {wanted}; name its base"
    holder = f", held by a daemon (pid {home.holder()})" if home.holder() else ""
    space = f"{free:.1f} GB free, limits.disk_gb {config.limits.disk_gb:g}"
    return True, "home", f"{home.path}: {space}{holder}"


def _base_of(home: Home) -> str | None:
    """The base of an earlier run; None before the first, or where its lineage cannot be read."""
    try:
        with Lineage.open(home.lineage, now=now, readonly=True) as lineage:
            known = known_base(lineage)
            return None if known is None else known.id
    except KinshipError:
        return None


def _bugs(config: Config) -> _Line:
    log = home_of(config).bug_log
    number = bugs_noted(log)
    if number == 0:
        return True, "bugs", "none was met"
    return None, "bugs", f"{count(number, 'bug')} met by single models; please report {log}"


def _policy(config: Config) -> _Line:
    try:
        registry.make(config.policy.use, config.policy.settings)
    except KinshipError as error:
        return False, "policy", str(error)
    return True, "policy", config.policy.use


def _tasks(config: Config) -> Iterator[_Line]:
    """Whose code an evaluation runs: task files are programs."""
    for folder in config.evaluate.include_path:
        try:
            if not folder.is_dir():
                raise UsageError(f"no folder {folder} for evaluate.include_path")
            files = TaskFiles([folder])
            files.check()
        except UsageError as error:
            yield False, "tasks", str(error)
            continue
        code = f"{files.with_code()} name code to run (!function)"
        yield True, "tasks", f"{folder}: {count(len(files.paths), 'task file')}, {code}"


def _hub(config: Config) -> Iterator[_Line]:
    where = str(demo.HUB) if config.hub == "demo" else config.hub
    try:
        hub = open_hub(where)
        yield True, "hub", hub.about()
    except KinshipError as error:
        yield False, "hub", str(error)
        return
    yield from _base(config, hub)
    yield _publishing(config, hub)


def _base(config: Config, hub: Hub) -> Iterator[_Line]:
    base = the_base(config)
    if base.path is not None:
        yield base.path.is_dir(), "base", str(base.path)
        return
    try:
        repo = hub.repo(base.id, base.revision)
    except KinshipError as error:
        yield False, "base", str(error)
        return
    size = sum(file.size for file in weight_files(repo.files))
    yield True, "base", f"{base.id} at {repo.revision[:12]}, {amount(size, 'bytes')}"
    yield from _room(config, size)


def _room(config: Config, size: int) -> Iterator[_Line]:
    """Whether the base and two fine-tunes fit on the disk, and one model in memory."""
    free = shutil.disk_usage(_existing(home_of(config).path)).free
    usable = min(free, config.limits.disk_gb * 1e9)
    if usable < 3 * size:
        need = amount(3 * size, "bytes")
        yield (
            False,
            "disk",
            f"{amount(usable, 'bytes')} to use; a base and two fine-tunes need {need}",
        )
    if not evaluates_here(config):
        return
    if torch.cuda.is_available() and config.evaluate.device != "cpu":
        memory, of = torch.cuda.mem_get_info()[1], "of the GPU"
    else:
        memory, of = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "of the machine"
    if memory < 1.1 * size:
        yield False, "memory", f"{amount(memory, 'bytes')} {of} cannot hold a model to evaluate it"


def _publishing(config: Config, hub: Hub) -> _Line:
    """Whether the token may write; better known now than when the first merge has passed."""
    namespace = config.publish.namespace
    if namespace is None:
        return True, "publish", "publish.namespace is not set"
    if config.hub == "demo":
        return True, "publish", f"to {namespace}, in the home"
    try:
        check_token(config)
        return True, "publish", hub.may_write(namespace)
    except KinshipError as error:
        return False, "publish", str(error)


def _webhook(config: Config) -> Iterator[_Line]:
    watch = config.watch
    if watch.webhook_port is None:
        return
    try:
        webhook_secret(config)
    except KinshipError as error:
        yield False, "webhook", str(error)
        return
    yield True, "webhook", f"at http://{watch.webhook_host}:{watch.webhook_port}{PATH}"


def oddities(config: Config) -> Iterator[str]:
    """Settings that contradict each other."""
    admission, limits, largest = config.admission, config.limits, config.triage.max_gb
    if not config.triage.sample and admission.novelty and not config.admission.popularity:
        yield (
            "triage.sample is 0, so nobody's novelty is known, and nothing else orders who waits; "
            "set triage.sample, or admission.popularity"
        )
    for name, fate in (("download_gb_per_day", "is refused"), ("disk_gb", "waits for ever")):
        if (limit := getattr(limits, name)) < largest:
            yield (
                f"limits.{name} {limit:g} is below triage.max_gb {largest:g}: "
                f"a model between them {fate}"
            )
    screened, evaluated = admission.screen_documents, config.evaluate.limit
    if evaluated is not None and screened >= evaluated:
        yield (
            f"admission.screen_documents {screened} is no less than evaluate.limit {evaluated}: "
            "the screen takes as long as the evaluation that it is to save"
        )
    if evaluated is not None and evaluated < FEW_DOCUMENTS:
        yield (
            f"evaluate.limit {evaluated} is below {FEW_DOCUMENTS}: with so few documents in a task "
            "the gate may not see a loss that is rare and large"
        )


def _beyond(config: Config) -> Iterator[str]:
    """Limits above what this machine and a day have."""
    home, limits = home_of(config), config.limits
    there = shutil.disk_usage(_existing(home.path)).free + home.used_bytes()
    if limits.disk_gb * 1e9 > there:
        yield (
            f"limits.disk_gb {limits.disk_gb:g} is more than the disk has for this home, "
            f"{amount(there, 'bytes')}; set it below that, and room is made in time"
        )
    if limits.eval_hours_per_day > _HOURS:
        yield f"limits.eval_hours_per_day {limits.eval_hours_per_day:g}: a day has {_HOURS} hours"
    cores, threads = os.cpu_count() or 1, config.evaluate.threads
    if threads is not None and threads > cores:
        yield f"evaluate.threads {threads} is more than the {cores} cores here; set it to {cores}"


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
