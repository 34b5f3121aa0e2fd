"""The main job on the embedded demo, as a user runs it: one real run, looked at from all sides."""

import json
import shutil
import sqlite3
from itertools import combinations
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, AutoTokenizer

import command
import warm_workers
from kinship_daemon import demo
from kinship_daemon.cli import app
from kinship_daemon.evaluate.discovery import Judged, saffron
from kinship_daemon.evaluate.split import documents
from kinship_storage.lineage import Lineage

pytestmark = pytest.mark.slow

RUN = ["run", "--base", "demo", "--until-converged", "--log-json"]


def history(home: Path) -> dict[str, list[tuple]]:
    """All that a lineage claims, without the times and the attempts."""
    database = sqlite3.connect(f"file:{home / 'lineage.db'}?mode=ro", uri=True)
    named = "JOIN models ON models.number = {table}.model"
    weighed = "JOIN weights ON weights.number = {table}.weights"
    questions = {
        "models": "id, kind, status, generation, repo, revision, identity, parameters, license,"
        " reason, cause, setting, faults, role, why, recipe, gated, not_published"
        f" FROM models LEFT {weighed}",
        "parents": "child.id, position, parent.id FROM parents"
        " JOIN models AS child ON child.number = parents.model"
        " JOIN models AS parent ON parent.number = parents.parent",
        "files": f"id, path, files.size, sha256 FROM files {named}",
        "kinships": "metric, x.identity, y.identity, value FROM kinships"
        " JOIN weights AS x ON x.number = a JOIN weights AS y ON y.number = b",
        "scores": "identity, split, task, settings, metric, task_version, score, stderr, n"
        f" FROM scores {weighed}",
        "partials": "identity, settings, rung, best, share, mean, partials.stderr"
        f" FROM partials {weighed}",
        "documents": "identity, split, task, document, value FROM documents"
        " JOIN scores ON scores.number = documents.score"
        " JOIN weights ON weights.number = scores.weights",
        "generations": "number, generation, policy, settings, seed, decision, stop, stop_kind"
        " FROM generations",
        "facts": "* FROM facts",
        "gates": "id, evaluation, passed, gain, low, high, n, gates.reason, settings, p, alpha,"
        f" test FROM gates {named}",
        "publications": f"id, p.repo, p.revision, files FROM publications AS p {named}",
    }
    answers = {
        name: database.execute(f"SELECT {text.format(table='p' if ' AS p ' in text else name)}")
        for name, text in questions.items()
    }
    return {name: sorted(map(repr, rows)) for name, rows in answers.items()}


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("main-job")


@pytest.fixture(scope="session")
def home(place):
    return place / "home"


@pytest.fixture(scope="session")
def first(place, home):
    result = command.run([*RUN, "--home", home], place, timeout=500)
    assert result.code == 0, result.err
    return result


@pytest.fixture(scope="session")
def lineage(first, home):
    with Lineage.open(home / "lineage.db", now=None, readonly=True) as opened:
        yield opened


@pytest.fixture(scope="session")
def export(first, place, home):
    result = command.run(["lineage", "--home", home, "--format", "json"], place)
    assert result.code == 0, result.err
    return json.loads(result.out)


@pytest.fixture(scope="session")
def publication(lineage):
    return lineage.publications()[-1]


@pytest.fixture(scope="session")
def repo(publication, home):
    return home / "hub" / publication.repo


def test_it_ends_converged_and_says_where_to_look_next(first, home):
    kinds = [event["event"] for event in first.events]
    assert "converged" in kinds
    assert any(e["event"] == "next" and str(home) in e["message"] for e in first.events)
    assert "family tree" in [e["message"] for e in first.events if e["event"] == "summary"]


def test_something_provably_better_is_published(lineage):
    assert lineage.publications()
    for publication in lineage.publications():
        gate = lineage.gates_of(publication.model)[-1]
        assert gate.passed
        assert gate.low > 0
        assert gate.p <= gate.alpha <= 0.025
        assert gate.n >= 1000


def test_nothing_is_published_that_did_not_pass(lineage, home):
    passed = {gate.model for gate in lineage.gates() if gate.passed}
    assert {publication.model for publication in lineage.publications()} == passed
    repos = {f"{p.parent.name}/{p.name}" for p in (home / "hub" / demo.NAMESPACE).iterdir()}
    assert repos == {publication.repo for publication in lineage.publications()}


def test_the_gate_compares_with_parents_and_with_what_was_published_before(lineage):
    settings = lineage.get("settings")["validation"]

    def mean(name, count):
        """Over the first documents of every task, as many as were asked."""
        rows = lineage.scores(lineage.require(name).weights, "validation", settings)
        found = []
        for row in rows:
            order = documents(
                row.task, 400, "validation", shared=False, limit=count // len(rows), seed=0
            )
            found.append(sum(dict(row.samples)[document] for document in order) / len(order))
        return sum(found) / len(found)

    published = set()
    for number, gate in enumerate(lineage.judgements(), 1):
        assert gate.test == number
        assert gate.against in {*lineage.require(gate.model).parents, *published}
        assert gate.gain == pytest.approx(
            mean(gate.model, gate.n) - mean(gate.against, gate.n), abs=1e-9
        )
        published |= {gate.model} if gate.passed else set()


def test_the_levels_of_the_gate_follow_from_the_judgements_before(lineage):
    verdicts, past = lineage.judgements(), []
    assert [(g.model) for g in verdicts] == [g.model for g in lineage.gates()]
    for gate in verdicts:
        assert gate.alpha == saffron(past, 0.1)
        assert gate.passed == (gate.p <= gate.alpha)
        past.append(Judged(gate.p, gate.passed))


def test_selection_and_validation_share_no_document():
    def documents(name):
        return set((demo.TASKS / f"{name}.jsonl").read_text().splitlines())

    selection = set().union(*map(documents, demo.SELECTION))
    validation = set().union(*map(documents, demo.VALIDATION))
    assert selection
    assert not selection & validation


def test_the_export_keeps_its_contract(export):
    assert set(export) == {"base", "best", "models", "generations", "candidates"}
    assert export["base"] == demo.BASE
    models = {model["id"]: model for model in export["models"]}
    for model in models.values():
        assert set(model) >= {
            *("id", "name", "kind", "generation", "parents", "recipe"),
            *("selection", "validation", "published", "status"),
        }
        assert model["kind"] in {"base", "finetune", "merge"}
        assert all(parent in models for parent in model["parents"])
    merges = [m for m in models.values() if m["kind"] == "merge"]
    assert all(set(s) == {"score", "stderr", "n"} for m in merges for s in m["selection"].values())
    assert any(m["published"] for m in merges)
    for generation in export["generations"]:
        assert set(generation) >= {"generation", "proposals", "top", "top_mean_kinship", "stop"}
    assert export["generations"][-1]["stop"]


def test_the_kinship_of_a_merge_was_known_before_it_was_made(lineage):
    known = lineage.kinships("pcc")
    for merge in lineage.models(kind="merge"):
        assert known[min(merge.parents), max(merge.parents)] is not None
    best = lineage.last_generation().decision["top"]
    assert all(known[min(pair), max(pair)] > 0.4 for pair in combinations(best, 2))


def test_the_published_repo_loads_and_scores_what_its_card_says(repo, publication, place, lineage):
    model = AutoModelForCausalLM.from_pretrained(repo)
    assert model.dtype == torch.bfloat16
    assert AutoTokenizer.from_pretrained(repo)("add")["input_ids"]
    asked = lineage.gates_of(publication.model)[-1].n // len(demo.VALIDATION)
    result = warm_workers.run(
        [
            *("evaluate", repo, "--base", "demo", "--split", "validation", "--format", "json"),
            *("--set", f"evaluate.limit={asked}"),
        ],
        place,
    )
    assert result.code == 0, result.err
    measured = {row["task"]: row["score"] for row in json.loads(result.out)["tasks"]}
    card = yaml.safe_load((repo / "README.md").read_text().split("---")[1])
    declared = {
        entry["dataset"]["name"]: entry["metrics"][0]["value"]
        for entry in card["model-index"][0]["results"]
        if entry["dataset"]["split"] == "validation"
    }
    assert declared == pytest.approx(measured, abs=1e-6)
    assert set(declared) == set(demo.VALIDATION)


def test_the_card_tells_descent_licence_and_recipe(repo, publication, lineage):
    text = (repo / "README.md").read_text()
    card = yaml.safe_load(text.split("---")[1])
    assert card["license"] == "apache-2.0"
    assert "merge" in card["tags"]
    assert card["base_model"]
    assert "```mermaid" in text
    gate = lineage.gates_of(publication.model)[-1]
    stands_at = lineage.publication(gate.against)
    other = stands_at.repo if stands_at else gate.against
    assert gate.reason.replace(gate.against, other) in text
    assert "of all that it ever publishes at most 10 %" in text


def test_the_published_recipe_makes_the_published_weights(repo, place, home, tmp_path):
    out = tmp_path / "again"
    result = warm_workers.run(
        ["merge", repo / "mergekit_config.yml", out, "--hub", home / "hub"], place
    )
    assert result.code == 0, result.err
    made = AutoModelForCausalLM.from_pretrained(out).state_dict()
    published = AutoModelForCausalLM.from_pretrained(repo).state_dict()
    assert made.keys() == published.keys()
    # The YAML holds decimal coefficients: an element may fall to the next bf16 now and then.
    differing = sum(int((made[k] != published[k]).sum()) for k in made)
    assert differing <= 1e-3 * sum(t.numel() for t in made.values())


def test_the_recipe_command_prints_what_is_published(lineage, home):
    for made in lineage.publications():
        repo = home / "hub" / made.repo
        for file, option in (("mergekit_config.yml", []), ("recipe.yml", ["--made"])):
            asked = ["recipe", made.repo, *option, "--home", str(home)]
            result = CliRunner().invoke(app, asked)
            assert (result.exit_code, result.output) == (0, (repo / file).read_text())
    grandchild = next(m.id for m in lineage.models("merge") if m.generation == 2)
    printed = CliRunner().invoke(app, ["recipe", grandchild, "--home", str(home)]).output
    named = {each["model"] for each in yaml.safe_load(printed)["models"]}
    assert named <= {model.id for model in lineage.models("finetune")}


def test_explain_tells_why_on_which_facts_and_what_became_of_it(publication, place, home, lineage):
    result = command.run(["explain", publication.model, "--home", home], place)
    assert result.code == 0, result.err
    model, gate = lineage.require(publication.model), lineage.gates_of(publication.model)[-1]
    for fact in (*model.parents, model.why, gate.reason, publication.repo, "kinship of"):
        assert fact in result.out


def test_status_counts_and_names_the_best(first, place, home):
    result = command.run(["status", "--home", home], place)
    assert result.code == 0, result.err
    assert "converged" in result.out
    assert "not running" in result.out


@pytest.mark.parametrize("form", ["tree", "mermaid", "dot"])
def test_the_family_is_drawn(form, publication, place, home):
    result = command.run(["lineage", publication.model, "--home", home, "--format", form], place)
    assert result.code == 0, result.err
    assert publication.model in result.out


def test_what_the_lineage_claims_is_verified_and_a_changed_file_is_found(
    first, place, home, repo, tmp_path
):
    good = warm_workers.run(["verify", "--home", home], place)
    assert (good.code, good.err) == (0, "")
    shutil.copytree(home, copy := tmp_path / "home")
    database = sqlite3.connect(copy / "lineage.db")
    with database:
        database.execute("UPDATE scores SET score = score + 0.01 WHERE split = 'validation'")
    database.close()
    bad = warm_workers.run(["verify", "--home", copy], place)
    assert bad.code == 3
    assert "its samples give" in bad.err


def test_a_second_run_changes_nothing(first, place, home):
    before = history(home)
    result = warm_workers.run([*RUN, "--home", home], place)
    assert result.code == 0, result.err
    assert history(home) == before
    assert not {"publish", "merge", "score"} & {event["event"] for event in result.events}


def test_a_dry_run_writes_nothing_to_the_hub_and_a_real_one_then_publishes(place, lineage):
    home = place / "dry"
    small = ["--set", "evaluate.limit=60", "--set", "gate.min_gain=-1", "--home", home]
    dry = warm_workers.run(
        ["run", "--base", "demo", "--once", "--dry-run", "--log-json", *small], place
    )
    assert dry.code == 0, dry.err
    assert any("dry run" in event["message"] for event in dry.events)
    assert not (home / "hub" / demo.NAMESPACE).exists()
    real = warm_workers.run([*RUN, *small], place)
    assert real.code == 0, real.err
    assert any(event["event"] == "publish" for event in real.events)


def test_a_released_finetune_takes_part_in_a_new_generation(first, place, home, tmp_path):
    # A copy: the other tests look at the home as the first run left it.
    shutil.copytree(home, copy := tmp_path / "home")
    decisions = json.loads(_lineage(copy, place))["generations"]
    generations = max(each["generation"] or 0 for each in decisions)
    running = command.start(["run", "--base", "demo", "--log-json", "--home", copy], place)
    try:
        # It has looked at the hub, found nothing new and waits.
        _await(running, "idling", lambda e: e["event"] == "idle")
        released = command.run(["demo", "release", "--home", copy], place)
        assert released.code == 0, released.err
        notice = _await(running, "notice", lambda e: e["event"] == "notice")
        assert notice["model"] in released.out
        _await(running, "a merge", lambda e: e["event"] == "merge")
        _await(running, "converged", lambda e: e["event"] == "converged")
    finally:
        running.terminate()
        running.communicate(timeout=60)
    assert running.returncode == 0
    export = json.loads(_lineage(copy, place))
    newcomer = next(m for m in export["models"] if m["id"] in released.out)
    children = [m for m in export["models"] if newcomer["id"] in m["parents"]]
    assert children
    assert min(m["generation"] for m in children) > generations


def _lineage(home, place):
    return command.run(["lineage", "--home", home, "--format", "json"], place).out


def _await(process, what, wanted):
    for line in process.stdout:
        event = json.loads(line)
        if wanted(event):
            return event
    raise AssertionError(f"the daemon ended before {what}: {process.stderr.read()}")
