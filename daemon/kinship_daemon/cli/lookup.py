"""`status`, `lineage`, `explain`, `verify`: what a home has to say. None of them writes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import click

from kinship_daemon import family
from kinship_daemon.cli.options import home_options, open_lineage
from kinship_daemon.errors import KinshipError
from kinship_daemon.explain import explain
from kinship_daemon.home import Home
from kinship_storage.lineage import Lineage

__all__ = ["explain_command", "lineage_command", "status_command", "verify_command"]


@click.command("status")
@home_options
@click.option("as_json", "--json", is_flag=True, help="For machines.")
def status_command(home: Path | None, base: str | None, as_json: bool) -> None:
    """What a home is doing, and who waits, was refused or set aside."""
    found, lineage = open_lineage(home, base)
    with lineage:
        facts = _status(found, lineage)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    click.echo(f"home        {facts['home']}")
    click.echo(f"base        {facts['base']}")
    click.echo(f"daemon      {facts['daemon']}")
    click.echo(f"models      {_counts(facts['models'])}")
    click.echo(f"jobs        {_counts(facts['jobs'])}")
    click.echo(f"decisions   {facts['decisions']}")
    click.echo(f"evolution   {facts['evolution']}")
    click.echo(f"best        {facts['best']}")
    for repo in facts["published"]:
        click.echo(f"published   {repo}")
    for line in facts["set_aside"]:
        click.echo(f"{line['status']:<11} {line['model']}: {line['reason']}")
    for line in facts["failed_jobs"]:
        click.echo(f"failed      {line['job']}: {line['reason']}")


def _status(home: Home, lineage: Lineage) -> dict[str, Any]:
    export = lineage.export()
    models = lineage.models()
    jobs = lineage.jobs()
    generations = lineage.generations()
    last = generations[-1] if generations else None
    scored = [
        (v, m["id"]) for m in export["models"] if (v := family.mean(m["selection"])) is not None
    ]
    best = max(scored, default=None)
    return {
        "home": str(home.path),
        "base": export["base"],
        "daemon": f"running (pid {pid})" if (pid := home.holder()) else "not running",
        "models": dict(sorted(Counter(f"{m.kind} {m.status}" for m in models).items())),
        "jobs": dict(sorted(Counter(job.status for job in jobs).items())),
        "decisions": len(generations),
        "evolution": "not begun"
        if last is None
        else f"converged: {last.stop}"
        if last.stop
        else "going on",
        "best": "none yet" if best is None else f"{best[1]} {best[0]:.4f} (selection)",
        "published": [publication.repo for publication in lineage.publications()],
        "set_aside": [
            {"model": m.id, "status": m.status, "reason": m.reason}
            for m in models
            if m.status in {"refused", "quarantined"}
        ],
        "failed_jobs": [
            {"job": job.key, "reason": job.reason} for job in jobs if job.status == "failed"
        ],
    }


def _counts(counts: dict[str, int]) -> str:
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
            lineage.require(model)
        export = lineage.export()
    if form == "json":
        if model is not None:
            export["models"] = family.ancestry(export, model)
        click.echo(json.dumps(export, indent=2))
        return
    draw = {"tree": family.tree, "mermaid": family.mermaid, "dot": family.dot}[form]
    click.echo(draw(export, model))


@click.command("explain")
@click.argument("model")
@home_options
def explain_command(model: str, home: Path | None, base: str | None) -> None:
    """Why MODEL was made, how it did, why it was published or not."""
    _, lineage = open_lineage(home, base)
    with lineage:
        click.echo(explain(lineage, model))


@click.command("verify")
@home_options
def verify_command(home: Path | None, base: str | None) -> None:
    """Hash again what the lineage claims: files, recipes, ledger, publications."""
    from kinship_daemon.verify import problems  # noqa: PLC0415 - imports torch

    found, lineage = open_lineage(home, base)
    with lineage:
        report = problems(found, lineage)
    for line in report.problems:
        click.echo(line, err=True)
    click.echo(
        f"{report.files} files hashed, {report.recipes} recipes recomputed, "
        f"{report.publications} publications read: {len(report.problems)} problems"
    )
    if report.problems:
        raise KinshipError(f"{found.path} does not hold what its lineage claims; see above")
