"""Kinship of merges that do not exist, from the ledger of 16 models of 7 billion parameters."""

import time
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import torch
from tests.bench.bench import Bench
from tests.bench.models import config, shapes
from tests.bench.table import Row, verdict

from kinship_daemon.weights.gram import Ledger
from kinship_daemon.weights.kinship import matrix
from kinship_daemon.weights.recipe import Coefficients, Recipe, combine, leaf

__all__ = ["unborn"]

_CHILDREN = 1000
_LEAVES = 16
_MISTRAL = 7.24e9
# Slow code is not timed again and again.
_PATIENCE_SECONDS = 30
# Rows as vectors of this many numbers, so that their inner products are those of something.
_DIMENSIONS = 64


def unborn(bench: Bench) -> list[Row]:
    path = bench.scratch / "ledger.safetensors"
    ledger = _random_ledger()
    ledger.save(path)
    # Once unclocked: what is imported late is no part of it.
    _kinships(path, 2)
    bench.progress.runs(f"kinship of {_CHILDREN} unborn children")
    seconds: list[float] = []
    read = 0
    while len(seconds) < bench.repeat and sum(seconds) < _PATIENCE_SECONDS:
        before, start = _bytes_read(), time.perf_counter()
        found = _kinships(path, _CHILDREN)
        seconds.append(time.perf_counter() - start)
        read = max(read, _bytes_read() - before)
    assert bool(found.isfinite().all())
    weights = 2 * sum(ledger.sizes) * _LEAVES
    return [
        Row(
            f"kinship of {_CHILDREN:,} unborn children of {_LEAVES} leaves",
            f"{min(seconds):.2f} s",
            "",
            f"{min(seconds):.2f} of the time",
            "under 1 s, no bytes of weights",
            verdict(min(seconds) < 1, read < weights / 10_000),
            notes=(
                f"in this process, from a saved ledger of random numbers in the shape of "
                f"Mistral-7B's: loading it, combining {_CHILDREN:,} recipes (slerp and linear, of "
                f"leaves and of such merges), and each child's pcc with every leaf. There are no "
                f"weights to read; {read:,} bytes were read of the ledger and anything else.",
            ),
            facts={"seconds": seconds, "read": read},
        )
    ]


def _kinships(path: Path, count: int) -> torch.Tensor:
    """pcc of each child with each leaf, (count, leaves) float64."""
    ledger = Ledger.load(path)
    leaves = [leaf(ledger, row) for row in ledger.rows]
    children = _children(ledger, leaves, count)
    # Children with each other, too: all come from the same few products of matrices.
    return matrix(ledger, [*children, *leaves], "pcc")[:count, count:]


def _children(ledger: Ledger, leaves: Sequence[Coefficients], count: int) -> list[Coefficients]:
    """First of all pairs of leaves, then of pairs among the children before."""
    pairs = list(combinations(range(_LEAVES), 2))
    children: list[Coefficients] = []
    for index in range(count):
        parents = leaves if index < len(pairs) else children[-_LEAVES:]
        first, second = pairs[index % len(pairs)]
        share = 0.2 + 0.6 * index / count
        slerp = Recipe("slerp", ("a", "b"), {"t": share})
        linear = Recipe("linear", ("a", "b"), {"weight": [share, 1 - share]})
        recipe = slerp if index % 2 else linear
        children.append(combine(ledger, recipe, [parents[first], parents[second]]))
    return children


def _random_ledger() -> Ledger:
    """Of Mistral-7B's shape; true inner products, of short random vectors."""
    settings = config(_MISTRAL)
    sizes = {name: torch.Size(shape).numel() for name, shape in sorted(shapes(settings).items())}
    noise = torch.Generator().manual_seed(0)
    rows = torch.randn(len(sizes), _LEAVES + 2, _DIMENSIONS, dtype=torch.float64, generator=noise)
    # Lengths as in a model: weights of 0.02, deltas of 0.001.
    scale = torch.tensor([0.02, *[0.001] * _LEAVES], dtype=torch.float64)
    rows[:, 1:] *= scale[:, None] / _DIMENSIONS**0.5
    rows[:, 0] = torch.eye(1, _DIMENSIONS, dtype=torch.float64)
    rows *= torch.tensor(list(sizes.values()), dtype=torch.float64).sqrt()[:, None, None]
    names = tuple(f"leaf-{index:02}" for index in range(_LEAVES))
    gram = rows @ rows.transpose(1, 2)
    return Ledger("base", names, tuple(sizes), tuple(sizes.values()), (gram + gram.mT) / 2)


def _bytes_read() -> int:
    """By this process, from disk or from the page cache."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return max(int(fields["rchar"]), int(fields["read_bytes"]))
