"""`kinship`: how alike models are, by hand, without a home."""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import click
import torch

from kinship_daemon.cli.ledger import device_option, hub_option, ledger_of
from kinship_daemon.errors import UsageError
from kinship_daemon.models import find_base, find_models
from kinship_daemon.report import amount
from kinship_daemon.weights.kinship import by_tensor, matrix, mean_pairwise
from kinship_daemon.weights.recipe import leaf

__all__ = ["kinship_command"]


@click.command("kinship")
@click.argument("models", nargs=-1, required=True)
@click.option("--base", required=True, help="Alias, org/name[@revision], folder, or demo.")
@click.option(
    "--metric",
    type=click.Choice(["pcc", "cosine", "euclidean"]),
    default="pcc",
    show_default=True,
)
@click.option("--by", type=click.Choice(["model", "tensor"]), default="model", show_default=True)
@device_option
@click.option(
    "form",
    "--format",
    type=click.Choice(["table", "json", "csv"]),
    default="table",
    show_default=True,
)
@hub_option
def kinship_command(
    models: tuple[str, ...],
    base: str,
    metric: Any,
    by: str,
    device: str,
    form: str,
    hub: str | None,
) -> None:
    """Kinship of two or more MODELS: folders or hub ids."""
    if len(models) < 2:
        raise UsageError("kinship takes two models or more")
    start = time.monotonic()
    found_base = find_base(base, hub)
    found = find_models(models, base, hub)
    ledger, read = ledger_of(found_base, found, device)
    rows = [leaf(ledger, name) for name in models]
    result: dict[str, Any] = {
        "base": base,
        "metric": metric,
        "models": list(models),
        "matrix": _plain(matrix(ledger, rows, metric)),
        "parameters": sum(ledger.sizes),
        "bytes_read": read,
        "seconds": 0.0,
    }
    if by == "tensor":
        per_tensor = by_tensor(ledger, rows, metric)
        result["tensors"] = [
            {"name": name, "parameters": size, "matrix": _plain(values)}
            for name, size, values in zip(ledger.names, ledger.sizes, per_tensor, strict=True)
        ]
    result["seconds"] = round(time.monotonic() - start, 3)
    {"table": _table, "json": _json, "csv": _csv}[form](result)


def _plain(values: torch.Tensor) -> list[list[float | None]]:
    """NaN is no JSON: null."""
    return [[None if x != x else x for x in row] for row in values.tolist()]  # noqa: PLR0124


def _json(result: Mapping[str, Any]) -> None:
    click.echo(json.dumps(result, indent=2))


def _csv(result: Mapping[str, Any]) -> None:
    out = csv.writer(sys.stdout)
    models = result["models"]
    if "tensors" not in result:
        out.writerow(["model", *models])
        for name, row in zip(models, result["matrix"], strict=True):
            out.writerow([name, *row])
        return
    out.writerow(["tensor", "parameters", "a", "b", "kinship"])
    for tensor in result["tensors"]:
        for i, a in enumerate(models):
            for j, b in enumerate(models[:i]):
                out.writerow([tensor["name"], tensor["parameters"], b, a, tensor["matrix"][i][j]])


def _table(result: Mapping[str, Any]) -> None:
    models, values = result["models"], result["matrix"]
    width = max(map(len, models))
    click.echo(f"{result['metric']} of deltas from {result['base']}")
    for i, (name, row) in enumerate(zip(models, values, strict=True)):
        click.echo(f"{name:<{width}}  " + "  ".join(_cell(x) for x in row[: i + 1]))
    if len(models) > 2:
        click.echo(f"mean over pairs {_cell(mean_pairwise(torch.tensor(_numbers(values))))}")
    for tensor in result.get("tensors", ()):
        pairs = [x for i, row in enumerate(tensor["matrix"]) for x in row[:i]]
        click.echo(f"{' '.join(_cell(x) for x in pairs)}  {tensor['name']}")
    click.echo(
        f"{result['parameters']:,} parameters, {amount(result['bytes_read'], 'bytes')} read, "
        f"{result['seconds']:.1f} s"
    )


def _numbers(values: Sequence[Sequence[float | None]]) -> list[list[float]]:
    return [[float("nan") if x is None else x for x in row] for row in values]


def _cell(value: float | None) -> str:
    return "undefined" if value is None else f"{value:9.4f}"
