"""Every JSON output has the fields that docs/json.md lists, and no others; options are known."""

import json
import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

import warm_workers
from documented import leaves, tables
from kinship_daemon import config, demo
from kinship_daemon.cli import app
from kinship_daemon.home import Home
from kinship_storage.records import Partial
from small_candidates import MERGED, notice, waiting
from small_lineage import fill, finetune, merge, open_lineage

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "json.md").read_text()
TEXT = "\n".join(page.read_text() for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
COMPARED = ["--policy", "topk-greedy", "--policy", "topk-kinship"]


def documented(title):
    """Fields listed under a command's heading, in the page's own notation."""
    (section,) = re.findall(
        rf"^## kinship-daemon {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S
    )
    return section


def compare(title, value, known=None):
    known = set(documented_fields(title) if known is None else known)
    assert leaves(value, known) == known


def documented_fields(title):
    return [field for fields in tables(documented(title)).values() for field in fields]


def printed(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """A home whose lists all have something in them."""
    home = tmp_path_factory.mktemp("family")
    with open_lineage(home / "lineage.db") as lineage:
        fill(lineage)
        notice(lineage)
        lineage.add_model(finetune("odd", status="seen", weights=None))
        lineage.move_model("demo/odd", "quarantine", reason="no header", cause="world")
        lineage.add_model(merge("m2", ("demo/add", "m1"), generation=2, status="admitted"))
        lineage.update_model("m2", not_published="licence unknown")
        lineage.put_partial(Partial("recipe:m2", "fp1", 1, 3, 0.1, 0.5, 0.02))
        for name, end in (("a", lineage.wait), ("b", lineage.fail)):
            key = lineage.submit("score", {"model": name}, "m1").key
            lineage.start(key)
            end(*((key, "no memory", None) if name == "a" else (key, "settings", "no such task")))
    return home


@pytest.fixture(scope="module")
def demo_home(tmp_path_factory):
    """The demo on few documents, so that it takes seconds; ten merges all the same."""
    user = tmp_path_factory.mktemp("user")
    few = ["--set", "evaluate.limit=40", "--set", "publish.namespace=null"]
    done = warm_workers.run(
        ["run", "--base", "demo", "--until-converged", "--home", user / "demo", *few], user
    )
    assert done.code == 0, done.err
    return user / "demo"


def test_status(family):
    home = Home(family)
    step = {"label": "selection of m2", "unit": "documents", "done": 300, "total": 1200}
    home.activity.parent.mkdir(exist_ok=True)
    home.activity.write_text(json.dumps({"step": {**step, "rate": 30.0, "seconds_left": 90.0}}))
    with open_lineage(home.lineage) as lineage:
        key = lineage.start(lineage.submit("score", {"model": "c"}, "m2").key).key
    with home.hold():
        found = printed("status", "--home", family, "--format", "json")
        told = CliRunner().invoke(app, ["status", "--home", str(family)]).stdout
        assert printed("status", "--home", family, "--json") == found
    compare("status --format json", found)
    assert "at work     score of m2, since 2026-01-31T08:15:00Z\n" in told
    assert (
        "at work     selection of m2: 25 % of 1,200 documents, 30 documents/s, 0:01:30 left\n"
        in told
    )
    with open_lineage(home.lineage) as lineage:
        lineage.interrupt(key)
    left = printed("status", "--home", family, "--format", "json")
    assert (left["step"], left["running"], left["daemon"]) == (
        *(None, []),
        {"running": False, "pid": None},
    )


def test_candidates(family):
    with open_lineage(family / "lineage.db") as lineage:
        lineage.add_candidate(waiting("odd"))
        for candidate in lineage.candidates():
            lineage.update_candidate(candidate.model, ancestry=MERGED)
    facts = printed("candidates", "--home", family, "--format", "json")
    listed = tables(documented("candidates --format json"))
    rows = [f"[].{name}" for name in listed["field of a row"]]
    for name in ("refused", "quarantined", "admitted"):
        compare("", facts.pop(name), [*rows, "[].reason", "[].cause", "[].opens_again"])
    ordered = [f"waiting[].{name}" for name in listed["field of a row"]]
    compare("", facts, [*listed["field"], *ordered])


def test_lineage(demo_home):
    compare("lineage --format json", printed("lineage", "--home", demo_home, "--format", "json"))


def test_analyze(demo_home, tmp_path):
    file = tmp_path / "found.json"
    result = CliRunner().invoke(app, ["analyze", "--home", str(demo_home), "--json", str(file)])
    assert result.exit_code == 0, result.output
    compare("analyze --format json", json.loads(file.read_text()))
    asked = ["analyze", "--home", str(demo_home), "--format", "json"]
    assert json.loads(file.read_text()) == printed(*asked)


def test_the_commands_to_look_around_work_on_the_demo(demo_home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # `export` writes a folder
    readme = (ROOT / "README.md").read_text()
    (shown,) = [b for b in re.findall(r"```sh\n(.*?)```", readme, re.S) if "explain MODEL" in b]
    for line in shown.splitlines():
        program, *asked = line.split("#")[0].split()
        assert program == "kinship-daemon"
        if asked[0] in {"dashboard", "forget"}:
            continue  # it serves until it is stopped; it takes what others look at: own tests
        asked = ["model-1-1" if word == "MODEL" else word for word in asked]
        result = CliRunner().invoke(app, [*asked, "--home", str(demo_home)])
        assert result.exit_code == 0, f"{line}: {result.output}"
        assert result.output.strip(), line


def test_replay(demo_home):
    compare("replay --format json", printed("replay", "--home", demo_home, "--format", "json"))


def test_analyze_with_probes_knows_functional_kinship(demo_home, tmp_path):
    probes = tmp_path / "probes"
    probes.write_text("1+2=\n3+4=\nmax 3 7 =\n")
    asked = ("--home", demo_home, "--probes", probes, "--format", "json")
    found = printed("analyze", *asked)
    told = {merge["name"]: merge["kinship"]["functional"] for merge in found["merges"]}
    assert told
    assert all(-1 <= kin <= 1 for kin in told.values())
    models = printed("lineage", "--home", demo_home, "--format", "json")["models"]
    name = next(iter(told))
    (pair,) = [model["parents"] for model in models if model["id"] == name]
    by_hand = printed("kinship", *pair, *asked, "--metric", "functional")
    assert told[name] == pytest.approx(by_hand["matrix"][0][1], abs=1e-6)


def test_kinship(tmp_path):
    asked = ["kinship", "demo/add", "demo/max", "--base", "demo", "--format", "json"]
    listed = tables(documented("kinship --format json"))
    parts = [name for name in listed["field"] if "[]" in name]
    plain = [name for name in listed["field"] if "[]" not in name]
    compare("", printed(*asked), plain)
    for by in ("kind", "layer", "tensor"):
        own = [name for name in parts if name.startswith(f"{by}s[]")]
        compare("", printed(*asked, "--by", by), [*plain, *own])
    sampled = listed["field with --sample"]
    told = [name for name in sampled if not name.startswith("ancestry")]
    compare("", printed(*asked, "--sample", "0.2"), [*plain, *told])
    probes = tmp_path / "probes"
    probes.write_text("1+2=\n3+4=\n")
    functional = printed(*asked, "--metric", "functional", "--probes", str(probes))
    kept = [name for name in plain if name not in {"parameters", "bytes_read"}]
    compare("", functional, [*kept, *listed["field with --metric functional"]])
    # Its double: someone has to have a part in someone.
    copies = ["kinship", "demo/add", str(demo.HUB / "demo" / "add"), *asked[3:], "--sample", "0.2"]
    compare("", printed(*copies, "--ancestry"), [*plain, *sampled])


def test_evaluate_scores_a_homes_merge_as_the_daemon_did(demo_home, tmp_path):
    asked = ["--home", demo_home, "--set", "evaluate.limit=40", "--format", "json"]
    done = warm_workers.run(["evaluate", "model-1-1", "--base", "demo", *asked], tmp_path)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    compare("evaluate --format json", found)
    lineage = printed("lineage", "model-1-1", "--home", demo_home, "--format", "json")
    (scores,) = [m["selection"] for m in lineage["models"] if m["id"] == "model-1-1"]
    assert {t["task"]: t["score"] for t in found["tasks"]} == {
        task: score["score"] for task, score in scores.items()
    }


def test_tune_knows_its_parents_scores_and_its_recipe_can_be_merged(demo_home, tmp_path):
    asked = ["demo/add", "demo/sort", "--base", "demo", "--home", demo_home, "--budget", "1"]
    few = ["--set", "evaluate.limit=40", "--method", "task_arithmetic", "--format", "json"]
    done = warm_workers.run(["tune", *asked, *few], tmp_path)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    compare("", found, tables(documented("tune --format json"))["field"])
    (trial,) = found["trials"]
    assert trial["parameters"] == {"weight": [0.5, 0.5], "lambda": 1.0}
    assert trial["score"] == pytest.approx(found["best"]["score"])
    lineage = printed("lineage", "--home", demo_home, "--format", "json")
    founders = {m["id"]: m["selection"] for m in lineage["models"]}
    for parent in found["parents"]:
        tasks = founders[parent["model"]].values()
        assert parent["score"] == pytest.approx(sum(t["score"] for t in tasks) / len(tasks))
    assert len(list(tmp_path.rglob("tune/*.json"))) == 1, (
        "the home's own scores are not asked again"
    )
    (tmp_path / "best.yml").write_text(found["recipe"])
    result = CliRunner().invoke(
        app, ["merge", str(tmp_path / "best.yml"), str(tmp_path / "out"), "--home", str(demo_home)]
    )
    assert result.exit_code == 0, result.output


def test_a_sweep_goes_from_one_model_to_the_other(demo_home, tmp_path):
    asked = ["demo/add", "demo/sort", "--base", "demo", "--home", demo_home, "--sweep", "2"]
    more = ["--set", "evaluate.limit=40", "--plot", tmp_path / "line.svg", "--format", "json"]
    done = warm_workers.run(["tune", *asked, *more], tmp_path)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    compare("", found, tables(documented("tune --format json"))["field with --sweep"])
    assert [point["share"] for point in found["points"]] == [0, 0.5, 1]
    assert [found["points"][i]["second"] for i in (0, 2)] == pytest.approx([0, 1])
    assert (tmp_path / "line.svg").read_text().count("<svg") == 1
    scored = printed("lineage", "--home", demo_home, "--format", "json")["models"]
    tasks = {m["id"]: m["selection"] for m in scored}["demo/add"]
    told = found["points"][0]["tasks"]
    assert told == pytest.approx({name: each["score"] for name, each in tasks.items()})


@pytest.mark.parametrize("name", ["explain", "recipe"])
def test_what_is_told_of_one_model(demo_home, name):
    asked = [name, "model-1-1", "--home", demo_home, "--format", "json"]
    compare(f"{name} --format json", printed(*asked))


def test_verify(demo_home):
    compare("verify --format json", printed("verify", "--home", demo_home, "--format", "json"))


@pytest.mark.parametrize("name", ["bases", "methods", "policies"])
def test_what_can_be_chosen(name):
    compare(f"{name} --format json", printed(name, "--format", "json"))


def test_a_preset():
    asked = printed("policies", "show", "topk-kinship", "--format", "json")
    compare("policies show --format json", asked)


def test_doctor(tmp_path):
    asked = ["--base", "demo", "--home", tmp_path, "--format", "json"]
    compare("doctor --format json", printed("doctor", *asked))


def test_exclude(demo_home):
    compare("exclude --format json", printed("exclude", "--home", demo_home, "--format", "json"))


def test_what_acts_says_what_it_did(family, tmp_path):
    """On a copy of its own: it is changed."""
    home, there = tmp_path / "home", ("--home", tmp_path / "home", "--format", "json")
    shutil.copytree(family, home)
    ended = printed("stop", *there)
    compare("stop --format json", ended)
    assert ended["pid"] is None
    kept = printed("backup", tmp_path / "kept.db", *there)
    compare("backup --format json", kept)
    opened = printed("retry", "demo/odd", *there)
    compare("retry --format json", opened)
    assert opened == {"models": ["demo/odd"], "jobs": []}
    restored = printed("restore", kept["file"], *there)
    compare("restore --format json", restored)
    assert Path(restored["kept"]).is_file()


def test_notify_test(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("notify: {use: {webhook: {url: 'http://127.0.0.1:9/'}}}\n")
    asked = ["notify", "test", "--config", str(file), "--format", "json"]
    result = CliRunner().invoke(app, asked)
    found = json.loads(result.stdout)
    compare("notify test --format json", found)
    assert found[0]["name"] == "webhook"
    assert found[0]["fault"]
    assert result.exit_code != 0


def test_config_show_is_the_configuration():
    shown = printed("config", "show", "--base", "demo", "--format", "json")
    assert shown == config.load(base="demo").model_dump(mode="json")


def test_every_command_that_reads_a_home_finds_it_by_its_folder_base_or_config(demo_home, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(f"base: demo\nhome: {demo_home}\n")
    commands = {name: app.get_command(None, name).params for name in app.list_commands(None)}
    reads = {
        name: {option for each in params for option in each.opts}
        for name, params in commands.items()
        if any(getattr(each, "help", None) == "The home's folder." for each in params)
    }
    assert {"status", "explain", "retry", "export", "verify", "replay"} <= set(reads)
    assert {"merge", "backup", "restore"} <= set(reads)
    reads["kinship"] = {option for each in commands["kinship"] for option in each.opts}
    for name, options in reads.items():
        assert {"--home", "--base", "--config"} <= options, name
    assert printed("status", "--config", file, "--format", "json")["home"] == str(demo_home)
    pair = ["demo/add", "model-1-1", "--format", "json"]
    by_config = printed("kinship", *pair, "--config", file)
    assert by_config["matrix"] == printed("kinship", *pair, "--home", demo_home)["matrix"]


def test_simulate():
    few = ["--landscape", "synthetic", "--seeds", "2", "--budget", "10", *COMPARED]
    compare("simulate --format json", printed("simulate", *few, "--format", "json"))


def test_every_command_that_writes_json_has_a_section():
    written = set()
    for name in app.list_commands(None):
        chosen = app.get_command(None, name)
        for part in (chosen, *getattr(chosen, "commands", {}).values()):
            for option in part.params:
                if "--json" in option.opts or "json" in getattr(option.type, "choices", ()):
                    written.add(name)
    assert written - {"config"} == set(re.findall(r"^## kinship-daemon ([a-z]+) ", PAGE, re.M))


def test_every_option_shown_is_one_of_its_command():
    """In every shell block of every page."""
    asked = 0
    shell = "".join(re.findall(r"^```sh\n(.*?)^```$", TEXT, re.S | re.M)).replace("\\\n", " ")
    for name, rest in re.findall(r"kinship-daemon ([a-z]+)([^\n#;&|]*)", shell):
        chosen = app.get_command(None, name)
        parts = [chosen, *getattr(chosen, "commands", {}).values()]
        known = {option for part in parts for each in part.params for option in each.opts}
        for option in re.findall(r"(?<=\s)--[a-z-]+", rest):
            asked += 1
            assert option in known, f"{name} {option}"
    assert asked > 10
