"""A daemon over tiny models on a Hub of the tests, step by step, and what it says and asks."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path

import huggingface_hub
import pytest

import tiny
from hub_server import HubServer
from kinship_daemon import config, startup
from kinship_daemon.context import Context
from kinship_daemon.hub import calls, download
from kinship_daemon.report import JsonReporter

BASE = "org/base"
CARD = {"base_model": BASE, "base_model_relation": "finetune", "license": "apache-2.0"}
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def pass_minutes(self, minutes: float) -> None:
        self.now += timedelta(minutes=minutes)


@contextmanager
def online() -> Iterator[None]:
    """The other tests run with HF_HUB_OFFLINE; these servers are at home, and tries are quick."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        patched.setattr(calls, "_BACKOFF_SECONDS", (0.02, 0.05))
        patched.setattr(download, "_PAUSE_SECONDS", 0.02)
        yield


@contextmanager
def opened(
    server: HubServer, home: Path, *, now: datetime = NOON, **overrides: object
) -> Iterator[Context]:
    """Its clock goes on only from look to look; dots in settings are double underscores."""
    settings = [f"{key.replace('__', '.')}={value}" for key, value in overrides.items()]
    chosen = config.load(base=BASE, hub=server.url, home=home, overrides=settings)
    with startup.opened(chosen, JsonReporter(StringIO()), now=Clock(now)) as d:
        yield d


def told(d: Context, kind: str) -> list[str]:
    """Messages of the events of a kind, so far."""
    inner = d.report
    while not isinstance(inner, JsonReporter):
        inner = inner._report  # within those that also write a log, and what is being done
    lines = [json.loads(line) for line in inner._stream.getvalue().splitlines()]
    return [line["message"] for line in lines if line["event"] == kind]


def states(d: Context) -> dict[str, tuple[str, str | None]]:
    """Status and reason of everyone but the base."""
    return {m.id: (m.status, m.reason) for m in d.lineage.models(kind="finetune")}


def statuses(d: Context) -> dict[str, str]:
    return {name: status for name, (status, _) in states(d).items()}


def looks(server: HubServer, repo: str) -> int:
    """How often the server was asked for a repo's page or its files."""
    return len(server.asked("GET", f"/api/models/{repo}(/.*)?")) + len(
        server.asked("GET", f"/{repo}/resolve/.*")
    )


def tuned(server: HubServer, scratch: Path, base: Path, name: str, seed: int, **attributes) -> Path:
    """A fine-tune on the server, and its folder."""
    folder = tiny.finetune(base, scratch / name.rpartition("/")[2], seed=seed)
    server.add(name, folder, attributes.pop("card", CARD), **attributes)
    return folder
