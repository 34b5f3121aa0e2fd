"""The first look at thousands of candidates: one connection against several, and a folder."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.bench.bench import Bench
from tests.bench.processes import CommandFailed
from tests.bench.table import Row, verdict

__all__ = ["look"]

_LATE_SECONDS = 0.02  # each answer of the hub, as over a distance
_SEVERAL = 8
_PARTS = Path(__file__).with_name("look_parts.py")


def look(bench: Bench) -> list[Row]:
    return [_over_http(bench), _in_a_folder(bench)]


def _over_http(bench: Bench) -> Row:
    found: dict[int, dict[str, Any]] = {}
    with _started("serve", bench.candidates, _LATE_SECONDS) as hub:
        url = _line(hub)
        for connections in (1, _SEVERAL):
            home = bench.scratch / f"look-{connections}"
            bench.progress.runs(f"a first look, watch.connections {connections}")
            found[connections] = _looked(url, home, connections, hub)
    one, several = found[1], found[_SEVERAL]
    ratio = several["first"] / one["first"]
    same = one["digest"] == several["digest"]
    looked = f"{several['looked']:,} looked into"
    return Row(
        f"first look at {bench.candidates:,} candidates over HTTP, {looked}",
        f"{several['first']:.1f} s",
        f"{one['first']:.1f} s, one connection",
        f"{ratio:.2f} of the time",
        "half of the time, the same result; a quiet look 1 request, under 1 s",
        verdict(ratio < 0.5, same, several["requests"] == 1, several["quiet"] < 1),
        notes=(
            f"`watch.connections` {_SEVERAL} and 1 against one server in a process of its own, "
            f"whose answers come {1000 * _LATE_SECONDS:.0f} ms late; the lineages are "
            f"{'the same' if same else 'NOT the same'}. A quiet look then: "
            f"{several['requests']} request, {several['quiet']:.2f} s. Seconds of CPU: "
            f"{several['cpu']:.1f} and {one['cpu']:.1f}.",
        ),
        facts={"one": one, "several": several},
    )


def _in_a_folder(bench: Bench) -> Row:
    folder, home = bench.scratch / "hub", bench.scratch / "look-folder"
    with _started("fill", bench.candidates, folder) as filling:
        filling.communicate()
    bench.progress.runs("a first look at a folder hub")
    found = _looked(folder, home, 1)
    shutil.rmtree(folder)
    return Row(
        f"first look at a folder hub of {bench.candidates:,}, {found['looked']:,} looked into",
        f"{found['first']:.1f} s",
        bar="under 20 s",
        verdict=verdict(found["first"] < 20),
        notes=(f"{found['cpu']:.1f} s of CPU. A quiet look takes {found['quiet']:.2f} s.",),
        facts=found,
    )


def _looked(
    where: object, home: Path, connections: int, hub: subprocess.Popen[str] | None = None
) -> dict[str, Any]:
    """Two looks: seconds of the first and of the quiet one, and what came of them."""
    with _started("look", where, home, connections) as daemon:
        found: dict[str, Any] = json.loads(_line(daemon))
        before = _requests(hub)
        _say(daemon)
        found |= json.loads(_line(daemon))
    return found | {"requests": _requests(hub) - before}


def _requests(hub: subprocess.Popen[str] | None) -> int:
    if hub is None:
        return 0
    _say(hub)
    return int(_line(hub))


@contextmanager
def _started(*words: object) -> Iterator[subprocess.Popen[str]]:
    command: Sequence[str] = [sys.executable, str(_PARTS), *map(str, words)]
    # The hub is at home.
    free = {k: v for k, v in os.environ.items() if k not in {"HF_HUB_OFFLINE", "HF_TOKEN"}}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=free, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()  # where it has not ended by itself


def _say(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise CommandFailed("the look ended before it said anything")
    return line.strip()
