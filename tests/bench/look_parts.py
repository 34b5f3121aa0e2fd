"""
What the look's measurement runs in processes of their own.

    look_parts.py serve COUNT SECONDS         a hub, which tells its requests so far for a line
    look_parts.py fill COUNT FOLDER           the same repos as a folder hub
    look_parts.py look HUB HOME CONNECTIONS   two looks of the daemon, as JSON

Of COUNT candidates a third have to be looked into; two thirds are refused at a glance. The answers
of the hub come SECONDS late, as over a distance.
"""

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import turns
from hub_server import HubServer
from hub_server.cdn import Storage
from hub_server.hub import Hub
from kinship_daemon import config, demo, startup
from kinship_daemon.context import Context
from kinship_daemon.report import JsonReporter

CARD = {"base_model": demo.BASE, "base_model_relation": "finetune", "license": "mit"}
WORDS = ("Instruct", "GGUF", "GPTQ")


def repos(count: int) -> Iterator[tuple[str, dict[str, object]]]:
    """Names, and what else the listing says of them."""
    for number in range(count):
        name = f"maker{number % 90}/Model-{WORDS[number % 3]}-{number:04d}"
        yield name, {"downloads": number % 1000}


def files() -> dict[str, bytes]:
    """Of a fine-tune of the demo's base; all have the same weights, which nobody has admitted."""
    folder = demo.HUB / "demo" / "add"
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".md"}


def serve(count: str, seconds: str) -> None:
    for kind in (Hub, Storage):
        kind.admitted = late(kind.admitted, float(seconds))  # type: ignore[method-assign]
    with HubServer() as server:
        server.add(demo.BASE, demo.HUB / demo.BASE)
        held = files()
        for name, facts in repos(int(count)):
            server.add(name, held, CARD, **facts)
        print(server.url, flush=True)
        while sys.stdin.readline():
            print(len(server.log), flush=True)


def late(admitted: Callable[[Any], bool], seconds: float) -> Callable[[Any], bool]:
    """The server's lock is not held meanwhile: many may wait at once."""

    def wait(connection: Any) -> bool:
        time.sleep(seconds)
        return admitted(connection)

    return wait


def fill(count: str, where: str) -> None:
    root = Path(where)
    card = "".join(f"{key}: {value}\n" for key, value in CARD.items())
    shutil.copytree(demo.HUB / demo.BASE, root / demo.BASE)
    for name, _ in repos(int(count)):
        folder = root / name
        folder.mkdir(parents=True)
        for path, data in files().items():
            (folder / path).write_bytes(data)
        (folder / "README.md").write_text(f"---\n{card}---\n")


def look(hub: str, home: str, connections: str) -> None:
    with TemporaryDirectory() as folder:
        # Once unclocked: what is imported late is no part of it.
        fill("3", f"{folder}/hub")
        with opened(f"{folder}/hub", f"{folder}/home", connections) as d:
            turns.take(d, "watch", "triage")
    with opened(hub, home, connections) as d:
        clocked(d)


def opened(hub: str, home: str, connections: str) -> AbstractContextManager[Context]:
    settings = ["limits.candidates_per_day=1000000", f"watch.connections={connections}"]
    settings += ["evaluate.device=cpu", "kinship.device=cpu"]
    chosen = config.load(base=demo.BASE, hub=hub, home=Path(home), overrides=settings)
    return startup.opened(chosen, JsonReporter(StringIO()))


def clocked(d: Context) -> None:
    _ = d.sampler  # its plan is made once per base
    start, cpu = time.perf_counter(), time.process_time()
    turns.take(d, "watch", "triage")
    first = {"first": time.perf_counter() - start, "cpu": time.process_time() - cpu}
    print(json.dumps(first), flush=True)
    told = [
        (m.id, m.status, m.reason, m.cause, c.triaged, c.bytes, c.read_bytes, c.novelty)
        for c in d.lineage.candidates()
        for m in [d.lineage.require(c.model)]
    ]
    order = [job.model for job in d.lineage.jobs(kind="triage")]
    sys.stdin.readline()
    start = time.perf_counter()
    turns.take(d, "watch", "triage")
    quiet = time.perf_counter() - start
    digest = hashlib.sha256(json.dumps([told, order]).encode()).hexdigest()
    result = {"quiet": quiet, "all": len(told), "looked": len(order), "digest": digest}
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    {"serve": serve, "fill": fill, "look": look}[sys.argv[1]](*sys.argv[2:])
