"""What the layers of merged models were given on texts, as files that a merge reads."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["LayerInputs", "matrix_file"]


@dataclass(frozen=True)
class LayerInputs:
    """
    The mean of x x^T over each layer's inputs x, for each of some models; picklable, and small.

    Attributes:
        folders: One a model: raw float32 files, one a layer.
    """

    folders: Sequence[Path]

    def of(self, name: str) -> list[Tensor] | None:
        """Of a tensor's layer, (n, n) float32 for each model, mapped; None where one has none."""
        files = [matrix_file(folder, name) for folder in self.folders]
        if not all(file.is_file() for file in files):
            return None
        size = math.isqrt(files[0].stat().st_size // 4)
        return [torch.from_file(str(file), size=size * size).view(size, size) for file in files]


def matrix_file(folder: Path, name: str) -> Path:
    """Where the matrix of a tensor's layer lies; names are strangers', so no names of files."""
    return folder / hashlib.sha256(name.encode()).hexdigest()
