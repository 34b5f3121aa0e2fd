"""`kinship --metric functional`: how alike models are in what they make of probes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

import click

from kinship_daemon.cli.figures import cell, matrix_and_mean, plain, short, triangle
from kinship_daemon.cli.ledger import descendants
from kinship_daemon.cli.of_home import home_models
from kinship_daemon.cli.options import find_model
from kinship_daemon.device import resolve_device
from kinship_daemon.layout import echo_hanging
from kinship_daemon.models import find_base, find_models
from kinship_daemon.report import reporter
from kinship_daemon.weights.activations import read_texts
from kinship_daemon.weights.assembly import Assembly, leaf_assembly
from kinship_daemon.weights.checkpoint import Checkpoint
from kinship_daemon.weights.functional import functional_kinship

__all__ = ["kinship", "of_parents", "table"]


def kinship(
    models: Sequence[str],
    base: str | None,
    home: Path | None,
    probes: Path,
    device: str,
    hub: str | None,
    *,
    otherwise: bool,
) -> dict[str, Any]:
    """
    What --format json prints: `matrix` of hidden states, `answers` of what they answer.

    Raises:
        KinshipError: A model cannot be had, or cannot be read with.
    """
    start = time.monotonic()
    texts = read_texts(probes)
    with _assemblies(models, base, home, hub, otherwise=otherwise) as (name, foundation, found):
        report = reporter(log_json=False, stream=sys.stderr)
        total = len(texts) * (1 + len(found))
        with report.progress("read probes", total, "texts") as advance:
            kin = functional_kinship(foundation, found, texts, resolve_device(device), advance)
    answers = matrix_and_mean(kin.answers)
    return {
        "base": name,
        "metric": "functional",
        "models": list(models),
        **matrix_and_mean(kin.hidden),
        "answers": answers["matrix"],
        "answers_mean": answers["mean"],
        "probes": len(texts),
        "seconds": round(time.monotonic() - start, 3),
    }


def of_parents(home: Path, probes: Path) -> dict[tuple[str, str], float | None]:
    """
    Functional kinship, of hidden states, of all who are parents of a home's merges; None where it
    is undefined.

    Raises:
        KinshipError: A model cannot be had, or cannot be read with.
    """
    texts = read_texts(probes)
    with home_models(home) as known:
        merges = known.lineage.models("merge")
        names = sorted({parent for merge in merges for parent in merge.parents})
        found = [known.assembly(known.lineage.require(name)) for name in names]
        if not found:
            return {}
        foundation = leaf_assembly(known.base_folder, known.recipes.base.name)
        report = reporter(log_json=False, stream=sys.stderr)
        with report.progress("read probes", len(texts) * (1 + len(found)), "texts") as advance:
            kin = functional_kinship(foundation, found, texts, resolve_device("auto"), advance)
    rows = plain(kin.hidden)
    return {(names[i], names[j]): rows[i][j] for i, j in combinations(range(len(names)), 2)}


@contextmanager
def _assemblies(
    models: Sequence[str],
    base: str | None,
    home: Path | None,
    hub: str | None,
    *,
    otherwise: bool,
) -> Iterator[tuple[str, Assembly, list[Assembly]]]:
    """The base's name, the base and the models, of a home or by hand."""
    if home is not None:
        with home_models(home) as known:
            chosen = [find_model(known.lineage, name) for name in models]
            foundation = known.recipes.base
            yield (
                foundation.name,
                leaf_assembly(known.base_folder, foundation.name),
                [known.assembly(model) for model in chosen],
            )
        return
    assert base is not None
    origin, found = find_base(base, hub), find_models(models, base, hub)
    descendants(origin, Checkpoint.open(origin.folder), found, otherwise=otherwise)
    yield (
        base,
        leaf_assembly(origin.folder, base),
        [leaf_assembly(each.folder, each.name, origin.folder) for each in found],
    )


def table(result: Mapping[str, Any]) -> None:
    """For people."""
    names = short(result["models"])
    (base,) = short([result["base"]])
    for words, key, mean in (
        ("hidden states", "matrix", "mean"),
        ("answers", "answers", "answers_mean"),
    ):
        echo_hanging("", f"functional kinship, {words}: r of how they depart from {base}")
        for line in triangle(names, result[key]):
            click.echo(line)
        if len(names) > 2:
            click.echo(f"mean over pairs {cell(result[mean])}")
    click.echo(f"{result['probes']:,} probes, {result['seconds']:.1f} s")
