"""`kinship --sample`: kinship with intervals from a small part of the weights, nothing fetched."""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from kinship_daemon import demo, sampling
from kinship_daemon.cli.ancestry import origin_lines, origins
from kinship_daemon.cli.figures import cell, matrix_and_mean, plain, short
from kinship_daemon.cli.ledger import check_adapter
from kinship_daemon.errors import KinshipError, UsageError
from kinship_daemon.hub.bases import cached_repo, resolve_base
from kinship_daemon.hub.names import slug, user_path
from kinship_daemon.hub.open import open_hub
from kinship_daemon.hub.records import Hub
from kinship_daemon.layout import columns, echo_hanging, shortened
from kinship_daemon.models import Found, cache_folder, hub_for
from kinship_daemon.report import Advance, Reporter, amount, count, reporter
from kinship_daemon.weights.adapter import is_adapter
from kinship_daemon.weights.checkpoint import Checkpoint
from kinship_daemon.weights.descendant import Descendant, descend
from kinship_daemon.weights.fit import refuse_other_calculation
from kinship_daemon.weights.kinship import Metric
from kinship_daemon.weights.sample.estimate import estimate
from kinship_daemon.weights.sample.jackknife import interval
from kinship_daemon.weights.sample.plan import Plan, plan
from kinship_daemon.weights.sample.take import BaseSample, Sample, base_sample, take_local
from kinship_daemon.weights.sample.tokens import Tokens

__all__ = ["csv_lines", "sampled_kinship", "table"]


@dataclass(frozen=True)
class _Place:
    """
    A model whose headers were read.

    Attributes:
        folder: Where it lies, if that is here.
        revision: Of the repo, if it is on a hub.
    """

    tokens: Tokens
    folder: Path | None = None
    repo: str = ""
    revision: str = ""


@dataclass
class _Reading:
    """The base, the models, and what was read of them so far."""

    report: Reporter
    hub: Hub | None
    where: str
    stack: ExitStack
    places: list[_Place] = field(default_factory=list)
    adapters: list[Descendant] = field(default_factory=list)

    def folder(self, name: str, folder: Path) -> _Place:
        return self._kept(_Place(sampling.in_folder(folder, name), folder))

    def repo(self, name: str, repo_id: str, revision: str | None) -> _Place:
        self.hub = self.hub or open_hub(self.where)
        repo = self.hub.repo(repo_id, revision)
        ranges = self.stack.enter_context(closing(self.hub.ranges(repo)))
        found = sampling.on_hub(repo, ranges, name)
        return self._kept(_Place(found, None, repo.id, repo.revision))

    def _kept(self, place: _Place) -> _Place:
        self.places.append(place)
        return place

    @property
    def bytes_read(self) -> int:
        own = sum(place.tokens.source.ranges.bytes_read for place in self.places)
        return own + sum(adapter.nbytes for adapter in self.adapters)

    @property
    def bytes_all(self) -> int:
        own = sum(place.tokens.source.nbytes for place in self.places)
        return own + sum(adapter.nbytes for adapter in self.adapters)


def sampled_kinship(
    models: Sequence[str],
    base: str,
    metric: Metric,
    fraction: float,
    hub: str | None,
    *,
    otherwise: bool,
    ancestry: bool = False,
) -> dict[str, Any]:
    """
    What --format json prints.

    Args:
        ancestry: Also tell where each model comes from.

    Raises:
        KinshipError: A model is named twice, is not there, or cannot be a sibling of the others.
    """
    if twice := sorted({name for name in models if models.count(name) > 1}):
        raise UsageError(f"{twice[0]} is named twice; name each model once")
    start = time.monotonic()
    report = reporter(log_json=False, stream=sys.stderr)
    with ExitStack() as stack:
        reading = _Reading(report, None, hub_for(base, hub), stack)
        foundation = _base(reading, base)
        scheme = plan(foundation.tokens.source.tensors, fraction=fraction)
        found = [_model(reading, name, foundation) for name in models]
        if not otherwise:
            for each in found:
                if isinstance(each, _Place):
                    refuse_other_calculation(foundation.tokens.source, each.tokens.source)
        kept = _kept_sample(foundation, scheme)
        total = scheme.nbytes * (len(models) + (kept is None))
        with report.progress(f"sample of {count(len(models), 'model')}", total, "bytes") as advance:
            own = kept or _new_sample(foundation, scheme, advance, report)
            taken = [_take(scheme, own, foundation, each, advance) for each in found]
        read, whole = reading.bytes_read, reading.bytes_all
    left_out = {
        name: each.without_vocabulary
        for name, each in zip(models, taken, strict=True)
        if each.without_vocabulary is not None
    }
    samples = [each.sample for each in taken]
    facts = _values(samples, metric)
    if ancestry:
        facts["ancestry"] = origins(dict(zip(models, samples, strict=True)), own)
    return {
        "base": base,
        "metric": metric,
        "models": list(models),
        "fraction": fraction,
        **facts,
        "parameters": sum(info.elements for info in scheme.tensors.values()),
        "bytes_read": read,
        "bytes_of_models": whole,
        "without_vocabulary": left_out,
        "seconds": round(time.monotonic() - start, 3),
    }


def table(result: Mapping[str, Any]) -> None:
    (base,) = short([result["base"]])
    echo_hanging("", f"{result['metric']} of deltas from {base}, estimated, with 95 % intervals")
    # Of 80 columns the numbers take 33; the rest is for two names.
    most = max((columns() - 33 - len(" & ")) // 2, 12)
    names = [shortened(name, most) for name in short(result["models"])]
    pairs = list(_pairs(result, names))
    width = max(len(f"{a} & {b}") for a, b, *_ in pairs)
    for a, b, value, low, high, _ in pairs:
        ends = "" if value is None else f"  {cell(low)} to {cell(high).strip()}"
        click.echo(f"{f'{a} & {b}':<{width}}  {cell(value)}{ends}")
    if len(result["models"]) > 2:
        click.echo(f"mean over pairs {cell(result['mean'])}")
    for line in origin_lines(result.get("ancestry", ())):
        echo_hanging("", line)
    for reason in result["without_vocabulary"].values():
        echo_hanging("without embeddings and head: ", reason)
    share = result["bytes_read"] / result["bytes_of_models"]
    click.echo(
        f"{result['parameters']:,} parameters, {amount(result['bytes_read'], 'bytes')} read, "
        f"{100 * share:.2f} % of the models, {result['seconds']:.1f} s"
    )


def csv_lines(result: Mapping[str, Any]) -> None:
    out = csv.writer(sys.stdout)
    out.writerow(["a", "b", "kinship", "low", "high", "error", "bytes_read"])
    for row in _pairs(result, result["models"]):
        out.writerow([*row, result["bytes_read"]])


def _pairs(result: Mapping[str, Any], names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """Each pair's names, value, ends of the interval and standard error."""
    for i, a in enumerate(names):
        for j, b in enumerate(names[:i]):
            yield b, a, *(result[key][i][j] for key in ("matrix", "low", "high", "error"))


def _values(samples: Sequence[Sample], metric: Metric) -> dict[str, Any]:
    found = estimate(samples, metric)
    low, high = interval(found, metric)
    ends = {"low": plain(low), "high": plain(high), "error": plain(found.error)}
    return {**matrix_and_mean(found.value), **ends}


def _base(reading: _Reading, text: str) -> _Place:
    if text == "demo":
        return reading.repo(text, demo.BASE, None)
    base = resolve_base(text)
    if base.path is not None:
        return reading.folder(text, base.path)
    return reading.repo(text, base.id, base.revision)


def _model(reading: _Reading, name: str, base: _Place) -> _Place | Descendant:
    folder = user_path(name)
    if not folder.is_dir():
        if folder.is_absolute() or name.startswith("."):
            raise UsageError(f"no folder {name}")
        repo, _, revision = name.partition("@")
        return reading.repo(name, repo, revision or None)
    if not is_adapter(folder):
        return reading.folder(name, folder)
    if base.folder is None:
        raise UsageError(f"{name}: an adapter, whose base must be here too: --base FOLDER")
    own = Found(base.tokens.source.name, base.folder, cached_repo(base.folder))
    check_adapter(Found(name, folder), own)
    adapter = descend(Checkpoint.open(base.folder), folder)
    reading.adapters.append(adapter)
    return adapter


def _take(
    scheme: Plan,
    own: BaseSample,
    base: _Place,
    model: _Place | Descendant,
    advance: Advance,
) -> sampling.Taken:
    if isinstance(model, Descendant):
        advance(scheme.nbytes)
        return sampling.Taken(take_local(scheme, own, model))
    return sampling.sampled(scheme, own, base.tokens, model.tokens, advance)


def _kept_sample(base: _Place, scheme: Plan) -> BaseSample | None:
    """The base's sample of an earlier call; None where there is none, or a damaged one."""
    path = _cached(base, scheme)
    if path is None or not path.is_file():
        return None
    try:
        return BaseSample.load(path, scheme)
    except KinshipError:
        return None  # written anew


def _new_sample(base: _Place, scheme: Plan, advance: Advance, report: Reporter) -> BaseSample:
    made = base_sample(scheme, base.tokens.source, advance)
    path = _cached(base, scheme)
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            made.save(path)
        except (OSError, KinshipError) as error:
            report.event("warning", f"the base's sample is not kept: {error}")
    return made


def _cached(base: _Place, scheme: Plan) -> Path | None:
    """Where a base's sample is kept; nowhere if the base is in a folder, and quickly read."""
    if not base.revision:
        return None
    name = f"{slug(base.repo)}@{base.revision}-{scheme.identity}.safetensors"
    return cache_folder() / "samples" / name
