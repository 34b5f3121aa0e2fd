"""A span merge method: its parameters, and a pure function from inner products to factors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Factors", "Parameter", "SpanMethod", "span_method"]

# (dots, parameters) -> factors. With T tensors and p parents, all float64 on the CPU:
#   dots        (T, p+1, p+1): inner products of the full weights {b, w_1 .. w_p}
#   parameters  by name: (T,), or (T, p) where the parameter is given per model; bool where it is
#   factors     (T, p+1) over {b, w_1 .. w_p}
Factors = Callable[[Tensor, Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Parameter:
    """
    One setting of a method, a number or (where its default is one) a bool.

    Attributes:
        per_model: Each parent has its own.
        default: None where the recipe must give it.
    """

    name: str
    per_model: bool = False
    default: float | bool | None = None


@dataclass(frozen=True)
class SpanMethod:
    """
    A method whose result is, per tensor, a linear combination of the base and the parents.

    Attributes:
        parents: The fewest and the most it takes; None for no upper limit.
    """

    factors: Factors
    parameters: tuple[Parameter, ...]
    parents: tuple[int, int | None]

    def __post_init__(self) -> None:
        # What is said of the method is said of its function.
        object.__setattr__(self, "__doc__", self.factors.__doc__)

    def __call__(self, dots: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        return self.factors(dots, parameters)


def span_method(
    *parameters: Parameter, parents: tuple[int, int | None]
) -> Callable[[Factors], SpanMethod]:
    """Declare a function as a span method."""

    def declare(factors: Factors) -> SpanMethod:
        return SpanMethod(factors, parameters, parents)

    return declare
