"""What every measurement is given."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.models import Family
from tests.bench.table import Progress

__all__ = ["Bench"]


@dataclass(frozen=True)
class Bench:
    """
    Attributes:
        folder: Where models are made.
        scratch: For what is written but merges; emptied at the end.
        out: Where merges are written, likewise.
        parameters: Of a model, about.
        models: How many fine-tunes there may be.
        repeat: How often each thing is timed.
        candidates: On the hub that is looked at.
        language_model: Folder of a real one to evaluate, if the user has it.
        evolutions: How many are simulated of each kind.
    """

    folder: Path
    scratch: Path
    out: Path
    parameters: float
    models: int
    repeat: int
    candidates: int
    progress: Progress
    language_model: Path | None = None
    evolutions: int = 1_000

    @property
    def family(self) -> Family:
        return self.sized(1)

    def sized(self, factor: float) -> Family:
        return Family(self.folder, self.parameters * factor)

    def pair(self, family: Family | None = None) -> Sequence[Path]:
        """Base and two fine-tunes."""
        family = family or self.family
        if not family.holds(2):
            self.progress.runs(f"making models of {family.parameters:.2g} parameters")
        return [family.base, *family.leaves(2)]
