"""Matrix merges beside our own `ties`, which reads and writes the same: time, speed, memory."""

import shutil
from pathlib import Path

import yaml
from tests.bench.bench import Bench
from tests.bench.models import nbytes, warm
from tests.bench.processes import Series, in_turns, kinship_daemon
from tests.bench.table import Row, gigabytes, verdict

__all__ = ["matrix"]

_CLOSED_FORM = ("wudi", "actmat")
_SINGULAR_VALUES = ("iso_c", "svc", "tsv", "optmerge")
_TIMES_TIES = 4
_PRIVATE = 2e9


def matrix(bench: Bench) -> list[Row]:
    warm(bench.pair())
    names = ("ties", *_CLOSED_FORM, *_SINGULAR_VALUES)
    bench.progress.runs(f"{', '.join(names)} of 2 in turns")
    commands = [_command(bench, name) for name in names]
    ties, *others = in_turns(commands, bench.repeat, lambda: _emptied(bench, names))
    _emptied(bench, names)
    found = zip(names[1:], others, strict=True)
    return [_row(bench, name, series, ties) for name, series in found]


def _row(bench: Bench, name: str, series: Series, ties: Series) -> Row:
    times, small = series.best / ties.best, series.private < _PRIVATE
    closed = name in _CLOSED_FORM
    speed = 4 * nbytes(bench.parameters) / series.best / 1e9  # base and two read, one written
    return Row(
        f"{name} merge of 2",
        f"{series}, {speed:.2g} GB/s",
        f"{ties} ties",
        f"{times:.1f} times as long",
        f"{f'under {_TIMES_TIES} times, ' if closed else ''}under 2 GB private",
        verdict(small, not closed or times < _TIMES_TIES),
        f"{gigabytes(series.private)} / {gigabytes(ties.private)}",
        facts={"seconds": [r.seconds for r in series.runs], "ties": [r.seconds for r in ties.runs]},
    )


def _command(bench: Bench, name: str) -> list[str]:
    base, first, second = bench.pair()
    of_ties = {"parameters": {"weight": 0.5, "density": 0.5}} if name == "ties" else {}
    recipe = {
        "merge_method": name,
        "base_model": str(base),
        "models": [{"model": str(folder)} | of_ties for folder in (first, second)],
        "dtype": "bfloat16",
    }
    file = bench.scratch / f"{name}.yml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return kinship_daemon("merge", file, _out(bench, name), "--device", "cpu")


def _out(bench: Bench, name: str) -> Path:
    return bench.out / name


def _emptied(bench: Bench, names: tuple[str, ...]) -> None:
    for name in names:
        shutil.rmtree(_out(bench, name), ignore_errors=True)
