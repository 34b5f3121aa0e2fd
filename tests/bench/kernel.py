"""The Gram kernel alone, in this process, beside a subtraction that reads the same bytes."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tests.bench.bench import Bench
from tests.bench.models import Family, warm
from tests.bench.table import Row, verdict
from torch import Tensor

from kinship_daemon.weights import gram
from kinship_daemon.weights.checkpoint import Checkpoint
from kinship_daemon.weights.descendant import descend

__all__ = ["kernel", "small"]

_COUNTS = (2, 4, 8, 16)
_TENSORS = 12
_BLOCK = 1 << 18
_LEAST_SECONDS = 0.3


def small(parameters: float) -> float:
    """Parameters of models of which 17 take the memory of one; larger ones would tell no more."""
    return min(parameters, 0.85e9) / 16


def kernel(bench: Bench) -> list[Row]:
    bench.progress.runs("making models for the Gram kernel")
    family = Family(bench.folder, small(bench.parameters))
    base, leaves = family.base, family.leaves(max(_COUNTS))
    warm([base, *leaves])
    return [_row(bench, base, leaves[:count]) for count in _COUNTS]


def _row(bench: Bench, base: Path, leaves: Sequence[Path]) -> Row:
    count = len(leaves)
    bench.progress.runs(f"Gram kernel, {count} models")
    whole = Checkpoint.open(base)
    largest = sorted(whole.tensors, key=lambda name: (-whole.tensors[name].nbytes, name))
    kept = {name: whole.tensors[name] for name in sorted(largest[:_TENSORS])}
    opened = replace(whole, tensors=kept)
    models = {folder.name: descend(whole, folder) for folder in leaves}
    start = gram.start(opened, "base")
    tensors = [_flats(name, [base, *leaves]) for name in kept]
    read = sum(flat.nbytes for flats in tensors for flat in flats)
    ours, peer = float("inf"), float("inf")
    for _ in range(2 * bench.repeat):
        ours = min(ours, _seconds(lambda: gram.extend(start, opened, {}, models)))
        peer = min(peer, _seconds(lambda: _subtract(tensors)))
    speed, subtract = read / ours / 1e9, read / peer / 1e9
    wanted = count == 8
    return Row(
        f"Gram kernel alone, n={count}",
        f"{speed:.1f} GB/s of bf16",
        f"{subtract:.1f} GB/s bf16 to fp32 subtract",
        f"{speed / subtract:.2f} of it",
        "3.5 GB/s or half of the subtract" if wanted else "",
        verdict(speed >= 3.5 or speed >= subtract / 2) if wanted else "measured",
        facts={"bytes": read, "seconds": [ours, peer]},
    )


def _flats(name: str, folders: Sequence[Path]) -> list[Tensor]:
    return [Checkpoint.open(folder).tensor(name).reshape(-1) for folder in folders]


def _subtract(tensors: Sequence[Sequence[Tensor]]) -> None:
    """Every difference from the base in fp32, into a block that stays in the cache."""
    base_block, difference = torch.empty(_BLOCK), torch.empty(_BLOCK)
    for base, *leaves in tensors:
        for begin in range(0, base.numel(), _BLOCK):
            length = min(_BLOCK, base.numel() - begin)
            held = base_block[:length].copy_(base[begin : begin + length])
            for leaf in leaves:
                difference[:length].copy_(leaf[begin : begin + length]).sub_(held)


def _seconds(work: Callable[[], object]) -> float:
    """Mean of as many as make the clock exact."""
    times, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < _LEAST_SECONDS or not times:
        work()
        times += 1
    return spent / times
