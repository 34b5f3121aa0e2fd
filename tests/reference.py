"""Merging and kinship by their definitions, on whole tensors in float64: slow, plainly right."""

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


def flat(weights: Weights) -> torch.Tensor:
    return torch.cat([weights[name].double().reshape(-1) for name in sorted(weights)])


def kinship(metric: str, first: Weights, second: Weights, base: Weights) -> float:
    a, b = flat(first) - flat(base), flat(second) - flat(base)
    if metric == "euclidean":
        return float((a - b).norm())
    if metric == "pcc":
        a, b = a - a.mean(), b - b.mean()
    return float(a @ b / (a.norm() * b.norm()))
