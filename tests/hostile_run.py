"""
The real command over a hub of which most repos are hostile, in a folder and over HTTP.

    python -m tests.hostile_run [--good 200] [--hostile 300] [--hub folder|http]

Ends with 1 unless every good one is admitted, no hostile one is, the daemon goes on till it is
told to stop, takes less than 700 MB itself, and every line of its log is short and printable.
Takes some minutes and 2 GB of disk.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import command
from hostile_hubs import SECRET, in_folder, uploaded
from hostile_world import BASE, HARMLESS, Stranger, hostile_repos
from hub_server import HubServer
from kinship_daemon import demo
from kinship_storage.lineage import Lineage
from poll_memory import resident

MOST_MB, MOST_CHARACTERS = 700, 2000
PATIENCE_SECONDS = 7200  # of a machine that is busy otherwise
SETTINGS = {
    "policy": "{use: topk-kinship, k: 2, max_founders: 3}",
    "evaluate.selection": "[demo_add]",
    "evaluate.validation": "[demo_add_validation]",
    "evaluate.include_path": f"[{demo.TASKS}]",
    "evaluate.limit": "8",
    "evaluate.device": "cpu",
    "evaluate.threads": "1",
    "kinship.device": "cpu",
    "limits.candidates_per_day": "1000000",
    "watch.poll_minutes": "0.05",
}


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    asked.add_argument("--good", type=int, default=200)
    asked.add_argument("--hostile", type=int, default=300)
    asked.add_argument("--hub", choices=("folder", "http"), action="append")
    options = asked.parse_args()
    wrong = []
    for kind in options.hub or ("folder", "http"):
        repos = list(hostile_repos(options.good, options.hostile, folder=kind == "folder"))
        with (
            tempfile.TemporaryDirectory() as scratch,
            hub(kind, Path(scratch), repos) as (where, plain),
        ):
            found = watched(where, Path(scratch) / "home", repos, plain)
        print(f"{kind}: {found.pop('figures')}")
        wrong += [f"{kind}: {each}" for each in found["wrong"]]
    for each in wrong:
        print(f"WRONG {each}")
    return bool(wrong)


@contextmanager
def hub(kind: str, scratch: Path, repos: Sequence[Stranger]) -> Iterator[tuple[str, set[str]]]:
    """Its address, and whose card it refused."""
    if kind == "folder":
        yield str(in_folder(scratch, repos)), set()
        return
    with HubServer() as server:
        plain = uploaded(server, repos)
        yield server.url, set(plain)
        if server.leaks():
            raise AssertionError("a token went to another server")


def watched(where: str, home: Path, repos: Sequence[Stranger], plain: set[str]) -> dict:
    """A run until there is nothing more to do, and what is wrong with it."""
    home.parent.mkdir(exist_ok=True)
    chosen = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    arguments = ["run", "--base", BASE, "--hub", where, "--home", str(home), "--log-json", *chosen]
    begun, lines = time.monotonic(), []
    errors = home.with_suffix(".err")
    with errors.open("w") as err:
        daemon = subprocess.Popen(
            [sys.executable, "-m", "kinship_daemon", *arguments],
            env=command.environment(home.parent) | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=err,
            text=True,
        )
    idle = threading.Event()

    def read() -> None:
        for line in daemon.stdout:
            lines.append(line.rstrip("\n"))
            if '"event": "idle"' in line:
                idle.set()
        idle.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    is_done = idle.wait(PATIENCE_SECONDS)
    seconds, alive = time.monotonic() - begun, daemon.poll() is None
    peak = resident("VmHWM", daemon.pid) if alive else float("nan")
    daemon.send_signal(signal.SIGTERM) if alive else None
    code = daemon.wait(60)
    reader.join(10)
    wrong = (
        []
        if is_done and alive and code == 0
        else [f"it ended with {code}: {errors.read_text()[-2000:]}"]
    )
    wrong += judged(home, repos, plain)
    wrong += [f"a line: {line[:300]!r}" for line in lines if not _is_fine(line)]
    if not peak < MOST_MB:
        wrong.append(f"{peak:.0f} MB at its peak")
    longest = max(map(len, lines), default=0)
    figures = (
        f"{len(repos)} repos, {seconds:.0f} s, {peak:.0f} MB, longest line {longest} characters"
    )
    return {"figures": figures, "wrong": wrong}


def judged(home: Path, repos: Sequence[Stranger], plain: set[str]) -> Iterator[str]:
    with Lineage.open(home / "lineage.db", now=None, readonly=True) as lineage:
        found = {model.repo: model for model in lineage.models(kind="finetune")}
    for repo in repos:
        model = found.get(repo.repo_id)
        status = None if model is None else model.status
        if repo.kind == "good" and status != "admitted":
            yield f"{repo.repo_id}: {status} {model and model.reason}"
        may = repo.kind in {"good", *HARMLESS} or repo.repo_id in plain
        if status == "admitted" and not may:
            yield f"{repo.repo_id} is admitted"
    if (home / "logs" / "bugs.log").exists():
        yield f"bugs: {(home / 'logs' / 'bugs.log').read_text()[-3000:]}"


def _is_fine(line: str) -> bool:
    return (
        len(line) < MOST_CHARACTERS
        and json.loads(line)["message"].isprintable()
        and SECRET not in line
    )


if __name__ == "__main__":
    sys.exit(main())
