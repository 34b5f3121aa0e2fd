"""What a start finds out about the evaluation, once: its documents, and whether the base works."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

from kinship_daemon.errors import DocumentsChanged, KinshipError, ModelError, WorkerDied
from kinship_daemon.evaluate.settings import Settings
from kinship_daemon.execute.evaluation import Evaluators, Ingredients, NamedAssembly
from kinship_daemon.execute.executor import Source
from kinship_daemon.file_cache import FileHashes, all_files
from kinship_daemon.report import Reporter
from kinship_daemon.weights.materialise import leaf_assembly
from kinship_storage.lineage import Lineage
from kinship_storage.records import Model, Split

__all__ = ["check_base", "forgets_changed_documents", "with_documents"]

_DOCUMENTS = "documents"
_BASE = "base_checked"


def with_documents(
    evaluators: Evaluators, settings: Settings, lineage: Lineage, report: Reporter, *, load: bool
) -> Settings:
    """
    The settings, with what the tasks' documents were when they were loaded under them.

    Args:
        load: Load the tasks where that is not known.

    Raises:
        UsageError, Transient, KinshipError: As `Evaluator.check`.
    """
    plain = _fingerprints(settings)
    kept = lineage.get(_DOCUMENTS) or {}
    if kept.get("settings") == plain:
        return settings.but(documents=kept["documents"])
    if not load:
        return settings
    report.event("check", "loading the evaluation tasks")
    with report.progress("load the evaluation tasks", None, "tasks"):
        found = evaluators.known(settings).documents
    kept = {
        split: {task: documents.model_dump() for task, documents in tasks.items()}
        for split, tasks in found.items()
    }
    lineage.put(_DOCUMENTS, {"settings": plain, "documents": kept})
    return settings.but(documents=found)


@contextmanager
def forgets_changed_documents(lineage: Lineage) -> Iterator[None]:
    """A worker that finds other documents ends the daemon; the next start looks at them anew."""
    try:
        yield
    except DocumentsChanged:
        lineage.put(_DOCUMENTS, None)
        raise


def check_base(
    evaluators: Evaluators,
    settings: Settings,
    base: Model,
    folder: Path,
    lineage: Lineage,
    report: Reporter,
    sha256: FileHashes,
) -> None:
    """
    See that the base itself can be built, filled and asked: else nobody's descendant can.

    Raises:
        KinshipError: It cannot, under these settings.
    """
    checked = [base.weights, *_fingerprints(settings)]
    if lineage.get(_BASE) == checked:
        return
    report.event("check", f"asking {base.id} one question")
    weights = str(base.weights)
    named = NamedAssembly.of(leaf_assembly(folder, base.id), {folder: weights})
    files = all_files(lineage.files(base.id), folder, sha256)
    source = Source(files, base.repo, base.revision)
    made = Ingredients(named, {weights: source}, {weights: folder})
    try:
        try:
            evaluators.ask(settings, made, None)
        except WorkerDied as error:
            # Someone else's memory on the device, say: once may be bad luck.
            report.event("warning", f"{error}; once more")
            evaluators.ask(settings, made, None)
    except ModelError as error:
        raise KinshipError(
            f"the base cannot be evaluated: {error}; {_what_would_work(error, settings)}"
        ) from error
    lineage.put(_BASE, checked)


def _what_would_work(error: ModelError, settings: Settings) -> str:
    if error.cause == "world":
        return "with more free memory it may work, or with a smaller base"
    if error.setting not in {None, "evaluate"}:
        return f"another {error.setting} may work, or another base"
    others = "another base would work"
    return others if settings.dtype == "float32" else f"evaluate.dtype float32 may work; {others}"


def _fingerprints(settings: Settings) -> list[str]:
    splits: tuple[Split, ...] = get_args(Split)
    return [settings.fingerprint(split) for split in splits]
