"""The gate's verdict in plain words: for the log, `explain` and the model card."""

from collections.abc import Mapping, Sequence
from typing import Any

from kinship_storage.records import Gate, Score

__all__ = ["FEW_DOCUMENTS", "few_documents", "life_words", "verdict_words"]

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
    share: float = 1.0,
) -> str:
    """
    A verdict as everyone is told it.

    Args:
        interval: The gain's 95 % interval.
        against: What to call the other model there.
        p: Chance of such a gain by luck; `alpha` is what is allowed.
        share: Of all documents, those that were asked when it was given.
    """
    beyond = f" above {min_gain:g}" if min_gain else ""
    part = f", {100 * share:.0f} % of all" if share < 1 else ""
    seen = (
        f"{'passed' if passed else 'refused'}: {gain:+.4f} against {against} on {n:,} documents"
        f"{part} (95 % interval {interval[0]:+.4f} to {interval[1]:+.4f}); "
    )
    if share < 1 and not passed:
        return f"{seen}given up, for it could hardly pass any more"
    return (
        f"{seen}luck alone gives such a gain{beyond} with chance {_chance(p)}, "
        f"allowed is {_chance(alpha)}"
    )


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
    """What a task may hide of which few documents were asked; None where all have enough."""
    few = [s for s in scores if s.split == "validation" and s.n < FEW_DOCUMENTS]
    if not few:
        return None
    least = min(few, key=lambda score: (score.n, score.task))
    return (
        f"Of {least.task} only {least.n} validation documents say so. With fewer than "
        f"{FEW_DOCUMENTS} in a task, a loss that is rare and large may not show"
    )


def _chance(p: float) -> str:
    return format(p, ".2g") if p >= 1e-15 else "under 1e-15"
