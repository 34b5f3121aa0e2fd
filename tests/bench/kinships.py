"""The command `kinship` beside a plain torch program: time, memory, exactness, growth."""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tests.bench.bench import Bench
from tests.bench.models import warm
from tests.bench.processes import Series, in_turns, kinship_daemon, timed
from tests.bench.table import Row, gigabytes, verdict

from kinship_daemon.weights.checkpoint import Checkpoint

__all__ = ["all_pairs", "exactness", "growth", "pair"]

_PEER = Path(__file__).parent / "peer_kinship.py"
_TRUTH_BLOCK = 1 << 18
# No kernel of ours has larger ones on a CPU: 2^18 elements in fp32.
_BLOCK_BYTES = 1 << 20
# What two runs of one program differ by: heaps grow by steps, threads' arenas come and go.
_HEAP_NOISE = 32 << 20


def pair(bench: Bench) -> list[Row]:
    base, first, second = bench.pair()
    warm([base, first, second])
    bench.progress.runs("kinship of one pair, ours and plain torch in turns")
    plain = [sys.executable, str(_PEER), str(base), str(first), str(second)]
    ours, peer = in_turns([_command(base, [first, second]), plain], bench.repeat)
    bench.progress.runs("kinship of one pair in float64")
    truth = truths(base, first, second)["pcc"]
    value, theirs = _value(ours.runs[0].out), float(peer.runs[0].out)
    ratio = peer.best / ours.best
    return [
        Row(
            "kinship of one pair",
            str(ours),
            f"{peer} transformers and torch.corrcoef",
            f"{ratio:.1f} times faster",
            "8 times faster, under 1 GB",
            verdict(ratio >= 8, ours.private < 1e9),
            f"{gigabytes(ours.private)} / {gigabytes(peer.private)}",
            (
                f"pcc {value:.8f}, of the peer {theirs:.6f}, in float64 {truth:.8f}: "
                f"off by {abs(value - truth):.1e} and {abs(theirs - truth):.1e}.",
            ),
            {"ours": _seconds(ours), "peer": _seconds(peer), "values": [value, theirs, truth]},
        )
    ]


def all_pairs(bench: Bench) -> list[Row]:
    """Per byte read; start-up, which a pair has fewer bytes to spread over, taken off both."""
    base, *pair = bench.pair()
    tiny = bench.pair(bench.sized(0))
    bench.progress.runs(f"making {bench.models} models")
    leaves = bench.family.leaves(bench.models)
    warm([base, *leaves])
    bench.progress.runs(f"all pairs of {bench.models} models and one pair in turns")
    commands = [_command(base, leaves), _command(base, pair), _command(tiny[0], tiny[1:])]
    every, one, start = in_turns(commands, bench.repeat)
    read, read_by_one = (json.loads(series.runs[0].out)["bytes_read"] for series in (every, one))
    ratio = (every.best - start.best) / read / ((one.best - start.best) / read_by_one)
    return [
        Row(
            f"all pairs of {bench.models} models",
            f"{every}, {every.best / read * 1e9:.2f} s per GB",
            f"{one}, {one.best / read_by_one * 1e9:.2f} s per GB: one pair",
            f"{ratio:.2f} times as long per byte, start-up not counted",
            "at most 2.5, one read of each",
            verdict(ratio <= 2.5, read == _weights(base, *leaves)),
            f"{gigabytes(every.private)} / {gigabytes(one.private)}",
            (f"{gigabytes(read)} read; start-up is {start.best:.2f} s, of a tiny model's pair.",),
            {name: _seconds(s) for name, s in (("all", every), ("pair", one), ("tiny", start))},
        )
    ]


def exactness(bench: Bench) -> list[Row]:
    base, first, second = bench.pair()
    bench.progress.runs("pcc and cosine of the pair and their float64 truth")
    truth = truths(base, first, second)
    values = {
        metric: _value(timed(_command(base, [first, second], metric)).out) for metric in truth
    }
    off = {metric: abs(values[metric] - truth[metric]) for metric in truth}
    return [
        Row(
            "exactness of pcc and cosine",
            ", ".join(f"{metric} {value:.9f}" for metric, value in values.items()),
            ", ".join(f"{value:.9f}" for value in truth.values()) + " in float64",
            ", ".join(f"{value:.1e}" for value in off.values()) + " off",
            "1e-6",
            verdict(max(off.values()) <= 1e-6),
            facts={"ours": values, "truth": truth},
        )
    ]


def growth(bench: Bench) -> list[Row]:
    """The pair at a quarter, half and all of the size, less what a tiny model takes."""
    families = [bench.sized(factor) for factor in (0, 0.25, 0.5, 1)]
    folders = [bench.pair(family) for family in families]
    for found in folders:
        warm(found)
    bench.progress.runs("the pair of four sizes in turns")
    commands = [_command(base, leaves) for base, *leaves in folders]
    runs = in_turns(commands, bench.repeat)
    start, quarter, half, whole = runs
    sizes = [Checkpoint.open(base).parameters for base, *_ in folders]
    # Of a quarter's work less than start-up's own scatter says nothing, nor do models of one size.
    told = sizes[1] > sizes[0] and quarter.best - start.best > 0.1 * start.best
    ratio = (whole.best - start.best) / (sizes[3] - sizes[0])
    ratio /= (quarter.best - start.best) / (sizes[1] - sizes[0]) if told else math.inf
    blocks = 4 * _BLOCK_BYTES * torch.get_num_threads()
    grown = whole.private - start.private
    spread = whole.private - quarter.private
    return [
        Row(
            "growth from a quarter to the whole size",
            f"{quarter.best:.2f}, {half.best:.2f}, {whole.best:.2f} s; {start.best:.2f} s tiny",
            "time in proportion",
            f"{ratio:.2f} times as long per parameter" if told else "too quick to tell",
            "at most 1.3; memory flat, at most n+2 blocks a thread over the interpreter",
            verdict(told, ratio <= 1.3, grown <= blocks + _HEAP_NOISE, spread <= _HEAP_NOISE),
            ", ".join(f"{series.private / 1e6:.0f}" for series in runs) + " MB tiny to whole",
            (
                f"private memory grows by {grown / 1e6:.0f} MB from {sizes[0]:,} to {sizes[3]:,} "
                f"parameters and by {spread / 1e6:.0f} MB from a quarter on; {blocks / 1e6:.0f} MB "
                f"are n+2 blocks for each of {torch.get_num_threads()} threads, and "
                f"{_HEAP_NOISE / 1e6:.0f} MB are left to the heap.",
            ),
            {"sizes": sizes, "runs": [_seconds(series) for series in runs]},
        )
    ]


def truths(base: Path, first: Path, second: Path) -> dict[str, float]:
    """pcc and cosine of two fine-tunes by their definitions, in float64."""
    opened = [Checkpoint.open(folder) for folder in (base, first, second)]
    moments = torch.zeros(3, 3, dtype=torch.float64)
    for name in opened[0].tensors:
        flats = [checkpoint.tensor(name).reshape(-1) for checkpoint in opened]
        for begin in range(0, flats[0].numel(), _TRUTH_BLOCK):
            b, x, y = (flat[begin : begin + _TRUTH_BLOCK].double() for flat in flats)
            rows = torch.stack([torch.ones_like(b), x - b, y - b])
            moments += rows @ rows.T
    means = moments[0, 1:, None] * moments[0, None, 1:] / moments[0, 0]
    return {
        metric: float(dots[0, 1] / (dots[0, 0] * dots[1, 1]).sqrt())
        for metric, dots in (("pcc", moments[1:, 1:] - means), ("cosine", moments[1:, 1:]))
    }


def _command(base: Path, leaves: Sequence[Path], metric: str = "pcc") -> list[str]:
    form = ("--format", "json", "--metric", metric, "--device", "cpu")
    return kinship_daemon("kinship", *leaves, "--base", base, *form)


def _value(out: str) -> float:
    return float(json.loads(out)["matrix"][0][1])


def _weights(*folders: Path) -> int:
    return sum(Checkpoint.open(folder).nbytes for folder in folders)


def _seconds(series: Series) -> list[float]:
    return [round(run.seconds, 3) for run in series.runs]
