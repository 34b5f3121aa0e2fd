"""`logs/daemon.log`: what was told, line by line, without end and without what acts."""

import re
import sys

from kinship_daemon import daemon_log
from kinship_daemon.daemon_log import logging_to
from kinship_daemon.report import LineReporter


def test_what_is_told_stands_in_the_log_too(tmp_path, capsys):
    path = tmp_path / "daemon.log"
    with logging_to(path, LineReporter(sys.stdout)) as report:
        report.event("publish", "m1 as us/m1", model="m1")
        report.event("quarantine", "a\x1b[31m\nforged: \u202eline")
        report.block("family tree", "base\n  m1")
        with report.progress("evaluate m1", 10, "documents") as advance:
            advance(10)
    lines = path.read_text().splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ publish: m1 as us/m1", lines[0])
    assert lines[1].endswith(r"quarantine: a\x1b[31m\nforged: \u202eline")
    assert lines[2:] == ["family tree:", "base", "  m1"]
    assert capsys.readouterr().out == path.read_text()


def test_it_goes_on_and_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(daemon_log, "_MOST_BYTES", 1000)
    path = tmp_path / "daemon.log"
    for _ in range(3):
        with logging_to(path, LineReporter(sys.stdout)) as report:
            for number in range(50):
                report.event("score", f"m{number}")
    assert len(list(tmp_path.iterdir())) == 4
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 4000
    assert path.read_text().endswith("score: m49\n")


def test_a_disk_that_is_full_ends_no_daemon(tmp_path):
    path = tmp_path / "daemon.log"
    path.mkdir()
    with logging_to(path, LineReporter(sys.stdout)) as report:
        report.event("score", "m1")
