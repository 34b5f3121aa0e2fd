"""Who goes on at the end of a rung, and what becomes of who does not."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from kinship_daemon import config
from kinship_daemon.evaluate.scoring import looks, missing, scores
from kinship_daemon.evaluate.settings import Answers, Evaluate, Settings, TaskDocuments
from kinship_daemon.explain import explain
from kinship_daemon.family import tree
from kinship_daemon.steps import race, score, validate
from kinship_daemon.steps.evaluation import Evaluated, tell_cut
from kinship_daemon.steps.facts import _scored
from kinship_daemon.steps.rungs import RUNGS
from kinship_daemon.steps.scores import known_means
from kinship_policies.policy import kept_best
from kinship_policies.registry import make
from small_lineage import finetune, merge, open_lineage

COUNT = 400
DAY = "2026-01-31"
SETTINGS = Settings.of(Evaluate(selection=["add"], validation=["sub"], chunk=10), 0).but(
    documents={"selection": {"add": TaskDocuments(digest="d", count=COUNT)}}
)


class Home:
    """A home of which only selection is real: models answer as they are told to."""

    def __init__(self, lineage, **changes):
        self.lineage, self.settings, self.base = lineage, SETTINGS, None
        self.asked, self.skill = {}, {}
        self.config = config.load(base="demo", overrides=[f"{k}={v}" for k, v in changes.items()])
        self.policy = make(self.config.policy.use, self.config.policy.settings)
        self.evaluators = SimpleNamespace(known=lambda settings: settings)
        self.told = []
        self.report = SimpleNamespace(
            event=lambda kind, words, **_: self.told.append((kind, words))
        )
        lineage.put("settings", {"selection": SETTINGS.fingerprint("selection")})

    def spent(self, name):
        return self.lineage.spent(name, DAY)

    def population_models(self, *statuses):
        return [m for m in self.lineage.models(status=statuses) if m.kind != "base"]

    def founder(self, name, skill):
        self.lineage.add_model(finetune(name))
        self.skill[f"sha256:{name}"] = skill

    def child(self, name, skill, parents, generation=1):
        self.lineage.add_model(merge(name, parents, generation))
        self.skill[f"recipe:{name}"] = skill

    def answer(self, weights, documents):
        """Right where the document is easier than the model is good, give or take."""
        hardness = np.random.default_rng(1).random(COUNT)
        own = np.random.default_rng([2, *weights.encode()]).normal(0, 0.1, COUNT)
        right = hardness + own < self.skill[weights]
        return Answers("add", "acc", "1", tuple((d, float(right[d])) for d in sorted(documents)))

    def run(self, order=1, rounds=20):
        """Scoring and the race, a round at a time, until nothing is left to do."""
        for _ in range(rounds):
            if not (self._score(order) or self._race()):
                return
        raise AssertionError("no end")

    def _score(self, order):
        plan = list(score.STEP.plan(self))[::order]
        for work in plan:
            weights, fingerprint = work.inputs["weights"], work.inputs["settings"]
            known = self.lineage.scores(weights, "selection", fingerprint)
            asked = missing(SETTINGS, "selection", known, work.inputs.get("look"))
            ids = [d for some in asked.values() for d in some]
            self.asked[work.model] = self.asked.get(work.model, 0) + len(ids)
            made = scores([self.answer(weights, ids)], SETTINGS, "selection", weights, known)
            score.STEP.commit(self.lineage, work, Evaluated(made, DAY, 0.0))
            score.STEP.tell(self, work, Evaluated(made, DAY, 0.0))
        return plan

    def _race(self):
        plan = list(race.STEP.plan(self))
        for work in plan:
            found = race.STEP.run(self, work)
            race.STEP.commit(self.lineage, work, found)
            race.STEP.tell(self, work, found)
        return plan

    def partial(self, name):
        fingerprint = SETTINGS.fingerprint("selection")
        return self.lineage.partials(fingerprint).get(self.lineage.require(name).weights)


@pytest.fixture
def home(tmp_path):
    with open_lineage(tmp_path / "lineage.db") as lineage:
        yield Home(lineage)


def test_prompts_that_are_cut_are_told_of_the_task_and_once(home):
    for name in "ab":
        home.founder(name, 0.5)
    cut = [Answers("add", "acc", "1", (), cut=30), Answers("sub", "acc", "1", ())]
    for work in list(score.STEP.plan(home)):
        tell_cut(home, work, cut)
        made = scores([home.answer(work.inputs["weights"], [1, 2])], SETTINGS, "selection", "w")
        named = [replace(each, weights=work.inputs["weights"]) for each in made]
        score.STEP.commit(home.lineage, work, Evaluated(named, DAY, 0.0))
    assert [kind for kind, _ in home.told] == ["warning"]
    assert home.told[0][1].startswith("task 'add': 30 prompts are longer than what demo/a reads")


FOUNDERS = {"a": 0.8, "b": 0.75, "c": 0.7, "d": 0.5, "e": 0.2}
PAIR = ("demo/a", "demo/b")


def founded(home):
    for name, skill in FOUNDERS.items():
        home.founder(name, skill)
    home.run()


def test_founders_who_can_hardly_be_among_the_best_are_asked_no_further(home):
    founded(home)
    assert {name: home.asked[f"demo/{name}"] for name in "abc"} == dict.fromkeys("abc", COUNT)
    assert home.asked["demo/e"] < COUNT / 2
    assert home.partial("demo/e").best == 3
    assert not any(home.partial(f"demo/{name}") for name in "abc")
    assert ("race", f"demo/e {words(home, 'demo/e')}") in home.told


def words(home, name):
    share = home.partial(name).share
    return (
        f"stopped after {100 * share:.0f} % of its documents: it could hardly be among the 3 best"
    )


def test_a_stopped_model_has_the_score_that_is_foretold_and_is_never_the_best(home):
    founded(home)
    partial = home.partial("demo/e")
    answers = home.answer("sha256:e", range(COUNT)).samples
    end = np.mean([value for _, value in answers])
    assert abs(partial.mean - end) < 4 * partial.stderr
    assert known_means(home, "selection")["sha256:e"] == partial.mean
    assert home.lineage.best().model == "demo/a"
    assert "demo/e" in _scored(home, samples=False)
    assert words(home, "demo/e") in explain(home.lineage, "demo/e")
    drawn = tree(home.lineage.export())
    assert f"demo/e  {partial.mean:.4f}  stopped after {100 * partial.share:.0f} %" in drawn


def test_merges_race_against_all_that_are_known_and_a_stopped_one_is_not_judged(home):
    founded(home)
    home.child("good", 0.85, PAIR)
    home.child("bad", 0.4, PAIR)
    home.run()
    assert home.asked["good"] == COUNT
    assert home.asked["bad"] <= COUNT * 0.3
    assert [child.id for child, _ in validate.families(home)] == ["good"]
    assert home.lineage.require("bad").status == "admitted"
    assert "gate: not judged: stopped after" in explain(home.lineage, "bad")


def test_the_outcome_does_not_depend_on_who_is_asked_first(tmp_path):
    found = []
    for order in (1, -1):
        with open_lineage(tmp_path / f"{order}.db") as lineage:
            home = Home(lineage)
            for name, skill in FOUNDERS.items():
                home.founder(name, skill)
            home.run(order)
            home.child("good", 0.85, PAIR)
            home.child("bad", 0.4, PAIR)
            home.run(order)
            found.append((home.asked, lineage.partials(SETTINGS.fingerprint("selection"))))
    assert found[0] == found[1]


def test_a_newcomer_catches_up_rung_by_rung_and_those_ahead_wait(home):
    founded(home)
    home.child("first", 0.85, PAIR)
    assert home._score(1)
    assert home._race()
    home.founder("late", 0.1)
    steps = looks(SETTINGS, "selection", RUNGS)
    waiting = {model.id: look.number for model, look in score.to_ask(home)}
    assert waiting == {"first": steps[1].number, "demo/late": steps[0].number}
    assert not list(race.STEP.plan(home))
    home.run()
    assert home.asked["demo/late"] == len(steps[0].documents["add"])
    assert home.asked["first"] == COUNT


def test_a_merge_set_aside_and_proposed_again_goes_on_where_it_was(home):
    founded(home)
    home.child("first", 0.85, PAIR)
    home._score(1)
    home.lineage.move_model("first", "quarantine", reason="no memory", cause="world")
    home.lineage.move_model("first", "repropose")
    home.run()
    assert home.lineage.require("first").status == "admitted"
    assert home.asked["first"] == COUNT


def test_the_same_bytes_under_another_name_are_not_asked_again(home):
    founded(home)
    home.lineage.add_model(finetune("copy", weights="sha256:e"))
    home.run()
    assert "demo/copy" not in home.asked
    assert known_means(home, "selection")["sha256:e"] == home.partial("demo/copy").mean


@pytest.mark.parametrize(
    "changes",
    [
        {"evaluate.race": "false"},
        {"gate.strict": "true"},
        {"policy": "{use: m2n2}"},
        {"policy": "{use: topk-kinship, k: 5}"},
    ],
    ids=lambda changes: next(iter(changes.values())),
)
def test_who_was_stopped_answers_the_rest_once_it_is_wanted(home, changes):
    founded(home)
    later = Home(home.lineage, **changes)
    later.skill = home.skill
    assert "sha256:e" not in known_means(later, "selection")
    later.run()
    left = COUNT - home.asked["demo/e"]
    assert later.asked == {"demo/d": COUNT - home.asked["demo/d"], "demo/e": left}
    assert later.partial("demo/e") is None
    assert later.lineage.partials(SETTINGS.fingerprint("selection")) == {}


def test_a_merge_that_may_be_above_its_parents_goes_on(home):
    founded(home)
    home.child("hopeful", 0.6, ("demo/d", "demo/e"))
    home.child("hopeless", 0.1, ("demo/d", "demo/e"))
    home.run()
    assert home.asked["hopeful"] == COUNT
    assert home.partial("hopeless") is not None


def test_a_policy_that_needs_every_answer_or_does_not_say_turns_the_race_off():
    assert kept_best(make("topk-kinship", {"k": 4})) == 4
    assert kept_best(make("m2n2", {})) is None
    assert kept_best(make("soup", {})) is None
    assert kept_best(SimpleNamespace(keeps=2, uses=frozenset({"samples"}))) is None
    assert kept_best(SimpleNamespace(keeps="many")) is None
