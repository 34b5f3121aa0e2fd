"""Which documents of a task the policy sees and which the gate sees: never one by both."""

import hashlib
from collections.abc import Sequence

from kinship_daemon.errors import UsageError
from kinship_storage.records import Split

__all__ = ["chunks", "documents"]


def documents(
    task: str,
    count: int,
    split: Split,
    *,
    shared: bool,
    limit: int | None,
    seed: int,
    clusters: Sequence[int] = (),
) -> tuple[int, ...]:
    """
    Document ids of one task for one split, in their seeded order.

    The task's ids are put in a seeded order of their own. A shared task gives the first half of
    that order to selection and the rest to validation; each then takes its first `limit`. Documents
    of one cluster follow each other, and are never in both.

    Args:
        count: Documents the task has; ids are 0 to count - 1.
        clusters: As of `TaskDocuments`.
        shared: Whether the task serves both splits; otherwise all documents belong to this one.

    Raises:
        UsageError: Fewer than two are left: a mean of one sample has no standard error.
    """
    of = clusters or range(count)
    order = sorted(range(count), key=lambda doc: (_place(seed, task, of[doc]), doc))
    if shared:
        middle = count // 2
        while 0 < middle < count and of[order[middle - 1]] == of[order[middle]]:
            middle += 1
        order = order[:middle] if split == "selection" else order[middle:]
    chosen = order[:limit]
    if len(chosen) < 2:
        raise UsageError(
            f"task {task!r} has {count} documents, which leaves {len(chosen)} for {split}; "
            "two are needed: raise evaluate.limit or use the task in one list only"
        )
    return tuple(chosen)


def chunks(order: Sequence[int], size: int) -> list[tuple[int, ...]]:
    """
    What is asked together, the last of them maybe shorter.

    The answers to a chunk depend on it alone: the harness draws its examples and makes its batches
    chunk by chunk.
    """
    return [tuple(order[i : i + size]) for i in range(0, len(order), size)]


def _place(seed: int, task: str, doc: int) -> bytes:
    return hashlib.sha256(f"{seed} {task} {doc}".encode()).digest()
