"""
The landscape of the demo's real models, really merged and evaluated by the daemon's own engine.

Each seed is another set of founders out of the six fine-tunes. The policy sees scores on the
selection tasks; the true score is the one on the validation tasks, which share no document with
them. With `control` (`landscapes.control`) fine-tunes that learnt nothing take their place. Results
are kept in the user's cache folder, so that nothing is evaluated twice. Sets overlap and the models
are few and tiny: intervals over sets speak of these six models, not of others.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from kinship_daemon import config as configuration
from kinship_daemon import demo
from kinship_daemon.durable import hash_file, whole_file
from kinship_daemon.errors import KinshipError, ModelError, UsageError
from kinship_daemon.evaluate.evaluator import Evaluator, open_evaluator
from kinship_daemon.evaluate.scoring import score_split
from kinship_daemon.landscapes.control import CONTROLS, write_control
from kinship_daemon.startup import evaluation_settings
from kinship_daemon.weights import gram
from kinship_daemon.weights.assembly import Assembly, assemble, leaf_assembly
from kinship_daemon.weights.checkpoint import Checkpoint, weights_identity
from kinship_daemon.weights.descendant import descend
from kinship_daemon.weights.kinship import by_layer, matrix
from kinship_daemon.weights.recipe import Coefficients, Recipe, combine, leaf
from kinship_policies.policy import Fact
from kinship_policies.simulate.landscape import Array, Merge, Model
from kinship_storage.records import Split

__all__ = ["Demo", "cache_directory", "open_demo"]

_FOUNDERS = 4
_HELD_BACK = demo.HUB.parent / "held_back" / "demo"

# Per task, the score of every document.
Results = Mapping[str, tuple[float, ...]]


def cache_directory() -> Path:
    """Where results are kept (XDG base directory specification)."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "kinship-daemon" / "demo-landscape"


@contextmanager
def open_demo(settings: Mapping[str, Any]) -> Iterator[Demo]:
    """
    The landscape with its evaluator, which is started only for what is not in the cache.

    Raises:
        UsageError: A setting is unknown or out of range.
        KinshipError: The cache cannot be written.
    """
    if strange := sorted(settings.keys() - {"founders", "control"}):
        raise UsageError(
            f"the demo landscape has no setting {strange[0]!r}; known: founders, control"
        )
    founders, most = settings.get("founders", _FOUNDERS), len(demo.SELECTION)
    if not isinstance(founders, int) or not 2 <= founders <= most:
        raise UsageError(f"landscape demo: founders is {founders!r}; it must be from 2 to {most}")
    control = settings.get("control", "none")
    if control not in {"none", *CONTROLS}:
        known = ", ".join(["none", *CONTROLS])
        raise UsageError(f"landscape demo: control is {control!r}; it must be one of {known}")
    evaluation = evaluation_settings(configuration.load(base="demo"))
    cache = cache_directory()
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KinshipError(f"the cache {cache} cannot be written: {error.strerror}") from None
    with (
        closing(open_evaluator(evaluation, log=cache / "evaluate.log")) as evaluator,
        TemporaryDirectory(prefix="kinship-control-") as scratch,
    ):
        fingerprints = {s: evaluation.fingerprint(s) for s in ("selection", "validation")}
        repos = _fine_tunes()
        if control != "none":
            targets = [Path(scratch) / folder.name for folder in repos]
            for folder, target in zip(repos, targets, strict=True):
                write_control(control, demo.HUB / demo.BASE, folder, target)
            repos = targets
        title = "real fine-tunes" if control == "none" else f"{control} controls of fine-tunes"
        yield Demo(founders, repos, title, _Scores(evaluator, cache, fingerprints))


class _Scores:
    """Evaluates what is not in the cache."""

    def __init__(self, evaluator: Evaluator, cache: Path, fingerprints: Mapping[Any, str]) -> None:
        self._evaluator, self._cache, self._fingerprints = evaluator, cache, fingerprints

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


class Demo:
    """The landscape."""

    truth = "on the validation documents"
    varies = True
    usual_seeds = 5

    def __init__(self, founders: int, repos: Sequence[Path], what: str, scores: _Scores) -> None:
        self.scores = scores
        self.base = demo.HUB / demo.BASE
        self.folders = {_identity(folder): folder for folder in repos}
        self.names = {f"demo/{folder.name}": row for row, folder in self.folders.items()}
        self.ledger = _ledger(self.base, self.folders)
        self._sets = list(combinations(sorted(self.names), founders))
        self._kinships: dict[tuple[str, str], float] = {}
        self.title = f"demo: {founders} of {len(repos)} {what} of {demo.BASE}, by seed"

    @property
    def most_seeds(self) -> int:
        return len(self._sets)

    def world(self, seed: int, uses: frozenset[Fact]) -> _World:
        # In an order without meaning, so that neighbouring seeds are not neighbouring sets.
        order = np.random.default_rng(0).permutation(len(self._sets))
        return _World(self, self._sets[order[seed % len(order)]], samples="samples" in uses)

    def kinship(self, a: _Made, b: _Made) -> float:
        """NaN where undefined; the same numbers serve every run."""
        key = min(a.identity, b.identity), max(a.identity, b.identity)
        if key not in self._kinships:
            both = matrix(self.ledger, [a.coefficients, b.coefficients], "pcc")
            self._kinships[key] = float(both[0, 1])
        return self._kinships[key]

    def assembly(self, made: _Made) -> Assembly:
        if made.donor == made.identity:
            return leaf_assembly(self.folders[made.identity], made.identity)
        donor = self.folders[made.donor]
        return assemble(
            self.ledger, made.coefficients, self.base, self.folders, made.identity, donor=donor
        )

    def length(self, made: _Made) -> float:
        """Of the delta less its mean, the geometry of pcc."""
        parts = torch.cat([made.coefficients.base[:, None] - 1, made.coefficients.deltas], 1)
        places = torch.tensor([1, *(self.ledger.rows.index(r) + 2 for r in made.coefficients.rows)])
        gram_here = self.ledger.gram[:, places][:, :, places]
        square = float(torch.einsum("ti,tij,tj->", parts, gram_here, parts))
        ones = float((self.ledger.gram[:, 0, places] * parts).sum())
        return math.sqrt(max(square - ones**2 / sum(self.ledger.sizes), 0.0))


@dataclass(frozen=True, eq=False)
class _Made:
    """A model: what it is made of, and the fine-tune whose tokenizer it carries on."""

    identity: str
    coefficients: Coefficients
    donor: str


class _World:
    def __init__(self, demo: Demo, founders: Sequence[str], *, samples: bool) -> None:
        self._demo, self._samples = demo, samples
        self._made: dict[str, _Made] = {}
        self.founders = [self._founder(name) for name in founders]

    def merge(self, merge: Merge) -> Model | None:
        parents = [self._made[name] for name in merge.parents]
        recipe = Recipe(merge.method, merge.parents, merge.parameters)
        identity = recipe.identity([parent.identity for parent in parents])
        ledger = self._demo.ledger
        coefficients = combine(ledger, recipe, [parent.coefficients for parent in parents])
        try:
            return self._add(merge.name, _Made(identity, coefficients, parents[0].donor))
        except ModelError:
            return None  # it cannot be scored, as a daemon would find too

    def kinship(self, names: Sequence[str]) -> Array:
        made = [self._made[name] for name in names]
        values = np.eye(len(names))
        for i, j in combinations(range(len(names)), 2):
            values[i, j] = values[j, i] = self._demo.kinship(made[i], made[j])
        return values

    def layers(self, names: Sequence[str]) -> Array:
        rows = [self._made[name].coefficients for name in names]
        found = by_layer(self._demo.ledger, rows, "pcc")
        layers = [values for layer, values in found.items() if layer is not None]
        return np.asarray(torch.stack(layers).numpy())

    def true(self, name: str) -> float | None:
        results = self._demo.scores.of(self._demo.assembly(self._made[name]), "validation")
        return _mean(_mean(values) for values in results.values())

    def _founder(self, name: str) -> Model:
        row = self._demo.names[name]
        return self._add(name, _Made(row, leaf(self._demo.ledger, row), row))

    def _add(self, name: str, made: _Made) -> Model:
        results = self._demo.scores.of(self._demo.assembly(made), "selection")
        self._made[name] = made
        tasks = {task: _mean(values) for task, values in results.items()}
        samples = results if self._samples else {}
        return Model(name, _mean(tasks.values()), tasks, self._demo.length(made), samples)


def _fine_tunes() -> list[Path]:
    there = (demo.HUB / "demo", _HELD_BACK)
    repos = [entry for folder in there for entry in sorted(folder.iterdir())]
    repos.remove(demo.HUB / demo.BASE)
    return repos


def _identity(folder: Path) -> str:
    files = Checkpoint.open(folder).files
    return weights_identity({name: hash_file(folder / name) for name in files})


def _ledger(base: Path, folders: Mapping[str, Path]) -> gram.Ledger:
    opened = Checkpoint.open(base)
    leaves = {row: descend(opened, folder) for row, folder in folders.items()}
    return gram.extend(gram.start(opened, _identity(base)), opened, {}, leaves)


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)
