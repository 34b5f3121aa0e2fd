"""The line from one model to another: its scores, and where it ceases to be the one."""

import pytest

import command
from kinship_daemon.draw.sweep import sweep_lines
from kinship_daemon.sweep import sweep
from kinship_storage.records import Score


def scores(**values):
    """A task's scores by document."""
    return [
        Score(
            *("w", task, "selection", "s", "acc", "1", sum(each) / len(each), 0.1, len(each), 0),
            harness="h",
            samples=tuple(enumerate(each)),
        )
        for task, each in values.items()
    ]


FIRST = scores(sums=[1, 1, 0, 1], words=[0, 0, 0, 1])
SECOND = scores(sums=[1, 0, 0, 0], words=[1, 1, 0, 1])
HALF = scores(sums=[1, 1, 0, 0], words=[1, 0, 0, 0])
ENDS = {"a": FIRST, "b": SECOND}


def between(recipe):
    """Up to a quarter as the first, then half of each, from three quarters on as the second."""
    assert recipe.method == "linear"
    assert recipe.parents == ("a", "b")
    first, second = recipe.parameters["weight"]
    assert first + second == 1
    return FIRST if second <= 0.25 else HALF if second < 0.75 else SECOND


def test_scores_are_means_and_disputed_documents_tell_the_stages():
    found = sweep("a", "b", 8, ENDS.__getitem__, between)
    assert [point.share for point in found.points] == [i / 8 for i in range(9)]
    assert found.disputed == 4
    assert [point.second for point in found.points] == [0, 0, 0, 0.5, 0.5, 0.5, 1, 1, 1]
    assert found.stages == (0.25, 0.75)
    middle = found.points[4]
    assert middle.tasks == {"sums": 0.5, "words": 0.25}
    assert middle.score == 0.375


def test_an_abrupt_change_has_its_stages_on_either_side():
    def abrupt(recipe):
        return FIRST if recipe.parameters["weight"][1] < 0.5 else SECOND

    assert sweep("a", "b", 4, ENDS.__getitem__, abrupt).stages == (0.25, 0.5)
    assert sweep("a", "b", 2, ENDS.__getitem__, lambda _: HALF).stages == (0, 1)


def test_models_that_answer_alike_have_no_stages():
    found = sweep("a", "b", 3, lambda _: FIRST, lambda _: HALF)
    assert found.disputed == 0
    assert found.stages is None
    assert {point.second for point in found.points} == {None}
    assert b"<svg" in sweep_lines(found, "a", "b", "svg")


def test_it_is_drawn_with_every_task():
    picture = sweep_lines(sweep("a", "b", 8, ENDS.__getitem__, between), "a", "b", "svg").decode()
    for words in ("sums", "words", "mean", "From a to b", "4 documents that both answer"):
        assert words in picture


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("demo/add", "--sweep", "4"), "name two, and no --method"),
        (("demo/add", "demo/max", "--sweep", "4", "--method", "ties"), "name two, and no --method"),
        (("demo/add", "demo/max", "--plot", "x.svg"), "add --sweep STEPS"),
        (("demo/add", "demo/max", "--sweep", "4", "--plot", "x.gif"), "is a .png or .svg file"),
    ],
)
def test_what_does_not_go_together_is_refused(given, said, monkeypatch, capfd):
    done = command.call(["tune", *given, "--base", "demo"], monkeypatch, capfd)
    assert done.code == 2
    assert said in " ".join(done.err.split())
