"""One turn of the loop: what goes wrong becomes a state with a way out, and nothing spins."""

import errno
import os
import random
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from hub_daemon import Clock
from kinship_daemon import config, startup
from kinship_daemon.bugs import bugs_noted
from kinship_daemon.errors import (
    BudgetReached,
    EvaluationFailed,
    KinshipError,
    LeafGone,
    ModelError,
    Stopped,
    Transient,
    Unavailable,
    UsageError,
    planning,
)
from kinship_daemon.hub.records import UnknownRepo
from kinship_daemon.report import JsonReporter
from kinship_daemon.retry import reopen
from kinship_daemon.runner import SILENT, Runner
from kinship_daemon.steps.step import Step, Work, say_nothing
from kinship_storage.jobs import job_key
from kinship_storage.records import Model

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
NAMES = ("org/a", "org/b", "org/c")


@pytest.fixture
def context(tmp_path):
    """A home with three candidates that wait, and a clock that stands still."""
    loaded = config.load(base="demo", home=tmp_path / "home", overrides=["watch.poll_minutes=30"])
    report = JsonReporter(open(os.devnull, "w"))  # noqa: PTH123, SIM115
    with startup.opened(loaded, report, now=Clock(NOON)) as opened:
        for name in NAMES:
            model = Model(id=name, kind="finetune", status="seen", repo=name, revision="1" * 40)
            opened.lineage.add_model(model)
        yield opened


def step(run, *, needs="cpu", names=NAMES, writes=None, tell=say_nothing, **options):
    """Work for everyone who waits; what `run` returns admits, once `writes` and `tell` let it."""

    def plan(context):
        for name in names:
            if context.lineage.require(name).status == "seen":
                yield Work({"name": name}, name)

    def commit(lineage, work, _result):
        lineage.update_model(work.model, weights=f"sha256:{work.model}")
        if writes is not None:
            writes(lineage, work)
        lineage.move_model(work.model, "admit")

    return Step("look", needs, plan, run, commit, tell, **options)


def failing(*errors):
    """Raises these in turn, then does well."""
    left = list(errors)

    def run(_context, _work):
        if left and (error := left.pop(0)) is not None:
            raise error

    return run


def statuses(context):
    return [context.lineage.require(name).status for name in NAMES]


def test_a_turn_works_through_a_kind_and_the_next_finds_nothing(context):
    runner = Runner(context, [step(failing())])
    assert runner.loop(NOON).kind == "look"
    assert statuses(context) == ["admitted"] * 3
    assert runner.loop(NOON).kind is None


def test_a_models_own_fault_sets_it_aside_and_the_others_go_on(context):
    runner = Runner(context, [step(failing(None, ModelError("NaN in it")))])
    runner.loop(NOON)
    assert statuses(context) == ["admitted", "quarantined", "admitted"]
    model = context.lineage.require("org/b")
    assert (model.cause, model.reason, model.retry_at) == ("model", "NaN in it", None)
    assert context.lineage.count_jobs() == {"done": 2, "failed": 1}


@pytest.mark.parametrize("bug", [TypeError("unhashable\n\x1b[2J"), RecursionError(), OSError("?")])
def test_a_bug_over_one_model_keeps_back_that_model_alone_and_is_noted_in_full(context, bug):
    Runner(context, [step(failing(None, bug))]).loop(NOON)
    assert statuses(context) == ["admitted", "quarantined", "admitted"]
    model = context.lineage.require("org/b")
    assert model.cause == "world"
    assert model.retry_at is not None
    assert type(bug).__name__ in model.reason
    assert model.reason.isprintable()
    assert bugs_noted(context.home.bug_log) == 1
    assert "Traceback" in context.home.bug_log.read_text()


def test_a_bug_while_one_models_result_is_written_leaves_nothing_of_it(context):
    Runner(context, [step(failing(), writes=failing(None, TypeError("no cell")))]).loop(NOON)
    assert statuses(context) == ["admitted", "quarantined", "admitted"]
    assert context.lineage.require("org/b").weights is None
    assert bugs_noted(context.home.bug_log) == 1


def test_a_result_that_cannot_be_told_is_kept_all_the_same(context):
    def tell(_context, work, _result):
        if work.model == "org/b":
            raise ValueError("no words")

    Runner(context, [step(failing(), tell=tell)]).loop(NOON)
    assert statuses(context) == ["admitted"] * 3
    assert context.lineage.count_jobs() == {"done": 3}
    assert bugs_noted(context.home.bug_log) == 1


@pytest.mark.parametrize("named", ["org/b: ", "sha256:org/b: ", ""])
def test_the_name_of_who_is_set_aside_stands_in_front_of_the_reason_once(context, named):
    said = []
    context.report.event = lambda kind, message, **_: said.append((kind, message))
    context.lineage.update_model("org/b", weights="sha256:org/b")
    Runner(context, [step(failing(None, ModelError(f"{named}NaN in it")))]).loop(NOON)
    assert ("quarantine", "org/b: NaN in it") in said
    assert context.lineage.require("org/b").reason == "NaN in it"


def test_too_little_memory_for_one_model_is_no_bug(context):
    Runner(context, [step(failing(MemoryError()))]).loop(NOON)
    assert context.lineage.require("org/a").cause == "world"
    assert bugs_noted(context.home.bug_log) == 0


def test_a_settings_fault_says_which(context):
    error = ModelError("too slow", cause="settings", setting="evaluate.time_limit_minutes")
    Runner(context, [step(failing(error))]).loop(NOON)
    assert context.lineage.require("org/a").setting == "evaluate.time_limit_minutes"


def test_what_the_world_keeps_out_comes_back_by_itself_and_later_each_time(context):
    error = ModelError("its worker died", cause="world")
    runner = Runner(context, [step(failing(error, error, error), names=("org/a",))])
    waits = []
    for _ in range(3):
        runner.loop(context.now())
        model = context.lineage.require("org/a")
        assert (model.status, model.cause) == ("quarantined", "world")
        turn = runner.loop(context.now())
        assert turn.kind is None
        waits.append(turn.due - context.now())
        context.now.now = turn.due
    assert waits == [timedelta(minutes=m) for m in (15, 30, 60)]
    runner.loop(context.now())
    assert context.lineage.require("org/a").status == "admitted"
    assert context.lineage.require("org/a").faults == 0


def test_one_repo_that_cannot_be_had_keeps_nobody_else(context):
    runner = Runner(context, [step(failing(Unavailable("403")), needs="hub")])
    assert runner.loop(NOON).kind == "look"
    assert statuses(context) == ["seen", "admitted", "admitted"]
    turn = runner.loop(NOON)
    assert (turn.kind, turn.waiting) == (None, ())
    assert turn.due == NOON + timedelta(minutes=15)
    context.now.now = turn.due
    runner.loop(turn.due)
    assert statuses(context) == ["admitted"] * 3


def test_a_hub_that_says_when_it_is_back_is_left_alone_until_then(context):
    runner = Runner(context, [step(failing(Transient("away", 300.0)), needs="hub")])
    turn = runner.loop(NOON)
    assert turn.kind is None
    assert str(turn.waiting[0]) == "away"
    assert turn.due == NOON + timedelta(seconds=301)
    assert runner.loop(NOON + timedelta(seconds=300)).kind is None
    assert statuses(context) == ["seen"] * 3
    context.now.now = turn.due
    assert runner.loop(turn.due).kind == "look"
    assert statuses(context) == ["admitted"] * 3


@pytest.mark.parametrize("away", [10.0**18, float("inf"), float("nan"), -5.0])
def test_nonsense_about_when_it_is_back_is_survived(context, away):
    runner = Runner(context, [step(failing(Transient("away", away)), needs="hub")])
    assert NOON < runner.loop(NOON).due <= NOON + timedelta(days=1)


def test_after_some_silence_the_others_are_not_asked(context):
    asked = []

    def silent(_context, work):
        asked.append(work.model)
        raise Transient("no answer")

    names = [f"org/n{number}" for number in range(SILENT + 3)]
    for name in names:
        model = Model(id=name, kind="finetune", status="seen", repo=name, revision="1" * 40)
        context.lineage.add_model(model)
    turn = Runner(context, [step(silent, needs="hub", names=names)]).loop(NOON)
    assert asked == names[:SILENT]
    assert turn.waiting


def test_a_budget_is_waited_for_until_midnight_and_other_kinds_go_on(context):
    other = Step("other", "cpu", lambda _: iter([Work({})]), lambda *_: 1, say_nothing, say_nothing)
    runner = Runner(context, [step(failing(BudgetReached("limit"))), other])
    turn = runner.loop(NOON)
    assert turn.kind == "other"
    assert [str(error) for error in turn.waiting] == ["limit"]
    turn = runner.loop(NOON)
    assert (turn.kind, turn.due) == (None, NOON + timedelta(hours=12))
    context.now.now = turn.due
    runner.loop(turn.due)
    assert statuses(context) == ["admitted"] * 3


def test_a_budget_that_others_may_use_is_asked_for_at_midnight_at_the_latest(context):
    error = BudgetReached("limit", others_may_go_on=True)
    runner = Runner(context, [step(failing(*[error] * 20), names=("org/a",))])
    dues = []
    while not dues or dues[-1] < NOON + timedelta(hours=12):
        dues.append(runner.loop(context.now()).due)
        context.now.now = dues[-1]
    assert dues[-1] == NOON + timedelta(hours=12)


def test_one_that_does_not_come_holds_up_no_run_where_its_kind_does_not(context):
    error = Transient("500")
    away = step(failing(error), needs="hub", names=("org/a",), holds_up=False)
    runner = Runner(context, [away])
    for _ in range(2):
        turn = runner.loop(NOON)
        assert (turn.kind, turn.waiting) == (None, ())
        assert turn.due == NOON + timedelta(minutes=15)


def test_many_that_do_not_come_hold_a_run_up(context):
    names = [f"org/n{number}" for number in range(SILENT)]
    for name in names:
        model = Model(id=name, kind="finetune", status="seen", repo=name, revision="1" * 40)
        context.lineage.add_model(model)
    silent = failing(*[Transient("500")] * SILENT)
    away = step(silent, needs="hub", names=names, holds_up=False)
    assert Runner(context, [away]).loop(NOON).waiting


def planned(context, *faults):
    """Work for everyone who waits; while it is planned for org/b these are raised in turn."""
    left = list(faults)

    def plan(_context):
        for name in NAMES:
            if context.lineage.require(name).status == "seen":
                with planning(name):
                    if name == "org/b" and left:
                        raise left.pop(0)
                yield Work({"name": name}, name)

    return replace(step(failing()), plan=plan)


@pytest.mark.parametrize(
    ("fault", "cause", "words"),
    [
        (ModelError("NaN in it"), "model", "NaN in it"),
        (UnknownRepo("no such repo"), "world", "no such repo"),
        (LeafGone("gone", cause="world"), "world", "gone"),
        (MemoryError(), "world", "takes more memory than there is"),
        (ZeroDivisionError("0/0"), "world", "a bug met in look"),
    ],
)
def test_what_is_raised_while_one_model_is_planned_keeps_back_that_model_alone(
    context, fault, cause, words
):
    runner = Runner(context, [planned(context, fault)])
    assert runner.loop(NOON).kind == "look"
    assert context.lineage.require("org/a").status == "admitted"
    assert runner.loop(NOON).kind == "look"
    assert statuses(context) == ["admitted", "quarantined", "admitted"]
    aside = context.lineage.require("org/b")
    assert aside.cause == cause
    assert words in aside.reason
    assert runner.loop(NOON).kind is None


@pytest.mark.parametrize("fault", [Transient("away", 300.0), BudgetReached("limits.x reached")])
def test_trouble_of_the_world_while_planning_lets_the_kind_rest(context, fault):
    runner = Runner(context, [planned(context, fault)])
    assert runner.loop(NOON).kind == "look"
    turn = runner.loop(NOON)
    assert (turn.kind, turn.waiting) == (None, (fault,))
    assert statuses(context) == ["admitted", "seen", "seen"]
    assert turn.due > NOON
    context.now.now = turn.due
    assert runner.loop(turn.due).kind == "look"
    assert statuses(context) == ["admitted"] * 3


def test_a_plan_that_fails_over_who_is_aside_already_waits(context):
    """As over a leaf that nobody needs any more: nothing is left to set aside."""

    def plan(_context):
        with planning("org/b"):
            raise ModelError("NaN in it")
        yield

    runner = Runner(context, [replace(step(failing()), plan=plan)])
    assert runner.loop(NOON).kind == "look"
    turn = runner.loop(NOON)
    assert (turn.kind, str(*turn.waiting)) == (None, "org/b: NaN in it")
    resting = runner.loop(NOON)
    assert (resting.kind, resting.due) == (None, turn.due)


@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "full"), Stopped(), UsageError("no such")])
def test_what_concerns_everyone_ends_the_daemon_while_planning_too(context, fault):
    with pytest.raises(type(fault)) as caught:
        Runner(context, [planned(context, fault)]).loop(NOON)
    assert caught.value is fault


def test_a_bug_in_a_plan_that_is_about_nobody_is_loud(context):
    def plan(_context):
        yield from {}["nobody"]

    with pytest.raises(KeyError):
        Runner(context, [replace(step(failing()), plan=plan)]).loop(NOON)


def test_what_is_wanted_no_more_waits_no_longer(context):
    runner = Runner(context, [step(failing(Transient("away")), names=("org/a",))])
    runner.loop(NOON)
    assert len(context.lineage.jobs("waiting")) == 1
    context.lineage.move_model("org/a", "refuse", reason="merged by others", cause="model")
    context.now.now += timedelta(minutes=15)
    assert runner.loop(context.now()).due is None
    assert context.lineage.jobs("waiting") == []


def test_a_plan_that_leaves_in_peace_who_waits_cuts_nobodys_wait_short(context):
    asked = []

    def plan(context):
        work = Work({"name": "org/a"}, "org/a")
        job = context.lineage.job(job_key("look", work.inputs))
        if job is None or job.due is None or datetime.fromisoformat(job.due) <= context.now():
            yield work

    def run(context, _work):
        asked.append(context.now())
        raise Unavailable("accept its terms")

    runner = Runner(context, [Step("look", "hub", plan, run, say_nothing, say_nothing)])
    for _ in range(60):
        runner.loop(context.now())
        context.now.now += timedelta(minutes=1)
    assert [moment - NOON for moment in asked] == [timedelta(minutes=m) for m in (0, 15, 45)]


def test_idle_nothing_is_said_to_be_done(context):
    runner = Runner(context, [step(failing(Transient("away")), names=("org/a",))])
    runner.loop(NOON)
    assert runner.doing is None


def test_a_failed_evaluation_counts_for_the_day(context):
    error = EvaluationFailed("too slow", setting="evaluate.time_limit_minutes")
    error.seconds = 90.0
    Runner(context, [step(failing(error), needs="device")]).loop(NOON)
    assert context.spent("evaluation_seconds") == 90.0


def proposed(context, *parents):
    context.lineage.add_model(
        Model(id="m", kind="merge", status="proposed", generation=1, parents=parents, recipe={})
    )


def asking_for(leaf, error):
    """A kind that makes `m`, and never gets that leaf."""

    def gone(_context, _work):
        raise error(leaf)

    def plan(context):
        if context.lineage.require("m").status == "proposed":
            yield Work({"m": 1}, "m")

    return Step("make", "cpu", plan, gone, say_nothing, say_nothing)


def test_a_leaf_that_its_hub_withholds_for_long_is_set_aside_with_what_rests_on_it(context):
    Runner(context, [step(failing())]).loop(NOON)
    proposed(context, *NAMES[:2])
    withheld = asking_for("org/a", lambda leaf: Unavailable("accept its terms", model=leaf))
    runner = Runner(context, [withheld])
    while statuses(context)[0] != "quarantined":
        context.now.now = runner.loop(context.now()).due
    model, merge = map(context.lineage.require, ("org/a", "m"))
    assert (model.status, model.cause, merge.status, merge.cause) == ("quarantined", "world") * 2
    assert None not in (model.retry_at, merge.retry_at)


def test_a_leaf_that_is_aside_and_asked_for_all_the_same_does_not_spin(context):
    Runner(context, [step(failing())]).loop(NOON)
    proposed(context, "org/b", "org/c")
    gone = asking_for(
        "org/a", lambda leaf: LeafGone("its bytes are gone", cause="world", model=leaf)
    )
    runner = Runner(context, [gone])
    assert runner.loop(NOON).kind == "make"
    assert statuses(context)[0] == "quarantined"
    turn = runner.loop(NOON)
    assert (turn.kind, turn.due) == (None, NOON + timedelta(minutes=15))


def test_merges_rest_on_weights_not_on_the_name_that_had_them_first(context):
    Runner(context, [step(failing())]).loop(NOON)
    proposed(context, "org/a", "org/b")
    copy = Model(id="zed/a", kind="finetune", status="seen", repo="zed/a", revision="1" * 40)
    context.lineage.add_model(copy)
    context.lineage.update_model("zed/a", weights="sha256:org/a")
    context.lineage.move_model("org/a", "quarantine", reason="moved", cause="model")
    context.lineage.move_model("zed/a", "admit")
    gone = asking_for("zed/a", lambda leaf: LeafGone("gone", cause="world", model=leaf))
    Runner(context, [gone]).loop(NOON)
    assert context.lineage.require("m").reason == "cannot be made any more: zed/a: gone"


def test_copies_of_what_is_lost_are_looked_at_again(context):
    Runner(context, [step(failing())]).loop(NOON)
    proposed(context, "org/a", "org/b")
    copy = Model(id="zed/a", kind="finetune", status="seen", repo="zed/a", revision="1" * 40)
    context.lineage.add_model(copy)
    reason = "the same weights as org/a"
    context.lineage.move_model("zed/a", "refuse", reason=reason, cause="model")
    gone = asking_for("org/a", lambda leaf: LeafGone("gone", cause="world", model=leaf))
    Runner(context, [gone]).loop(NOON)
    assert context.lineage.require("zed/a").status == "seen"


def test_a_leaf_that_is_gone_takes_its_merges_with_it(context):
    runner = Runner(context, [step(failing())])
    runner.loop(NOON)
    proposed(context, *NAMES[:2])

    def gone(_context, _work):
        raise LeafGone("its bytes are gone", cause="world", model="org/a")

    plan = lambda _: iter([Work({"m": 1}, "m")])  # noqa: E731
    Runner(context, [Step("make", "cpu", plan, gone, say_nothing, say_nothing)]).loop(NOON)
    assert statuses(context) == ["quarantined", "admitted", "admitted"]
    said = "cannot be made any more: org/a: its bytes are gone"
    assert context.lineage.require("m").reason == said


def test_a_stop_leaves_a_job_that_is_taken_again(context):
    runner = Runner(context, [step(failing(Stopped()))])
    with pytest.raises(Stopped):
        runner.loop(NOON)
    assert context.lineage.count_jobs() == {"pending": 1}
    runner.loop(NOON)
    assert statuses(context) == ["admitted"] * 3


@pytest.mark.parametrize(
    ("error", "blames"),
    [
        (KinshipError("the disk is full"), True),
        (OSError(errno.ENOSPC, "no space"), True),
        (OSError(errno.EMFILE, "too many open files"), True),
        (OSError(errno.EFBIG, "file too large"), True),
        (ZeroDivisionError("a bug over no model's bytes"), False),
    ],
)
def test_what_waiting_would_not_mend_ends_the_daemon(context, error, blames):
    with pytest.raises(type(error)):
        Runner(context, [step(failing(error), blames=blames)]).loop(NOON)


def test_a_hub_that_refuses_us_after_it_was_fine_is_asked_again(context):
    runner = Runner(context, [step(failing(None, KinshipError("401")), needs="hub")])
    assert runner.loop(NOON).kind == "look"
    assert statuses(context) == ["admitted", "seen", "admitted"]


def test_work_that_is_planned_again_as_soon_as_it_is_done_is_a_loud_bug(context):
    plan = lambda _: iter([Work({})])  # noqa: E731
    runner = Runner(
        context, [Step("again", "cpu", plan, lambda *_: 1, say_nothing, say_nothing, repeats=True)]
    )
    assert [runner.loop(NOON).kind for _ in range(5)] == ["again"] * 5
    with pytest.raises(RuntimeError, match="again is done again and again"):
        runner.loop(NOON)


def test_looks_that_the_clock_asks_for_amid_other_work_are_no_such_bug(context):
    again = lambda kind: Step(  # noqa: E731
        kind,
        "hub",
        lambda _: iter([Work({})]),
        lambda *_: 1,
        say_nothing,
        say_nothing,
        repeats=True,
    )
    runner = Runner(context, [again("watch")])
    assert {runner.loop(NOON, look=True).kind for _ in range(20)} == {"watch"}


@pytest.mark.parametrize("look", ["due_models", "jobs"])
def test_what_retry_opens_beside_us_in_that_moment_is_no_error(context, monkeypatch, look):
    """The command works in another process, on the same lineage."""
    lineage = context.lineage
    away = step(failing(Transient("away"), ModelError("no memory", cause="world")))
    Runner(context, [away]).loop(NOON)
    context.now.pass_minutes(120)
    found, runner = getattr(lineage, look), Runner(context, [step(failing(), names=[])])

    def looked(*args, **options):
        rows = found(*args, **options)
        if not lineage._store.in_transaction:  # else the command waits for us
            monkeypatch.undo()
            for model in lineage.set_aside():
                reopen(lineage, model)
            for job in lineage.jobs("waiting"):
                lineage.retry(job.key)
        return rows

    monkeypatch.setattr(lineage, look, looked)
    runner.loop(context.now())
    assert statuses(context) == ["seen", "seen", "admitted"]
    assert not lineage.jobs("waiting")


def test_a_clock_that_is_set_back_during_a_turn_is_no_error(context):
    """A turn may take hours, and goes by the time at which it began."""
    Runner(context, [step(failing(Transient("away")), names=["org/a"])]).loop(NOON)
    context.now.pass_minutes(60)

    def set_back(_context, work):
        if work.model == "org/b":
            context.now.pass_minutes(-60)

    Runner(context, [step(set_back, names=["org/b", "org/a"])]).loop(context.now())
    assert statuses(context) == ["admitted", "admitted", "seen"]


def test_a_clock_that_was_days_ahead_keeps_nobody_waiting(context):
    runner = Runner(context, [step(failing(Unavailable("terms to accept")))])
    runner.loop(NOON)
    assert statuses(context) == ["seen", "admitted", "admitted"]
    assert runner.loop(NOON).kind is None  # it has its time
    assert runner.loop(NOON - timedelta(days=3)).kind == "look"
    assert statuses(context) == ["admitted"] * 3


def test_at_the_next_start_whatever_waits_is_tried_again(context, tmp_path):
    error = ModelError("its worker died", cause="world")
    Runner(context, [step(failing(error, Transient("away")))]).loop(NOON)
    assert statuses(context) == ["quarantined", "seen", "admitted"]
    startup.try_again(context.config, context.settings, context.lineage, context.report)
    context.lineage.recover()
    assert statuses(context) == ["seen", "seen", "admitted"]
    Runner(context, [step(failing())]).loop(NOON)
    assert statuses(context) == ["admitted"] * 3


def test_no_secret_of_the_config_is_written_to_the_lineage(tmp_path):
    secrets = ("s3cret-password", "hook-t0ken")
    own = [
        f"web.token={secrets[0]}",
        f"notify.use={{webhook: {{url: 'https://me:{secrets[1]}@example.org/{secrets[1]}'}}}}",
    ]
    loaded = config.load(base="demo", home=tmp_path / "home", overrides=own)
    with startup.opened(loaded, JsonReporter(open(os.devnull, "w"))) as d:  # noqa: PTH123
        assert d.lineage.get("settings_then")["triage.max_gb"] == loaded.triage.max_gb
        written = b"".join(path.read_bytes() for path in tmp_path.glob("home/lineage.db*"))
    assert b"settings_then" in written
    for secret in secrets:
        assert secret.encode() not in written


FAULTS = (
    lambda: ModelError("NaN in it"),
    lambda: ModelError("too slow", cause="settings", setting="evaluate.time_limit_minutes"),
    lambda: ModelError("no memory", cause="world"),
    lambda: LeafGone("its bytes are gone", cause="world"),
    lambda: UnknownRepo("no such repo"),
    lambda: Unavailable("accept its terms"),
    lambda: Transient("no answer"),
    lambda: Transient("away", 300.0),
    lambda: BudgetReached("limits.x reached"),
    lambda: BudgetReached("limits.y reached", others_may_go_on=True),
    Stopped,
)
BUGS = (TypeError, MemoryError, KeyboardInterrupt)  # the last as a kill: nothing of ours runs on


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("needs", ["cpu", "hub"])
def test_whatever_goes_wrong_everyone_ends_somewhere_and_nothing_spins(context, seed, needs):
    chance, written, calm_from = random.Random(seed), Counter(), 60
    turns = 0

    def may_fail(*faults):
        if turns < calm_from and chance.random() < 0.6:
            raise chance.choice(faults)()

    def write(_lineage, work):
        may_fail(*BUGS)
        written[work.model] += 1

    def run(*_):
        may_fail(*FAULTS, *BUGS)

    def tell(*_):
        may_fail(*BUGS)

    kind = step(run, needs=needs, writes=write, tell=tell)
    runner, idle = Runner(context, [kind]), 0
    while idle < 2:
        turns += 1
        assert turns < 300, "it never ends"
        try:
            turn = runner.loop(context.now(), look=True)
        except (Stopped, KeyboardInterrupt, Transient, BudgetReached):
            context.lineage.recover()  # as at a next start
            runner = Runner(context, [kind])
            continue
        idle = idle + 1 if turn.kind is None and turn.due is None else 0
        if turn.kind is None and turn.due is not None:
            assert turn.due > context.now()
            context.now.now = turn.due
    models = [context.lineage.require(name) for name in NAMES]
    assert all(m.status == "admitted" or m.cause in {"model", "settings"} for m in models)
    assert written == {m.id: 1 for m in models if m.status == "admitted"}
    assert set(context.lineage.count_jobs()) <= {"done", "failed"}


def test_a_hub_that_is_away_for_long_is_told_once_and_again_the_next_time(context):
    def told():
        return [event.kind for event in context.lineage.events()]

    def pass_minutes(runner, *minutes):
        for each in minutes:
            context.now.now += timedelta(minutes=each)
            runner.loop(context.now.now)

    silent = Runner(context, [step(failing(*[Transient("no answer")] * 99), needs="hub")])
    silent.loop(NOON)
    pass_minutes(silent, 59)
    assert told() == []
    again = Runner(context, [step(failing(*[Transient("no answer")] * 99), needs="hub")])
    pass_minutes(again, 16, 16, 60, 600)  # also after a restart
    assert told() == ["hub_away"]
    pass_minutes(Runner(context, [step(failing(), needs="hub", names=["org/a"])]), 1500)
    assert statuses(context)[0] == "admitted"
    later = Runner(context, [step(failing(*[Transient("no answer")] * 99), needs="hub")])
    pass_minutes(later, 1500, 90)
    assert told() == ["hub_away"] * 2


def test_a_budget_used_up_is_told_once_a_day(context):
    used = [BudgetReached("limits.x 1 used up"), BudgetReached("limits.x 1 used up by b")]
    runner = Runner(context, [step(failing(*used, *used))])
    for hours in (0, 12, 1, 12):
        context.now.now += timedelta(hours=hours)
        runner.loop(context.now.now)
    told = [(event.kind, event.created[:10]) for event in context.lineage.events()]
    days = sorted({day for _, day in told})
    assert told == [("budget", day) for day in days]
    assert len(days) == 2
