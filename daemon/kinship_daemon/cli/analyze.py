"""`analyze`: does kinship tell what a merge gains, in this lineage?"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from kinship_daemon.cli.options import (
    echo_json,
    find_home_of,
    format_option,
    home_options,
    open_lineage,
)
from kinship_daemon.durable import whole_file
from kinship_daemon.layout import echo_hanging
from kinship_daemon.report import count

__all__ = ["analyze_command"]


@click.command("analyze")
@home_options
@format_option()
@click.option("--json", "as_file", type=click.Path(path_type=Path), help="Write all to this file.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw it: FILE.png or FILE.svg.")
@click.option(
    "--probes",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Also functional kinship, on some 100 texts, one a line; reads them with every parent.",
)
def analyze_command(
    home: Path | None,
    base: str | None,
    form: str,
    as_file: Path | None,
    plot: Path | None,
    probes: Path | None,
) -> None:
    """Kinship against gain over all merges of a lineage, and the stages of its evolution."""
    from kinship_daemon.analysis import analyse  # noqa: PLC0415 - scipy takes a second to import

    if plot is not None:
        from kinship_daemon.draw.picture import format_of  # noqa: PLC0415 - as above, matplotlib

        format_of(plot)
    _, lineage = open_lineage(home, base)
    more = {}
    if probes is not None:
        # Imports transformers.
        from kinship_daemon.cli.functional import of_parents  # noqa: PLC0415

        more["functional"] = of_parents(find_home_of(home, base).path, probes)
    with lineage:
        found = analyse(lineage, more=more)
    facts = _plain(asdict(found))
    if form == "json":
        echo_json(facts)
    else:
        _show(found)
    if as_file is not None:
        text = json.dumps(facts, indent=2, allow_nan=False)
        whole_file(as_file, f"{text}\n".encode())
    if plot is not None:
        from kinship_daemon.draw.gains import draw_analysis  # noqa: PLC0415 - as above

        whole_file(plot, draw_analysis(found, format_of(plot)))
    for written in (as_file, plot):
        if written is not None:
            click.echo(f"wrote {written}", err=True)


def _show(found: Any) -> None:
    scored = count(len(found.merges), "merge")
    click.echo(f"{scored} with scores of their own and of their parents")
    click.echo("gain is over the mean of the parents")
    if found.too_few:
        click.echo(found.too_few)
    width = max(len(metric) for metric in ("euclidean", *(c.metric for c in found.correlations)))
    for each in found.correlations:
        click.echo(
            f"{each.metric:<{width}} with {each.of:<13}  r {each.r:+.3f}  "
            f"95 % interval {each.low:+.3f} to {each.high:+.3f}\n"
            f"          p {each.p:.3g}, n {each.n}, within generations {_signed(each.within)},\n"
            f"          given the parents' mean score {_signed(each.partial)}"
        )
    if found.correlations:
        click.echo("merges share parents, so the p-values are smaller than they should be")
    for stage in found.stages:
        first, last = stage.generations[0], stage.generations[-1]
        span = f"generation {first}" if first == last else f"generations {first} to {last}"
        echo_hanging(
            f"{stage.name:<10}  ",
            f"{span}: {count(stage.merges, 'merge')}, "
            f"mean gain {_cell(stage.gain)}, "
            f"mean kinship of parents {_cell(stage.kinship)}, "
            f"of the top {_cell(stage.top_kinship)}",
        )
    if found.stages:
        rises = "".join(
            f"; generation {r.generation} {r.gain:+.4f} ± {r.stderr:.4f}" for r in found.rises
        )
        echo_hanging(
            "",
            "learning goes as far as the best score rose by more than the standard error of that "
            f"rise, paired by document{rises}",
        )


def _cell(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"


def _signed(value: float | None) -> str:
    return "unknown" if value is None else f"{value:+.3f}"


def _plain(value: Any) -> Any:
    """NaN is no JSON: null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
