"""The configuration: every mistake is one line that names what would work."""

from pathlib import Path

import pytest
import yaml

from kinship_daemon import config, demo
from kinship_daemon.errors import UsageError


def write(folder: Path, text: str) -> Path:
    file = folder / "config.yaml"
    file.write_text(text)
    return file


def refused(**arguments: object) -> str:
    with pytest.raises(UsageError) as error:
        config.load(**arguments)
    message = str(error.value)
    assert "\n" not in message
    assert error.value.exit_code == 2
    return message


def test_no_file_is_needed():
    assert config.load().base == "mistral-7b"
    assert config.load().publish.namespace is None


def test_the_default_tasks_are_the_papers():
    tasks = [task.task for task in config.load().evaluate.selection]
    assert tasks == ["winogrande", "gsm8k", "truthfulqa_mc2"]


def test_slerps_t_is_no_other_methods():
    assert config.load().merge.parameters == {"t": 0.5}
    assert config.load(overrides=["merge.method=model_stock"]).merge.parameters == {}
    both = ["merge.method=wudi", "merge.parameters={ridge: 0.1}"]
    assert config.load(overrides=both).merge.parameters == {"ridge": 0.1}


def test_set_beats_flag_beats_file(tmp_path):
    file = write(tmp_path, "base: qwen3-8b\npolicy: {k: 4}\nseed: 3\n")
    loaded = config.load(file, base="gemma-2-9b", overrides=["policy.k=5"])
    assert (loaded.base, loaded.policy.settings, loaded.seed) == ("gemma-2-9b", {"k": 5}, 3)


def test_set_reaches_keys_of_sections_that_the_file_does_not_have():
    assert config.load(overrides=["gate.min_gain=0.01"]).gate.min_gain == 0.01


def test_an_unknown_key_is_refused_with_the_nearest(tmp_path):
    file = write(tmp_path, "evaluate: {bath_size: 4}\n")
    message = refused(path=file)
    assert "evaluate.bath_size" in message
    assert "batch_size" in message
    assert str(file) in message


def test_an_unknown_section_is_refused_with_the_nearest():
    assert "nearest: 'policy'" in refused(overrides=["polcy.k=3"])


def test_an_unknown_key_of_a_task_is_refused_with_the_nearest():
    message = refused(overrides=["evaluate.selection=[{task: a, numfewshot: 3}]"])
    assert "num_fewshot" in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1", "not YAML"),
        ("- a\n- b\n", "expected a mapping"),
        ("seed: 1\nbase: demo\nseed: 2\n", "key 'seed' stands twice, line 3"),
        ("gate:\n  min_gain: 0\n  'min_gain': 1\n", "key 'min_gain' stands twice, line 3"),
        ("gate: {fdr: 1.5}\n", "gate.fdr"),
        ("gate: {confidence: 0.99}\n", "write `gate.fdr: 0.10` instead"),
        ("gate: 3\n", "gate"),
        ("limits: {disk_gb: lots}\n", "limits.disk_gb"),
        ("publish: {name: '{oops}'}\n", "{base}, {model} and {hash} only"),
        ("publish: {name: best}\n", "needs {model} or {hash}"),
        ("policy: topk-greedy\n", "policy"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path, text, said):
    assert said in refused(path=write(tmp_path, text))


def test_a_file_that_is_not_there_is_named(tmp_path):
    assert "nowhere.yaml" in refused(path=tmp_path / "nowhere.yaml")


def test_a_value_that_says_two_things_is_refused():
    assert "key 'k' stands twice" in refused(overrides=["policy={use: topk-kinship, k: 2, k: 3}"])


def test_set_without_a_value_is_refused():
    assert "key=value" in refused(overrides=["policy.k"])


@pytest.mark.parametrize("override", ["seed.x=1", "base.x=1", "evaluate.selection.0=x"])
def test_set_through_something_that_is_no_section_is_refused(override, tmp_path):
    file = write(tmp_path, "seed: 1\nbase: demo\nevaluate: {selection: [a]}\n")
    assert override.split(".")[0] in refused(path=file, overrides=[override])


def test_paths_in_a_file_are_relative_to_the_file(tmp_path):
    (tmp_path / "sub").mkdir()
    file = tmp_path / "sub" / "config.yaml"
    file.write_text(
        "base: ../base\nhub: models\nhome: home\nevaluate: {include_path: [tasks, /abs]}\n"
    )
    found = config.load(file)
    assert Path(found.base) == tmp_path / "sub" / ".." / "base"
    assert found.hub == str(tmp_path / "sub" / "models")
    assert found.home == tmp_path / "sub" / "home"
    assert found.evaluate.include_path == (tmp_path / "sub" / "tasks", Path("/abs"))


def test_names_in_a_file_are_no_paths(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("base: org/model\nhub: https://hub.example\nhome: ~/home\n")
    found = config.load(file)
    assert (found.base, found.hub) == ("org/model", "https://hub.example")
    assert found.home == Path.home() / "home"


def test_folders_are_the_same_wherever_the_command_is_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert config.load(overrides=["home=here"]).home == tmp_path / "here"
    assert config.load(overrides=["home=~/there"]).home == Path("/home/someone/there")


def test_the_demo_brings_its_own_tasks_and_hub_and_the_file_still_wins():
    loaded = config.load(base="demo", overrides=["publish.namespace=mine"])
    assert [task.task for task in loaded.evaluate.selection] == list(demo.SELECTION)
    assert loaded.hub == "demo"
    assert loaded.publish.namespace == "mine"


def test_a_preset_replaces_the_policy(tmp_path):
    file = write(tmp_path, "policy: {use: topk-kinship, explore: highest}\n")
    loaded = config.load(file, policy="topk-greedy")
    assert loaded.policy.use == "topk-greedy"
    assert "explore" not in loaded.policy.settings


def test_what_is_shown_loads_as_the_same(tmp_path):
    shown = config.to_yaml(config.load(base="demo"))
    assert config.load(write(tmp_path, shown)) == config.load(base="demo")


def test_the_configuration_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        config.load().seed = 4  # type: ignore[misc]


def test_the_schema_describes_every_section():
    properties = config.schema()["properties"]
    assert set(properties) == set(yaml.safe_load(config.to_yaml(config.load())))
    assert properties["seed"]["description"]


def test_a_policy_is_named_as_simulate_takes_it(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("use: topk-greedy\nk: 5\n")
    for named, used in {
        "random": "random",
        "topk-greedy": "topk-greedy",
        "kinship_policies.topk:TopKGreedy": "kinship_policies.topk:TopKGreedy",
        str(file): "topk-greedy",
    }.items():
        assert config.load(policy=named).policy.use == used
    assert config.load(policy=str(file)).policy.settings == {"k": 5}
    assert "nearest: topk-greedy" in refused(policy="topk-gredy")
    assert "cannot be imported" in refused(policy="nowhere:Policy")


def test_a_section_with_nothing_in_it_sets_nothing(tmp_path):
    file = write(tmp_path, "policy:\ngate:\npublish: {namespace: }\nbase: demo\nwatch:\n")
    assert config.load(file) == config.load(base="demo", overrides=["publish.namespace=null"])


def test_all_mistakes_of_a_file_are_found_at_once(tmp_path):
    file = write(tmp_path, "gate: {fdr: 2, min_gian: 1}\nlimts: {}\nseed: 3\n")
    found, mistakes = config.examine(file)
    assert [line.partition(";")[0].partition(":")[0] for line in mistakes] == [
        "gate.fdr",
        "unknown key 'gate.min_gian'",
        "unknown key 'limts'",
    ]
    assert found == config.load(overrides=["seed=3"])


def test_the_dashboards_password_is_shown_nowhere_and_is_no_placeholder():
    loaded = config.load(overrides=["web.token=between us"])
    assert loaded.web.token.get_secret_value() == "between us"
    dumped = config.to_yaml(loaded)
    assert "between us" not in dumped
    assert "between us" not in repr(loaded)
    stars = yaml.safe_load(dumped)["web"]["token"]
    for weak in (stars, "", "abcabc"):
        message = refused(overrides=[f"web.token='{weak}'"])
        assert "web.token: needs 6 different characters" in message
        assert weak == "" or weak not in message
