"""What the lineage keeps of those that a watch noticed, and that it finds them among thousands."""

import math
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from kinship_storage.errors import LineageError
from kinship_storage.records import Candidate, Model
from small_candidates import PLAN, notice, waiting
from small_lineage import NOW, fill, finetune, open_lineage, score


@pytest.fixture
def lineage(path):
    with open_lineage(path) as opened:
        fill(opened)
        yield opened


def test_a_candidate_comes_back_as_it_was_added_also_after_a_restart(lineage, path):
    given = waiting(
        "add", downloads=7, bytes=10**12, triaged=True, novelty=0.1 + 0.2, novelty_error=1e-9
    )
    assert lineage.add_candidate(given) == given
    assert lineage.candidate("demo/sort") is None
    with open_lineage(path, readonly=True) as again:
        assert again.candidate("demo/add") == given
        assert again.candidates() == [given]


def test_a_candidate_seen_again_stays_as_it_is(lineage):
    first = lineage.add_candidate(waiting("add", triaged=True))
    assert lineage.add_candidate(waiting("add", likes=9)) == first
    assert lineage.candidates() == [first]


def test_what_is_learned_of_a_candidate_is_updated(lineage):
    lineage.add_candidate(waiting("add"))
    learned = {"triaged": True, "gone": True, "bytes": 5, "novelty": 0.5, "read_bytes": 6}
    after = lineage.update_candidate("demo/add", **learned)
    assert after == waiting("add", **learned)
    assert lineage.candidate("demo/add") == after
    assert lineage.update_candidate("demo/add") == after


def test_a_novelty_that_is_no_number_is_unknown(lineage):
    lineage.add_candidate(waiting("add", novelty=0.5))
    lineage.update_candidate("demo/add", novelty=math.nan)
    assert lineage.candidate("demo/add").novelty is None


def test_a_candidate_is_a_model_of_the_lineage(lineage):
    with pytest.raises(LineageError, match="no model 'demo/nobody'"):
        lineage.add_candidate(waiting("nobody"))
    with pytest.raises(LineageError, match="no candidate 'demo/add'"):
        lineage.update_candidate("demo/add", likes=1)


def test_fields_that_do_not_exist_or_never_change_are_refused(lineage):
    lineage.add_candidate(waiting("add"))
    for name in ("like", "likes = 1, gone"):
        with pytest.raises(
            LineageError, match=f"{name} cannot be changed; these can: ancestry, bytes, "
        ):
            lineage.update_candidate("demo/add", **{name: 1})
    assert lineage.candidates() == [waiting("add")]


@pytest.mark.parametrize(
    "modified", ["yesterday", "2026-01-30 21:04:00", datetime(2026, 1, 30, 21, 4, tzinfo=UTC)]
)
def test_times_are_written_as_everywhere(lineage, modified):
    with pytest.raises(LineageError, match="contradicts"):
        lineage.add_candidate(waiting("add", modified=modified))


def test_candidates_are_found_by_status_and_by_what_was_done(lineage):
    notice(lineage)

    def found(*asked):
        return [candidate.model for candidate in lineage.candidates(*asked)]

    assert found() == ["demo/add", "demo/far", "demo/gguf"]
    assert found("seen") == ["demo/far"]
    assert found(None, True) == ["demo/add", "demo/gguf"]
    assert found("refused", True) == ["demo/gguf"]
    assert found("refused", False) == []


def test_samples_come_back_byte_for_byte_by_plan(lineage):
    lineage.put_sample(PLAN, "demo/sort", b"\0\xff sort")
    lineage.put_sample(PLAN, "demo/add", b"old")
    lineage.put_sample(PLAN, "demo/add", b"")
    lineage.put_sample("other", "demo/add", b"elsewhere")
    assert lineage.sampled(PLAN, ["demo/sort", "demo/add", "demo/bad", "nobody"]) == {
        "demo/add": b"",
        "demo/sort": b"\0\xff sort",
    }
    assert lineage.sampled(PLAN, ["demo/sort"]) == {"demo/sort": b"\0\xff sort"}
    assert lineage.sample("other", "demo/add") == b"elsewhere"
    assert lineage.sample("other", "demo/sort") is None
    assert lineage.sampled("unknown", ["demo/add"]) == {}
    assert lineage.sampled(PLAN, []) == {}
    with pytest.raises(LineageError, match="no model 'nobody'"):
        lineage.put_sample(PLAN, "nobody", b"")


def test_candidates_and_their_models_are_noticed_together_or_not_at_all(lineage):
    def notice_some():
        with lineage.transaction():
            lineage.add_model(finetune("new", status="seen"))
            lineage.add_candidate(waiting("new"))
            lineage.put_sample(PLAN, "demo/new", b"x")
            raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        notice_some()
    assert lineage.model("demo/new") is None
    assert (lineage.candidates(), lineage.sampled(PLAN, ["demo/new"])) == ([], {})


def test_every_revision_that_came_from_a_hub_is_known(lineage):
    lineage.add_model(replace(finetune("add", revision="2" * 40), id="demo/add@2", weights=None))
    lineage.add_model(Model("/home/me/base", "base", "admitted"))
    repos = {"demo/add", "demo/sort", "demo/bad"}
    assert lineage.known_revisions() == {
        *((repo, "1" * 40) for repo in repos),
        ("demo/add", "2" * 40),
    }


def test_models_and_jobs_are_counted_without_being_read(lineage):
    notice(lineage)
    lineage.submit("merge", {"later": True}, "m1")
    assert lineage.count_models() == {
        ("base", "admitted"): 1,
        ("finetune", "admitted"): 2,
        ("finetune", "quarantined"): 1,
        ("finetune", "refused"): 1,
        ("finetune", "seen"): 1,
        ("merge", "admitted"): 1,
    }
    assert lineage.count_jobs() == {"done": 1, "pending": 1}


def test_mean_scores_are_over_tasks_and_under_the_settings_asked_for(lineage):
    lineage.add_scores([score("sha256:add", 0, task="sort"), score("sha256:add", 1, settings="x")])
    assert lineage.mean_scores("selection", "fp1") == {
        "sha256:add": 0.375,
        "sha256:sort": 0.5,
        "recipe:m1": 1.0,
    }
    assert lineage.mean_scores("selection")["sha256:add"] == 0.5, "the latest of each task"
    assert lineage.mean_scores("validation", "fp2") == {"recipe:m1": 0.5}
    assert lineage.mean_scores("validation", "fp1") == {}


THOUSANDS = 3_000
QUESTIONS = [
    lambda lineage: lineage.models(status="admitted"),
    lambda lineage: lineage.models("merge", ("admitted", "proposed")),
    lambda lineage: lineage.candidates("seen"),
    lambda lineage: lineage.candidates("seen", triaged=False),
    lambda lineage: lineage.of_repo("demo/add"),
    lambda lineage: lineage.by_weights("sha256:add"),
    lambda lineage: lineage.ancestors(lineage.model("m1")),
    lambda lineage: lineage.set_aside("world"),
    lambda lineage: lineage.due_models(NOW),
    lambda lineage: lineage.jobs(model="m1"),
    lambda lineage: lineage.sampled(PLAN, ["demo/add"]),
    lambda lineage: lineage.scores("sha256:add"),
    lambda lineage: lineage.model("m1"),
    lambda lineage: lineage.jobs("done", "merge"),
]


@pytest.fixture(scope="module")
def crowded(tmp_path_factory):
    """Thousands that were refused, with all that is kept of them."""
    ids = [f"org/model-{number}" for number in range(THOUSANDS)]
    with open_lineage(tmp_path_factory.mktemp("crowded") / "lineage.db") as lineage:
        fill(lineage)
        with lineage.transaction():
            for each in ids:
                lineage.add_model(Model(each, "finetune", "refused", cause="model"))
                lineage.add_candidate(Candidate(each, "2026-01-30T21:04:00Z", triaged=True))
                lineage.put_sample(PLAN, each, b"")
                job = lineage.submit("triage", {"model": each}, each)
                lineage._store.execute("UPDATE jobs SET status = 'done' WHERE key = ?", [job.key])
        lineage.add_candidate(waiting("add"))
        yield lineage


@pytest.mark.parametrize("ask", QUESTIONS)
def test_a_few_are_found_without_reading_thousands(crowded, ask):
    steps = 0

    def count():
        nonlocal steps
        steps += 1
        return 0

    crowded._store._db.conn.set_progress_handler(count, 1)
    ask(crowded)
    crowded._store._db.conn.set_progress_handler(None, 0)
    assert steps < THOUSANDS / 2
