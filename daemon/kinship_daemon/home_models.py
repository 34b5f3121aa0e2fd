"""Models of a home, made or found without a daemon; nothing in the home is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kinship_daemon.durable import changed_ns, hash_file
from kinship_daemon.errors import KinshipError
from kinship_daemon.home import Home
from kinship_daemon.steps.assemblies import combination, leaf_models
from kinship_daemon.steps.leaves import first_leaf, is_leaf, source
from kinship_daemon.steps.recipes import Recipes
from kinship_daemon.weights.materialise import Assembly, assemble, leaf_assembly
from kinship_storage.lineage import Lineage
from kinship_storage.records import Model

__all__ = ["HomeModels"]


@dataclass(frozen=True)
class HomeModels:
    """
    The models of one lineage.

    Attributes:
        fetch: Where the files of a repo's revision lie, fetched outside the home.
    """

    home: Home
    lineage: Lineage
    recipes: Recipes
    fetch: Callable[[str, str], Path]

    @classmethod
    def of(cls, home: Home, lineage: Lineage, fetch: Callable[[str, str], Path]) -> HomeModels:
        """
        Raises:
            KinshipError: It has no ledger yet.
        """
        return cls(home, lineage, Recipes.of_home(home, lineage), fetch)

    @property
    def base_folder(self) -> Path:
        return Path(str(self.recipes.base.folder))

    def assembly(self, model: Model) -> Assembly:
        """
        How a model is made of files that are here.

        Raises:
            ModelError: A leaf that it rests on has no row in the ledger any more.
            KinshipError: Its files, or a leaf's, are not to be had, or are others now.
        """
        if model.kind == "base":
            return leaf_assembly(self.base_folder, str(model.weights))
        if model.weights is None:
            raise KinshipError(f"{model.id} is {model.status}: its weights are not known yet")
        if is_leaf(model):
            own = self.folder(source(self.lineage, model.weights))
            return leaf_assembly(own, model.weights, self.base_folder)
        made_of = combination(self.lineage, self.recipes.rows, model)
        donor = source(self.lineage, str(first_leaf(self.lineage, model).weights))
        parts = leaf_models(self.lineage, made_of)
        return assemble(
            self.recipes.rows.ledger,
            made_of,
            self.base_folder,
            {row: self.folder(each) for row, each in parts.items()},
            model.weights,
            donor=self.folder(donor),
        )

    def folder(self, leaf: Model) -> Path:
        """
        Where a leaf's files lie, each held against its hash.

        Raises:
            KinshipError: They are not to be had, or are others now.
        """
        if leaf.folder is not None and self._is_whole(leaf, Path(leaf.folder)):
            return Path(leaf.folder)
        if leaf.repo is None:
            raise KinshipError(f"the weights of {leaf.id} are gone; the next run makes them again")
        folder = self.fetch(leaf.repo, str(leaf.revision))
        if not self._is_whole(leaf, folder):
            raise KinshipError(f"{leaf.id} changed in {folder} since it was admitted")
        return folder

    def _is_whole(self, leaf: Model, folder: Path) -> bool:
        return all(
            (folder / file.path).is_file() and self._sha256(folder / file.path) == file.sha256
            for file in self.lineage.files(leaf.id)
        )

    def _sha256(self, path: Path) -> str:
        """As the daemon remembers it, or hashed now."""
        stat = path.stat()
        known = self.lineage.file_hash(path.resolve(), stat.st_size, changed_ns(stat))
        return known or hash_file(path)
