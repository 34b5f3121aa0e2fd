"""Kinship of sampled models, every pair, with standard errors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from kinship_daemon.weights.kinship import Metric
from kinship_daemon.weights.sample.jackknife import Estimate, Moments, Units, jackknife
from kinship_daemon.weights.sample.plan import Plan
from kinship_daemon.weights.sample.take import Sample

__all__ = ["Estimate", "estimate"]


def estimate(samples: Sequence[Sample], metric: Metric) -> Estimate:
    """
    Kinship of every pair of models over all parameters, as far as a sample can tell.

    Where a model was sampled without its vocabulary, its kinships speak of the other tensors alone.

    Returns:
        (samples, samples), symmetric; on the diagonal what `kinship.matrix` has, without error.
    """
    plan = max((sample.plan for sample in samples), key=lambda plan: plan.elements)
    if any(sample.plan.identity != plan.identity for sample in samples):
        raise ValueError("samples of different plans cannot be compared")
    dots, ones, known = _sums(samples, plan)
    count = len(samples)
    value = torch.zeros(count, count, dtype=torch.float64)
    error = torch.zeros(count, count, dtype=torch.float64)
    units = _units(plan)
    squares = dots.diagonal(dim1=1, dim2=2)
    whole = [plan.parameters, plan.without_vocabulary().parameters]
    for row in range(count):
        both = known & known[:, row : row + 1]
        parameters = torch.tensor([whole[not bool(b.all())] for b in both.T], dtype=torch.float64)
        found = jackknife(
            Moments(
                dots[:, row] * both,
                squares[:, row : row + 1] * both,
                squares * both,
                ones[:, row : row + 1] * both,
                ones * both,
            ),
            units,
            parameters,
            metric,
        )
        value[row], error[row] = found.value, found.error
    return _tidy(value, error, metric)


def _tidy(value: Tensor, error: Tensor, metric: Metric) -> Estimate:
    """Exactly symmetric, and sure of a model's kinship with itself."""
    value, error = (each.tril() + each.tril(-1).T for each in (value, error))
    own = value.diagonal()
    own.masked_fill_(own.isfinite(), 0.0 if metric == "euclidean" else 1.0)
    error.diagonal().zero_()
    return Estimate(value, error.masked_fill(value.isnan(), torch.nan))


def _sums(samples: Sequence[Sample], plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
    """
    Every block's inner products and sums of the deltas, float64, and which blocks were read.

    Returns:
        (blocks, n, n); (blocks, n); (blocks, n) bool.
    """
    places = [0] * len(samples)
    dots, ones, known = [], [], []
    for stratum in plan.strata:
        has = [stratum.tensor in sample.plan.tensors for sample in samples]
        blocks = torch.zeros(len(samples), stratum.drawn, stratum.longest, dtype=torch.float64)
        for number, sample in enumerate(samples):
            if has[number]:
                end = places[number] + stratum.elements
                _lay_out(sample.deltas[places[number] : end], stratum.lengths, blocks[number])
                places[number] = end
        rows = blocks.transpose(0, 1)
        dots.append(rows @ rows.transpose(1, 2))
        ones.append(rows.sum(2))
        known.append(torch.tensor(has).expand(stratum.drawn, -1))
    return torch.cat(dots), torch.cat(ones), torch.cat(known)


def _lay_out(values: Tensor, lengths: Sequence[int], blocks: Tensor) -> None:
    """Blocks one after the other into rows of (drawn, longest), which zeros fill up."""
    if len(set(lengths)) == 1:
        blocks.copy_(values.view(blocks.shape))
        return
    places = torch.arange(blocks.shape[1]) < torch.tensor(lengths)[:, None]
    blocks[places] = values.double()


@lru_cache(maxsize=4)
def _units(plan: Plan) -> Units:
    strata = plan.strata
    repeats = torch.tensor([stratum.drawn for stratum in strata])
    blocks = torch.tensor([stratum.total for stratum in strata], dtype=torch.float64)
    return Units(
        stratum=torch.arange(len(strata)).repeat_interleave(repeats),
        drawn=repeats.double().repeat_interleave(repeats),
        weight=(blocks / repeats).repeat_interleave(repeats),
        missed=(1 - repeats / blocks).repeat_interleave(repeats),
    )
