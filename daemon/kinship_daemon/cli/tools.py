"""`kinship`, `merge`, `evaluate`: single steps of the loop by hand, without a home."""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import torch

from kinship_daemon import config as configuration
from kinship_daemon.cli.options import config_options
from kinship_daemon.device import resolve_device
from kinship_daemon.errors import UsageError
from kinship_daemon.evaluate.worker import Evaluator
from kinship_daemon.home import state_directory
from kinship_daemon.models import Found, find_base, find_models
from kinship_daemon.opening import evaluation_settings
from kinship_daemon.report import absolute, amount, reporter
from kinship_daemon.weights import gram
from kinship_daemon.weights.checkpoint import Checkpoint, compare
from kinship_daemon.weights.kinship import by_tensor, matrix, mean_pairwise
from kinship_daemon.weights.materialise import assemble, leaf_assembly, write
from kinship_daemon.weights.mergekit import read_yaml
from kinship_daemon.weights.recipe import check, combine, leaf

__all__ = ["evaluate_command", "kinship_command", "merge_command"]

_device = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True
)
_hub = click.option("--hub", help="Where ids that are no folders are looked up.")


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
@_device
@click.option(
    "form",
    "--format",
    type=click.Choice(["table", "json", "csv"]),
    default="table",
    show_default=True,
)
@_hub
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
    ledger, read = _ledger(found_base, found, device)
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


def _ledger(base: Found, models: Sequence[Found], device: str) -> tuple[gram.Ledger, int]:
    """The ledger of some checkpoints, rows named as the user named them, and the bytes read."""
    foundation = Checkpoint.open(base.folder)
    checkpoints = {model.name: Checkpoint.open(model.folder) for model in models}
    for checkpoint in checkpoints.values():
        compare(foundation, checkpoint)
    total = foundation.nbytes + sum(c.nbytes for c in checkpoints.values())
    report = reporter(log_json=False, stream=sys.stderr)
    chosen = resolve_device(device)
    with report.progress(f"kinship of {len(checkpoints)} models", total, "bytes") as advance:
        start = gram.start(foundation, base.name)
        ledger = gram.extend(start, foundation, {}, checkpoints, device=chosen, progress=advance)
    return ledger, total


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


@click.command("merge")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@_device
@_hub
def merge_command(recipe: Path, out: Path, device: str, hub: str | None) -> None:
    """Make a model from RECIPE, mergekit's YAML, in the folder OUT."""
    try:
        text = recipe.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {recipe}: {error}") from None
    wanted = read_yaml(text)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists and is not empty; name a new folder")
    names = dict.fromkeys((wanted.base, *wanted.recipe.parents))
    base, *others = find_models(list(names), None, hub)
    tensors = tuple(Checkpoint.open(base.folder).tensors)
    wanted.check(tensors)
    check(wanted.recipe, tensors)
    ledger, _ = _ledger(base, others, device)
    parents = [leaf(ledger, name) for name in wanted.recipe.parents]
    made = assemble(
        ledger,
        combine(ledger, wanted.recipe, parents),
        base.folder,
        {model.name: model.folder for model in others},
        wanted.recipe.identity(wanted.recipe.parents),
        donor=base.folder,
    )
    report = reporter(log_json=False, stream=sys.stderr)
    size = Checkpoint.open(base.folder).nbytes
    dtype = None if wanted.dtype is None else getattr(torch, wanted.dtype)
    with report.progress(f"write {out}", size, "bytes") as advance:
        files = write(made, out, dtype=dtype, progress=advance)
    click.echo(f"{out}: {wanted.recipe.method} of {', '.join(wanted.recipe.parents)}")
    for name, sha256 in files.items():
        click.echo(f"{sha256}  {name}")


@click.command("evaluate")
@click.argument("model")
@config_options
@click.option(
    "--split",
    type=click.Choice(["selection", "validation"]),
    default="selection",
    show_default=True,
)
@click.option(
    "form", "--format", type=click.Choice(["table", "json"]), default="table", show_default=True
)
def evaluate_command(
    model: str,
    config_file: Path | None,
    overrides: tuple[str, ...],
    split: Any,
    form: str,
    **flags: Any,
) -> None:
    """Score MODEL, a folder or hub id, on the tasks that the daemon would use."""
    config = configuration.load(config_file, overrides=overrides, **flags)
    settings = evaluation_settings(config)
    found = find_models([model], config.base, config.hub)[0]
    Checkpoint.open(found.folder)
    report = reporter(log_json=False, stream=sys.stderr)
    log = state_directory() / "evaluate.log"
    with Evaluator(settings, log=log) as evaluator:
        evaluator.check()
        with report.progress(f"{split} of {model}", None, "documents") as advance:
            scores = evaluator.evaluate(
                leaf_assembly(found.folder, model), split, absolute(advance)
            )
    rows = [
        {
            "task": s.task,
            "metric": s.metric,
            "score": s.score,
            "stderr": s.stderr,
            "n": len(s.samples),
        }
        for s in scores
    ]
    mean = sum(s.score for s in scores) / len(scores)
    if form == "json":
        click.echo(
            json.dumps({"model": model, "split": split, "tasks": rows, "mean": mean}, indent=2)
        )
        return
    for row in rows:
        click.echo(
            f"{row['task']}: {row['metric']} {row['score']:.4f}"
            f" ± {row['stderr']:.4f} (n {row['n']})"
        )
    click.echo(f"mean {mean:.4f}")
