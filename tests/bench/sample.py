"""The sample: its intervals, what it reads, and how fast a newcomer is compared with thousands."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tests.bench.bench import Bench
from tests.bench.kinships import truths
from tests.bench.processes import kinship_daemon, timed
from tests.bench.table import Row, verdict
from tests.varied_models import family

from kinship_daemon.sampling import in_folder
from kinship_daemon.weights import gram
from kinship_daemon.weights.checkpoint import Checkpoint
from kinship_daemon.weights.descendant import descend
from kinship_daemon.weights.kinship import METRICS, Metric, matrix
from kinship_daemon.weights.recipe import leaf
from kinship_daemon.weights.remote import Remote
from kinship_daemon.weights.sample.estimate import estimate
from kinship_daemon.weights.sample.jackknife import LEVEL, Estimate, interval
from kinship_daemon.weights.sample.plan import plan
from kinship_daemon.weights.sample.sketch import compare, sketch
from kinship_daemon.weights.sample.take import Sample, base_sample, take

__all__ = ["sample"]

_FRACTION = 0.002
_SEEDS = 40
_POPULATION = 10_000


def sample(bench: Bench) -> list[Row]:
    base, first, second = bench.pair()
    return [
        _pair(bench, base, first, second),
        _population(bench, base, [first, second]),
        *_coverage(bench),
    ]


def _pair(bench: Bench, base: Path, first: Path, second: Path) -> Row:
    bench.progress.runs("kinship of a pair from a sample")
    options = ("--base", base, "--format", "json", "--sample", _FRACTION)
    runs = [timed(kinship_daemon("kinship", first, second, *options)) for _ in range(bench.repeat)]
    found = json.loads(runs[0].out)
    bench.progress.runs("kinship of the pair in float64")
    truth = truths(base, first, second)["pcc"]
    value, low, high = (found[key][0][1] for key in ("matrix", "low", "high"))
    half, share = LEVEL * found["error"][0][1], found["bytes_read"] / found["bytes_of_models"]
    # Small models are read beyond the fraction.
    small = found["bytes_of_models"] / 3 < 100e6
    return Row(
        f"kinship from {_FRACTION:.1%} of the weights",
        f"pcc {value:.4f}, {low:.4f} to {high:.4f}; {min(run.seconds for run in runs):.2f} s",
        f"{truth:.4f} in float64",
        f"half width {half:.4f}, {share:.2%} of the bytes read",
        "half width 0.02, 0.5 % of the bytes",
        verdict(half <= 0.02, share <= 0.005 or small),
        facts={"value": value, "half": half, "truth": truth, "share": share},
    )


def _population(bench: Bench, base: Path, leaves: Sequence[Path]) -> Row:
    bench.progress.runs(f"a newcomer and {_POPULATION:,} compact vectors")
    vectors = [
        sketch(taken) for taken in _taken(_remote(base), [_remote(folder) for folder in leaves])
    ]
    # Each its own bytes, as they come from a database.
    population = [bytes(bytearray(vectors[i % len(vectors)])) for i in range(_POPULATION)]
    seconds = []
    for _ in range(max(3, bench.repeat)):
        start = time.perf_counter()
        found = compare(vectors[0], population, "pcc")
        seconds.append(time.perf_counter() - start)
    half = LEVEL * float(found.error[1])
    return Row(
        f"a newcomer and {_POPULATION:,} compact vectors",
        f"{min(seconds):.2f} s; pcc {float(found.value[1]):.4f}, half width {half:.4f}",
        bar="2 s on 2 cores",
        verdict=verdict(min(seconds) <= 2),
        facts={"seconds": seconds, "half": half, "bytes": len(vectors[0])},
    )


def _coverage(bench: Bench) -> list[Row]:
    """Of models unlike each other and inside: how often the intervals hold the exact value."""
    bench.progress.runs("coverage of the intervals")
    base, leaves = family(bench.scratch / "unrelated", hidden=512, layers=6, vocabulary=8000)
    truth = _truth(base, leaves)
    source, models = _remote(base), [_remote(folder) for folder in leaves.values()]
    held: dict[tuple[str, Metric], list[bool]] = {}
    errors: dict[tuple[str, Metric], list[float]] = {}
    for seed in range(_SEEDS):
        taken = _taken(source, models, seed)
        vectors = [sketch(each) for each in taken]
        for metric in METRICS:
            found = {"sample": estimate(taken, metric), "vector": _by_vectors(vectors, metric)}
            for kind, estimates in found.items():
                inside, error = _held(estimates, truth[metric], metric)
                held.setdefault((kind, metric), []).extend(inside)
                errors.setdefault((kind, metric), []).extend(error)
    return [_coverage_row(kind, held, errors) for kind in ("sample", "vector")]


def _coverage_row(
    kind: str,
    held: dict[tuple[str, Metric], list[bool]],
    errors: dict[tuple[str, Metric], list[float]],
) -> Row:
    shares = {m: sum(held[kind, m]) / len(held[kind, m]) for m in METRICS}
    half = LEVEL * float(torch.tensor(errors[kind, "pcc"]).median())
    return Row(
        f"95 % intervals by {kind} of strange models",
        ", ".join(f"{metric} {share:.1%}" for metric, share in shares.items()),
        ratio=f"half width of pcc {half:.3f} (median)",
        bar="90 % hold the exact value",
        verdict=verdict(min(shares.values()) >= 0.9),
        notes=(f"{len(held[kind, 'pcc'])} pairs and seeds each.",),
        facts={"shares": shares, "half": half},
    )


def _held(found: Estimate, truth: torch.Tensor, metric: Metric) -> tuple[list[bool], list[float]]:
    rows, columns = torch.triu_indices(len(truth), len(truth), 1)
    low, high = interval(found, metric)
    inside = ((low <= truth) & (truth <= high))[rows, columns].tolist()
    return inside, found.error[rows, columns].tolist()


def _by_vectors(vectors: Sequence[bytes], metric: Metric) -> Estimate:
    rows = [compare(vector, vectors, metric) for vector in vectors]
    return Estimate(torch.stack([r.value for r in rows]), torch.stack([r.error for r in rows]))


def _truth(base: Path, leaves: dict[str, Path]) -> dict[Metric, torch.Tensor]:
    opened = Checkpoint.open(base)
    models = {name: descend(opened, folder) for name, folder in leaves.items()}
    ledger = gram.extend(gram.unmeasured(opened, "base"), opened, {}, models)
    return {
        metric: matrix(ledger, [leaf(ledger, name) for name in leaves], metric)
        for metric in METRICS
    }


def _taken(base: Remote, models: Sequence[Remote], seed: int = 0) -> list[Sample]:
    scheme = plan(base.tensors, fraction=_FRACTION, seed=seed)
    own = base_sample(scheme, base)
    return [take(scheme, own, model) for model in models]


def _remote(folder: Path) -> Remote:
    return in_folder(folder).source
