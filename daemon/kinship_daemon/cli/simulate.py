"""`simulate`: policies against each other on a landscape, and what the difference is worth."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any

import click
import numpy as np
import yaml
from pydantic import BaseModel

from kinship_daemon.cli.options import format_option
from kinship_daemon.errors import UsageError
from kinship_daemon.landscapes import open_landscape
from kinship_daemon.layout import columns, echo_hanging, fitted
from kinship_daemon.report import count, reporter
from kinship_daemon.simulation import evolutions, evolutions_by, processes
from kinship_policies import registry
from kinship_policies.policy import Policy
from kinship_policies.refusals import nearest
from kinship_policies.simulate.compare import REFERENCE, Comparison, compare, worth
from kinship_policies.simulate.evolution import Run
from kinship_policies.simulate.landscape import Landscape

__all__ = ["simulate_command"]

_WIDTH = 80


@dataclass(frozen=True)
class _Found:
    """What a simulation gave: runs of at most `budget` evaluations each, and their comparison."""

    landscape: Landscape
    seeds: Sequence[int]
    budget: int
    runs: Sequence[Run]
    compared: Sequence[Comparison]


@click.command("simulate")
@click.option(
    "policies",
    "--policy",
    multiple=True,
    required=True,
    help="A policy, preset, YAML file or package.module:Class; several to compare.",
)
@click.option(
    "place",
    "--landscape",
    required=True,
    help="synthetic[:founders=8,..], demo, a table (.json) or a lineage (.db).",
)
@click.option("seeds", "--seeds", type=click.IntRange(min=1), help="How many; each is a run.")
@click.option("seed", "--seed", type=click.IntRange(min=0), default=0, help="The first of them.")
@click.option(
    "--budget",
    type=click.IntRange(min=1),
    default=40,
    show_default=True,
    help="Children that each run may evaluate; founders cost nothing.",
)
@click.option(
    "workers",
    "--workers",
    type=click.IntRange(min=1, max=1000),
    default=1,
    show_default=True,
    help="Processes that share the runs; the results are the same.",
)
@click.option(
    "ray",
    "--ray",
    metavar="ADDRESS",
    help="On a Ray cluster: auto, or HOST:PORT of its head.",
)
@click.option(
    "overrides", "--set", multiple=True, metavar="KEY=VALUE", help="For every policy that has KEY."
)
@click.option("plot", "--plot", type=click.Path(path_type=Path), help="Draw it: .png or .svg.")
@format_option("table")
def simulate_command(
    policies: tuple[str, ...],
    place: str,
    seeds: int | None,
    seed: int,
    budget: int,
    workers: int,
    ray: str | None,
    overrides: tuple[str, ...],
    plot: Path | None,
    form: str,
) -> None:
    """Try policies out on recorded, synthetic or real evolution, and compare them honestly."""
    chosen = _made(_chosen(policies), overrides)
    if plot is not None:
        # matplotlib takes a second to import, and what cannot be drawn is better known now.
        from kinship_daemon import curves  # noqa: PLC0415

        curves.check(plot)
    with open_landscape(place) as landscape:
        numbers = range(seed, seed + _seeds(landscape, seeds))
        runs = _simulate(chosen, landscape, place, numbers, budget, workers, ray)
        compared = compare(runs, budget, seed, varies=landscape.varies)
        found = _Found(landscape, numbers, budget, runs, compared)
        {"table": _table, "json": _json}[form](found)
        if plot is not None:
            curves.draw(runs, budget, plot, title=landscape.title, seed=seed)
            click.echo(f"wrote {plot}", err=True)


def _chosen(arguments: Sequence[str]) -> list[registry.Choice]:
    choices = [registry.choice(argument) for argument in arguments]
    labels = [choice.label for choice in choices]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise UsageError(f"--policy {twice[0]} is there twice; name each once")
    return choices


def _made(choices: Sequence[registry.Choice], overrides: Sequence[str]) -> dict[str, Policy]:
    """Policies by label, each with the settings of --set that it has."""
    known = {choice.label: _known(registry.find(choice.name)) for choice in choices}
    given = dict(_override(override) for override in overrides)
    everyone = sorted({key for keys in known.values() for key in keys})
    for key in given:
        if key not in everyone:
            raise UsageError(
                f"--set {key}: no policy here has it; known: {', '.join(everyone) or 'none'}"
                f"{nearest(key, everyone)}"
            )
    return {
        c.label: registry.make(
            c.name, {**c.settings, **{k: v for k, v in given.items() if k in known[c.label]}}
        )
        for c in choices
    }


def _override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(f"--set {text}: expected key=value, such as --set k=5")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        raise UsageError(f"--set {text}: the value is not YAML") from None


def _known(cls: type[Any]) -> frozenset[str]:
    """Names of a policy's settings."""
    if issubclass(cls, BaseModel):
        return frozenset(field.alias or name for name, field in cls.model_fields.items())
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return frozenset(p.name for p in inspect.signature(cls).parameters.values() if p.kind in named)


def _seeds(landscape: Landscape, asked: int | None) -> int:
    most = landscape.most_seeds
    if asked is not None and most is not None and asked > most:
        raise UsageError(
            f"--seeds {asked}: the landscape has {most} different worlds; at most {most} tell more"
        )
    usual = landscape.usual_seeds
    return asked or (usual if most is None else min(usual, most))


def _simulate(
    policies: Mapping[str, Policy],
    landscape: Landscape,
    place: str,
    seeds: Sequence[int],
    budget: int,
    workers: int,
    ray: str | None,
) -> list[Run]:
    """Every policy under every seed, in that order of seeds."""
    alone = workers == 1 and ray is None
    if not alone and place.partition(":")[0] == "demo":
        raise UsageError(
            "--workers: the demo's models have an evaluation process of their own; leave it out"
        )
    report = reporter(log_json=False, stream=sys.stderr)
    total = len(policies) * len(seeds) * budget
    with report.progress("simulate", total, "evaluations") as advance:
        if alone:
            return list(evolutions(policies, landscape, seeds, budget, advance))
        by = processes(workers, ray)
        return list(evolutions_by(by, policies, place, seeds, budget, advance))


def _json(found: _Found) -> None:
    """One run and one comparison a line: many runs are written quickly, and can be read."""
    facts: dict[str, Any] = {
        "landscape": found.landscape.title,
        "truth": found.landscape.truth,
        "seeds": list(found.seeds),
        "budget": found.budget,
    }
    parts = [f'"{name}": {json.dumps(value)}' for name, value in facts.items()]
    lists: dict[str, Sequence[Run | Comparison]] = {
        "runs": found.runs,
        "comparison": found.compared,
    }
    for name, items in lists.items():
        lines = ",\n".join(json.dumps(item.to_json(), allow_nan=False) for item in items)
        parts.append(f'"{name}": [\n{lines}\n]')
    click.echo("{" + ",\n".join(parts) + "}")


def _table(found: _Found) -> None:
    seeds, runs = found.seeds, found.runs
    what = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"
    click.echo(found.landscape.title)
    click.echo(f"{what}; at most {found.budget} evaluations a run\n")
    labels = list(dict.fromkeys(run.policy for run in runs))
    rows = [_row([r for r in runs if r.policy == name], runs, found.budget) for name in labels]
    heads = ["policy", "measured", "true", "luck", "area", "evaluations", "reached", "kinship"]
    gone = [heads.index(name) for name in ("kinship", "luck", "area", "reached")]
    for line in _aligned(fitted([heads, *rows], 0, gone, columns())):
        click.echo(line)
    click.echo()
    for line in _legend(found.landscape, labels):
        click.echo(line)
    for line in _troubles(labels, runs):
        echo_hanging("", line)
    if found.compared:
        click.echo("\ncompared by seed: difference and its own 95 % interval; p by sign flips,")
        click.echo("after Holm's correction over all pairs of policies")
    for comparison in found.compared:
        lines = wrap(
            comparison.sentence, _WIDTH - 2, break_long_words=False, break_on_hyphens=False
        )
        click.echo("\n".join(f"{'- ' if i == 0 else '  '}{line}" for i, line in enumerate(lines)))


def _row(mine: Sequence[Run], everyone: Sequence[Run], budget: int) -> list[str]:
    """Means over seeds."""
    found = [run.best for run in mine if run.best is not None]
    measured = _mean([point.score for point in found])
    true = _mean([point.true for point in found if point.true is not None])
    area = _mean([float(worth(run, budget)[1:].mean()) for run in mine])
    tops = [kin for run in mine if (kin := _last_kinship(run)) is not None]
    target = {r.seed: worth(r, budget)[-1] for r in everyone if r.policy == REFERENCE}
    reached = sum(
        bool((worth(run, budget) >= target[run.seed] - 1e-9).any()) for run in mine if target
    )
    return [
        mine[0].policy,
        _cell(measured),
        _cell(true),
        "-" if true is None or measured is None else f"{measured - true:+.4f}",
        _cell(area),
        f"{np.mean([run.evaluations for run in mine]):.1f}",
        f"{reached}/{len(mine)}" if target else "-",
        "-" if not tops else f"{np.mean(tops):.3f}",
    ]


def _last_kinship(run: Run) -> float | None:
    """Of the policy's top when it decided last."""
    kinships: list[float | None] = [g["top_mean_kinship"] for g in run.generations]
    return next((kin for kin in reversed(kinships) if kin is not None), None)


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *cells in rows:
        right = (f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
        yield "  ".join([f"{name:<{widths[0]}}", *right])


def _legend(landscape: Landscape, labels: Sequence[str]) -> Iterator[str]:
    yield "means over seeds: score of the model that measured best; area under that, by"
    yield "evaluation; kinship of the policy's top at its last decision"
    if landscape.truth is not None:
        yield f"true: the same model's score {landscape.truth};"
        yield "luck: what it measured above that"
    if REFERENCE in labels:
        yield f"reached: runs that got as far as {REFERENCE} in the end, under the same seed"
    else:
        yield f"reached: not known without --policy {REFERENCE}"


def _troubles(labels: Sequence[str], runs: Sequence[Run]) -> Iterator[str]:
    for label in labels:
        mine = [run for run in runs if run.policy == label]
        if failed := [run for run in mine if run.error is not None]:
            first = failed[0]
            times = f"{len(failed)} of {len(mine)} runs"
            yield f"{label} failed in {times}; seed {first.seed}: {first.error}"
        if unknown := sum(run.unknown for run in mine):
            yield f"{label} proposed {count(unknown, 'merge')} that the landscape does not know"
