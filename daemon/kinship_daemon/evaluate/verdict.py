"""The gate's verdict in plain words: for the log, `explain` and the model card."""

from collections.abc import Mapping, Sequence
from typing import Any

from kinship_storage.records import Gate, Score

__all__ = ["FEW_DOCUMENTS", "few_documents", "life_words", "looked_words", "verdict_words"]

# Under this many documents in a task, a loss that is rare and large may be in none of them.
FEW_DOCUMENTS = 200


def verdict_words(
    passed: bool,
    gain: float,
    interval: tuple[float, float],
    n: int,
    *,
    against: str,
    p: float,
    alpha: float,
    min_gain: float,
) -> str:
    """
    A verdict as everyone is told it.

    Args:
        interval: The gain's 95 % interval.
        against: What to call the other model there.
        p: Chance of such a gain by luck; `alpha` is what is allowed.
    """
    beyond = f" above {min_gain:g}" if min_gain else ""
    return (
        f"{'passed' if passed else 'refused'}: {gain:+.4f} against {against} on {n:,} documents "
        f"(95 % interval {interval[0]:+.4f} to {interval[1]:+.4f}); "
        f"luck alone gives such a gain{beyond} with chance {_chance(p)}, "
        f"allowed is {_chance(alpha)}"
    )


def looked_words(words: str, share: float | None, *, given_up: bool) -> str:
    """
    A verdict, and whether it was given before all documents were asked.

    Args:
        share: Of the documents; None where all were.
    """
    if share is None:
        return words
    part = f"{100 * share:.0f} % of the documents"
    if not given_up:
        return f"{words}; decided on {part}"
    before, _, _ = words.partition("; luck alone")
    return f"{before}; given up on {part}, for it could hardly pass any more"


def life_words(verdict: Gate) -> str | None:
    """What the level of a verdict means over the home's life; None of the gate before schema 4."""
    rules: Mapping[str, Any] = verdict.settings
    if verdict.p is None or "fdr" not in rules:
        return None
    shown = "proven" if rules["strict"] else "shown by simulation"
    return (
        f"It was this home's judgement number {verdict.test}. The levels are set so that of all "
        f"that it ever publishes at most {100 * rules['fdr']:g} % is expected to be luck ({shown})"
    )


def few_documents(scores: Sequence[Score]) -> str | None:
    """What a task with few validation documents may hide; None where all have enough."""
    few = [s for s in scores if s.split == "validation" and s.n < FEW_DOCUMENTS]
    if not few:
        return None
    least = min(few, key=lambda score: (score.n, score.task))
    return (
        f"{least.task} has only {least.n} validation documents. With fewer than {FEW_DOCUMENTS} in "
        "a task, a loss that is rare and large may not show"
    )


def _chance(p: float) -> str:
    return format(p, ".2g") if p >= 1e-15 else "under 1e-15"
