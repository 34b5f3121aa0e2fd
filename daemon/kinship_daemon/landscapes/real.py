"""
The landscape of real models, really merged and evaluated by the daemon's own engine.

Each seed is another set of founders out of a few fine-tunes or adapters of one base. The policy
sees scores on the selection tasks; the true score is the one on the validation tasks, which share
no document with them. Results are kept in a folder, so that nothing is evaluated twice. Sets
overlap: intervals over sets speak of these models, not of others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from kinship_daemon.durable import hash_file, whole_file
from kinship_daemon.errors import ModelError
from kinship_daemon.evaluate.evaluator import Evaluator
from kinship_daemon.evaluate.scoring import score_split
from kinship_daemon.weights import gram
from kinship_daemon.weights.assembly import Assembly, assemble, leaf_assembly
from kinship_daemon.weights.checkpoint import Checkpoint, weights_identity
from kinship_daemon.weights.descendant import descend
from kinship_daemon.weights.kinship import by_layer, lengths, matrix
from kinship_daemon.weights.recipe import Coefficients, Recipe, combine, leaf
from kinship_policies.policy import Fact
from kinship_policies.simulate.landscape import Array, Merge, Model
from kinship_storage.records import Split

__all__ = ["RealModels", "Results", "Scores"]

# Per task, the score of every document.
Results = Mapping[str, tuple[float, ...]]


class Scores:
    """Evaluates what is not in the cache, a folder."""

    def __init__(self, evaluator: Evaluator, cache: Path) -> None:
        self._evaluator, self._cache = evaluator, cache
        settings = evaluator.settings
        self._fingerprints = {s: settings.fingerprint(s) for s in get_args(Split)}

    def of(self, assembly: Assembly, split: Split) -> Results:
        key = f"{assembly.identity} {self._fingerprints[split]}"
        path = self._cache / f"{hashlib.sha256(key.encode()).hexdigest()}.json"
        known = _read(path, key)
        if known is None:
            scores = score_split(self._evaluator, assembly, split)
            known = {s.task: tuple(value for _, value in s.samples) for s in scores}
            whole_file(path, json.dumps({"key": key, "results": known}).encode())
        return known


def _read(path: Path, key: str) -> Results | None:
    """None where it is not there, or is damaged and has to be made again."""
    try:
        kept = json.loads(path.read_bytes())
        if kept["key"] != key:
            return None
        return {task: tuple(values) for task, values in kept["results"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


class RealModels:
    """
    The landscape.

    Args:
        base: A folder.
        repos: Folders of fine-tunes and adapters, each named by its last two parts, as in a hub.
        founders: How many of them are in a set.
    """

    truth = "on the validation documents"
    varies = True
    usual_seeds = 5

    def __init__(
        self, base: Path, repos: Sequence[Path], founders: int, title: str, scores: Scores
    ) -> None:
        self.base, self.scores, self.title = base, scores, title
        self.folders = {_identity(base, folder): folder for folder in repos}
        self.names = {
            f"{folder.parent.name}/{folder.name}": row for row, folder in self.folders.items()
        }
        self.ledger = _ledger(base, self.folders)
        self._sets = list(combinations(sorted(self.names), founders))
        self._kinships: dict[tuple[str, str], float] = {}

    @property
    def most_seeds(self) -> int:
        return len(self._sets)

    def founders(self, seed: int) -> tuple[str, ...]:
        """The set of a seed, in an order without meaning: neighbours are not alike."""
        order = np.random.default_rng(0).permutation(len(self._sets))
        return self._sets[int(order[seed % len(order)])]

    def world(self, seed: int, uses: frozenset[Fact]) -> _World:
        return _World(self, self.founders(seed), samples="samples" in uses)

    def kinship(self, a: _Made, b: _Made) -> float:
        """NaN where undefined; the same numbers serve every run."""
        key = min(a.identity, b.identity), max(a.identity, b.identity)
        if key not in self._kinships:
            both = matrix(self.ledger, [a.coefficients, b.coefficients], "pcc")
            self._kinships[key] = float(both[0, 1])
        return self._kinships[key]

    def assembly(self, made: _Made) -> Assembly:
        if made.donor == made.identity:
            return leaf_assembly(self.folders[made.identity], made.identity, self.base)
        donor = self.folders[made.donor]
        return assemble(
            self.ledger, made.coefficients, self.base, self.folders, made.identity, donor=donor
        )

    def length(self, made: _Made) -> float:
        """Of the delta less its mean, the geometry of pcc."""
        return float(lengths(self.ledger, [made.coefficients], "pcc")[0])


@dataclass(frozen=True, eq=False)
class _Made:
    """A model: what it is made of, and the fine-tune whose tokenizer it carries on."""

    identity: str
    coefficients: Coefficients
    donor: str


class _World:
    def __init__(self, models: RealModels, founders: Sequence[str], *, samples: bool) -> None:
        self._models, self._samples = models, samples
        self._made: dict[str, _Made] = {}
        self.founders = [self._founder(name) for name in founders]

    def merge(self, merge: Merge) -> Model | None:
        parents = [self._made[name] for name in merge.parents]
        recipe = Recipe(merge.method, merge.parents, merge.parameters)
        identity = recipe.identity([parent.identity for parent in parents])
        ledger = self._models.ledger
        coefficients = combine(ledger, recipe, [parent.coefficients for parent in parents])
        try:
            return self._add(merge.name, _Made(identity, coefficients, parents[0].donor))
        except ModelError:
            return None  # it cannot be scored, as a daemon would find too

    def kinship(self, names: Sequence[str]) -> Array:
        made = [self._made[name] for name in names]
        values = np.eye(len(names))
        for i, j in combinations(range(len(names)), 2):
            values[i, j] = values[j, i] = self._models.kinship(made[i], made[j])
        return values

    def layers(self, names: Sequence[str]) -> Array:
        rows = [self._made[name].coefficients for name in names]
        found = by_layer(self._models.ledger, rows, "pcc")
        layers = [values for layer, values in found.items() if layer is not None]
        return np.asarray(torch.stack(layers).numpy())

    def true(self, name: str) -> float | None:
        results = self._models.scores.of(self._models.assembly(self._made[name]), "validation")
        return _mean(_mean(values) for values in results.values())

    def _founder(self, name: str) -> Model:
        row = self._models.names[name]
        return self._add(name, _Made(row, leaf(self._models.ledger, row), row))

    def _add(self, name: str, made: _Made) -> Model:
        results = self._models.scores.of(self._models.assembly(made), "selection")
        self._made[name] = made
        tasks = {task: _mean(values) for task, values in results.items()}
        samples = results if self._samples else {}
        return Model(name, _mean(tasks.values()), tasks, self._models.length(made), samples)


def _identity(base: Path, folder: Path) -> str:
    files = descend(Checkpoint.open(base), folder).files
    return weights_identity({name: hash_file(folder / name) for name in files})


def _ledger(base: Path, folders: Mapping[str, Path]) -> gram.Ledger:
    opened = Checkpoint.open(base)
    leaves = {row: descend(opened, folder) for row, folder in folders.items()}
    identity = weights_identity({name: hash_file(base / name) for name in opened.files})
    return gram.extend(gram.start(opened, identity), opened, {}, leaves)


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)
