"""Who is judged, against whom and in which order; and what a home's past counts for."""

from types import SimpleNamespace

import pytest

from kinship_daemon import config
from kinship_daemon.errors import PlanFailed
from kinship_daemon.evaluate.discovery import Judged, saffron
from kinship_daemon.evaluate.settings import Evaluate, Settings, TaskDocuments
from kinship_daemon.explain import explain
from kinship_daemon.retry import try_again
from kinship_daemon.steps import gate, judgement, validate
from kinship_storage.records import Gate, Model, Publication
from small_lineage import finetune, merge, open_lineage, score

FOUNDERS = {"a": 0.50, "b": 0.55, "c": 0.40}
PAIR = ("demo/a", "demo/b")
HARDEST_FIRST = ("demo/b", "demo/a")
DOCUMENTS = 4
TASKS = Settings.of(Evaluate(selection=["add"], validation=["add"], chunk=2), 0).but(
    documents={"validation": {"add": TaskDocuments(digest="d", count=2 * DOCUMENTS)}}
)


@pytest.fixture
def home(tmp_path):
    """Three fine-tunes with selection scores, and a context of what the gate's steps read."""
    with open_lineage(tmp_path / "lineage.db") as lineage:
        lineage.put("settings", {"selection": "selection", "validation": "validation"})
        base = Model("demo/base", "base", "admitted", license="apache-2.0", weights="sha256:base")
        lineage.add_model(base)
        for name, value in FOUNDERS.items():
            lineage.add_model(finetune(name))
            scored(lineage, f"sha256:{name}", value)
        yield SimpleNamespace(
            lineage=lineage,
            base=base,
            config=config.load(base="demo"),
            settings=SimpleNamespace(fingerprint=lambda split: split),
            evaluators=SimpleNamespace(known=lambda _settings: TASKS),
            population_models=lambda *statuses: [
                m for m in lineage.models(status=statuses) if m.kind != "base"
            ],
        )


def scored(lineage, weights, value, split="selection"):
    lineage.add_scores([score(weights, *[value] * 2 * DOCUMENTS, split=split, settings=split)])


def born(home, name, value, generation=1, parents=PAIR, **changes):
    status = "proposed" if value is None else "admitted"
    home.lineage.add_model(merge(name, parents, generation, status=status, **changes))
    if value is not None:
        scored(home.lineage, f"recipe:{name}", value)


def judged(home, name, passed=True, p=0.001, evaluation="validation"):
    alpha = None if p is None else 0.01
    home.lineage.add_gate(
        Gate(name, "demo/b", passed, 0.1, 0.0, 0.2, 9, "r", evaluation, p=p, alpha=alpha)
    )


def families(home):
    return {child.id: [m.id for m in others] for child, others in validate.families(home)}


def with_parents_alone(home):
    publish = home.config.publish.model_copy(update={"require": "parents"})
    home.config = home.config.model_copy(update={"publish": publish})


def test_a_merge_is_held_against_its_parents_and_the_best_published_before(home):
    born(home, "m1", 0.6)
    born(home, "m2", 0.7)
    born(home, "m3", 0.8)
    assert families(home) == {name: list(HARDEST_FIRST) for name in ("m1", "m2", "m3")}
    judged(home, "m1")
    assert families(home) == {"m2": ["m1", *HARDEST_FIRST], "m3": ["m1", *HARDEST_FIRST]}
    judged(home, "m2", passed=False)
    assert families(home) == {"m3": ["m1", *HARDEST_FIRST]}
    with_parents_alone(home)
    assert families(home) == {"m3": list(HARDEST_FIRST)}


def test_one_that_did_worse_than_what_is_published_is_not_judged_and_explain_says_so(home):
    born(home, "m1", 0.7)
    born(home, "m2", 0.6)
    rules = {"require": "best"}
    home.lineage.add_gate(
        Gate("m1", "demo/b", True, 0.1, 0.0, 0.2, 9, "r", "validation", rules, p=0.1, alpha=0.1)
    )
    assert families(home) == {}
    told = explain(home.lineage, "m2")
    assert "not judged: its selection score 0.6000 is not above 0.7000 of m1, which passed" in told
    with_parents_alone(home)
    assert families(home) == {"m2": list(HARDEST_FIRST)}


def test_what_may_never_be_published_need_not_be_beaten(home):
    home.lineage.add_model(finetune("secret", license="cc-by-nc-4.0"))
    scored(home.lineage, "sha256:secret", 0.4)
    born(home, "m1", 0.7, parents=("demo/a", "demo/secret"))
    born(home, "m2", 0.8)
    judged(home, "m1")
    assert families(home) == {"m2": list(HARDEST_FIRST)}


def test_what_goes_wrong_over_one_familys_past_is_about_its_merge_alone(home, monkeypatch):
    """The runner sets that merge aside, and the others are judged."""
    born(home, "m1", 0.7)
    judged(home, "m1")
    born(home, "m2", 0.8)
    monkeypatch.setattr(validate, "kept_back", lambda *_: {}["licence"])
    with pytest.raises(PlanFailed) as caught:
        families(home)
    assert caught.value.model == "m2"
    home.lineage.move_model("m2", "quarantine", reason="a bug", cause="world")
    assert families(home) == {}


def test_nobodys_turn_comes_before_an_earlier_merge_is_scored(home):
    """Whoever is evaluated first: the order of judgements is that of the names."""
    born(home, "m1", None)
    born(home, "m2", 0.8)
    assert families(home) == {}
    home.lineage.move_model("m1", "quarantine", reason="no", cause="world")
    assert families(home) == {"m2": list(HARDEST_FIRST)}


def test_verdicts_are_given_in_order_whoever_was_validated_first(home):
    born(home, "m1", 0.7)
    born(home, "m2", 0.8)
    for weights in ("sha256:a", "sha256:b", "recipe:m2"):
        scored(home.lineage, weights, 0.5, split="validation")
    assert list(gate.STEP.plan(home)) == []
    scored(home.lineage, "recipe:m1", 0.6, split="validation")
    plan = gate.STEP.plan(home)
    assert next(plan).model == "m1"
    judged(home, "m1")
    second = next(plan)
    assert second.model == "m2"
    assert second.inputs["others"] == ["recipe:m1", "sha256:b", "sha256:a"]


def test_one_whose_parent_has_another_name_by_now_keeps_its_turn(home):
    """Its bytes are asked under that name, so its answers are still to come."""
    born(home, "m1", 0.7)
    born(home, "m2", 0.8, parents=("demo/b", "demo/c"))
    home.lineage.add_model(finetune("renamed", weights="sha256:a"))
    home.lineage.move_model("demo/a", "refuse", reason="its bytes are renamed's", cause="world")
    for weights in ("sha256:b", "sha256:c", "recipe:m2"):
        scored(home.lineage, weights, 0.2, split="validation")
    scored(home.lineage, "recipe:m1", 0.9, split="validation")  # beats b, and waits for a
    assert list(gate.STEP.plan(home)) == []
    home.lineage.move_model("demo/renamed", "refuse", reason="gone", cause="world")
    assert [work.model for work in gate.STEP.plan(home)] == ["m2"]


def test_what_is_published_is_not_judged_again_under_other_settings(home):
    born(home, "m1", 0.7)
    born(home, "m2", 0.8, generation=2)
    for name in ("m1", "m2"):
        judged(home, name, evaluation="of last year")
    assert families(home) == {"m1": list(HARDEST_FIRST), "m2": ["m1", *HARDEST_FIRST]}
    home.lineage.add_publication(Publication("m1", "us/m1", "1" * 40, "u"))
    assert families(home) == {"m2": ["m1", *HARDEST_FIRST]}


def test_a_changed_rule_counts_for_later_verdicts_alone_and_a_start_says_so(home):
    """Else the same answers could be judged until some rule lets them pass."""
    born(home, "m1", 0.7)
    born(home, "m2", 0.8)
    told = []
    report = SimpleNamespace(event=lambda kind, message, **_: told.append((kind, message)))
    try_again(home.config, home.settings, home.lineage, report)
    judged(home, "m1", passed=False)
    rules = home.config.gate.model_copy(update={"min_gain": 0.2})
    home.config = home.config.model_copy(update={"gate": rules})
    for _ in range(2):
        try_again(home.config, home.settings, home.lineage, report)
    words = "gate.min_gain changed: it counts for merges that are judged from now on"
    assert told == [("warning", f"{words}; those given before stand")]
    assert list(families(home)) == ["m2"]
    for weights in ("sha256:a", "sha256:b", "recipe:m2"):
        scored(home.lineage, weights, 0.5, split="validation")
    assert next(gate.STEP.plan(home)).inputs["rules"]["min_gain"] == 0.2


def test_the_gate_before_leaves_discoveries_and_judgements_that_gave_nothing(home):
    for name, passed in (("m1", True), ("m2", False)):
        born(home, name, 0.7)
        judged(home, name, passed=passed, p=None)
    assert judgement.judged(home.lineage) == [Judged(0.0, True), Judged(1.0, False)]
    assert saffron(judgement.judged(home.lineage), 0.1) > 0


def test_a_merge_that_passes_twice_is_one_discovery(home):
    born(home, "m1", 0.7)
    for evaluation in ("of last year", "validation"):
        judged(home, "m1", evaluation=evaluation)
    assert judgement.judged(home.lineage) == [Judged(0.001, True), Judged(0.001, False)]
