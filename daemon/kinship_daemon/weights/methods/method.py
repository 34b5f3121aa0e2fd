"""Merge methods: their parameters, and the pure functions that they are."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Literal

import torch
from torch import Tensor

__all__ = [
    "Draw",
    "ElementwiseMethod",
    "Factors",
    "MatrixMethod",
    "MergeMethod",
    "Parameter",
    "Settings",
    "SpanMethod",
    "elementwise_method",
    "input_method",
    "matrix_method",
    "needs_inputs",
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

# One tensor's parameters by name; a list where each parent has its own.
Settings = Mapping[str, float | bool | list[float]]

# (deltas, parameters, draw) -> the merged delta, for one tensor:
#   deltas      p tensors w_i - b, float32, of the tensor's shape; may be overwritten
#   parameters  by name: a float or bool, or a list of p of them where it is given per model
#   returns     float32, of the same shape
Blend = Callable[[Sequence[Tensor], Settings, Draw], Tensor]

# (deltas, parameters) -> the merged delta, for one matrix:
#   deltas      p matrices w_i - b, float32, (m, n): m outputs, n inputs
#   parameters  as above
#   returns     float32, (m, n)
Combine = Callable[[Sequence[Tensor], Settings], Tensor]

# (deltas, parameters, inputs) -> the merged delta, for one matrix, of methods that look at data:
#   inputs      p matrices, float32, (n, n): the mean of x x^T over the inputs x that each parent's
#               layer has on the texts of its task; mapped files, not to be written to
CombineInputs = Callable[[Sequence[Tensor], Settings, Sequence[Tensor]], Tensor]


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

    def __call__(self, deltas: Sequence[Tensor], parameters: Settings, draw: Draw) -> Tensor:
        return self.blend(deltas, parameters, draw)


@dataclass(frozen=True)
class MatrixMethod:
    """
    A method that looks at whole matrices of the parents' deltas; its child becomes a leaf.

    What is no matrix gets the plain mean of the deltas: norms, biases, and embeddings and the head,
    whose rows are tokens and which come flat. The merged delta of either is multiplied by `lambda`.

    Attributes:
        parents: The fewest and the most it takes; None for no upper limit.
        needs_inputs: Whether it looks at the inputs of each parent's layers; a matrix of which they
            are not known gets the mean.
    """

    combine: CombineInputs
    parameters: tuple[Parameter, ...]
    parents: tuple[int, int | None]
    needs_inputs: bool = False
    kind: Literal["matrix"] = "matrix"

    def __post_init__(self) -> None:
        object.__setattr__(self, "__doc__", self.combine.__doc__)

    def __call__(
        self,
        deltas: Sequence[Tensor],
        parameters: Settings,
        inputs: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """The merged delta, float32; the deltas, contiguous float32, may be overwritten."""
        scale = parameters[_LAMBDA.name]
        assert isinstance(scale, float)
        if deltas[0].dim() == 2 and not (self.needs_inputs and inputs is None):
            merged = self.combine(deltas, parameters, inputs or ())
        else:
            merged = deltas[0]
            for delta in deltas[1:]:
                merged.add_(delta)
            merged.div_(len(deltas))
        return merged if scale == 1 else merged.mul_(scale)


MergeMethod = SpanMethod | ElementwiseMethod | MatrixMethod


def needs_inputs(merge: MergeMethod) -> bool:
    """Whether it looks at the inputs of layers, which only texts tell."""
    return isinstance(merge, MatrixMethod) and merge.needs_inputs


_LAMBDA = Parameter("lambda", default=1.0, doc="factor of the merged delta")


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


def matrix_method(
    *parameters: Parameter, parents: tuple[int, int | None]
) -> Callable[[Combine], MatrixMethod]:
    """Declare a function as a matrix method; it gets the parameter `lambda` beside its own."""

    def declare(combine: Combine) -> MatrixMethod:
        @wraps(combine)
        def blind(deltas: Sequence[Tensor], settings: Settings, _: Sequence[Tensor]) -> Tensor:
            return combine(deltas, settings)

        return MatrixMethod(blind, (*parameters, _LAMBDA), parents)

    return declare


def input_method(
    *parameters: Parameter, parents: tuple[int, int | None]
) -> Callable[[CombineInputs], MatrixMethod]:
    """Declare a function as a matrix method that looks at inputs; it gets `lambda`, too."""

    def declare(combine: CombineInputs) -> MatrixMethod:
        return MatrixMethod(combine, (*parameters, _LAMBDA), parents, needs_inputs=True)

    return declare
