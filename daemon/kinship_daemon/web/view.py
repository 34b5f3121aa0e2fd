"""What a page is made from: one moment of a home's lineage, and what its daemon does just now."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from kinship_daemon.activity import recorded
from kinship_daemon.evaluate.race import stop_words
from kinship_daemon.home import Home
from kinship_daemon.retry import SETTINGS_THEN
from kinship_daemon.web.kinships import Kinships
from kinship_storage.lineage import Lineage
from kinship_storage.records import Gate, Model, Partial

__all__ = ["View"]


@dataclass(frozen=True)
class View:
    """
    Attributes:
        activity: See `activity.recorded`; empty where no daemon ever ran on this copy.
    """

    home: Home
    lineage: Lineage
    activity: dict[str, Any]
    kinships: Kinships
    now: datetime

    @classmethod
    @contextmanager
    def of(cls, home: Home, kinships: Kinships) -> Iterator[View]:
        """
        Opened for reading alone, beside a running daemon or without one.

        Raises:
            LineageError: It cannot be read.
        """
        now = datetime.now(UTC)
        with (
            Lineage.open(home.lineage, now=lambda: now, readonly=True) as lineage,
            lineage.snapshot(),
        ):
            yield cls(home, lineage, recorded(home.activity), kinships, now)

    @cached_property
    def settings(self) -> dict[str, str]:
        """Fingerprints of the evaluation settings in force, by split."""
        found: dict[str, str] = self.lineage.get("settings") or {}
        return found

    @cached_property
    def base(self) -> str:
        named = (model.name for model in self.lineage.models("base"))
        return str(next(named, self.lineage.get("base") or "no base yet"))

    @cached_property
    def means(self) -> dict[str, float]:
        """Mean selection scores by weights."""
        return self.lineage.mean_scores("selection", self.settings.get("selection"))

    @cached_property
    def partials(self) -> dict[str, Partial]:
        """Whose selection scores are not of all documents, by weights."""
        return self.lineage.partials(self.settings.get("selection", ""))

    @cached_property
    def best(self) -> str | None:
        """Id of the best model."""
        found = self.lineage.best()
        return None if found is None else found.model

    @cached_property
    def gates(self) -> dict[str, Gate]:
        """Verdicts under the settings in force, by model."""
        return {gate.model: gate for gate in self.lineage.gates(self.settings.get("validation"))}

    @cached_property
    def repos(self) -> dict[str, str]:
        """Where models are published, by model."""
        return {each.model: each.repo for each in self.lineage.publications()}

    @property
    def metric(self) -> str:
        """The kinship that the policy sees."""
        return str(self.config("kinship.metric", "pcc"))

    def config(self, key: str, default: Any = None) -> Any:
        """A setting of the daemon that ran last; `default` where none did."""
        return self._config.get(key, default)

    @cached_property
    def _config(self) -> dict[str, Any]:
        found: dict[str, Any] = self.lineage.get(SETTINGS_THEN) or {}
        return found

    def stopped(self, model: Model) -> str | None:
        """Why it was not asked all selection documents; None where it was, or goes on."""
        partial = self.partials.get(model.weights or "")
        return None if partial is None or partial.best is None else stop_words(partial)

    def score(self, model: Model) -> float | None:
        return self.means.get(model.weights or "")
