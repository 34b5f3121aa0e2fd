"""What a landscape answers: who the founders are, and how a merge of them does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kinship_policies.policy import Fact

__all__ = ["DEFAULT_METHOD", "DEFAULT_PARAMETERS", "Array", "Landscape", "Merge", "Model", "World"]

Array = NDArray[np.float64]

# What a proposal that names no method means, as in the daemon's configuration.
DEFAULT_METHOD = "slerp"
DEFAULT_PARAMETERS: Mapping[str, Any] = {"t": 0.5}


@dataclass(frozen=True)
class Merge:
    """
    A child to make.

    Attributes:
        name: What it is to be called; a landscape that has it on record calls it as recorded.
    """

    name: str
    parents: tuple[str, ...]
    method: str = DEFAULT_METHOD
    parameters: Mapping[str, Any] = field(default_factory=lambda: dict(DEFAULT_PARAMETERS))


@dataclass(frozen=True)
class Model:
    """
    A model and how it was measured; the fields are those of `policy.Member`.

    Attributes:
        samples: Empty unless the policy asked for them.
    """

    name: str
    score: float
    tasks: Mapping[str, float] = field(default_factory=dict)
    length: float | None = None
    samples: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


class World(Protocol):
    """One evolution's surroundings; remembers every child that it made."""

    @property
    def founders(self) -> Sequence[Model]:
        """The fine-tunes, scored."""

    def merge(self, merge: Merge) -> Model | None:
        """
        Make and score a child; None where the landscape cannot know how it would do.

        Raises:
            UsageError: A method or parameter that the landscape does not have.
        """

    def kinship(self, names: Sequence[str]) -> Array:
        """Of founders and children made so far, (n, n); NaN where undefined or not known."""

    def layers(self, names: Sequence[str]) -> Array:
        """The same per layer, (layers, n, n); no layers where they are not known."""

    def true(self, name: str) -> float | None:
        """The score without luck, as far as the landscape can tell; None where it cannot."""


class Landscape(Protocol):
    """Where policies are tried out."""

    @property
    def title(self) -> str:
        """What it is, in a few words."""

    @property
    def truth(self) -> str | None:
        """What `World.true` is, in a few words; None where there is none."""

    @property
    def varies(self) -> bool:
        """Whether each seed is another world; else only the policy's own draws differ."""

    @property
    def usual_seeds(self) -> int:
        """How many to try where nobody says."""

    @property
    def most_seeds(self) -> int | None:
        """How many different worlds there are; None for as many as one likes."""

    def world(self, seed: int, uses: frozenset[Fact]) -> World:
        """
        A fresh world; under one seed it is the same for every policy.

        Args:
            uses: The costlier facts that are to be given.
        """
