"""The same work with a GPU: ledger against copy speed, merges into device memory, correctness."""

import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path

import torch
from tests.bench.bench import Bench
from tests.bench.kernel import small
from tests.bench.models import Family, warm
from tests.bench.table import Row, gigabytes, verdict

from kinship_daemon.weights import gram
from kinship_daemon.weights.assembly import Assembly, assemble
from kinship_daemon.weights.checkpoint import Checkpoint
from kinship_daemon.weights.descendant import descend
from kinship_daemon.weights.live_model import live_model
from kinship_daemon.weights.recipe import Recipe, combine, leaf

__all__ = ["device"]

_COPY_BYTES = 1 << 30
_LEAVES = 5


def device(bench: Bench) -> list[Row]:
    if not torch.cuda.is_available():
        return [Row("device", verdict="skipped", notes=("there is no CUDA device here.",))]
    bench.progress.runs("making models for the device")
    family = bench.family
    base, leaves = family.base, _leaves(family, bench.models)
    warm([base, *leaves.values()])
    bench.progress.runs("device: ledger and copies")
    made, row = _ledger(bench, base, leaves)
    bench.progress.runs("device: merges into its memory")
    merges = [_materialise(bench, made, base, leaves, count) for count in (2, _LEAVES)]
    bench.progress.runs("device: beside the CPU")
    return [row, *merges, _beside_cpu(Family(bench.folder, small(bench.parameters)), bench.models)]


def _leaves(family: Family, models: int) -> dict[str, Path]:
    """Five rows; where there are fewer models, some stand for two."""
    folders = islice(cycle(family.leaves(min(models, _LEAVES))), _LEAVES)
    return {f"leaf-{index}": folder for index, folder in enumerate(folders)}


def _measure(base: Path, leaves: dict[str, Path], on: str) -> gram.Ledger:
    opened = Checkpoint.open(base)
    models = {name: descend(opened, folder) for name, folder in leaves.items()}
    return gram.extend(gram.start(opened, "base"), opened, {}, models, device=on)


def _ledger(bench: Bench, base: Path, leaves: dict[str, Path]) -> tuple[gram.Ledger, Row]:
    opened = Checkpoint.open(base)
    models = {name: descend(opened, folder) for name, folder in leaves.items()}
    start = gram.start(opened, "base")
    made = gram.extend(start, opened, {}, models, device="cuda")
    seconds = _best(bench.repeat, lambda: gram.extend(start, opened, {}, models, device="cuda"))
    speed = opened.nbytes * (1 + len(leaves)) / seconds / 1e9
    pinned = torch.empty(_COPY_BYTES, dtype=torch.uint8).pin_memory()
    there = torch.empty_like(pinned, device="cuda")
    copies = _best(max(3, bench.repeat), lambda: there.copy_(pinned, non_blocking=True))
    rate = _COPY_BYTES / copies / 1e9
    return made, Row(
        f"ledger of {len(leaves)} models on the device",
        f"{seconds:.2f} s, {speed:.1f} GB/s",
        f"{rate:.1f} GB/s pinned host to device",
        f"{speed / rate:.2f} of it",
        facts={"seconds": seconds, "copy": rate},
    )


def _materialise(
    bench: Bench, ledger: gram.Ledger, base: Path, leaves: dict[str, Path], count: int
) -> Row:
    made = _merge(ledger, base, leaves, count)
    torch.cuda.reset_peak_memory_stats()
    seconds = _best(bench.repeat, lambda: live_model(made, dtype=torch.bfloat16, device="cuda"))
    return Row(
        f"merge of {count} into device memory",
        f"{seconds:.2f} s",
        facts={"seconds": seconds},
        notes=(f"peak device memory {gigabytes(torch.cuda.max_memory_allocated())}.",),
    )


def _merge(ledger: gram.Ledger, base: Path, leaves: dict[str, Path], count: int) -> Assembly:
    parents = tuple(ledger.rows[:count])
    recipe = Recipe("linear", parents, {"weight": [1.0 + i for i in range(count)]})
    child = combine(ledger, recipe, [leaf(ledger, row) for row in parents])
    return assemble(ledger, child, base, leaves, "merge", donor=base)


def _beside_cpu(family: Family, models: int) -> Row:
    base, leaves = family.base, _leaves(family, models)
    on_cpu, on_cuda = (_measure(base, leaves, on) for on in ("cpu", "cuda"))
    scale = on_cpu.gram.diagonal(dim1=1, dim2=2).sqrt()
    off = (on_cpu.gram - on_cuda.gram).abs() / (scale[:, :, None] * scale[:, None, :])
    worst = float(off.nan_to_num().max())  # 0 of 0 where a tensor has not changed
    merge = _merge(on_cpu, base, leaves, _LEAVES)
    first, second = (
        live_model(merge, dtype=torch.bfloat16, device=on).state_dict() for on in ("cpu", "cuda")
    )
    differing = sum(int((first[name] != second[name].cpu()).sum()) for name in first)
    elements = sum(weight.numel() for weight in first.values())
    return Row(
        "device beside the CPU",
        f"inner products {worst:.1e} off, relative to the lengths",
        ratio=f"{differing} of {elements} elements of a merge differ",
        bar="1e-6; 0.1 % of the elements",
        verdict=verdict(worst <= 1e-6, differing <= elements / 1000),
    )


def _best(repeat: int, work: Callable[[], object]) -> float:
    """Seconds until the device has done it."""
    seconds: Sequence[float] = []
    for _ in range(repeat):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        seconds = [*seconds, time.perf_counter() - start]
    return min(seconds)
