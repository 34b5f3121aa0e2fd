"""Merge methods: their parameters, and the pure functions that they are."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = [
    "Draw",
    "ElementwiseMethod",
    "Factors",
    "MergeMethod",
    "Parameter",
    "SpanMethod",
    "elementwise_method",
    "span_method",
]

# (dots, parameters) -> factors. With T tensors and p parents, all float64 on the CPU:
#   dots        (T, p+1, p+1): inner products of the full weights {b, w_1 .. w_p}
#   parameters  by name: (T,), or (T, p) where the parameter is given per model; bool where it is
#   factors     (T, p+1) over {b, w_1 .. w_p}
Factors = Callable[[Tensor, Mapping[str, Tensor]], Tensor]

# The seeded source of chance of the i-th parent in this tensor: the same whatever the order in
# which tensors are made, and on every device (numbers are drawn on the CPU).
Draw = Callable[[int], torch.Generator]

# (deltas, parameters, draw) -> the merged delta, for one tensor:
#   deltas      p tensors w_i - b, float32, of the tensor's shape; may be overwritten
#   parameters  by name: a float or bool, or a list of p of them where it is given per model
#   returns     float32, of the same shape
Blend = Callable[[Sequence[Tensor], Mapping[str, float | bool | list[float]], Draw], Tensor]


@dataclass(frozen=True)
class Parameter:
    """
    One setting of a method, a number or (where its default is one) a bool.

    Attributes:
        per_model: Each parent has its own.
        default: None where the recipe must give it.
        doc: A few words: what it does, and its range.
    """

    name: str
    per_model: bool = False
    default: float | bool | None = None
    doc: str = ""


@dataclass(frozen=True)
class SpanMethod:
    """
    A method whose result is, per tensor, a linear combination of the base and the parents.

    Attributes:
        parents: The fewest and the most it takes; None for no upper limit.
        uses_dots: Whether the factors depend on inner products; where not, merging two folders
            needs no pass over their weights first.
    """

    factors: Factors
    parameters: tuple[Parameter, ...]
    parents: tuple[int, int | None]
    uses_dots: bool = True
    kind: Literal["span"] = "span"

    def __post_init__(self) -> None:
        # What is said of the method is said of its function.
        object.__setattr__(self, "__doc__", self.factors.__doc__)

    def __call__(self, dots: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        return self.factors(dots, parameters)


@dataclass(frozen=True)
class ElementwiseMethod:
    """
    A method that looks at every element of the parents' deltas; its child becomes a leaf.

    Attributes:
        parents: The fewest and the most it takes; None for no upper limit.
    """

    blend: Blend
    parameters: tuple[Parameter, ...]
    parents: tuple[int, int | None]
    kind: Literal["elementwise"] = "elementwise"

    def __post_init__(self) -> None:
        object.__setattr__(self, "__doc__", self.blend.__doc__)

    def __call__(
        self,
        deltas: Sequence[Tensor],
        parameters: Mapping[str, float | bool | list[float]],
        draw: Draw,
    ) -> Tensor:
        return self.blend(deltas, parameters, draw)


MergeMethod = SpanMethod | ElementwiseMethod


def span_method(
    *parameters: Parameter, parents: tuple[int, int | None], uses_dots: bool = True
) -> Callable[[Factors], SpanMethod]:
    """Declare a function as a span method."""

    def declare(factors: Factors) -> SpanMethod:
        return SpanMethod(factors, parameters, parents, uses_dots)

    return declare


def elementwise_method(
    *parameters: Parameter, parents: tuple[int, int | None]
) -> Callable[[Blend], ElementwiseMethod]:
    """Declare a function as an elementwise method."""

    def declare(blend: Blend) -> ElementwiseMethod:
        return ElementwiseMethod(blend, parameters, parents)

    return declare
