"""`estimate` times the base and says what lies ahead; nothing is started."""

import json
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path

import pytest

import command
from documented import leaves, tables
from kinship_daemon import config, startup
from kinship_daemon.cli import daemon
from kinship_daemon.cli import estimate as estimate_command
from kinship_daemon.cli.options import load_config
from kinship_daemon.estimate import Estimate, Shares, estimate_lines
from kinship_daemon.evaluate.timing import Probe
from kinship_daemon.execute import site
from kinship_daemon.home import Home
from kinship_daemon.report import JsonReporter
from small_lineage import fill, open_lineage

PAGE = (Path(__file__).parent.parent / "docs" / "json.md").read_text()


@pytest.fixture
def call(shelf, warm_worker, monkeypatch, capfd, tmp_path):
    monkeypatch.setattr(estimate_command, "open_evaluator", shelf.lend)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return lambda *given: command.call(["estimate", *given], monkeypatch, capfd)


def test_the_demo_is_timed_and_no_home_is_made(call, tmp_path):
    asked = ["--base", "demo", "--set", "evaluate.limit=8", "--set", "triage.exclude=[demo/max]"]
    result = call(*asked, "--format", "json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert (found["founders"], found["merges"]) == (4, 6)  # every pair of four founders
    assert found["probe"]["documents"] == {"selection": 48, "validation": 48}
    assert found["probe"]["asked"] == 96
    assert all(0 < seconds < 600 for seconds in found["probe"]["seconds"].values())
    assert not list((tmp_path / "state").glob("*/*/lineage.db"))
    section = PAGE.partition("## kinship-daemon estimate ")[2].partition("\n## ")[0]
    known = set(tables(section)["field"])
    assert leaves(found, known) == known


def test_a_home_alone_says_which_base_is_meant(call, tmp_path):
    home = tmp_path / "home"
    with startup.opened(config.load(base="demo", home=home), JsonReporter(StringIO())):
        pass
    few = ["--set", "evaluate.limit=8", "--format", "json"]
    result = call("--home", home, *few)
    assert result.code == 0, result.err
    assert json.loads(result.out)["founders"] == 5
    assert load_config(None, home=home) == config.load(base="demo", home=home)
    other = load_config(None, home=home, base="org/base")
    assert (other.base, other.hub) == ("org/base", "https://huggingface.co")


def test_a_homes_base_is_on_the_homes_hub(tiny_hub, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    with open_lineage(home / "lineage.db") as lineage:
        fill(lineage)
        lineage.put("hub", "https://hub.example.org")
    found = load_config(None, home=home)
    assert (found.base, found.hub) == ("demo/base", "https://hub.example.org")
    file = tmp_path / "config.yaml"
    file.write_text(f"home: {home}\nhub: {tiny_hub}\n")
    assert load_config(file).hub == str(tiny_hub)


def test_while_a_daemon_has_the_device_nothing_is_timed(call, tmp_path):
    with Home(tmp_path / "home").hold():
        found = call("--base", "demo", "--home", tmp_path / "home")
    assert found.code == 0, found.err
    assert "has the device" in found.out
    assert "a model" not in found.out


def test_a_dry_run_times_the_base_in_the_worker_that_is_there(
    shelf, warm_worker, monkeypatch, tmp_path
):
    begun, out = [], StringIO()

    def lend(settings, **given):
        begun.append(settings)
        return shelf.lend(settings, **given)

    monkeypatch.setattr(site, "open_evaluator", lend)
    given = config.load(base="demo", home=tmp_path / "home", overrides=["evaluate.limit=8"])
    report = JsonReporter(out)
    with startup.opened(given, report, check_evaluation=True, dry_run=True) as d:
        daemon.tell_estimate(d)
    assert "a model: about" in out.getvalue()
    assert len(begun) == 1  # to see whether the base can be asked


def test_a_base_that_is_not_here_is_not_fetched_to_be_timed(call, tiny_hub, monkeypatch):
    monkeypatch.setattr(estimate_command, "base_here", lambda _: None)
    result = call("--base", "org/base", "--hub", tiny_hub)
    assert result.code == 0, result.err
    assert "--fetch" in result.out
    assert "a model" not in result.out


def test_limits_of_a_day_make_days():
    given = config.load(overrides=["limits.eval_hours_per_day=1", "limits.download_gb_per_day=20"])
    probe = Probe(
        {"selection": 100, "validation": 200}, {"selection": 1800.0, "validation": 3600.0}, 64
    )
    found = Estimate(6, 10 * 10**9, 60 * 10**9, 70 * 10**9, 3, probe, 3)
    said = dict(estimate_lines(given, found))
    assert said["download"] == (
        "at most 60.0 GB: 10.0 GB each, 20.0 GB a day: 3.0 days at the day's limit"
    )
    assert said["founders"] == "at most 3.0 hours to evaluate all: 3.0 days at the day's limit"
    assert said["merges"] == "3 in the first generation: at most 7.5 hours, all judged"
    saving = replace(found, shares=Shares(founders=0.7, merges=0.8, judged=0.4))
    said = dict(estimate_lines(given, saving))
    assert said["founders"].endswith("; about 2.1 hours expected, for not all are asked all")
    assert said["merges"].endswith(
        ", all judged; about 3.6 hours expected, for not all are asked all"
    )


@pytest.mark.parametrize(
    ("changes", "all_asked"),
    [
        ([], set()),
        (["evaluate.race=false"], {"founders", "merges"}),
        (["gate.strict=true"], {"founders", "merges", "judged"}),
        (["policy.use=greedy-soup"], {"founders", "merges"}),
    ],
)
def test_where_everyone_is_asked_everything_nothing_less_is_expected(
    changes, all_asked, monkeypatch, tmp_path
):
    monkeypatch.setattr(estimate_command, "base_here", lambda _: None)  # nothing is timed
    given = config.load(base="demo", home=tmp_path / "home", overrides=changes)
    shares = asdict(estimate_command.estimated(given).shares)
    assert {name for name, share in shares.items() if share == 1} == all_asked
