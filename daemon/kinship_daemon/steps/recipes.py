"""A merge as a mergekit recipe: as it was made, and from fine-tunes alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kinship_daemon.context import Context, Rows
from kinship_daemon.errors import KinshipError
from kinship_daemon.home import Home
from kinship_daemon.steps.assemblies import combination, leaf_models
from kinship_daemon.steps.leaves import is_leaf
from kinship_daemon.weights.checkpoint import Checkpoint
from kinship_daemon.weights.ledger import Ledger
from kinship_daemon.weights.mergekit import collapsed_yaml, several_yaml, to_yaml
from kinship_daemon.weights.recipe import Recipe
from kinship_storage.lineage import Lineage
from kinship_storage.records import Model

__all__ = ["Recipes", "as_made", "called"]


@dataclass(frozen=True)
class Recipes:
    """
    The recipes of one home's merges; reads the lineage and the ledger, no weights.

    Attributes:
        dtype: What merges are written in, as mergekit calls it.
    """

    lineage: Lineage
    rows: Rows
    base: Model
    dtype: str

    @classmethod
    def of_home(cls, home: Home, lineage: Lineage) -> Recipes:
        """
        Of a home that is only read.

        Raises:
            KinshipError: It has no ledger yet.
        """
        if not home.ledger.is_file():
            raise KinshipError(f"{home.path} has no ledger; the next run computes it again")
        (base,) = lineage.models("base")
        dtype = Checkpoint.open(Path(str(base.folder))).main_dtype
        return cls(lineage, Rows(Ledger.load(home.ledger)), base, dtype)

    @classmethod
    def of(cls, context: Context) -> Recipes:
        dtype = context.base_checkpoint.main_dtype
        return cls(context.lineage, context.rows, context.base, dtype)

    def made(self, model: Model) -> str:
        """As `as_made`."""
        return as_made(self.lineage, model, self.base.name, self.dtype)

    def from_leaves(self, model: Model) -> str:
        """
        The merge as it can be made again from fine-tunes alone.

        One document where algebra collapses it; otherwise one for each merge it rests on, too.

        Raises:
            ModelError: A leaf that it rests on has no row in the ledger any more.
        """
        parts: dict[str, str] = {}
        last = self._document(model, self.dtype, parts)
        return several_yaml(parts, last) if parts else last

    def _document(self, model: Model, dtype: str, parts: dict[str, str]) -> str:
        """One merge's YAML; those of the merges that it names are added to `parts` before it."""
        assert model.recipe is not None
        base = self.base.name
        if is_leaf(model):
            parents = [self.lineage.require(name) for name in model.parents]
            names = {each.id: self._part(each, parts) for each in parents}
            return to_yaml(Recipe.from_json(model.recipe), names, base, dtype)
        made_of = combination(self.lineage, self.rows, model)
        leaves = leaf_models(self.lineage, made_of)
        names = {weights: self._part(leaf, parts) for weights, leaf in leaves.items()}
        return collapsed_yaml(self.rows.ledger, made_of, names, base, dtype)

    def _part(self, model: Model, parts: dict[str, str]) -> str:
        """What the YAML calls a model: a fine-tune by its repo, a merge by its own document."""
        if model.recipe is None:
            files = self.lineage.files(model.id)
            adapter = any(file.path == "adapter_config.json" for file in files)
            return f"{self.base.name}+{model.name}" if adapter else model.name
        if model.id not in parts:
            # A leaf is rounded when it is written; what only passes through is not.
            dtype = self.dtype if is_leaf(model) else "float32"
            parts[model.id] = self._document(model, dtype, parts)
        return model.id


def as_made(lineage: Lineage, model: Model, base: str, dtype: str) -> str:
    """The merge of its parents: published ones by their repo, others by their name here."""
    assert model.recipe is not None
    parents = [lineage.require(name) for name in model.parents]
    names = {parent.id: called(lineage, parent) for parent in parents}
    return to_yaml(Recipe.from_json(model.recipe), names, base, dtype)


def called(lineage: Lineage, model: Model) -> str:
    """A model as others can find it: by repo; not published yet, by its name in the lineage."""
    publication = lineage.publication(model.id)
    return publication.repo if publication else model.name
