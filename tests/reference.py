"""Merging and kinship by their definitions, on whole tensors in float64: slow, plainly right."""

from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any

import numpy as np
import torch

Weights = dict[str, torch.Tensor]


def slerp(t: float, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """As mergekit defines it: the angle between unit vectors, its factors on the raw ones."""
    a, b = first.double().numpy(), second.double().numpy()

    def unit(v):
        norm = np.linalg.norm(v)
        return v / norm if norm > 1e-8 else v

    cos = np.sum(unit(a) * unit(b))
    if np.abs(cos) > 0.9995:
        return torch.from_numpy(np.asarray((1 - t) * a + t * b))
    theta = np.arccos(cos)
    left, right = np.sin((1 - t) * theta), np.sin(t * theta)
    return torch.from_numpy(np.asarray((left * a + right * b) / np.sin(theta)))


def linear(weights: list[float], tensors: list[torch.Tensor], normalize: bool) -> torch.Tensor:
    total = sum(w * t.double() for w, t in zip(weights, tensors, strict=True))
    return total / sum(weights) if normalize else total


def extrapolation(step: float, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return first + step * (first - second)


def task_arithmetic(
    base: torch.Tensor,
    tensors: list[torch.Tensor],
    weights: list[float],
    scale: float = 1.0,
    normalize: bool = False,
) -> torch.Tensor:
    delta = sum(w * (t - base) for w, t in zip(weights, tensors, strict=True))
    if normalize and abs(sum(weights)) >= 1e-8:
        delta = delta / sum(weights)
    return base + scale * delta


def nuslerp(
    tensors: list[torch.Tensor], weights: list[float], origin: torch.Tensor | None = None
) -> torch.Tensor:
    """As mergekit's `nuslerp_flatten`, with its float32 threshold of what is collinear."""
    a, b = (_minus(t, origin) for t in tensors)
    total = sum(weights)
    t = 0.5 if abs(total) < 1e-6 else weights[1] / total
    cos = float((a / max(float(a.norm()), 1e-7) * (b / max(float(b.norm()), 1e-7))).sum())
    if 1 - cos * cos <= 2.0**-25:
        return _plus((1 - t) * a + t * b, origin)
    theta = np.arccos(cos)
    turned = np.sin((1 - t) * theta) * a + np.sin(t * theta) * b
    return _plus(turned / np.sin(theta), origin)


def multislerp(
    tensors: list[torch.Tensor],
    weights: list[float],
    normalize: bool = True,
    eps: float = 1e-8,
    origin: torch.Tensor | None = None,
) -> torch.Tensor:
    """The whole definition: mean on the sphere, tangents there, their mean, and back."""
    if len(tensors) == 1:
        return tensors[0]
    vectors = [_minus(t, origin) for t in tensors]
    shares = [w / sum(weights) if normalize else w for w in weights]
    units = [v / (v.norm() + eps) for v in vectors]
    mean = sum(w * u for w, u in zip(shares, units, strict=True))
    if mean.norm() <= max(eps, 1e-7 * sum(map(abs, shares))):
        return _plus(sum(w * v for w, v in zip(shares, vectors, strict=True)), origin)
    mean = mean / mean.norm()
    tangent = sum(w * (u - (u @ mean) * mean) for w, u in zip(shares, units, strict=True))
    angle = tangent.norm() + eps
    point = mean * torch.cos(angle) + tangent * torch.sin(angle) / angle
    length = sum(w * float(v.norm()) for w, v in zip(shares, vectors, strict=True))
    return _plus(length * point, origin)


def karcher(tensors: list[torch.Tensor], max_iter: int = 10, tol: float = 1e-5) -> torch.Tensor:
    if len(tensors) == 1:
        return tensors[0]
    units = [t / t.norm() for t in tensors if t.norm() > tol]
    if not units:
        return torch.zeros_like(tensors[0])
    mean = sum(units) / len(units)
    mean = units[0] if mean.norm() < tol else mean / mean.norm()
    for _ in range(max_iter):
        tangent = torch.zeros_like(mean)
        for unit in units:
            cos = min(1.0, max(-1.0, float(mean @ unit)))
            theta = np.arccos(cos)
            if tol <= theta <= np.pi - tol:
                tangent = tangent + theta / np.sin(theta) * (unit - cos * mean) / len(units)
        angle = tangent.norm()
        if angle < tol:
            break
        mean = torch.cos(angle) * mean + torch.sin(angle) * tangent / angle
        mean = mean / mean.norm()
    return mean * sum(float(t.norm()) for t in tensors) / len(tensors)


def model_stock(base: torch.Tensor, tensors: list[torch.Tensor]) -> torch.Tensor:
    deltas = [t - base for t in tensors]
    cosines = [
        min(1.0, max(-1.0, float(a @ b) / max(float(a.norm() * b.norm()), 1e-6)))
        for a, b in combinations(deltas, 2)
    ]
    cos, count = sum(cosines) / len(cosines), len(tensors)
    denominator = 1 + (count - 1) * cos
    t = 0.0 if abs(denominator) < 1e-6 else count * cos / denominator
    return t * sum(tensors) / count + (1 - t) * base


def metagpt(base: torch.Tensor, tensors: list[torch.Tensor], scale: float = 1.0) -> torch.Tensor:
    squares = [float((t - base).norm()) ** 2 for t in tensors]
    if not any(squares):
        return base
    shares = [square / sum(squares) for square in squares]
    return base + scale * sum(s * (t - base) for s, t in zip(shares, tensors, strict=True))


def frobenius(
    base: torch.Tensor, tensors: list[torch.Tensor], k: float, scale: float
) -> torch.Tensor:
    powers = [float((t - base).norm()) ** k for t in tensors]
    merged = sum(power * (t - base) for power, t in zip(powers, tensors, strict=True))
    return base + scale * merged / sum(powers)


def nan(
    base: torch.Tensor, tensors: list[torch.Tensor], scale: float, delta_norms: bool
) -> torch.Tensor:
    inverse = [1 / float((t - base if delta_norms else t).norm()) for t in tensors]
    merged = sum(i * (t - base) for i, t in zip(inverse, tensors, strict=True))
    return base + scale * len(tensors) / 2 * merged / sum(inverse)


def _minus(tensor: torch.Tensor, origin: torch.Tensor | None) -> torch.Tensor:
    return tensor if origin is None else tensor - origin


def _plus(tensor: torch.Tensor, origin: torch.Tensor | None) -> torch.Tensor:
    return tensor if origin is None else tensor + origin


# Every span method by its name: (base, tensors, its parameters with none left out) -> the child.
SPAN: dict[str, Callable[[torch.Tensor, list[torch.Tensor], Mapping[str, Any]], torch.Tensor]] = {
    "extrapolation": lambda _, ws, p: extrapolation(p["lambda"], *ws),
    "frobenius": lambda b, ws, p: frobenius(b, ws, p["k"], p["lambda"]),
    "karcher": lambda _, ws, p: karcher(ws, p["max_iter"], p["tol"]),
    "linear": lambda _, ws, p: linear(p["weight"], ws, p["normalize"]),
    "metagpt": lambda b, ws, p: metagpt(b, ws, p["lambda"]),
    "model_stock": lambda b, ws, _: model_stock(b, ws),
    "multislerp": lambda b, ws, p: multislerp(
        ws, p["weight"], p["normalize_weights"], p["eps"], b if p["of_deltas"] else None
    ),
    "nan": lambda b, ws, p: nan(b, ws, p["lambda"], p["delta_norms"]),
    "nuslerp": lambda b, ws, p: nuslerp(ws, p["weight"], b if p["of_deltas"] else None),
    "slerp": lambda _, ws, p: slerp(p["t"], *ws),
    "task_arithmetic": lambda b, ws, p: task_arithmetic(
        b, ws, p["weight"], p["lambda"], p["normalize"]
    ),
}


def flat(weights: Weights) -> torch.Tensor:
    return torch.cat([weights[name].double().reshape(-1) for name in sorted(weights)])


def kinship(metric: str, first: Weights, second: Weights, base: Weights) -> float:
    a, b = flat(first) - flat(base), flat(second) - flat(base)
    if metric == "euclidean":
        return float((a - b).norm())
    if metric == "pcc":
        a, b = a - a.mean(), b - b.mean()
    return float(a @ b / (a.norm() * b.norm()))
