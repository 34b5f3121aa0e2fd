"""`kinship-daemon merge` beside mergekit, given the same YAML: time, memory, and the outputs."""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml
from tests.bench.bench import Bench
from tests.bench.models import warm
from tests.bench.processes import in_turns, kinship_daemon
from tests.bench.table import Row, filesystem, gigabytes, verdict
from torch import Tensor

from kinship_daemon.weights.checkpoint import Checkpoint

__all__ = ["linear", "slerp", "ties"]

_BLOCK = 1 << 22
# Of the inputs: what mergekit's factors, from fp32 angles, were seen to be off by, and some more;
# a bf16 step is 400 times that.
_ROUNDING = 1e-5
# As people write them, and as our exports say it: sums in fp32, rounded once.
_USUAL = {"dtype": "bfloat16"}
_EXACT = {"dtype": "float32", "out_dtype": "bfloat16"}


def linear(bench: Bench) -> list[Row]:
    _, first, second = bench.pair()
    models = [_model(first, weight=0.6), _model(second, weight=0.4)]
    return _rows(bench, {"merge_method": "linear", "models": models}, 3)


def slerp(bench: Bench) -> list[Row]:
    _, first, second = bench.pair()
    models = [_model(first), _model(second)]
    recipe = {"merge_method": "slerp", "base_model": str(first), "models": models}
    return _rows(bench, recipe | {"parameters": {"t": 0.4}}, 8)


def ties(bench: Bench) -> list[Row]:
    base, first, second = bench.pair()
    models = [_model(first, weight=0.5, density=0.5), _model(second, weight=0.5, density=0.5)]
    recipe = {"merge_method": "ties", "base_model": str(base), "models": models}
    return _rows(bench, recipe | {"parameters": {"normalize": True}}, 8, span=False)


def _model(folder: Path, **parameters: float) -> dict[str, Any]:
    return {"model": str(folder)} | ({"parameters": parameters} if parameters else {})


def _rows(bench: Bench, recipe: dict[str, Any], bar: float, *, span: bool = True) -> list[Row]:
    name = recipe["merge_method"]
    if find_spec("mergekit") is None:
        return [Row(f"{name} merge of 2", verdict="skipped", notes=("mergekit is missing.",))]
    warm(bench.pair())
    return [_speed(bench, name, recipe, bar), _outputs(bench, name, recipe, span=span)]


def _speed(bench: Bench, name: str, recipe: dict[str, Any], bar: float) -> Row:
    bench.progress.runs(f"{name} of 2, ours and mergekit in turns")
    commands = _commands(bench, recipe | _USUAL)
    ours, peer = in_turns(commands, bench.repeat, lambda: _emptied(bench))
    ratio = peer.best / ours.best
    found = compare(bench.out / "ours", bench.out / "theirs", bench.pair()[1:])
    return Row(
        f"{name} merge of 2",
        str(ours),
        f"{peer} mergekit",
        f"{ratio:.1f} times faster",
        f"{bar:g} times faster, less memory",
        verdict(ratio >= bar, ours.private < peer.private),
        f"{gigabytes(ours.private)} / {gigabytes(peer.private)}",
        (f"outputs with `dtype: bfloat16`: {found}; both written to {filesystem(bench.out)}.",),
        {"ours": [r.seconds for r in ours.runs], "peer": [r.seconds for r in peer.runs]},
    )


def _outputs(bench: Bench, name: str, recipe: dict[str, Any], *, span: bool) -> Row:
    bench.progress.runs(f"{name} of 2 in fp32, to compare the outputs")
    in_turns(_commands(bench, recipe | _EXACT), 1)
    found = compare(bench.out / "ours", bench.out / "theirs", bench.pair()[1:])
    _emptied(bench)
    return Row(
        f"{name}: outputs beside mergekit's",
        f"{found.share:.4%} within 1 bf16 step",
        "`dtype: float32, out_dtype: bfloat16`",
        f"{found.largest} steps at most",
        "99.9 %, never more than 2" if span else "",
        verdict(found.share >= 0.999, found.largest <= 2) if span else "measured",
        notes=(f"{found}.",),
        facts=asdict(found),
    )


def _commands(bench: Bench, recipe: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Ours and mergekit's; both outputs are new folders."""
    _emptied(bench)
    file = bench.scratch / "recipe.yml"
    file.write_text(yaml.safe_dump(dict(recipe), sort_keys=False))
    ours, theirs = bench.out / "ours", bench.out / "theirs"
    mergekit = [sys.executable, "-m", "mergekit.scripts.run_yaml", str(file), str(theirs)]
    return kinship_daemon("merge", file, ours, "--device", "cpu"), mergekit


def _emptied(bench: Bench) -> None:
    for name in ("ours", "theirs"):
        shutil.rmtree(bench.out / name, ignore_errors=True)


@dataclass
class Difference:
    """
    How far two bf16 models are from each other.

    Attributes:
        elements: Of the models.
        near: At most one bf16 step apart.
        largest: Distance in steps, where the inputs did not cancel.
        cancelled: More than two steps apart, yet by less than `_ROUNDING` of the inputs: where they
            cancel, what is left is the rounding of the factors, and its own steps are tiny.
        widest: The largest difference of those.
    """

    elements: int = 0
    near: int = 0
    largest: int = 0
    cancelled: int = 0
    widest: float = 0.0

    @property
    def share(self) -> float:
        return self.near / self.elements

    def __str__(self) -> str:
        text = f"{self.share:.5%} within 1 bf16 step, {self.largest} steps at most"
        if self.cancelled:
            text += (
                f"; not counting {self.cancelled} of {self.elements:,} elements in which the "
                f"inputs cancel and only the rounding of the factors is left, {self.widest:.1e} "
                f"apart at most"
            )
        return text


def compare(ours: Path, theirs: Path, inputs: Sequence[Path]) -> Difference:
    """Two bf16 models, merged from `inputs`, element by element."""
    opened = [Checkpoint.open(folder) for folder in (ours, theirs, *inputs)]
    found = Difference()
    for name in opened[0].tensors:
        flats = [one.tensor(name).reshape(-1) for one in opened]
        for begin in range(0, flats[0].numel(), _BLOCK):
            _count(found, [flat[begin : begin + _BLOCK] for flat in flats])
    return found


def _count(found: Difference, blocks: Sequence[Tensor]) -> None:
    ours, theirs, *inputs = blocks
    steps = (_ordered(ours) - _ordered(theirs)).abs()
    found.elements += len(steps)
    found.near += int((steps <= 1).sum())
    far = (steps > 2).nonzero()[:, 0]
    difference = (ours[far].double() - theirs[far].double()).abs()
    terms = torch.stack([block[far].double().abs() for block in inputs]).sum(0)
    cancelled = difference <= _ROUNDING * terms
    steps[far[cancelled]] = 0
    found.largest = max(found.largest, int(steps.max()))
    found.cancelled += int(cancelled.sum())
    found.widest = max([found.widest, *difference[cancelled].tolist()])


def _ordered(block: Tensor) -> Tensor:
    """bf16 as whole numbers, one apart where the floats are neighbours; both zeros are 0."""
    bits = block.view(torch.int16).to(torch.int32)
    return torch.where(bits < 0, -(bits & 0x7FFF), bits)
