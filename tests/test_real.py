"""The table kept of the real zoo, and what is said of it; nothing is trained here."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "real.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def real():
    """The modules that read the table; `tests` is found from the repository's root alone."""
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(ROOT))
    from tests.real import analysis, figure, table

    yield analysis, figure, table
    patch.undo()


def test_the_page_shows_what_the_table_says(real):
    analysis, _, table = real
    shown = PAGE.split("<!-- report -->\n```\n")[1].split("\n```\n<!-- /report -->")[0]
    assert shown == analysis.report(table.read(table.TABLE))


def test_the_figure_is_drawn_from_the_table(real, tmp_path):
    _, figure, table = real
    figure.draw(table.read(table.TABLE), tmp_path / "real.svg")
    assert (tmp_path / "real.svg").read_bytes() == (ROOT / "docs" / "real.svg").read_bytes()


def test_the_table_is_small(real):
    _, _, table = real
    assert table.TABLE.stat().st_size < 300_000
