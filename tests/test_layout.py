"""Tables and sentences that fit a terminal; what is piped stays whole."""

import pytest

from kinship_daemon.cli import layout
from kinship_daemon.cli.layout import fitted, shortened

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


def test_what_is_piped_is_left_whole():
    assert fitted(ROWS, 1, [2], None) == ROWS


def test_the_lines_of_a_sentence_stand_under_each_other(monkeypatch, capsys):
    monkeypatch.setattr(layout, "terminal_width", lambda: 20)
    layout.echo_hanging("evolution  ", "it goes on and on")
    assert capsys.readouterr().out == "evolution  it goes\n           on and on\n"
