"""Fine-tunes that the watch noticed: who waits, who was refused or set aside, and what opens it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kinship_daemon.candidate_rows import STATUS, aside_rows, waiting_rows
from kinship_daemon.ranking import popularity
from kinship_daemon.web.view import View
from kinship_storage.records import Candidate

__all__ = ["ORDERS", "facts", "waiting"]

_ROWS = 50
_MAPPED = 300  # of those who wait, the next to be fetched
# `admission`'s defaults, for a home whose daemon has not said its own yet.
_NOVELTY, _POPULARITY = 1.0, 0.5
ORDERS = ("place", "model", "novelty", "downloads", "likes", "bytes", "modified")
_DESCENDING = frozenset(ORDERS) - {"place", "model"}


def facts(view: View, query: Mapping[str, str]) -> dict[str, Any]:
    """
    A page of one list.

    Args:
        query: `status`, `q` (part of a name or reason), `order` and `page`, all optional; what
            makes no sense is taken as not given.
    """
    counts = view.lineage.count_models()
    status = query.get("status", "")
    status = status if status in STATUS else "waiting"
    text = query.get("q", "")[:100]
    orders = ORDERS if status == "waiting" else ORDERS[1:]
    order = query.get("order", "")
    order = order if order in orders else orders[0]
    given = query.get("page", "")
    page = max(1, int(given)) if given.isascii() and given.isdecimal() and len(given) < 6 else 1
    weights = _weights(view)
    everyone = waiting(view) if order == "place" else []
    total, rows = _rows(view, status, text, order, page, everyone)
    return {
        "counts": {name: counts.get(("finetune", each), 0) for name, each in STATUS.items()},
        "status": status,
        "q": text,
        "order": order,
        "orders": list(orders),
        "page": page,
        "pages": max(1, -(-total // _ROWS)),
        "total": total,
        "weights": weights,
        "rows": rows,
        "map": [
            {
                "model": row["model"],
                "place": row["place"],
                "novelty": row["novelty"],
                "popularity": _popularity(row),
            }
            for row in everyone[:_MAPPED]
            if row["novelty"] is not None
        ],
    }


def _weights(view: View) -> dict[str, float]:
    return {
        name: view.config(f"admission.{name}", default)
        for name, default in (("novelty", _NOVELTY), ("popularity", _POPULARITY))
    }


def waiting(view: View) -> list[dict[str, Any]]:
    """Everyone who waits, the next to be fetched first."""
    weights = _weights(view)
    return waiting_rows(
        view.lineage.candidates("seen"),
        novelty=weights["novelty"],
        popularity_weight=weights["popularity"],
    )


def _rows(
    view: View,
    status: str,
    text: str,
    order: str,
    page: int,
    everyone: Sequence[dict[str, Any]],
) -> tuple[int, list[dict[str, Any]]]:
    """How many there are, and those of the page; `everyone` is sorted by place."""
    first = (page - 1) * _ROWS
    if order == "place":
        matching = [row for row in everyone if text.lower() in row["model"].lower()]
        return len(matching), [_with_why(row) for row in matching[first : first + _ROWS]]
    total, found = view.lineage.listed_candidates(
        STATUS[status],
        text=text,
        order=order,
        descending=order in _DESCENDING,
        limit=_ROWS,
        offset=first,
    )
    models = [view.lineage.require(each.model) for each in found]
    aside = {model.id: model for model in models if model.cause is not None}
    return total, [{"place": None, "value": None, **row} for row in aside_rows(found, aside)]


def _popularity(row: Mapping[str, Any]) -> float:
    return popularity(Candidate(row["model"], "", downloads=row["downloads"], likes=row["likes"]))


def _with_why(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "reason": None, "cause": None, "opens_again": None}
