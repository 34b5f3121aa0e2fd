"""The demo's models on a Hub of the tests, and the command line run against it as a user would."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

import command
from hub_server import TOKEN, HubServer, Request
from kinship_daemon import config, demo

USER = "tester"  # whose token TOKEN is


def stock(server: HubServer) -> None:
    """Put the demo's base and fine-tunes there."""
    for folder in sorted((demo.HUB / "demo").iterdir()):
        server.add(f"demo/{folder.name}", folder)


def settings(path: Path, server: HubServer, **sections: dict) -> Path:
    """
    A config file that judges the demo's models as the demo itself does, and publishes as USER.

    Merges need only beat their parents, so that several are published.

    Args:
        sections: Further keys of the config's sections.
    """
    embedded = config.load(base="demo").model_dump(mode="json")
    evaluate = embedded["evaluate"] | {"limit": 100}
    chosen = {
        "base": demo.BASE,
        "hub": server.url,
        "watch": {"poll_minutes": 0.1},
        "evaluate": evaluate,
        "kinship": {"device": "cpu"},
        "policy": {"use": "topk-kinship", "k": 2, "max_founders": 4},
        "publish": {"namespace": USER, "require": "parents"},
    }
    for name, section in sections.items():
        chosen[name] = {**chosen.get(name, {}), **section}
    path.write_text(yaml.safe_dump(chosen), encoding="utf-8")
    return path


def environment(home: Path, server: HubServer, token: str | None = TOKEN) -> dict[str, str]:
    """A user whose home folder is `home`, whose Hub is the server, and who set a token."""
    asked = {"HF_ENDPOINT": server.url} | ({"HF_TOKEN": token} if token else {})
    return command.environment(home) | asked


def start(
    arguments: Sequence[object], home: Path, server: HubServer, token: str | None = TOKEN
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "kinship_daemon", *map(str, arguments)],
        env=environment(home, server, token),
        cwd=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(
    arguments: Sequence[object],
    home: Path,
    server: HubServer,
    token: str | None = TOKEN,
    timeout: float = 300,
) -> command.Result:
    with start(arguments, home, server, token) as process:
        out, err = process.communicate(timeout=timeout)
    return command.Result(process.returncode, out, err)


def content(data: bytes | Path) -> bytes:
    """Of a stored file."""
    return data if isinstance(data, bytes) else data.read_bytes()


def bytes_sent(request: Request) -> int:
    """Of a file, in answer to a request for a range of it; none for a redirect."""
    if request.status != 206:
        return 0
    first, last = request.headers["range"].removeprefix("bytes=").split("-")
    return int(last) - int(first) + 1
