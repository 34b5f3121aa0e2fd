"""`candidates`: who waits and in which order, who was refused or set aside, what was spent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from kinship_daemon import config as configuration
from kinship_daemon.ancestry import ancestry_mark
from kinship_daemon.candidate_rows import STATUS, aside_rows, waiting_rows
from kinship_daemon.cli.options import echo_json, format_option, now, open_lineage, place_options
from kinship_daemon.config import Config
from kinship_daemon.explain import set_aside_words
from kinship_daemon.layout import columns, echo_hanging, fitted
from kinship_daemon.reasons import by_reason, lines
from kinship_daemon.report import amount
from kinship_storage.lineage import Lineage

__all__ = ["candidates_command"]

# Daily budgets as the lineage notes them, and the limit of each.
_SPENT = {"candidates": "candidates_per_day", "download_bytes": "download_gb_per_day"}
_ORDER = ("place", "value")  # of those who wait
_HEADS = (*_ORDER, "model", "novelty", "downloads", "likes", "size", "state", "ancestry")
_WORDS = {"model", "state", "ancestry"}
_LEAST = ("likes", "downloads", "size", "value", "state", "ancestry")  # go first where it is narrow
_ROWS = 20
_NAMES = 3

_Row = dict[str, Any]


@click.command("candidates")
@place_options
@click.option(
    "config_file",
    "--config",
    type=click.Path(path_type=Path),
    help="The daemon's: weights of the order, and limits. Defaults without it.",
)
@click.option(
    "overrides", "--set", multiple=True, metavar="KEY=VALUE", help="Override one key of it."
)
@click.option("status", "--status", type=click.Choice([*STATUS, "all"]), help="Only these.")
@format_option()
@click.option("as_json", "--json", is_flag=True, help="The same as --format json.")
@click.option("limit", "--limit", type=click.IntRange(min=1), help="At most so many in a list.")
def candidates_command(
    base: str | None,
    home: Path | None,
    config_file: Path | None,
    overrides: tuple[str, ...],
    status: str | None,
    form: str,
    as_json: bool,
    limit: int | None,
) -> None:
    """Who waits, in the order in which they are fetched; who was refused or set aside, and why."""
    config = configuration.load(config_file, base=base, home=home, overrides=overrides)
    if config_file is not None:
        home, base = config.home, config.base
    found, lineage = open_lineage(home, base)
    only = None if status == "all" else status
    wanted = list(STATUS) if only is None else [only]
    with lineage:
        facts = {"home": str(found.path), **_facts(lineage, config, wanted)}
    if as_json or form == "json":
        cut = {name: facts[name][:limit] for name in wanted}
        echo_json({**facts, **cut})
    elif only is not None:
        _echo(_list(facts[only], only, limit))
    else:
        _echo(_overview(facts, limit, config_file is not None or bool(overrides)))


def _echo(told: Iterable[str]) -> None:
    for line in told:
        echo_hanging("", line)


def _facts(lineage: Lineage, config: Config, wanted: Sequence[str]) -> dict[str, Any]:
    """What --json prints; a list of rows for each status that is wanted."""
    counts = lineage.count_models()
    today = f"{now():%Y-%m-%d}"
    spent = lineage.budgets(today)
    rows: dict[str, Any] = {}
    for name in wanted:
        candidates = lineage.candidates(STATUS[name])
        rows[name] = (
            waiting_rows(
                candidates,
                novelty=config.admission.novelty,
                popularity_weight=config.admission.popularity,
            )
            if name == "waiting"
            else aside_rows(candidates, {model.id: model for model in lineage.set_aside()})
        )
    return {
        "order": {"novelty": config.admission.novelty, "popularity": config.admission.popularity},
        "limits": {limit: getattr(config.limits, limit) for limit in _SPENT.values()},
        "spent": {what: round(spent.get(what, 0)) for what in _SPENT},
        "counts": {name: counts.get(("finetune", status), 0) for name, status in STATUS.items()},
        **rows,
    }


def _why(row: _Row) -> str:
    return set_aside_words(row["reason"], row["cause"], row["opens_again"])


def _overview(facts: Mapping[str, Any], limit: int | None, known: bool) -> Iterator[str]:
    counts, noticed = facts["counts"], sum(not row["triaged"] for row in facts["waiting"])
    yield f"{counts['waiting']:,} waiting" + (
        f", {noticed:,} of them for triage" if noticed else ""
    )
    if facts["waiting"]:
        yield from _list(facts["waiting"], "waiting", limit or _ROWS)
    for name in ("refused", "quarantined"):
        yield f"{counts[name]:,} {name}"
        given = [(_marked(row), _why(row)) for row in facts[name]]
        yield from lines(by_reason(given), names=_NAMES, most=limit or _ROWS)
    gone = [row["model"] for row in facts["admitted"] if row["gone"]]
    yield f"{counts['admitted']:,} admitted" + (f"; gone: {', '.join(gone)}" if gone else "")
    yield _budgets(facts["spent"], facts["limits"])
    novelty, popular = (f"{facts['order'][each]:g}" for each in ("novelty", "popularity"))
    whose = "" if known else " (defaults; --config FILE takes the daemon's own)"
    yield f"ordered by admission.novelty {novelty}, admission.popularity {popular}{whose}"


def _budgets(spent: Mapping[str, int], limits: Mapping[str, float]) -> str:
    fetched = amount(spent["download_bytes"], "bytes")
    return (
        f"spent today (UTC): {spent['candidates']:,} of {limits['candidates_per_day']:,} looks, "
        f"{fetched} of {limits['download_gb_per_day']:g} GB fetched"
    )


def _list(rows: Sequence[_Row], name: str, limit: int | None) -> Iterator[str]:
    """Everyone of one status; at most `limit`, of the refused per reason."""
    if not rows:
        yield f"nobody is {name}"
        return
    if name in {"refused", "quarantined"}:
        yield from _by_reason(rows, limit)
        return
    given = _HEADS if name == "waiting" else _HEADS[len(_ORDER) :]
    needless = set() if name == "waiting" else {"state"}
    if not any(ancestry_mark(row["ancestry"]) for row in rows[:limit]):
        needless.add("ancestry")
    heads = [head for head in given if head not in needless]
    yield from _aligned(heads, [_cells(row, heads) for row in rows[:limit]])
    if limit is not None and len(rows) > limit:
        yield f"and {len(rows) - limit:,} more; --limit {len(rows)} shows all"


def _by_reason(rows: Sequence[_Row], limit: int | None) -> Iterator[str]:
    """Every name under its reason."""
    for each in by_reason((_marked(row), _why(row)) for row in rows):
        yield f"{len(each.models):,} {each.text}"
        yield from (f"    {name}" for name in each.models[:limit])
        if limit is not None and len(each.models) > limit:
            yield f"    and {len(each.models) - limit:,} more"


def _marked(row: _Row) -> str:
    return f"{row['model']} (gone)" if row["gone"] else str(row["model"])


def _cells(row: _Row, heads: Sequence[str]) -> list[str]:
    cells = {
        "place": str(row.get("place") or "-"),
        "value": _number(row.get("value")),
        "model": _marked(row),
        "novelty": _number(row["novelty"], row["novelty_error"]),
        "downloads": f"{row['downloads']:,}",
        "likes": f"{row['likes']:,}",
        "size": "-" if row["bytes"] is None else amount(row["bytes"], "bytes"),
        "state": "triaged" if row["triaged"] else "noticed",
        "ancestry": ancestry_mark(row["ancestry"]),
    }
    return [cells[head] for head in heads]


def _number(value: float | None, error: float | None = None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" + ("" if error is None else f" ± {error:.3f}")


def _aligned(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Words to the left, numbers to the right."""
    gone = [heads.index(name) for name in _LEAST if name in heads]
    heads, *rows = fitted([heads, *rows], heads.index("model"), gone, columns())
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    for row in (heads, *rows):
        cells = [
            f"{cell:<{width}}" if head in _WORDS else f"{cell:>{width}}"
            for head, cell, width in zip(heads, row, widths, strict=True)
        ]
        yield "  ".join(cells).rstrip()
