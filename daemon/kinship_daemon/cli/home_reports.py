"""`status`, `lineage`, `explain`, `verify`: what a home has to say. None of them writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from kinship_daemon import family
from kinship_daemon.activity import recorded
from kinship_daemon.cli.options import (
    echo_json,
    find_model,
    format_option,
    home_options,
    open_lineage,
)
from kinship_daemon.errors import KinshipError
from kinship_daemon.evaluate.race import stop_words
from kinship_daemon.explain import chapters, evolution_words, explain, returns, set_aside_words
from kinship_daemon.home import Home
from kinship_daemon.layout import columns, echo_hanging
from kinship_daemon.reasons import by_reason, lines
from kinship_daemon.report import amount, count
from kinship_storage.errors import DamagedLineage
from kinship_storage.lineage import Lineage
from kinship_storage.records import Job, Status

__all__ = ["explain_command", "lineage_command", "status_command", "verify_command"]

_FEW = 20  # lines that are told one by one


@click.command("status")
@home_options
@format_option()
@click.option("as_json", "--json", is_flag=True, help="The same as --format json.")
def status_command(home: Path | None, base: str | None, form: str, as_json: bool) -> None:
    """What a home is doing, and who waits, was refused or set aside."""
    found, lineage = open_lineage(home, base)
    with lineage:
        facts = _status(found, lineage)
        models = lineage.set_aside()
    if as_json or form == "json":
        echo_json(facts)
        return
    echo_hanging("home        ", f"{facts['home']}")
    click.echo(f"base        {facts['base']}")
    pid = facts["daemon"]["pid"]
    click.echo(f"daemon      {'not running' if pid is None else f'running (pid {pid})'}")
    for job in facts["running"]:
        echo_hanging("at work     ", f"{_what(job)}, since {job['started']}")
    if facts["step"] is not None:
        echo_hanging("at work     ", _step_words(facts["step"]))
    counts = {
        f"{kind} {status}": number
        for kind, by_status in facts["models"].items()
        for status, number in by_status.items()
    }
    echo_hanging("models      ", f"{_counts(counts)}")
    echo_hanging("jobs        ", f"{_counts(facts['jobs'])}")
    click.echo(f"decisions   {facts['decisions']}")
    echo_hanging("evolution   ", facts["evolution"])
    best = facts["best"]
    words = "none yet" if best is None else "{model} {score:.4f} ({split})".format(**best)
    click.echo(f"best        {words}")
    for repo in facts["published"]:
        echo_hanging("published   ", f"{repo}")
    for line in facts["not_published"]:
        echo_hanging("passed      ", f"{line['model']}, not published: {line['reason']}")
    _tell("stopped", [(line["model"], line["reason"]) for line in facts["stopped"]])
    states: tuple[Status, ...] = ("refused", "quarantined")
    aside = {
        status: [
            (m.id, set_aside_words(m.reason, m.cause, returns(m)))
            for m in models
            if m.status == status
        ]
        for status in states
    }
    for status, given in aside.items():
        _tell(status, given)
    _tell("waiting", [_job_words(line) for line in facts["waiting"]])
    _tell("failed", [_job_words(line) for line in facts["failed_jobs"]])
    if many := [status for status, given in aside.items() if len(given) > _FEW]:
        echo_hanging(
            "names       ", f"kinship-daemon candidates --home {found.path} --status {many[0]}"
        )


def _job_words(line: Mapping[str, Any]) -> tuple[str, str]:
    due = f"; tried again at {line['due']}" if line.get("due") else ""
    return _what(line), f"{line['reason']} ({line['cause']}{due})"


def _what(job: Mapping[str, Any]) -> str:
    return job["kind"] if job["model"] is None else f"{job['kind']} of {job['model']}"


def _step_words(step: Mapping[str, Any]) -> str:
    """How far the step at work is, as far as that is known."""
    words = [str(step["label"])]
    if step["total"]:
        share = 100 * min(step["done"] / step["total"], 1)
        words.append(f"{share:.0f} % of {amount(step['total'], step['unit'])}")
    if step["rate"]:
        words.append(f"{amount(step['rate'], step['unit'])}/s")
    if step["seconds_left"] is not None:
        words.append(f"{timedelta(seconds=round(step['seconds_left']))} left")
    return f"{words[0]}: {', '.join(words[1:])}" if words[1:] else words[0]


def _tell(what: str, given: Sequence[tuple[str, str | None]]) -> None:
    """A line for each; of many, a line per reason."""
    if len(given) <= _FEW:
        for name, reason in given:
            echo_hanging(_label(what), f"{name}: {reason}")
        return
    for line in lines(by_reason(given), names=2, most=_FEW):
        echo_hanging(_label(what), line.lstrip())


def _label(what: str) -> str:
    return f"{what:<12}"


def _status(home: Home, lineage: Lineage) -> dict[str, Any]:
    base = next((model.name for model in lineage.models("base")), lineage.get("base"))
    last, best, pid = lineage.last_generation(), lineage.best(), home.holder()
    models: dict[str, dict[str, int]] = {}
    for (kind, status), number in sorted(lineage.count_models().items()):
        models.setdefault(kind, {})[status] = number
    return {
        "home": str(home.path),
        "base": base,
        "daemon": {"running": pid is not None, "pid": pid},
        "running": [
            {"kind": job.kind, "model": job.model, "started": job.started}
            for job in (lineage.jobs("running") if pid else ())
        ],
        "step": recorded(home.activity).get("step") if pid else None,
        "models": models,
        "jobs": dict(sorted(lineage.count_jobs().items())),
        "decisions": 0 if last is None else last.number,
        "evolution": evolution_words(lineage),
        "best": None if best is None else asdict(best),
        "published": [publication.repo for publication in lineage.publications()],
        "not_published": [
            {"model": model.id, "reason": model.not_published}
            for model in lineage.models("merge", "admitted")
            if model.not_published is not None
        ],
        "stopped": list(_stopped(lineage)),
        "set_aside": list(_set_aside(lineage)),
        "waiting": [{**_job(job), "due": job.due} for job in lineage.jobs("waiting")],
        "failed_jobs": [_job(job) for job in lineage.jobs("failed")],
    }


def _job(job: Job) -> dict[str, str | None]:
    return {"kind": job.kind, "model": job.model, "reason": job.reason, "cause": job.cause}


def _stopped(lineage: Lineage) -> Iterator[dict[str, str]]:
    """Who was not asked all selection documents, and why."""
    for weights, partial in lineage.partials(
        (lineage.get("settings") or {}).get("selection", "")
    ).items():
        if partial.best is not None:
            for model in lineage.by_weights(weights):
                yield {"model": model.id, "reason": stop_words(partial).removeprefix("stopped ")}


def _set_aside(lineage: Lineage) -> Iterator[dict[str, str | None]]:
    """Who was refused or set aside, why, and what would open it again."""
    for model in lineage.set_aside():
        yield {
            "model": model.id,
            "status": model.status,
            "reason": model.reason,
            "cause": model.cause,
            "setting": model.setting,
            "retry_at": model.retry_at,
        }


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {what}" for what, number in counts.items()) or "none"


@click.command("lineage")
@click.argument("model", required=False)
@home_options
@click.option(
    "form",
    "--format",
    type=click.Choice(["tree", "json", "mermaid", "dot"]),
    default="tree",
    show_default=True,
)
def lineage_command(model: str | None, home: Path | None, base: str | None, form: str) -> None:
    """Who descends from whom. With MODEL, only that one and its ancestors."""
    _, lineage = open_lineage(home, base)
    with lineage:
        if model is not None:
            model = find_model(lineage, model).id
        export = lineage.export()
        if form == "json":
            if model is not None:
                export["models"] = family.ancestry(export, model)
            echo_json(export)
            return
        if form == "tree":
            click.echo(family.tree(export, model, columns()))
        else:
            click.echo({"mermaid": family.mermaid, "dot": family.dot}[form](export, model))


@click.command("explain")
@click.argument("model")
@home_options
@format_option()
def explain_command(model: str, home: Path | None, base: str | None, form: str) -> None:
    """Why MODEL was made, how it did, why it was published or not. A repo's name will do."""
    _, lineage = open_lineage(home, base)
    with lineage:
        found = find_model(lineage, model)
        if form == "json":
            echo_json({"model": found.id, "chapters": chapters(lineage, found)})
        else:
            for line in explain(lineage, found.id).split("\n"):
                echo_hanging("", line)


@click.command("verify")
@home_options
@format_option()
def verify_command(home: Path | None, base: str | None, form: str) -> None:
    """Hash again what the lineage claims: files, recipes, ledger, publications."""
    from kinship_daemon.verify import problems  # noqa: PLC0415 - imports torch

    found, lineage = open_lineage(home, base)
    with lineage:
        report = problems(found, lineage)
    if form == "json":
        echo_json(asdict(report))
    else:
        for line in report.problems:
            click.echo(line, err=True)
        for line in report.unchecked:
            echo_hanging("not checked: ", line)
        click.echo(
            f"{count(report.files, 'file')} hashed, {count(report.recipes, 'recipe')} recomputed, "
            f"{count(report.publications, 'publication')} read: "
            f"{count(len(report.problems), 'problem')}"
        )
    if report.damaged:
        raise DamagedLineage(
            f"{found.lineage} is damaged, see above; `kinship-daemon restore` brings back a backup"
        )
    if report.problems:
        raise KinshipError(f"{found.path} does not hold what its lineage claims; see above")
