"""
A sample as a vector of 16 KB, so that a newcomer is compared with thousands by one product.

The plan's blocks are dealt to 64 groups, each a small replicate of the plan, and the deltas of a
group, weighted by the root of how many blocks each stands for, are folded into 128 sums with random
signs: the dot product of two models' sums is, but for noise, that of their deltas (count sketch:
Charikar, Chen and Farach-Colton, Finding frequent items in data streams, ICALP 2002; inner
products: Weinberger et al., Feature hashing, arXiv 0902.2206). Groups are dealt and folded apart
from each other, so that a jackknife over groups knows the noise of folding and sampling at once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kinship_daemon.errors import KinshipError
from kinship_daemon.weights.kinship import Metric
from kinship_daemon.weights.sample import chance
from kinship_daemon.weights.sample.jackknife import Estimate, Moments, Units, jackknife
from kinship_daemon.weights.sample.plan import Plan
from kinship_daemon.weights.sample.strata import Stratum
from kinship_daemon.weights.sample.take import Sample
from kinship_daemon.weights.vocabulary import is_vocabulary

__all__ = ["compare", "folded", "sketch"]

# The last groups are the vocabulary's own: models whose tokens are unknown do without them.
_GROUPS, _OWN, _CELLS = 64, 8, 128
_MARK = b"KSK1"
# Vectors worked on at a time, 8 MB in float32.
_TOGETHER = 256
# Elements folded at a time, at least: 512 KB in float64, which stay in a core's cache.
_ELEMENTS = 1 << 16
# Well inside the range of float16, so that small sums keep their digits.
_LARGEST = 16384.0

_RECORD = np.dtype(
    [
        ("mark", "S4"),
        ("plan", "<u8"),
        ("vocabulary", "<u4"),  # 1 where it was read, else 0
        ("parameters", "<u8", (2,)),  # without the vocabulary, and with it where it was read
        ("scale", "<f4"),  # of the cells
        ("ones", "<f4", (_GROUPS,)),  # weighted sums of the groups' deltas
        ("cells", "<f2", (_GROUPS, _CELLS)),
    ]
)


def sketch(sample: Sample) -> bytes:
    """A sample's compact vector; only vectors of one plan can be compared."""
    ones = torch.zeros(_GROUPS, dtype=torch.float64)
    cells = torch.zeros(_GROUPS * _CELLS, dtype=torch.float64)
    weights = torch.tensor([s.total / s.drawn for s in sample.plan.strata], dtype=torch.float64)
    at = 0
    for run in _runs(sample.plan):
        values = sample.deltas[at : at + len(run.folds)].double()
        at += len(run.folds)
        weight = weights[run.strata]
        sums = torch.from_numpy(np.add.reduceat(values.numpy(), run.starts))
        ones.index_add_(0, run.groups, sums * weight.repeat_interleave(run.drawn))
        values.mul_(1 - 2 * (run.folds & 1)).mul_(weight.sqrt().repeat_interleave(run.lengths))
        cells.index_add_(0, (run.folds >> 1).int(), values)
    return _packed(sample.plan, ones, cells)


def compare(newcomer: bytes, population: Sequence[bytes], metric: Metric) -> Estimate:
    """
    Kinship of one model with many, by their vectors.

    Where either has no vocabulary in its vector, it is that of the other tensors.

    Returns:
        (population,).

    Raises:
        KinshipError: A vector is damaged, or of another plan.
    """
    own = _unpacked([newcomer])
    if not population:
        return Estimate(torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.float64))
    chunks = [population[i : i + _TOGETHER] for i in range(0, len(population), _TOGETHER)]
    sums = [_moments(own, _unpacked(chunk)) for chunk in chunks]
    whole = Moments(*(torch.cat(each, 1) for each in zip(*(s for s, _ in sums), strict=True)))
    parameters = torch.cat([each for _, each in sums])
    # A group has many blocks: in correlations their sums are skew no more, in lengths they are.
    return jackknife(whole, _units(), parameters, metric, skew=metric == "euclidean")


def folded(vectors: Sequence[bytes]) -> tuple[Tensor, Tensor]:
    """
    The sums of the groups without the vocabulary's, which every vector of a plan has.

    Returns:
        (vectors, groups, cells) float32; (vectors,) float64, by which they are to be multiplied.

    Raises:
        KinshipError: A vector is damaged, or of another plan than the first.
    """
    records = _unpacked(vectors)
    _refuse_other_plans(records[:1], records)
    cells, scales = _cells(records)
    return cells[:, : _GROUPS - _OWN], scales


def _packed(plan: Plan, ones: Tensor, cells: Tensor) -> bytes:
    scale = float(cells.abs().max()) / _LARGEST or 1.0
    record = np.zeros((), dtype=_RECORD)
    record["mark"], record["plan"] = _MARK, chance.key(plan.identity)
    record["vocabulary"] = plan.vocabulary
    record["parameters"] = plan.without_vocabulary().parameters, plan.parameters
    record["scale"], record["ones"] = scale, ones.numpy()
    record["cells"] = (cells / scale).view(_GROUPS, _CELLS).numpy()
    return record.tobytes()


def _unpacked(vectors: Sequence[bytes]) -> NDArray[np.void]:
    if any(len(vector) != _RECORD.itemsize for vector in vectors):
        raise KinshipError("a model's compact vector is damaged; sample it again")
    records = np.frombuffer(bytearray().join(vectors), dtype=_RECORD)
    if (records["mark"] != _MARK).any():
        raise KinshipError("a compact vector was written by another version; sample it again")
    return records


def _moments(own: NDArray[np.void], others: NDArray[np.void]) -> tuple[list[Tensor], Tensor]:
    """As Moments of groups, (groups, others) float64 each, and the parameters they speak of."""
    _refuse_other_plans(own, others)
    (ours, s), (theirs, t) = _cells(own), _cells(others)
    both = own["vocabulary"] * others["vocabulary"]
    known = torch.ones(_GROUPS, len(others), dtype=torch.float64)
    known[_GROUPS - _OWN :] = torch.from_numpy(both.astype(np.float64))
    x, y = (torch.from_numpy(each["ones"].astype(np.float64)).T for each in (own, others))
    sums = [
        torch.linalg.vecdot(theirs, ours).double().T * (s * t),
        torch.linalg.vecdot(ours, ours).double().T * (s * s),
        torch.linalg.vecdot(theirs, theirs).double().T * (t * t),
        x,
        y,
    ]
    parameters = np.where(both > 0, others["parameters"][:, 1], others["parameters"][:, 0])
    return [each * known for each in sums], torch.from_numpy(parameters.astype(np.float64))


def _refuse_other_plans(own: NDArray[np.void], others: NDArray[np.void]) -> None:
    if (others["plan"] != own["plan"]).any():
        raise KinshipError("compact vectors of different plans cannot be compared")


def _cells(records: NDArray[np.void]) -> tuple[Tensor, Tensor]:
    """
    Cells, but for each vector's power of 2: float32 holds no squares of what is far from 1.

    Returns:
        (vectors, groups, cells) float32, (vectors,) float64.
    """
    scale, power = np.frexp(records["scale"])
    cells = torch.from_numpy(records["cells"]).float() * torch.from_numpy(scale)[:, None, None]
    return cells, torch.from_numpy(np.ldexp(1.0, power))


def _units() -> Units:
    """The groups as units of two strata, of populations without end."""
    vocabulary = torch.arange(_GROUPS) >= _GROUPS - _OWN
    drawn = torch.where(vocabulary, _OWN, _GROUPS - _OWN).double()
    ones = torch.ones(_GROUPS, dtype=torch.float64)
    return Units(stratum=vocabulary.long(), drawn=drawn, weight=ones, missed=ones)


@dataclass(frozen=True)
class _Run:
    """
    Some strata, one after the other, and what becomes of their elements.

    Attributes:
        strata: Which.
        drawn: Blocks of each stratum, (strata,) int64.
        lengths: Elements of each stratum, (strata,) int64.
        starts: Where each block begins, (blocks,) int64.
        groups: The group of each block, (blocks,) int64.
        folds: Of each element, (group * cells + cell) * 2 + sign, (elements,) int16: they are the
            same for all descendants, and a plan of a 7B model has 14 million.
    """

    strata: slice
    drawn: Tensor
    lengths: Tensor
    starts: NDArray[np.int64]
    groups: Tensor
    folds: Tensor


@lru_cache(maxsize=4)
def _runs(plan: Plan) -> tuple[_Run, ...]:
    dealt, found, begin = _dealt(plan), [], 0
    for end in range(1, len(plan.strata) + 1):
        strata = plan.strata[begin:end]
        if sum(stratum.elements for stratum in strata) < _ELEMENTS and end < len(plan.strata):
            continue
        blocks = [length for stratum in strata for length in stratum.lengths]
        found.append(
            _Run(
                strata=slice(begin, end),
                drawn=torch.tensor([stratum.drawn for stratum in strata]),
                lengths=torch.tensor([stratum.elements for stratum in strata]),
                starts=np.cumsum([0, *blocks[:-1]]),
                groups=torch.cat(dealt[begin:end]),
                folds=torch.cat(
                    [_folds(plan, *each) for each in zip(strata, dealt[begin:end], strict=True)]
                ),
            )
        )
        begin = end
    return tuple(found)


def _folds(plan: Plan, stratum: Stratum, groups: Tensor) -> Tensor:
    """Of a stratum's elements, whose blocks are in these groups."""
    # By the place in the tensor, so that the view without vocabulary folds as all of it does.
    stream = chance.key(f"{plan.identity} fold {stratum.tensor} {stratum.blocks[0][0]}")
    places = chance.mixed(stream, 0, stratum.elements) & np.uint64(2 * _CELLS - 1)
    own = groups.repeat_interleave(torch.tensor(stratum.lengths)) * (2 * _CELLS)
    return (own + torch.from_numpy(places.astype(np.int64))).short()


@lru_cache(maxsize=4)
def _dealt(plan: Plan) -> tuple[Tensor, ...]:
    """
    Each stratum's blocks' groups, (drawn,) int64.

    Blocks of like tensors of all layers follow each other and are dealt round by round, one to
    every group: so each group has about the same of everything.
    """
    found: dict[int, Tensor] = {}
    for vocabulary, first, groups in ((False, 0, _GROUPS - _OWN), (True, _GROUPS - _OWN, _OWN)):
        numbers = [
            number
            for number, stratum in enumerate(plan.strata)
            if is_vocabulary(stratum.tensor) == vocabulary
        ]
        numbers.sort(key=lambda number: (re.sub(r"\d+", "", plan.strata[number].tensor), number))
        counts = [plan.strata[number].drawn for number in numbers]
        rounds = np.arange(sum(counts)) // groups
        chances = chance.mixed(chance.key(f"{plan.identity} deal {vocabulary}"), 0, sum(counts))
        dealt = np.empty(sum(counts), dtype=np.int64)
        dealt[np.lexsort((chances, rounds))] = first + np.arange(sum(counts)) % groups
        ends = np.cumsum(counts)
        for number, count, end in zip(numbers, counts, ends, strict=True):
            found[number] = torch.from_numpy(dealt[end - count : end])
    return tuple(found[number] for number in range(len(plan.strata)))
