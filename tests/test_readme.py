"""The README is true: its code runs, its reference is the config's own, its commands exist."""

import re
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from kinship_daemon import config
from kinship_daemon.cli import app
from kinship_policies import registry
from kinship_policies.testing import conforms

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language):
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.S | re.M)
    return [text for tongue, text in found if tongue == language]


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


def test_the_config_reference_names_every_key():
    reference = README.split("<!-- config-reference -->")[1].split("<!-- /config-reference -->")[0]
    assert reference.strip() == config.reference().strip()


def test_every_room_in_the_layout_exists():
    layout = next(block for block in blocks("") if "cycle.py" in block)
    inside = ROOT / "daemon" / "kinship_daemon"
    for name in re.findall(r"^  ([a-z]+\.py|[a-z]+/)", layout, re.M):
        assert (inside / name).exists(), name
    for name in re.findall(r"^([a-z_]+/[a-z_]*)", layout, re.M):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("file", ["deploy/config.yaml"])
def test_the_example_config_uses_only_known_keys(file):
    assert config.load(ROOT / file)
    assert yaml.safe_load((ROOT / file).read_text())
