"""Tables and sentences that fit a terminal, or 80 columns."""

import pytest
from click.testing import CliRunner

from kinship_daemon import layout
from kinship_daemon.cli import app, kinship
from kinship_daemon.explain import explain
from kinship_daemon.family import tree
from kinship_daemon.layout import compared, fitted, shortened
from small_lineage import fill, finetune, merge, open_lineage, score

ROWS = [["place", "model", "likes"], ["1", "organisation/a-model-with-a-long-name-v2", "12,345"]]


def test_names_are_shortened_in_the_middle_for_they_differ_at_the_ends():
    assert shortened("organisation/model-v2", 11) == "organ…el-v2"
    assert shortened("short", 11) == "short"


@pytest.mark.parametrize("width", [24, 30, 40, 60])
def test_a_table_is_no_wider_than_it_may_be(width):
    table = fitted(ROWS, 1, [2], width)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    assert sum(widths) + 2 * (len(widths) - 1) <= width


def test_columns_go_only_where_names_would_be_too_short():
    assert len(fitted(ROWS, 1, [2], 30)[0]) == 3
    assert fitted(ROWS, 1, [2], 20)[0] == ["place", "model"]


def test_names_of_a_comparison_become_shorter_then_the_last_columns_go():
    rows = [["task", "a-child-with-a-name", "a-parent-with-a-name"], ["long-task-name", "0.5", "1"]]
    assert compared(rows, 80) == rows
    narrow = compared(rows, 44)
    assert narrow[0] == ["task", "a-chil…a-name", "a-pare…a-name"]
    assert [len(row) for row in compared(rows, 30)] == [2, 2]


def test_the_lines_of_a_sentence_stand_under_each_other(monkeypatch, capsys):
    monkeypatch.setattr(layout, "columns", lambda: 20)
    layout.echo_hanging("evolution  ", "it goes on and on")
    assert capsys.readouterr().out == "evolution  it goes\n           on and on\n"


@pytest.mark.parametrize("count", [3, 14])
def test_kinships_fit_names_shorter_first_then_fewer_columns(count, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    names = [f"organisation-{'long-' * 20}{i}/model-{i}" for i in range(count)]
    matrix = [[1.0] * count] * count
    mean = {"matrix": matrix, "mean": 1.0}
    told = {"base": "org/base", "metric": "pcc", "models": names, **mean}
    numbers = {"parameters": 9, "bytes_read": 0, "seconds": 0.0}
    parts = [{"name": f"model.{'layers.' * 20}{i}.weight", "parameters": 9, **mean} for i in "ab"]
    kinship._table({**told, **numbers, "tensors": parts})
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("odel-") >= count  # the ends, where names differ, are there
    assert ("6 of 14 columns fit; --format json or csv gives all\n" in text) == (count == 14)
    assert ("the first 6 of 91 columns are" in text) == (count == 14)


@pytest.fixture
def long_names(tmp_path):
    """A merge of two and one of twelve, all with long names; and one that was published."""
    with open_lineage(tmp_path / "lineage.db") as lineage:
        fill(lineage)
        names = [f"demo/{'of-an-organisation-' * 3}with-a-model-v0.{i}" for i in range(12)]
        for name in names:
            lineage.add_model(finetune(name.removeprefix("demo/")))
        lineage.add_scores([score(lineage.require(name).weights, 1, 0, 1, 1) for name in names])
        for number in (2, 12):
            child = merge(f"merge-of-{number}", tuple(names[:number]), generation=3)
            lineage.add_model(child)
            lineage.move_model(child.id, "admit")
            lineage.add_scores([score(child.weights, 1, 1, 1, 0)])
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        ["lineage"],
        ["explain", "merge-of-12"],
        ["status"],
        ["candidates"],
        ["methods"],
        ["policies"],
    ],
)
def test_commands_fit_80_columns_also_where_they_are_piped(long_names, monkeypatch, command):
    monkeypatch.delenv("COLUMNS")
    place = [] if command[0] in {"methods", "policies"} else ["--home", str(long_names)]
    found = CliRunner().invoke(app, [*command, *place])
    assert found.exit_code == 0
    # A name or a hash that is longer than a line stands alone in it; how long our path is, is luck.
    output = found.output.replace(str(long_names), "home")
    wide = [line for line in output.splitlines() if len(line) > 80 and " " in line.strip()]
    assert wide == []


def test_where_parents_have_no_room_their_number_is_said(long_names):
    with open_lineage(long_names / "lineage.db") as lineage:
        drawn = tree(lineage.export(), width=80)
        whole = tree(lineage.export())
        told = explain(lineage, "merge-of-12")
    assert "+ 10 more  0.7500" in drawn
    assert "published as kinship/m1" not in drawn
    assert "published as kinship/m1" in whole
    assert "  and 9 more parents; `lineage --format json` has all scores" in told
