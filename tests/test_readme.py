"""README and documentation are true: code runs, tables are complete, commands exist."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file

import command
from kinship_daemon import config, cycle, demo
from kinship_daemon.cli import app
from kinship_daemon.weights.methods.registry import method
from kinship_policies import registry
from kinship_policies.testing import conforms
from small_candidates import waiting
from small_lineage import finetune, open_lineage

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = "\n".join(page.read_text() for page in PAGES)


def blocks(language):
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.S | re.M)
    return [text for tongue, text in found if tongue == language]


def section(title):
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def run(*arguments):
    """What a command prints, where it succeeds."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def ours(group):
    """Names that this package registers."""
    return {p.name for p in entry_points(group=group) if p.value.startswith("kinship_")}


def test_the_two_set_up_commands_are_there_word_for_word():
    shell = "".join(blocks("sh"))
    assert "pip install . && kinship-daemon run --base demo --until-converged\n" in shell
    assert "pip install -e '.[test]' && pytest\n" in shell


def test_every_command_shown_exists():
    shown = set(re.findall(r"kinship-daemon ([a-z]+)", "".join(blocks("sh"))))
    assert shown
    for name in shown:
        assert CliRunner().invoke(app, [name, "--help"]).exit_code == 0, name


def test_the_policy_in_yaml_loads(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(next(block for block in blocks("yaml") if "use: topk-kinship" in block))
    loaded = config.load(policy=str(file)).policy
    assert registry.make(loaded.use, loaded.settings).k == 5


def test_the_policy_in_python_conforms(tmp_path, monkeypatch):
    (tmp_path / "farthest.py").write_text(
        next(b for b in blocks("python") if "class Farthest" in b)
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        conforms(registry.make("farthest:Farthest", {"generations": 4}))
    finally:
        sys.modules.pop("farthest", None)


def test_every_policy_is_in_the_list_of_policies():
    assert set(re.findall(r"^\| `([a-z0-9-]+)`", section("Policies"), re.M)) == ours(registry.GROUP)


def test_every_merge_method_is_in_the_table_under_its_kind():
    row = r"^\| (`.*`),? \| (`.*`),? \| (`.*`),? \|$"
    rows = re.findall(row, section("Merge by hand"), re.M)
    for cell, kind in enumerate(("span", "elementwise", "matrix")):
        named = {name for row in rows for name in re.findall(r"`(\w+)`", row[cell])}
        installed = {n for n in ours("kinship_daemon.methods") if method(n).kind == kind}
        assert named == installed


def test_the_kinships_shown_are_those_that_come_out(tmp_path, monkeypatch):
    shown = next(block for block in blocks("") if block.startswith("pcc of deltas from demo"))
    monkeypatch.chdir(tmp_path)
    (command,) = re.findall(
        r"^kinship-daemon (kinship .* --plot .*)$", section("Kinship by hand"), re.M
    )
    printed = run(*command.split(), "--device", "cpu")
    before, after = shown.split("...\n")
    assert before in printed
    assert after.split(", ")[:2] == printed.splitlines()[-1].split(", ")[:2]
    assert (tmp_path / "kinship.svg").exists()


def without_numbers(text):
    return re.sub(r"[\d,.]*\d|k?B\b|[MG]B\b", "#", text)


def test_the_sampled_kinships_shown_are_told_in_that_form():
    (asked,) = re.findall(r"^kinship-daemon (kinship .*)$", section("The Hub"), re.M)
    models = {"org/dense": "demo/add", "org/drift": "demo/max", "org/sparse": "demo/sort"}
    for shown, ours in {**models, "org/base": "demo", "0.002": "0.2"}.items():
        asked = asked.replace(shown, ours)
    printed = run(*asked.split()).splitlines()
    shown = next(b for b in blocks("") if b.startswith("pcc of deltas from org/base")).splitlines()
    assert printed[0] == shown[0].replace("org/base", "demo")
    for line in (1, 2, 3, 4, 5):
        wanted, found = (without_numbers(each[line]).split() for each in (shown, printed))
        assert [word for word in wanted if "org/" not in word] == [
            word for word in found if "demo/" not in word
        ]


def test_the_candidates_shown_are_told_in_that_form(tmp_path):
    with open_lineage(tmp_path / "lineage.db") as lineage:
        lineage.add_model(finetune("reverse", status="seen", weights=None))
        lineage.add_candidate(waiting("reverse", triaged=True, novelty=0.5, novelty_error=0.01))
    printed = run("candidates", "--home", tmp_path).splitlines()
    (block,) = [b for b in blocks("") if b.startswith("$ kinship-daemon candidates")]
    shown = block.splitlines()[1:]
    assert len(printed) == len(shown)
    assert printed[1].split() == shown[1].split()
    assert printed[-1] == shown[-1]
    for wanted, found in zip(shown[3:-1], printed[3:-1], strict=True):
        assert without_numbers(wanted).split() == without_numbers(found).split()


def test_the_hub_of_the_tests_serves_by_hand_as_shown(tmp_path):
    (shell,) = [b for b in blocks("sh") if "hub_server" in b]
    lines = shell.splitlines()
    serve = re.search(r"python -m (hub_server) (\S+) --port \d+", lines[0])
    (doctor,) = [line.split()[1:] for line in lines if line.startswith("kinship-daemon doctor")]
    (show,) = re.findall(r"^kinship-daemon (config .*) > wire.yaml$", shell, re.M)
    (tmp_path / "wire.yaml").write_text(run(*show.split()))
    with subprocess.Popen(
        [sys.executable, "-m", serve[1], serve[2]],
        cwd=ROOT / "tests",
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            said = dict(word.split("=") for word in server.stdout.readline().split())
            assert f"HF_TOKEN={said['HF_TOKEN']}" in shell
            result = subprocess.run(
                [sys.executable, "-m", "kinship_daemon"]
                + [said["HF_ENDPOINT"] if word == "$HF_ENDPOINT" else word for word in doctor],
                env={**command.environment(tmp_path), **said},
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=False,
            )
        finally:
            server.terminate()
    assert result.returncode == 0, result.stdout
    assert "ok  publish   under tester/ as tester" in result.stdout


def test_the_merge_shown_can_be_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "soup.yml").write_text(next(b for b in blocks("yaml") if "soup.yml" in b))
    (command,) = re.findall(r"^kinship-daemon (merge soup.yml .*)$", README, re.M)
    assert "slerp of demo/add, demo/subtract" in run(*command.split(), "--device", "cpu")
    assert (tmp_path / "merged" / "model.safetensors").exists()


@pytest.fixture
def kept_length(tmp_path, monkeypatch):
    """The README's merge method as pip leaves it behind, registered as the README says."""
    code = next(block for block in blocks("python") if "def kept_length" in block)
    (tmp_path / "kept_length.py").write_text(code)
    (entry,) = re.findall(r'^(kept_length) = "(.*)"$', "".join(blocks("toml")), re.M)
    info = tmp_path / "kept_length-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kept_length\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(f"[kinship_daemon.methods]\n{' = '.join(entry)}\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    method.cache_clear()
    sys.modules.pop("kept_length", None)


@pytest.mark.usefixtures("kept_length")
def test_the_merge_method_in_python_does_what_it_says(tmp_path):
    parents = ["demo/add", "demo/sort"]
    recipe = {
        "merge_method": "kept_length",
        "base_model": "demo/base",
        "models": [{"model": name} for name in parents],
        "dtype": "float32",
    }
    (tmp_path / "own.yml").write_text(yaml.safe_dump(recipe))
    run("merge", tmp_path / "own.yml", tmp_path / "own", "--hub", "demo", "--device", "cpu")
    base = load_file(demo.HUB / "demo" / "base" / "model.safetensors")
    a, b = (load_file(demo.HUB / name / "model.safetensors") for name in parents)
    child = load_file(tmp_path / "own" / "model.safetensors")
    for name, origin in base.items():
        start = origin.double()
        first, second, made = (model[name].double() - start for model in (a, b, child))
        expected = (first.norm() + second.norm()) / 2 / (first + second).norm() * (first + second)
        assert (made - expected).norm() < 1e-4 * expected.norm(), name


def test_the_comparison_shown_has_the_columns_that_simulate_prints():
    shown = next(block for block in blocks("") if block.startswith("policy  "))
    command, *_ = re.findall(r"^kinship-daemon (simulate .*)$", section("Try policies out"), re.M)
    printed = run(*command.replace("--seeds 50", "--seeds 2").split()).splitlines()
    assert shown.splitlines()[0] in printed
    for line in shown.splitlines()[1:3]:
        assert any(row.split()[:1] == line.split()[:1] for row in printed)


def test_the_config_reference_names_every_key():
    reference = README.split("<!-- config-reference -->")[1].split("<!-- /config-reference -->")[0]
    assert reference.strip() == config.reference().strip()


def test_every_room_in_the_layout_exists():
    layout = next(block for block in blocks("") if "cycle.py" in block)
    folder = root = ROOT / "daemon" / "kinship_daemon"
    for line in layout.splitlines():
        if scratch := re.match(r"[a-z_]+/[a-z_]*", line):
            root = ROOT / scratch[0]
            assert root.exists(), line
        elif scratch := re.match(r"  ([a-z_]+\.py|[a-z]+/)", line):
            assert (root / scratch[1]).exists(), line
            folder = root / scratch[1]
        for name in re.findall(r"[a-z_]+\.py", line):
            assert [*root.rglob(name)], name
        if modules := re.match(r" {20,}([a-z_, ]+):", line):
            for name in modules[1].split(", "):
                assert (folder / f"{name}.py").exists(), name


@pytest.mark.parametrize("file", ["deploy/config.yaml"])
def test_the_example_config_uses_only_known_keys(file):
    assert config.load(ROOT / file)
    assert yaml.safe_load((ROOT / file).read_text())


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", text):
        path, anchor = target
        place = page if not path else (page.parent / path).resolve()
        assert place.exists(), f"{page.name}: {path}"
        if anchor:
            titles = re.findall(r"^#+ (.*)$", place.read_text(), re.M)
            assert anchor in {re.sub(r"[^a-z0-9]+", "-", t.lower()) for t in titles}, anchor


def test_every_page_can_be_found_from_the_readme():
    linked = set(re.findall(r"\]\(docs/([a-z-]+\.md)", (ROOT / "README.md").read_text()))
    assert linked == {page.name for page in PAGES[1:]}


def told_events():
    """Kinds of events that the daemon's code reports."""
    found = set()
    for path in (ROOT / "daemon" / "kinship_daemon").rglob("*.py"):
        text = path.read_text()
        found |= set(re.findall(r"(?:\.event|\bsay|\._say)\(\s*\"([a-z]+)\"", text))
        for some in re.findall(r"kind(?:, words)? = \(?\"([a-z]+)\".* else \(?\"([a-z]+)\"", text):
            found |= set(some)
    return found


def test_every_event_is_documented_and_no_other():
    rows = set(re.findall(r"^\| `([a-z]+)`", section("Events"), re.M))
    assert rows == told_events()


def test_every_exit_code_is_documented():
    rows = set(re.findall(r"^\| (\d+) \|", section("Exit codes"), re.M))
    assert rows == {"0", "2", "3", "4", "130", "143"}


def test_every_command_is_named_somewhere():
    named = set(re.findall(r"kinship-daemon ([a-z]+)|`([a-z]+)(?: [^`]*)?`", README))
    words = {word for pair in named for word in pair}
    assert set(app.list_commands(None)) <= words


def test_the_stations_of_the_flow_are_the_steps_in_their_files():
    flow = (ROOT / "docs" / "flow.md").read_text()
    stations = re.findall(r"^\| \d+ \| `([a-z]+)\.py`", flow, re.M)
    beside = re.findall(r"^Beside the way is `([a-z]+)\.py`", flow, re.M)
    assert len(stations) <= 12
    assert {*stations, *beside} == {step.kind for step in cycle.STEPS}
    for name in [*stations, *beside]:
        assert (ROOT / "daemon" / "kinship_daemon" / "steps" / f"{name}.py").is_file()


def test_every_extension_point_is_documented():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    page = (ROOT / "docs" / "extending.md").read_text()
    for group in project["entry-points"]:
        assert f"`{group}`" in page
