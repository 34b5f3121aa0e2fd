"""
Which few blocks of a base's weights are read of each of its descendants.

A stratified sample of contiguous blocks (Cochran, Sampling Techniques, 3rd ed., chapters 5 and 9):
every tensor is cut into blocks of almost equal length, neighbouring blocks form strata, and within
a stratum as many as its share are drawn at random without replacement. So any sum over all
parameters is estimated without bias by weighting a block with (blocks there are / blocks drawn).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby

from kinship_daemon.errors import ModelError, UsageError
from kinship_daemon.weights.header import FLOATS, TensorInfo
from kinship_daemon.weights.sample.strata import Stratum, drawn
from kinship_daemon.weights.vocabulary import is_vocabulary

__all__ = ["FEWEST_ELEMENTS", "Plan", "plan"]

# Another plan for the same base and settings must have another number.
_VERSION = 1

# Of small models so many are read whatever the fraction, 0.25 MB. Of models of up to four times as
# many the blocks would lie so close together that all is read.
FEWEST_ELEMENTS = 131_072
_ALL = 4
# About so many blocks of any model: more would be more precise, and more requests.
_BLOCKS = 2048
# Elements of a block; the longest are 64 KB of bf16.
_SHORTEST, _LONGEST = 64, 32_768
# Of a tensor, so that the spread within it can be told; of the many tensors of a mixture of
# experts fewer will do.
_FEW, _FEWEST, _MANY_TENSORS = 4, 2, 1024
# A tensor of so many blocks is read whole, as long as such take no more than a quarter.
_WHOLE_BLOCKS, _WHOLE_SHARE = 4, 0.25
# Of a tensor's entry in header and index, beside its name.
_HEADER_BYTES = 200


@dataclass(frozen=True, eq=False)
class Plan:
    """
    The blocks read of every descendant of a base.

    Attributes:
        identity: Names the plan: the same text, the same blocks. Safe in a file's name.
        strata: Sorted by tensor, then by place.
        tensors: Of the base, also those that nothing is read of.
        nbytes: Of all blocks, in the base's dtypes.
        vocabulary: Whether embeddings and head are in it.
    """

    identity: str
    strata: tuple[Stratum, ...]
    tensors: Mapping[str, TensorInfo]
    nbytes: int
    vocabulary: bool

    @property
    def parameters(self) -> int:
        """Of the model, in the plan's tensors."""
        return sum(info.elements for info in self.tensors.values())

    @cached_property
    def blocks(self) -> tuple[tuple[str, tuple[tuple[int, int], ...]], ...]:
        """Every tensor with the blocks drawn of it, in the order of the strata."""
        return tuple(
            (name, tuple(block for stratum in strata for block in stratum.blocks))
            for name, strata in groupby(self.strata, lambda stratum: stratum.tensor)
        )

    @cached_property
    def elements(self) -> int:
        return sum(stratum.elements for stratum in self.strata)

    def without_vocabulary(self) -> Plan:
        """The same plan for a model whose tokens cannot be told: its other tensors alone."""
        return self._without_vocabulary if self.vocabulary else self

    @cached_property
    def _without_vocabulary(self) -> Plan:
        kept = {name: info for name, info in self.tensors.items() if not is_vocabulary(name)}
        strata = tuple(stratum for stratum in self.strata if stratum.tensor in kept)
        return replace(
            self,
            strata=strata,
            nbytes=_nbytes(strata, kept),
            vocabulary=False,
            tensors=kept,
        )


def plan(
    tensors: Mapping[str, TensorInfo],
    *,
    fraction: float,
    seed: int = 0,
    fewest: int = FEWEST_ELEMENTS,
) -> Plan:
    """
    The plan for a base, the same for ever and for every descendant.

    Tensors are sampled in proportion to their size, but for the smallest, which are read whole.
    What is read is at most `fraction` of the model, header and index included, unless that is less
    than `fewest` elements.

    Args:
        tensors: Of the base.
        fraction: Of the parameters, in (0, 1].
        seed: Another seed draws other blocks.
        fewest: Elements read at least; a model of up to four times as many is read whole.

    Raises:
        UsageError: A fraction that is none.
        ModelError: No tensor holds weights.
    """
    if not 0 < fraction <= 1:
        raise UsageError(f"a sample's fraction is above 0 and at most 1, not {fraction:g}")
    known = {name: tensors[name] for name in sorted(tensors)}
    kept = {n: info for n, info in known.items() if info.elements and info.dtype in FLOATS}
    if not kept:
        raise ModelError("the base holds no weights in F64, F32, F16 or BF16; these are sampled")
    strata = tuple(
        stratum
        for name, blocks in _shares(kept, _wanted(kept, fraction, fewest)).items()
        for stratum in drawn(kept[name], *blocks, f"{_VERSION} {seed}")
    )
    facts = [_VERSION, fraction, seed, fewest, [(n, i.dtype, i.shape) for n, i in kept.items()]]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    return Plan(
        identity=f"sample-{_VERSION}-{digest}",
        strata=strata,
        nbytes=_nbytes(strata, kept),
        vocabulary=any(is_vocabulary(name) for name in kept),
        tensors=known,
    )


def _nbytes(strata: tuple[Stratum, ...], tensors: Mapping[str, TensorInfo]) -> int:
    return sum(s.elements * tensors[s.tensor].nbytes // tensors[s.tensor].elements for s in strata)


def _wanted(tensors: Mapping[str, TensorInfo], fraction: float, fewest: int) -> int:
    """How many elements may be read."""
    total = sum(info.elements for info in tensors.values())
    nbytes = sum(info.nbytes for info in tensors.values())
    header = sum(len(name) + _HEADER_BYTES for name in tensors) if fraction < 1 else 0
    if total <= _ALL * fewest:
        return total
    return max(fewest, int((fraction * nbytes - header) * total / nbytes))


def _shares(tensors: Mapping[str, TensorInfo], wanted: int) -> dict[str, tuple[float, float]]:
    """
    How many elements are read of each tensor, and how many each block has, about.

    Proportional, with a least for small tensors; those read whole say so by all their elements.
    """
    sizes = {name: info.elements for name, info in tensors.items()}
    length = min(max(wanted // _BLOCKS, _SHORTEST), _LONGEST)
    whole = _whole(sizes, wanted, length)
    rest = {name: size for name, size in sizes.items() if name not in whole}
    few = _FEW if len(rest) <= _MANY_TENSORS else _FEWEST
    least = few * _SHORTEST
    rate = _rate(rest, wanted - sum(sizes[name] for name in whole), least)
    shares: dict[str, tuple[float, float]] = {}
    for name, size in sizes.items():
        share = size if name in whole else min(size, max(rate * size, least))
        shares[name] = share, min(length, max(share / few, 1))
    return shares


def _whole(sizes: Mapping[str, int], wanted: int, length: int) -> set[str]:
    """The tensors that are read whole: all, or the smallest."""
    if sum(sizes.values()) <= wanted:
        return set(sizes)
    whole: set[str] = set()
    spent = 0
    for name in sorted(sizes, key=lambda name: (sizes[name], name)):
        spent += sizes[name]
        if sizes[name] > _WHOLE_BLOCKS * length or spent > _WHOLE_SHARE * wanted:
            break
        whole.add(name)
    return whole


def _rate(sizes: Mapping[str, int], wanted: int, least: int) -> float:
    """The common share of all tensors, of which none gives less than `least`, to have `wanted`."""
    small: set[str] = set()
    while True:
        rest = sum(size for name, size in sizes.items() if name not in small)
        left = wanted - sum(min(sizes[name], least) for name in small)
        rate = min(max(left, 0) / rest, 1.0) if rest else 0.0
        more = {n for n, size in sizes.items() if n not in small and rate * size < least}
        if not more:
            return rate
        small |= more
