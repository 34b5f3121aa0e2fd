"""What three open pages of the dashboard cost a daemon that evaluates: one run, in turns."""

import io
import multiprocessing
import os
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median, quantiles

import httpx
from tests.bench.bench import Bench
from tests.bench.lineage import filled
from tests.bench.table import Row, verdict

from kinship_daemon import demo
from kinship_daemon.activity import recording
from kinship_daemon.evaluate.scoring import missing
from kinship_daemon.evaluate.settings import Settings, Task
from kinship_daemon.execute.evaluation import Evaluators, Ingredients, NamedAssembly
from kinship_daemon.execute.local import Local
from kinship_daemon.execute.site import Workshop
from kinship_daemon.home import Home
from kinship_daemon.report import JsonReporter
from kinship_daemon.web.serving import served
from kinship_daemon.weights.materialise import leaf_assembly
from kinship_storage.lineage import Lineage

__all__ = ["pages"]

_PAGES = 3
_ROUNDS = 5  # of closed, open, open, closed
_DOCUMENTS = 128  # of each task
_MOST = 1.02


def pages(bench: Bench) -> list[Row]:
    """
    A worker asks a model the demo's documents, with pages open and without. What counts is the time
    that processors work for it, in this process and the worker's: where all are busy, what pages
    take is lost to evaluation, and what else runs on the machine is not counted.

    The server is in this process, as in a daemon with `web.port`; how far the evaluation is, and a
    commit for each model, go out to every page as they do there.
    """
    home = Home(bench.scratch / "pages")
    home.path.mkdir()
    filled(home.lineage)
    home.activity.parent.mkdir()
    bench.progress.runs("evaluations beside three open pages, and beside none")
    with _evaluating(home) as evaluate, served(Home(home.path), "127.0.0.1", 0, None) as site:
        evaluate()  # the worker is warm from here on
        found = []
        for _ in range(_ROUNDS):
            closed, opened = [evaluate()], []
            with _looking(site.url) as visitor:
                opened += [evaluate(visitor), evaluate(visitor)]
            closed += [evaluate()]
            found.append(sum(opened) / sum(closed))
    low, _, high = quantiles(found)
    ratio = median(found)
    return [
        Row(
            f"a daemon's evaluation beside {_PAGES} open pages, against none",
            ratio=f"{ratio:.3f} of the processors' time ({low:.3f} to {high:.3f})",
            bar=f"under {_MOST}",
            verdict=verdict(ratio < _MOST),
            notes=(f"median and quartiles of {_ROUNDS} rounds",),
            facts={"ratios": found},
        )
    ]


@contextmanager
def _evaluating(home: Home) -> Iterator:
    """A call that evaluates one model, commits, and gives the seconds of processors it took."""
    settings = Settings(
        selection=tuple(Task(task=f"demo_{name}") for name in ("add", "max", "sort")),
        validation=(),
        limit=_DOCUMENTS,
        seed=0,
        device="cpu",
        dtype="float32",
        threads=1,
        include_path=(demo.TASKS,),
    )
    folder = demo.HUB / demo.BASE
    assembly = leaf_assembly(folder, "sha256:base")
    named = NamedAssembly.of(assembly, {folder: assembly.identity})
    model = Ingredients(named, {}, {assembly.identity: folder})
    workshop = Workshop(home.path / "evaluate.log", ("cpu",))
    log = JsonReporter(io.StringIO())
    with (
        closing(Evaluators(Local(workshop), threading.Event())) as evaluators,
        recording(log, home.activity, {}) as report,
        Lineage.open(home.lineage, now=lambda: datetime.now(UTC)) as lineage,
    ):
        known = evaluators.known(settings)
        asked = missing(known, "selection")

        def evaluate(visitor: int | None = None) -> float:
            began = _cpu_seconds(visitor)
            with report.progress("selection", None, "documents") as advance:
                seen = 0

                def watch(_: str, done: int, total: int) -> None:
                    nonlocal seen
                    advance(done - seen, total)
                    seen = done

                evaluators.watch(watch)
                evaluators.ask(known, model, asked)
            lineage.put("bench", began)
            return _cpu_seconds(visitor) - began

        yield evaluate


def _cpu_seconds(visitor: int | None) -> float:
    """Of this process and its children but the visitor, who is elsewhere in life."""
    parents, ticks = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            pid = int(stat.parent.name)
            parents[pid], ticks[pid] = int(fields[1]), int(fields[11]) + int(fields[12])
    ours = {os.getpid()}
    while more := {p for p, above in parents.items() if above in ours} - ours - {visitor}:
        ours |= more
    return sum(ticks[pid] for pid in ours) / os.sysconf("SC_CLK_TCK")


@contextmanager
def _looking(url: str) -> Iterator[int | None]:
    """Pages open elsewhere: another process, which does what the page's script does."""
    processes = multiprocessing.get_context("spawn")
    ours, theirs = processes.Pipe()
    visitor = processes.Process(target=_visit, args=(url, theirs), daemon=True)
    visitor.start()
    ours.recv()
    try:
        yield visitor.pid
    finally:
        visitor.kill()
        visitor.join()


def _visit(url: str, ready: Connection) -> None:
    opened = threading.Barrier(_PAGES + 1)
    for _ in range(_PAGES):
        threading.Thread(target=_page, args=(url, opened), daemon=True).start()
    opened.wait()
    ready.send(True)
    threading.Event().wait()


def _page(url: str, opened: threading.Barrier) -> None:
    with httpx.Client(base_url=url, timeout=60) as client, suppress(httpx.HTTPError):
        client.get("now")
        with client.stream("GET", "live") as told:
            opened.wait()
            for line in told.iter_lines():
                if line == "event: change":
                    client.get("now?part=1")
                elif line == "event: step":
                    client.get("step")
