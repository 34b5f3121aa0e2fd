"""
mergekit's YAML: read as mergekit means it, written so that mergekit makes our merges, and run.

The format is documented at https://github.com/arcee-ai/mergekit (README, "Merge Configuration").
What mergekit can do and we cannot is `Unsupported`; `run` hands it to mergekit, if that is there.
"""

from kinship_daemon.weights.mergekit.documents import Document, Unsupported, in_order, references
from kinship_daemon.weights.mergekit.reading import MergekitRecipe, read_yaml
from kinship_daemon.weights.mergekit.roles import lacks
from kinship_daemon.weights.mergekit.running import INSTALL, ask, available, run
from kinship_daemon.weights.mergekit.writing import collapsed_yaml, several_yaml, to_yaml

__all__ = [
    "INSTALL",
    "Document",
    "MergekitRecipe",
    "Unsupported",
    "ask",
    "available",
    "collapsed_yaml",
    "in_order",
    "lacks",
    "read_yaml",
    "references",
    "run",
    "several_yaml",
    "to_yaml",
]
