"""
Settings that change at a layer's boundary, in the form of a gradient.

A gradient is a list of values that is interpolated linearly over the depth of the model, so that
a step needs one value per layer. Where the number of layers is not known there are 64 values: a
step then falls between two of them, and the one layer that may lie there gets a value in between.
Tensors outside the layers (embeddings, the last norm, the head) get the first value.
"""

from __future__ import annotations

from collections.abc import Sequence

from kinship_policies.policy import Population

__all__ = ["places", "staircase"]

_UNKNOWN = 64


def places(population: Population, layers: int | None) -> int:
    """How many values a gradient takes: the layers that are set, or known, or else 64."""
    return layers or len(population.layers) or _UNKNOWN


def staircase(values: Sequence[float], count: int) -> float | list[float]:
    """Each value over its equal share of `count` places; one number where all are the same."""
    if len(set(values)) == 1:
        return values[0]
    return [values[place * len(values) // count] for place in range(count)]
