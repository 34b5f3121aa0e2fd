"""`kinship`: how alike models are, by hand, without a home."""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import click
import torch

from kinship_daemon.cli.figures import cell, fit, matrix_and_mean, short, triangle
from kinship_daemon.cli.ledger import calculation_option, device_option, hub_option, ledger_of
from kinship_daemon.durable import whole_file
from kinship_daemon.errors import UsageError
from kinship_daemon.layout import columns, echo_hanging, shortened
from kinship_daemon.models import find_base, find_models
from kinship_daemon.report import amount
from kinship_daemon.weights.gram import Ledger
from kinship_daemon.weights.kinship import (
    METRICS,
    Metric,
    by_kind,
    by_layer,
    by_tensor,
    kind_of,
    matrix,
)
from kinship_daemon.weights.parameters import layer_of
from kinship_daemon.weights.recipe import Coefficients, leaf

__all__ = ["kinship_command"]

_OUTSIDE = "outside"  # the layers
FUNCTIONAL = "functional"


@click.command("kinship")
@click.argument("models", nargs=-1, required=True)
@click.option("--base", help="Alias, org/name[@revision], folder, or demo.")
@click.option(
    "--home",
    type=click.Path(path_type=Path),
    help="MODELS are those of this home: its ledger knows their kinship.",
)
@click.option(
    "config_file",
    "--config",
    type=click.Path(path_type=Path),
    help="The same, of the home of this configuration.",
)
@click.option(
    "--metric",
    type=click.Choice([*METRICS, FUNCTIONAL]),
    default="pcc",
    show_default=True,
    help=f"Of deltas; {FUNCTIONAL}: of what models make of --probes.",
)
@click.option(
    "--probes",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help=f"For --metric {FUNCTIONAL}: some 100 texts, one a line.",
)
@click.option(
    "--by",
    type=click.Choice(["model", "tensor", "layer", "kind"]),
    default="model",
    show_default=True,
    help="Kind: attention, mlp, embeddings, norms.",
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.png|svg",
    help="Also draw a clustered heat map; with --by layer, lines over depth.",
)
@click.option(
    "fraction",
    "--sample",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="FRACTION",
    help="Estimate from this part of the weights, such as 0.002; nothing is fetched.",
)
@click.option(
    "--ancestry",
    is_flag=True,
    help="With --sample: who is no descendant, and which of the models is a merge of others.",
)
@calculation_option
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
    base: str | None,
    home: Path | None,
    config_file: Path | None,
    metric: str,
    probes: Path | None,
    by: str,
    plot: Path | None,
    fraction: float | None,
    ancestry: bool,
    otherwise: bool,
    device: str,
    form: str,
    hub: str | None,
) -> None:
    """Kinship of two or more MODELS: folders or hub ids, or with --home that home's models."""
    if len(models) < 2:
        raise UsageError("kinship takes two models or more")
    if fraction is not None and by != "model":
        raise UsageError(f"--by {by} reads whole models; leave out --sample, or --by")
    if ancestry and (fraction is None or form == "csv"):
        raise UsageError("--ancestry is told from a sample, as a table or json: add --sample 0.002")
    home = _home(base, home, config_file)
    if home is not None and fraction is not None:
        raise UsageError("a home's ledger knows the exact kinship; leave out --sample")
    if (metric == FUNCTIONAL) != (probes is not None):
        raise UsageError(f"--metric {FUNCTIONAL} and --probes FILE go together")
    if probes is not None and (fraction is not None or by != "model"):
        raise UsageError(f"--metric {FUNCTIONAL} is of whole models; leave out --sample and --by")
    picture = None if plot is None else _format(plot)
    show = _FORMS
    if probes is not None:
        from kinship_daemon.cli import functional  # noqa: PLC0415 - imports transformers

        result = functional.kinship(models, base, home, probes, device, hub, otherwise=otherwise)
        show = {**_FORMS, "table": functional.table}
    elif home is not None:
        result = _of_home(models, home, cast(Metric, metric), by)
    elif base is not None and fraction is None:
        result = _exact(models, base, cast(Metric, metric), by, device, hub, otherwise=otherwise)
    elif base is not None and fraction is not None:
        from kinship_daemon.cli import sample  # noqa: PLC0415 - only where it is asked for

        result = sample.sampled_kinship(
            models,
            base,
            cast(Metric, metric),
            fraction,
            hub,
            otherwise=otherwise,
            ancestry=ancestry,
        )
        show = {"table": sample.table, "json": _json, "csv": sample.csv_lines}
    if plot and picture:
        whole_file(plot, _picture(result, picture))
        click.echo(f"wrote {plot}", err=True)
    show[form](result)


def _home(base: str | None, home: Path | None, config_file: Path | None) -> Path | None:
    """The home that the options name; None where they name a base."""
    if config_file is not None and home is None:
        from kinship_daemon.cli.options import home_of_config  # noqa: PLC0415 - as for _of_home

        home = home_of_config(config_file)
    if (base is None) == (home is None):
        raise UsageError(
            "say what the models descend from: --base, or --home or --config for a home's models"
        )
    return home


def _exact(
    models: Sequence[str],
    base: str,
    metric: Metric,
    by: str,
    device: str,
    hub: str | None,
    *,
    otherwise: bool,
) -> dict[str, Any]:
    start = time.monotonic()
    found_base = find_base(base, hub)
    found = find_models(models, base, hub)
    ledger, read = ledger_of(found_base, found, device, otherwise=otherwise)
    rows = [leaf(ledger, name) for name in models]
    return _result(base, models, ledger, rows, metric, by, read, start)


def _of_home(models: Sequence[str], home: Path, metric: Metric, by: str) -> dict[str, Any]:
    """From its ledger alone, merges as they are before they are rounded."""
    # Imports half of the daemon, which only who names a home needs.
    from kinship_daemon.cli.of_home import home_models, home_rows  # noqa: PLC0415

    start = time.monotonic()
    with home_models(home) as known:
        ledger, rows = home_rows(known, models)
        base = known.recipes.base.name
    return _result(base, models, ledger, rows, metric, by, 0, start)


def _result(
    base: str,
    models: Sequence[str],
    ledger: Ledger,
    rows: Sequence[Coefficients],
    metric: Metric,
    by: str,
    read: int,
    start: float,
) -> dict[str, Any]:
    result: dict[str, Any] = {
        "base": base,
        "metric": metric,
        "models": list(models),
        **matrix_and_mean(matrix(ledger, rows, metric)),
        "parameters": sum(ledger.sizes),
        "bytes_read": read,
        "seconds": 0.0,
    }
    if by != "model":
        result[f"{by}s"] = _parts(ledger, rows, metric, by)
    result["seconds"] = round(time.monotonic() - start, 3)
    return result


def _format(plot: Path) -> str:
    """The picture's format, before hours of reading are spent on what cannot be written."""
    # Slow to import, and seldom asked for.
    from kinship_daemon.draw.picture import format_of  # noqa: PLC0415

    if not plot.absolute().parent.is_dir():
        raise UsageError(f"{plot}: no folder {plot.parent}")
    return format_of(plot)


def _parts(
    ledger: Ledger, rows: Sequence[Coefficients], metric: Metric, by: str
) -> list[dict[str, Any]]:
    """What --by asks for: each tensor, layer or kind with its parameters and its kinships."""
    views: Mapping[Any, torch.Tensor]
    groups: Sequence[Any]
    if by == "tensor":
        key, groups = "name", ledger.names
        views = dict(zip(ledger.names, by_tensor(ledger, rows, metric), strict=True))
    elif by == "layer":
        key, groups = "layer", [layer_of(name) for name in ledger.names]
        views = by_layer(ledger, rows, metric)
    else:
        key, groups = "kind", [kind_of(name) for name in ledger.names]
        views = by_kind(ledger, rows, metric)
    sizes = dict.fromkeys(views, 0)
    for group, size in zip(groups, ledger.sizes, strict=True):
        sizes[group] += size
    return [
        {key: label, "parameters": sizes[label], **matrix_and_mean(v)} for label, v in views.items()
    ]


def _picture(result: Mapping[str, Any], form: str) -> bytes:
    names = short(result["models"])
    (base,) = short([result["base"]])
    if "layers" in result:
        from kinship_daemon.draw.layers import layer_lines  # noqa: PLC0415 - slow to import

        layers = {part["layer"]: _numbers(part["matrix"]) for part in result["layers"]}
        return layer_lines(layers, names, result["metric"], base, form)
    from kinship_daemon.draw.heat_map import heat_map  # noqa: PLC0415 - slow to import

    return heat_map(_numbers(result["matrix"]), names, result["metric"], base, form)


def _json(result: Mapping[str, Any]) -> None:
    click.echo(json.dumps(result, indent=2))


def _csv(result: Mapping[str, Any]) -> None:
    out = csv.writer(sys.stdout)
    models = result["models"]
    parts = _parts_of(result)
    if parts is None:
        out.writerow(["model", *models])
        for name, row in zip(models, result["matrix"], strict=True):
            out.writerow([name, *row])
        return
    heading, listed = parts
    out.writerow([heading, "parameters", "a", "b", "kinship"])
    for label, part in listed:
        for i, a in enumerate(models):
            for j, b in enumerate(models[:i]):
                out.writerow([label, part["parameters"], b, a, part["matrix"][i][j]])


def _table(result: Mapping[str, Any]) -> None:
    names, values = short(result["models"]), result["matrix"]
    (base,) = short([result["base"]])
    echo_hanging("", f"{result['metric']} of deltas from {base}")
    for line in triangle(names, values):
        click.echo(line)
    if len(names) > 2:
        click.echo(f"mean over pairs {cell(result['mean'])}")
    parts = _parts_of(result)
    if parts is not None:
        _table_of_parts(names, *parts)
    click.echo(
        f"{result['parameters']:,} parameters, {amount(result['bytes_read'], 'bytes')} read, "
        f"{result['seconds']:.1f} s"
    )


def _table_of_parts(
    names: Sequence[str], heading: str, parts: Sequence[tuple[str, Mapping[str, Any]]]
) -> None:
    cut = [shortened(name, columns() // 2) for name in names]
    pairs = [f"{b} & {a}" for i, a in enumerate(cut) for b in cut[:i]]
    rows = [[x for i, row in enumerate(part["matrix"]) for x in row[:i]] for _, part in parts]
    table = fit([label for label, _ in parts], rows)
    shown = len(table[0]) - 1
    if len(names) > 2:
        which = "" if shown == len(pairs) else f"first {shown} of {len(pairs)} "
        echo_hanging("", f"by {heading}, the {which}columns are: {'; '.join(pairs[:shown])}")
    for label, *cells in table:
        click.echo(f"{' '.join(cells)}  {label}")


def _parts_of(result: Mapping[str, Any]) -> tuple[str, list[tuple[str, Mapping[str, Any]]]] | None:
    """What --by gave, by the words for it; None where it gave the models alone."""
    if "tensors" in result:
        return "tensor", [(part["name"], part) for part in result["tensors"]]
    if "kinds" in result:
        return "kind", [(part["kind"], part) for part in result["kinds"]]
    if "layers" in result:
        layers = result["layers"]
        return "layer", [
            (_OUTSIDE if part["layer"] is None else str(part["layer"]), part) for part in layers
        ]
    return None


def _numbers(values: Sequence[Sequence[float | None]]) -> list[list[float]]:
    return [[float("nan") if x is None else x for x in row] for row in values]


_FORMS: Mapping[str, Callable[[Mapping[str, Any]], None]] = {
    "table": _table,
    "json": _json,
    "csv": _csv,
}
