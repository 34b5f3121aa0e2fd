"""
A model seen through its base: every tensor under the base's name, in the base's shape.

A full fine-tune gives its weights, an adapter a low-rank delta or nothing at all; whoever reads
(ledger, merging) asks for one tensor after the other and never for the whole model.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from kinship_daemon.weights.checkpoint import Checkpoint, compare

__all__ = ["Content", "Descendant", "LowRank", "descend"]


@dataclass(frozen=True, eq=False)
class LowRank:
    """
    The delta `up @ down` of one matrix.

    Attributes:
        up: (rows, r) float32, with the adapter's scale in it.
        down: (r, columns) float32.
    """

    up: Tensor
    down: Tensor


# The weights w in the base's shape and a dtype of their own; or the delta alone; or None where the
# model has the base's own tensor.
Content = Tensor | LowRank | None


@dataclass(frozen=True, eq=False)
class Descendant:
    """
    One fine-tune or adapter of a base.

    Attributes:
        path: Its folder.
        nbytes: Of the weights it keeps on disk.
        parameters: That it keeps on disk.
        contents: By tensor name of the base, what reads that tensor. A missing name is the base's.
    """

    path: Path
    nbytes: int
    parameters: int
    contents: Mapping[str, Callable[[], Content]] = field(repr=False)

    def content(self, name: str) -> Content:
        """
        One tensor of the base's.

        Raises:
            ModelError: The file cannot be read.
        """
        read = self.contents.get(name)
        return None if read is None else read()


def descend(base: Checkpoint, path: Path) -> Descendant:
    """
    Open a model as a descendant of `base`; reads headers only.

    Raises:
        ModelError: It cannot be one; the first three differences are named.
    """
    own = Checkpoint.open(path)
    compare(base, own)
    contents = {name: _reader(own, name) for name in own.tensors}
    return Descendant(path, own.nbytes, own.parameters, contents)


def _reader(checkpoint: Checkpoint, name: str) -> Callable[[], Content]:
    return lambda: checkpoint.tensor(name)
