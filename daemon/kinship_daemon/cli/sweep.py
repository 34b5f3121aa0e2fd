"""`tune --sweep`: the line from one model to another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from kinship_daemon.sweep import Sweep

__all__ = ["facts_of", "table"]


def facts_of(found: Sweep, first: str, second: str) -> dict[str, Any]:
    """What --format json prints."""
    return {
        "first": first,
        "second": second,
        "disputed": found.disputed,
        "stages": None if found.stages is None else list(found.stages),
        "points": [
            {
                "share": point.share,
                "score": point.score,
                "tasks": dict(point.tasks),
                "second": point.second,
            }
            for point in found.points
        ],
    }


def table(facts: Mapping[str, Any]) -> None:
    """For people."""
    click.echo(f"share of {facts['second']} in the weights; 0 is {facts['first']}\n")
    tasks = list(facts["points"][0]["tasks"])
    click.echo("  ".join(["share", " mean ", "second", *tasks]))
    for point in facts["points"]:
        whose = "     -" if point["second"] is None else f"{point['second']:6.2f}"
        each = (f"{score:{max(len(task), 6)}.4f}" for task, score in point["tasks"].items())
        click.echo("  ".join([f"{point['share']:5.2f}", f"{point['score']:.4f}", whose, *each]))
    if facts["stages"] is None:
        click.echo("\nboth give every document the same score")
        return
    left, arrived = facts["stages"]
    click.echo(
        f"\n`second` is whose answers are given to the {facts['disputed']:,} documents that both "
        f"answer differently: up to {left:.2f} those of {facts['first']}, from {arrived:.2f} on "
        f"those of {facts['second']}"
    )
