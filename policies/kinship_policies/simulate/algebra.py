"""Merge methods on small vectors: what the daemon does per tensor, here per block."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kinship_policies.refusals import nearest
from kinship_policies.simulate.landscape import Array
from kinship_storage.errors import UsageError

__all__ = ["METHODS", "merged"]

# mergekit's threshold: from here on slerp averages plainly.
_NEARLY_PARALLEL = 0.9995
_LAYER = re.compile(r"\.(\d+)\.")

# (weights (parents, blocks, width), settings) -> factors over base and parents,
# (1 + parents, blocks).
Factors = Callable[[Array, "Settings"], Array]


def merged(
    method: str, parameters: Mapping[str, Any], deltas: Array, base: Array, names: Sequence[str]
) -> Array:
    """
    The delta of a merge.

    Args:
        deltas: Of the parents, (parents, blocks, width).
        base: The base's own weights, (blocks, width).
        names: Of the blocks, as tensors are called: filters and gradients look at them.

    Returns:
        (blocks, width).

    Raises:
        UsageError: There is no such method or parameter here, or a value is none.
    """
    if method not in METHODS:
        raise UsageError(
            f"the synthetic landscape has no method {method!r}; it has {', '.join(METHODS)}"
            f"{nearest(method, METHODS)}"
        )
    known, factors_of = METHODS[method]
    if strange := sorted(parameters.keys() - known.keys()):
        raise UsageError(
            f"{method} has no parameter {strange[0]!r}; it has {', '.join(known)}"
            f"{nearest(strange[0], known)}"
        )
    settings = Settings(method, {**known, **parameters}, len(deltas), names)
    factors = factors_of(deltas + base, settings)
    along_base = factors.sum(0) - 1
    child = (factors[1:, :, None] * deltas).sum(0) + along_base[:, None] * base
    return np.asarray(child)


class Settings:
    """A recipe's parameters, block by block."""

    def __init__(
        self, method: str, values: Mapping[str, Any], parents: int, names: Sequence[str]
    ) -> None:
        self._method, self._values, self._parents, self._names = method, values, parents, names

    def one(self, name: str) -> Array:
        """(blocks,)"""
        return self._blocks(name, self._given(name))

    def each(self, name: str) -> Array:
        """(parents, blocks)"""
        setting = self._given(name)
        if not isinstance(setting, list | tuple):
            setting = [setting] * self._parents
        if len(setting) != self._parents:
            raise UsageError(
                f"{self._method}: {name} has {len(setting)} values for {self._parents} parents"
            )
        return np.array([self._blocks(name, value) for value in setting])

    def flag(self, name: str) -> bool:
        return bool(self._values[name])

    def two(self) -> None:
        """
        Raises:
            UsageError: It has other than two parents.
        """
        if self._parents != 2:
            raise UsageError(f"{self._method} takes 2 parents, not {self._parents}")

    def _given(self, name: str) -> Any:
        if self._values[name] is None:
            raise UsageError(f"{self._method} needs the parameter {name!r}")
        return self._values[name]

    def _blocks(self, name: str, setting: Any) -> Array:
        if isinstance(setting, int | float) and not isinstance(setting, bool):
            return np.full(len(self._names), self._finite(name, setting))
        return np.array([self._at(name, setting, block) for block in self._names])

    def _at(self, name: str, setting: Any, block: str) -> float:
        """The first condition that matches decides; a list is a gradient over the layers."""
        if isinstance(setting, Mapping):
            setting = [setting]
        if isinstance(setting, list | tuple) and setting and isinstance(setting[0], Mapping):
            matching = (c.get("value") for c in setting if _matches(c.get("filter"), block))
            setting = next(matching, None)
        if isinstance(setting, list | tuple) and setting:
            points = [self._finite(name, value) for value in setting]
            return float(np.interp(self._depth(block), np.linspace(0, 1, len(points)), points))
        return self._finite(name, setting)

    def _depth(self, block: str) -> float:
        last = max(_layer(other) for other in self._names)
        return _layer(block) / last if last else 1.0

    def _finite(self, name: str, value: Any) -> float:
        if isinstance(value, int | float) and math.isfinite(value):
            return float(value)
        raise UsageError(f"{self._method}: {name} is {value!r}; it must be a number")


def _layer(block: str) -> int:
    found = _LAYER.search(block)
    return int(found[1]) if found else 0


def _matches(condition: str | None, block: str) -> bool:
    return condition in {None, "*"} or str(condition) in block


def _linear(_weights: Array, settings: Settings) -> Array:
    shares = settings.each("weight")
    if settings.flag("normalize"):
        total = shares.sum(0)
        if not total.all():
            raise UsageError("linear: the weights sum to 0; change them")
        shares = shares / total
    return np.concatenate([np.zeros((1, len(shares[0]))), shares])


def _slerp(weights: Array, settings: Settings) -> Array:
    """sin((1-t)θ)/sinθ w_1 + sin(tθ)/sinθ w_2, θ the angle of a block's full weights."""
    settings.two()
    t = settings.one("t")
    one, other = weights
    squares = (one * one).sum(1) * (other * other).sum(1)
    cos = np.clip((one * other).sum(1) / np.sqrt(np.where(squares > 0, squares, 1.0)), -1, 1)
    plain = np.abs(cos) > _NEARLY_PARALLEL
    angle = np.arccos(np.where(plain, 0.0, cos))
    sines = np.sin(angle)
    first = np.where(plain, 1 - t, np.sin((1 - t) * angle) / sines)
    second = np.where(plain, t, np.sin(t * angle) / sines)
    return np.array([np.zeros_like(t), first, second])


def _task_arithmetic(_weights: Array, settings: Settings) -> Array:
    shares = settings.each("weight")
    if settings.flag("normalize"):
        total = shares.sum(0)
        shares = shares / np.where(np.abs(total) < 1e-8, 1.0, total)
    shares = settings.one("lambda") * shares
    return np.concatenate([1 - shares.sum(0, keepdims=True), shares])


def _extrapolation(_weights: Array, settings: Settings) -> Array:
    """w_1 + lambda (w_1 - w_2)"""
    settings.two()
    step = settings.one("lambda")
    return np.array([np.zeros_like(step), 1 + step, -step])


# Their parameters with defaults, None where the recipe must give one; as the daemon's methods.
METHODS: Mapping[str, tuple[Mapping[str, Any], Factors]] = {
    "extrapolation": ({"lambda": None}, _extrapolation),
    "linear": ({"weight": None, "normalize": True}, _linear),
    "slerp": ({"t": None}, _slerp),
    "task_arithmetic": ({"weight": None, "lambda": 1.0, "normalize": False}, _task_arithmetic),
}
