"""Runs the command line: in a process of its own, or in this one where that is enough."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kinship_daemon.cli import main


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def events(self) -> list[dict[str, Any]]:
        """What --log-json printed."""
        return [json.loads(line) for line in self.out.splitlines()]


def environment(home: Path) -> dict[str, str]:
    """A user with an empty home folder and no network: the Hub's names lead nowhere."""
    cleared = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "XDG_"))}
    return {**cleared, "HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}


def start(arguments: Sequence[object], home: Path, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "kinship_daemon", *map(str, arguments)],
        env=environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def run(arguments: Sequence[object], home: Path, timeout: float = 300) -> Result:
    """In a process of its own."""
    with start(arguments, home) as process:
        out, err = process.communicate(timeout=timeout)
    return Result(process.returncode, out, err)


def call(
    arguments: Sequence[object],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Result:
    """In this process."""
    monkeypatch.setattr(sys, "argv", ["kinship-daemon", *map(str, arguments)])
    capfd.readouterr()
    code = 0
    try:
        main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    out, err = capfd.readouterr()
    return Result(code, out, err)
