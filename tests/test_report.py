"""What is seen: lines in a log, JSON for machines, bars and tables on a terminal."""

import io
import json

import pytest
from rich.console import Console

from kinship_daemon import report


def test_json_lines_carry_event_message_and_facts():
    out = io.StringIO()
    report.JsonReporter(out).event("merge", "a + b", model="model-1-1", gain=0.5)
    line = json.loads(out.getvalue())
    assert (line["event"], line["model"], line["gain"]) == ("merge", "model-1-1", 0.5)
    assert line["time"].endswith("+00:00")


def test_a_log_has_one_line_per_event():
    out = io.StringIO()
    report.LineReporter(out).event("merge", "a + b", model="x")
    assert out.getvalue().endswith("Z merge: a + b\n")
    assert out.getvalue().count("\n") == 1


def test_long_steps_in_a_log_tell_rate_and_time_left(monkeypatch):
    clock = iter([0.0, 1.0, 20.0])
    monkeypatch.setattr(report.time, "monotonic", lambda: next(clock))
    out = io.StringIO()
    with report.LineReporter(out).progress("fetch x", 100_000_000, "bytes") as advance:
        advance(1_000_000)  # after one second: too early for a line
        advance(39_000_000)
    assert out.getvalue().count("\n") == 1
    assert "fetch x: 40 %, 2.0 MB/s, 30 s left" in out.getvalue()


def test_a_terminal_shows_tables_and_names_with_brackets_as_they_are():
    out = io.StringIO()
    rich = report.RichReporter(Console(file=out, width=80, force_terminal=True))
    rich.event("merge", "a[b] + c")
    rich.table("generation 1", ["model", "score"], [["model-1-1", "0.5"]])
    rich.block("family", "demo/base (base)\n└── founders")
    with rich.progress("fetch [x]", 10, "bytes") as advance:
        advance(10)
    for text in ("a[b] + c", "generation 1", "model-1-1", "└── founders", "fetch [x]"):
        assert text in out.getvalue()


@pytest.mark.parametrize(
    ("kind", "facts", "codes"),
    [
        ("quarantine", {}, "31"),
        ("refused", {}, "33"),
        ("gate", {"passed": False}, "33"),
        ("gate", {"passed": True}, "36"),
        ("warning", {}, "1;35"),
        ("merge", {}, "36"),
    ],
)
def test_what_went_wrong_has_a_colour_of_its_own(kind, facts, codes):
    out = io.StringIO()
    report.RichReporter(Console(file=out, force_terminal=True)).event(kind, "m1", **facts)
    assert f"\x1b[{codes}m{kind:>10}\x1b" in out.getvalue()


def test_a_long_step_may_be_within_another_on_a_terminal():
    """As a file is fetched while a model is admitted; rich before 14.1 knows one at a time."""
    out = io.StringIO()
    rich = report.RichReporter(Console(file=out, width=80, force_terminal=True))
    with rich.progress("outer", 2, "models") as outer, rich.progress("inner", 10, "bytes") as inner:
        inner(10)
        outer(1)
    assert {"outer", "inner"} <= set(out.getvalue().split())


def test_where_output_goes_chooses_the_reporter():
    assert isinstance(report.reporter(log_json=False, stream=io.StringIO()), report.LineReporter)
    assert isinstance(report.reporter(log_json=True, stream=io.StringIO()), report.JsonReporter)


def test_a_block_in_json_comes_in_events_of_bounded_length():
    out = io.StringIO()
    lines = [f"\u2514\u2500\u2500 model-{n}" for n in range(400)]
    report.JsonReporter(out).block("family tree", "\n".join(lines))
    events = out.getvalue().splitlines()
    assert len(events) > 1
    assert max(map(len, events)) < 2000
    found = [json.loads(event) for event in events]
    assert {event["message"] for event in found} == {"family tree"}
    assert [line for event in found for line in event["lines"]] == lines
