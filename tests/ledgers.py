"""The Gram ledger of some folders, as the program makes it."""

from collections.abc import Mapping
from pathlib import Path

from kinship_daemon.weights import gram
from kinship_daemon.weights.checkpoint import Checkpoint
from kinship_daemon.weights.descendant import descend


def of(base: Path, leaves: Mapping[str, Path], identity: str = "base") -> gram.Ledger:
    """The ledger of `base`, called `identity`, and of `leaves` by the names given."""
    opened = Checkpoint.open(base)
    descendants = {name: descend(opened, folder) for name, folder in leaves.items()}
    return gram.extend(gram.start(opened, identity), opened, {}, descendants)
