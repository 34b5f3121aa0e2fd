"""Merges of a home's models that are only tried out: made, scored, and kept in the user's cache."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from kinship_daemon.durable import whole_file
from kinship_daemon.errors import ModelError, UsageError
from kinship_daemon.evaluate.evaluator import Evaluator
from kinship_daemon.evaluate.scoring import Look, looks, missing, scores
from kinship_daemon.evaluate.settings import Progress
from kinship_daemon.home_models import HomeModels
from kinship_daemon.steps.assemblies import combination
from kinship_daemon.steps.leaves import first_leaf, source
from kinship_daemon.weights.materialise import Assembly, assemble, leaf_assembly, write
from kinship_daemon.weights.methods.registry import is_span
from kinship_daemon.weights.recipe import Recipe, combine
from kinship_daemon.weights.whole_tensor import whole_tensor_assembly
from kinship_storage.records import Model, Score

__all__ = ["Gain", "Trials"]

# Of the ten looks at a split: with 30, 60 and 100 % of the documents.
_RUNGS = (3, 6, 10)


@dataclass(frozen=True)
class Gain:
    """Mean over tasks of the paired differences by document, and its standard error."""

    value: float
    error: float


@dataclass
class Trials:
    """
    Scores of recipes over some models of a home, on its selection documents.

    A score is kept as soon as it is there: the same question is not asked twice, also by another
    process. The home itself is only read.

    Attributes:
        parents: By id; recipes name them so.
        kept: Folder of the scores.
        device: Where matrix methods run.
        progress: Called with what is asked, in words; what it gives counts its documents.
        failed: Why recipes could not be scored, by method.
    """

    models: HomeModels
    parents: Mapping[str, Model]
    evaluator: Evaluator
    kept: Path
    device: str
    progress: Callable[[str], Progress]
    failed: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.evaluator.settings.documents:
            self.evaluator.check()
        self.kept.mkdir(parents=True, exist_ok=True)
        self._rungs = looks(self.evaluator.settings, "selection", _RUNGS)

    @property
    def documents(self) -> int:
        """That one evaluation asks."""
        return sum(map(len, self._rungs[-1].documents.values()))

    @property
    def shares(self) -> list[float]:
        """Of the documents that each rung has answered, ascending, the last 1."""
        counts = [sum(map(len, look.documents.values())) for look in self._rungs]
        return [count / counts[-1] for count in counts]

    def measure(self, recipe: Recipe, rung: int) -> float:
        """The mean over tasks on a rung's documents; -inf where it cannot be made or scored."""
        look = self._rungs[rung]
        try:
            return _mean(self._answers(recipe, look))
        except (ModelError, UsageError) as error:
            self.failed.setdefault(recipe.method, str(error))
            return -math.inf

    def parent(self, name: str) -> float:
        """A parent's score on all documents."""
        return _mean(self.parent_answers(name))

    def answers(self, recipe: Recipe) -> list[Score]:
        """
        A merge's scores on all documents, by task and document.

        Raises:
            ModelError: It cannot be made or scored.
            UsageError: Likewise.
        """
        return self._answers(recipe, self._rungs[-1])

    def gain(self, recipe: Recipe, over: str) -> Gain:
        """Over one of the parents, on all documents."""
        theirs = {score.task: dict(score.samples) for score in self.parent_answers(over)}
        ours = self._answers(recipe, self._rungs[-1])
        values, variance = [], 0.0
        for score in ours:
            differences = [value - theirs[score.task][at] for at, value in score.samples]
            values.append(statistics.fmean(differences))
            variance += statistics.variance(differences) / len(differences)
        return Gain(statistics.fmean(values), math.sqrt(variance) / len(values))

    def parent_answers(self, name: str) -> list[Score]:
        """A parent's scores on all documents, by task and document."""
        model = self.parents[name]
        look = self._rungs[-1]
        return self._scored(str(model.weights), look, name, lambda: self._parent(model))

    def _answers(self, recipe: Recipe, look: Look) -> list[Score]:
        identity = recipe.identity([str(self.parents[name].weights) for name in recipe.parents])
        words = f"{recipe.method} of {len(recipe.parents)}"
        return self._scored(identity, look, words, lambda: self._made(recipe, identity))

    def _scored(
        self,
        identity: str,
        look: Look,
        words: str,
        made: Callable[[], AbstractContextManager[Assembly]],
    ) -> list[Score]:
        """The scores with the answers of a look alone; those that are missing are asked for."""
        settings = self.evaluator.settings
        known = self.models.lineage.scores(identity, "selection", settings.fingerprint("selection"))
        key = f"{identity} {settings.fingerprint('selection')}"
        path = self.kept / f"{hashlib.sha256(key.encode()).hexdigest()}.json"
        there: Sequence[Score] = known
        if not look.is_answered(known):
            there = _read(path, key) or known
        if not look.is_answered(there):
            asked = missing(settings, "selection", there, look.number)
            with made() as assembly:
                found = self.evaluator.evaluate(assembly, asked, self.progress(words))
            there = scores(found.answers, settings, "selection", identity, there)
            content = {"key": key, "scores": [asdict(score) for score in there]}
            whole_file(path, json.dumps(content).encode())
        return look.of(there)

    @contextmanager
    def _parent(self, model: Model) -> Iterator[Assembly]:
        yield self.models.assembly(model)

    @contextmanager
    def _made(self, recipe: Recipe, identity: str) -> Iterator[Assembly]:
        """By algebra where the method allows it; otherwise written to a folder for a while."""
        models, chosen = self.models, [self.parents[name] for name in recipe.parents]
        rows = models.recipes.rows
        if is_span(recipe.method):
            parents = [combination(models.lineage, rows, model) for model in chosen]
            child = combine(rows.ledger, recipe, parents)
            leaves = {row: models.folder(source(models.lineage, row)) for row in child.rows}
            donor = source(models.lineage, str(first_leaf(models.lineage, chosen[0]).weights))
            yield assemble(
                rows.ledger,
                child,
                models.base_folder,
                leaves,
                identity,
                donor=models.folder(donor),
            )
            return
        assemblies = [models.assembly(model) for model in chosen]
        whole = whole_tensor_assembly(
            recipe,
            assemblies,
            rows.ledger.names,
            models.base_folder,
            identity,
            assemblies[0].donor,
            self.device,
        )
        with TemporaryDirectory(prefix="kinship-trial-") as room:
            write(whole, Path(room) / "made")
            yield leaf_assembly(Path(room) / "made", identity, models.base_folder)


def _mean(found: Sequence[Score]) -> float:
    return statistics.fmean(
        statistics.fmean(value for _, value in score.samples) for score in found
    )


def _read(path: Path, key: str) -> list[Score] | None:
    """None where it is not there, or is damaged and has to be made again."""
    try:
        kept = json.loads(path.read_bytes())
        if kept["key"] != key:
            return None
        return [
            Score(**{**each, "samples": tuple((at, value) for at, value in each["samples"])})
            for each in kept["scores"]
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return None
