"""`retry` opens again what was set aside, and says what."""

from datetime import UTC, datetime

import pytest

import command
from small_lineage import fill, open_lineage

LATER = "2026-02-01T00:00:00Z"


@pytest.fixture
def home(tmp_path):
    """A quarantined fine-tune of each cause, and a merge put off."""
    with open_lineage(tmp_path / "lineage.db") as lineage:
        fill(lineage)
        lineage.move_model(
            "demo/add", "quarantine", reason="no memory", cause="world", retry_at=LATER
        )
        lineage.move_model(
            "demo/sort", "refuse", reason="too large", cause="settings", setting="triage.max_gb"
        )
        job = lineage.submit("publish", {"model": "m1"}, "m1")
        lineage.start(job.key)
        lineage.wait(job.key, "the hub is away", datetime(2026, 2, 1, tzinfo=UTC))
    return tmp_path


@pytest.fixture
def call(home, monkeypatch, capfd):
    return lambda *arguments: command.call(
        ["retry", *arguments, "--home", home], monkeypatch, capfd
    )


def states(home):
    with open_lineage(home / "lineage.db", readonly=True) as lineage:
        return {model.id: (model.status, model.cause) for model in lineage.models()}


def test_one_model_is_opened_by_its_name(call, home):
    result = call("demo/add")
    assert result.code == 0, result.err
    assert "demo/add: was quarantined (world): no memory" in result.out
    assert states(home)["demo/add"] == ("seen", None)
    assert states(home)["demo/sort"] == ("refused", "settings")


@pytest.mark.parametrize(
    ("cause", "opened"), [("world", "demo/add"), ("settings", "demo/sort"), ("model", "demo/bad")]
)
def test_all_of_one_cause_are_opened(call, home, cause, opened):
    before = states(home)
    assert call("--cause", cause).code == 0
    changed = {name for name, state in states(home).items() if state != before[name]}
    assert changed == {opened}


def test_work_that_waits_is_taken_now(call, home):
    assert "m1: 1 job that waited or failed" in call("m1").out
    with open_lineage(home / "lineage.db", readonly=True) as lineage:
        assert not lineage.jobs("waiting")


def test_work_that_waits_for_the_cause_is_taken_too(call, home):
    assert "m1: 1 job that waited or failed" in call("--cause", "world").out
    with open_lineage(home / "lineage.db", readonly=True) as lineage:
        assert not lineage.jobs("waiting")


def test_nothing_to_open_says_so(call):
    call("demo/add")
    result = call("demo/add")
    assert (result.code, "nothing to try again" in result.out) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["demo/ad"], "no model 'demo/ad'"),
        ([], "name the models to try again, or a --cause"),
        (["demo/add", "--cause", "world"], "but not both"),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(call, home, arguments, said):
    before = states(home)
    result = call(*arguments)
    assert result.code == 2
    assert said in result.err
    assert result.err.count("\n") == 1
    assert states(home) == before


def test_work_of_no_model_is_taken_too(call, home):
    with open_lineage(home / "lineage.db") as lineage:
        job = lineage.submit("decide", {"after": 0}, None)
        lineage.start(job.key)
        lineage.wait(job.key, "the policy was killed", datetime(2026, 2, 1, tzinfo=UTC))
    assert "decide: was waiting (world): the policy was killed" in call("--cause", "world").out
    with open_lineage(home / "lineage.db", readonly=True) as lineage:
        assert not lineage.jobs("waiting")


def test_an_empty_home_has_no_nearest_model(monkeypatch, capfd, tmp_path):
    with open_lineage(tmp_path / "lineage.db"):
        pass
    result = command.call(["retry", "org/a", "--home", tmp_path], monkeypatch, capfd)
    assert "no model 'org/a'" in result.err
    assert "nearest" not in result.err


def test_status_says_what_opens_it_again(home, monkeypatch, capfd):
    told = command.call(["status", "--home", home], monkeypatch, capfd).out
    assert f"demo/add: no memory (world; opens again by itself at {LATER})" in told
    assert "demo/sort: too large (settings; opens again when triage.max_gb changes)" in told
    assert "the hub is away (world; tried again at 2026-02-01T00:00:00Z)" in told
