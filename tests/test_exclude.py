"""`exclude` and `triage.exclude`: repos that are left alone, until the pattern goes."""

from io import StringIO

import pytest

import command
import turns
from kinship_daemon import config, startup
from kinship_daemon.exclusion import excluded
from kinship_daemon.report import JsonReporter
from kinship_daemon.steps.leaves import leaves
from small_lineage import merge, open_lineage


@pytest.fixture
def look(tiny_hub, tmp_path):
    """A start and one look at the hub; the fine-tunes' states."""

    def look(*overrides):
        given = config.load(
            base="org/base", hub=str(tiny_hub), home=tmp_path / "home", overrides=overrides
        )
        with startup.opened(given, JsonReporter(StringIO())) as d:
            turns.take(d, *turns.HUB)
            return {m.id: (m.status, m.setting) for m in d.lineage.models("finetune")}

    return look


@pytest.fixture
def call(tmp_path, monkeypatch, capfd):
    return lambda *given: command.call(
        ["exclude", *given, "--home", tmp_path / "home"], monkeypatch, capfd
    )


ALL = dict.fromkeys(("org/a", "org/b", "org/c"), ("admitted", None))


def test_a_pattern_of_the_config_holds_as_long_as_it_is_there(look):
    out = ("refused", "triage.exclude")
    assert look("triage.exclude=['ORG/[ab]']") == {**ALL, "org/a": out, "org/b": out}
    assert look("triage.exclude=[org/b]") == {**ALL, "org/b": out}
    assert look() == ALL


def test_a_pattern_of_the_command_takes_models_out_and_lets_them_in_again(look, call):
    assert look() == ALL
    told = call("*/b")
    assert told.code == 0, told.err
    assert "1 model to be refused at the next look at the hub: org/b" in told.out
    assert call().out == "*/b\n"
    assert look() == {**ALL, "org/b": ("refused", "exclude")}
    assert call("*/b", "--remove").out == "1 model to be looked at again\n"
    assert call().out == "nothing is excluded\n"
    assert look() == ALL


def test_another_pattern_still_keeps_it_out(look, call):
    look()
    call("*/b", "org/b")
    look()
    call("*/b", "--remove")
    assert look()["org/b"] == ("refused", "exclude")


def test_a_pattern_that_is_not_there_cannot_go(look, call):
    look()
    refused = call("org/x", "--remove")
    assert (refused.code, "no pattern 'org/x'" in refused.err) == (2, True)


def test_its_merges_stay_and_can_still_be_made(look, call, tmp_path):
    look()
    path = tmp_path / "home" / "lineage.db"
    with open_lineage(path) as lineage:
        lineage.add_model(merge("m1", ("org/a", "org/b")))
    call("org/*")
    assert set(look().values()) == {("refused", "exclude")}
    with open_lineage(path) as lineage:
        assert lineage.require("m1").status == "proposed"
        assert {leaf.id for leaf in leaves(lineage).values()} == {"org/a", "org/b"}


def test_a_pattern_of_many_stars_takes_no_time():
    """On an id as long as hubs allow; one that backtracks would take for ever."""
    assert excluded("a" * 200, ["*a" * 90 + "b"], ()) is None
