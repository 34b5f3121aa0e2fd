"""
Where a model comes from, told from its sample: whether from the base, and from which known models.

Cards name a wrong base often (arXiv 2405.18432, 2503.10633). A descendant's matrices still point
where the base's point; those of a model trained from another start do not, nor do those of one
whose neurons were put in another order, which cannot be averaged with the base either. A merge is
a linear combination of deltas, and folding deltas into a compact vector is linear too: so least
squares over the vectors of known models give the merge's own coefficients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kinship_daemon.weights.sample.plan import Plan
from kinship_daemon.weights.sample.sketch import folded
from kinship_daemon.weights.sample.take import BaseSample, Sample
from kinship_daemon.weights.vocabulary import is_vocabulary

__all__ = ["Composition", "Departure", "Part", "composition", "departure"]

# Models that are tried together; nobody's merge is known to have more parents.
_MOST = 16
# Float16 in the vectors leaves about 1e-7 of a sum's square; what is left below this is no one's.
_ROUNDING = 1e-6
# A part counts if without it so many times as much is left unexplained. Siblings of a fine-tune
# explain some of it too, for they learned the same; of what its parents leave, they explain little.
_TIMES = 2.0
# Elements compared at a time, at least: as many are folded at a time.
_ELEMENTS = 1 << 16


@dataclass(frozen=True)
class Departure:
    """
    How far a model's matrices are from the base's, embeddings and head left out.

    Attributes:
        likeness: Median over the matrices of the cosine between the model's and the base's
            weights, in [-1, 1]; NaN where there is no matrix. Near 1 for a descendant, near 0 for
            a model of another origin.
        distance: Median of the delta's norm over the base's norm; NaN as above.
        matrices: How many were compared.
        unlike: How many of them have a cosine below one half.
    """

    likeness: float
    distance: float
    matrices: int
    unlike: int

    @property
    def stranger(self) -> bool:
        """Whether at least half of the matrices are unlike the base's."""
        return self.matrices > 0 and 2 * self.unlike >= self.matrices


@dataclass(frozen=True)
class Part:
    """
    A known model's share in another.

    Attributes:
        coefficient: Of its delta.
        error: Standard error of that by sampling and folding. What saving the model in bfloat16
            did to it is no error: its deltas are then those of other coefficients.
    """

    model: str
    coefficient: float
    error: float


@dataclass(frozen=True)
class Composition:
    """
    A model's delta as a sum of known models' deltas.

    Attributes:
        parts: The largest coefficient first; none where nobody known had a part in it.
        rest: Share of the delta's squared norm that the parts leave unexplained, in [0, 1]; NaN for
            a model that does not differ from the base.
    """

    parts: tuple[Part, ...]
    rest: float

    def is_merge(self, most_rest: float = 0.1) -> bool:
        """
        Whether it is a linear merge: two parts or more, all positive, and little else.

        A part is negative where a parent is seen after its child: A = 2 C - B where C is the
        mean of A and B.
        """
        positive = all(part.coefficient > 0 for part in self.parts)
        return len(self.parts) > 1 and positive and self.rest <= most_rest


def departure(sample: Sample, base: BaseSample) -> Departure:
    """How far a sampled model is from its base, matrix by matrix."""
    found, at = [], 0
    for names, starts in _runs(sample.plan):
        own = torch.cat([base.values[name] for name in names]).double()
        delta = sample.deltas[at : at + len(own)].double()
        at += len(own)
        products = (own * own, own * delta, delta * delta)
        found.append([np.add.reduceat(product.numpy(), starts) for product in products])
    squares, mixed, changes = torch.from_numpy(np.concatenate(found, axis=1))
    # Norms' weights are all near 1, of whatever model; rows of new tokens are nobody's.
    matrices = [
        len(sample.plan.tensors[name].shape) > 1 and not is_vocabulary(name)
        for name, _ in sample.plan.blocks
    ]
    told = torch.tensor(matrices) & (squares > 0)
    if not told.any():
        return Departure(torch.nan, torch.nan, 0, 0)
    squares, mixed, changes = squares[told], mixed[told], changes[told]
    theirs = (squares + 2 * mixed + changes).clamp_min(1e-300)
    likeness = (squares + mixed) / (squares * theirs).sqrt()
    distances = (changes / squares).sqrt()
    unlike = int((likeness < 0.5).sum())
    middle = float(likeness.quantile(0.5)), float(distances.quantile(0.5))
    return Departure(*middle, len(likeness), unlike)


@lru_cache(maxsize=4)
def _runs(plan: Plan) -> tuple[tuple[tuple[str, ...], NDArray[np.int64]], ...]:
    """Tensors one after the other whose elements stay in a core's cache, and where each begins."""
    found, names, sizes = [], list[str](), list[int]()
    for name, blocks in plan.blocks:
        names.append(name)
        sizes.append(sum(end - start for start, end in blocks))
        if sum(sizes) >= _ELEMENTS or name == plan.blocks[-1][0]:
            found.append((tuple(names), np.cumsum([0, *sizes[:-1]])))
            names, sizes = [], []
    return tuple(found)


def composition(newcomer: bytes, known: Mapping[str, bytes]) -> Composition:
    """
    Which known models a model is made of, by least squares over compact vectors.

    Models are taken up one by one, the one that explains most of the rest first (orthogonal
    matching pursuit: Pati, Rezaiifar and Krishnaprasad, 1993), then given up again one by one if
    the others do almost as well. Embeddings and head are left out: merges treat them in ways of
    their own. Only linear merges are recovered: what drops or elects entries (DARE, TIES) leaves
    a large rest.

    Args:
        known: Vectors of the same plan, by name; a vector of zeros has no part in anything.

    Raises:
        KinshipError: A vector is damaged, or of another plan.
    """
    names = sorted(known)
    # (1 + known, groups, cells): float32 holds what float16 held, and powers of 2 are apart.
    vectors, scales = folded([newcomer, *(known[name] for name in names)])
    flat = vectors.flatten(1)
    norms = flat.norm(dim=1)
    if not bool(norms[0]):
        return Composition((), torch.nan)
    flat = flat / norms.clamp_min(1e-30)[:, None]
    chosen = _chosen(flat[0], flat[1:])
    kept, rest = _kept(flat[0], flat[1:], chosen)
    if not kept:
        return Composition((), rest)
    values, errors = _coefficients(flat, kept, vectors.shape[1])
    units = (scales * norms.double())[[0, *(1 + place for place in kept)]]
    ratios = units[0] / units[1:]
    found = zip(kept, (values * ratios).tolist(), (errors * ratios).tolist(), strict=True)
    parts = [Part(names[place], value, error) for place, value, error in found]
    parts.sort(key=lambda part: (-part.coefficient, part.model))
    return Composition(tuple(parts), rest)


def _chosen(own: Tensor, others: Tensor) -> list[int]:
    """Places of those that explain most, at most _MOST; of unit vectors, (d,) and (n, d)."""
    chosen: list[int] = []
    rest = own.double()
    # Of so many directions drawn at random, the best explains less than this of what is left.
    chance = 2 * torch.tensor(max(2.0, 10.0 * len(others))).log() / len(own)
    while len(chosen) < min(_MOST, len(others)) and rest @ rest > _ROUNDING:
        scores = (others @ (rest / rest.norm()).float()).abs()
        scores[chosen] = 0.0
        best, place = scores.max(0)
        if best**2 <= chance:
            break
        chosen.append(int(place))
        columns = others[chosen].double().T
        rest = own.double() - columns @ _solved(columns, own.double())
    return chosen


def _kept(own: Tensor, others: Tensor, chosen: Sequence[int]) -> tuple[list[int], float]:
    """Those without whom much more is left, in order, and the share that is left with them."""
    # A small problem of the same solutions: of X = QR, least squares ask for R and the same rest.
    whole = torch.stack([*(others[place] for place in chosen), own]).double().T
    columns = torch.linalg.qr(whole, mode="r").R
    places = list(range(len(chosen)))
    rest = _rest(columns, places)
    while places:
        without = {out: _rest(columns, [p for p in places if p != out]) for out in places}
        least = min(places, key=lambda out: (without[out], out))
        if without[least] >= _TIMES * max(rest, _ROUNDING):
            break
        places.remove(least)
        rest = without[least]
    return sorted(chosen[place] for place in places), min(rest, 1.0)


def _rest(columns: Tensor, places: Sequence[int]) -> float:
    own = columns[:, -1]
    if places:
        own = own - columns[:, places] @ _solved(columns[:, places], own)
    return float(own @ own)


def _coefficients(flat: Tensor, kept: Sequence[int], groups: int) -> tuple[Tensor, Tensor]:
    """Coefficients of unit vectors and their errors by a jackknife over groups, (kept,) each."""
    own = flat[0].double().view(groups, -1)
    others = flat[[1 + place for place in kept]].double().view(len(kept), groups, -1)
    value = _solved(others.flatten(1).T, own.flatten())
    gram = torch.einsum("agc,bgc->gab", others, others)
    dots = torch.einsum("agc,gc->ga", others, own)
    inverse = torch.linalg.pinv(gram.sum(0) - gram, hermitian=True)
    left_out = (inverse @ (dots.sum(0) - dots)[:, :, None])[:, :, 0]
    spread = (left_out - left_out.mean(0)).square().sum(0)
    return value, (spread * (groups - 1) / groups).sqrt()


def _solved(columns: Tensor, own: Tensor) -> Tensor:
    # The driver that knows rank: two of the known models may be one.
    found: Tensor = torch.linalg.lstsq(columns, own[:, None], driver="gelsd").solution
    return found[:, 0]
