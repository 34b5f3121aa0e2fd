"""What deploy/ promises, checked as far as a machine without an init system or an engine can."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from kinship_daemon import config
from kinship_daemon.cli.doctor import oddities
from kinship_daemon.startup import SECRET, devices_here, evaluation_settings, webhook_secret

DEPLOY = Path(__file__).parent.parent / "deploy"


def test_the_example_config_loads_and_says_the_defaults_of_the_paper():
    loaded = config.load(DEPLOY / "config.yaml")
    assert loaded.base == "mistral-7b"
    assert [t.task for t in loaded.evaluate.selection] == ["winogrande", "gsm8k", "truthfulqa_mc2"]
    assert loaded.publish.namespace is None


def test_the_example_config_contradicts_itself_nowhere():
    loaded = config.load(DEPLOY / "config.yaml")
    assert list(oddities(loaded)) == []
    assert loaded.triage.sample == 0.002


def test_what_the_config_offers_as_comments_can_be_switched_on(tmp_path, monkeypatch):
    text = (DEPLOY / "config.yaml").read_text()
    on = re.sub(r"^  # (\w+: )", r"  \1", text, flags=re.M)
    (tmp_path / "config.yaml").write_text(on)
    loaded = config.load(tmp_path / "config.yaml")
    assert (loaded.watch.webhook_port, loaded.watch.webhook_host) == (8089, "0.0.0.0")
    assert loaded.publish.namespace == "your-name"
    monkeypatch.setenv(SECRET, "of tests")
    assert webhook_secret(loaded) == "of tests"


def test_secrets_come_from_the_environment_only():
    service = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["kinship-daemon"]
    assert service["environment"] == ["HF_TOKEN", SECRET]
    unit = (DEPLOY / "kinship-daemon@.service").read_text()
    assert "EnvironmentFile=-/etc/kinship-daemon/token" in unit
    assert f"{SECRET}=..." in unit


def test_the_unit_is_valid(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / "kinship-daemon@demo.service"
    text = (DEPLOY / "kinship-daemon@.service").read_text()
    # The program the unit starts is not installed where it says; any program will do.
    unit.write_text(text.replace("/opt/kinship-daemon/bin/kinship-daemon", "/bin/true"))
    result = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_the_unit_calls_commands_and_flags_that_exist():
    from click.testing import CliRunner

    from kinship_daemon.cli import app

    line = re.search(
        r"^ExecStart=\S+ (.*)$", (DEPLOY / "kinship-daemon@.service").read_text(), re.M
    )
    command, *flags = line.group(1).split()
    said = CliRunner().invoke(app, [command, "--help"]).output
    assert all(flag in said for flag in flags if flag.startswith("--"))


def test_the_image_installs_what_the_package_needs():
    text = (DEPLOY / "Dockerfile").read_text()
    copied = re.findall(r"^COPY (.*) \S+$", text, re.M)
    sources = {name for line in copied for name in line.split()}
    assert {"daemon", "policies", "storage", "pyproject.toml", "README.md"} <= sources
    root = DEPLOY.parent
    assert all((root / name).exists() for name in sources)


@pytest.mark.parametrize(
    ("file", "name"), [("compose.yaml", "kinship-daemon"), ("ray-compose.yaml", "head")]
)
def test_the_compose_files_mount_files_that_exist(file, name):
    service = yaml.safe_load((DEPLOY / file).read_text())["services"][name]
    mounts = [v.split(":")[0] for v in service["volumes"] if v.startswith(".")]
    assert mounts
    assert all((DEPLOY / mount).exists() for mount in mounts)
    assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).exists()


def test_the_example_config_for_ray_needs_no_gpu_where_the_daemon_is():
    loaded = config.load(DEPLOY / "ray-config.yaml")
    assert list(oddities(loaded)) == []
    assert devices_here(loaded) == {"cpu"}
    assert evaluation_settings(loaded).worker_devices() == ("cuda",)


def test_the_ray_cluster_is_one_by_rays_own_schema():
    pytest.importorskip("ray", reason="RAY IS NOT TESTED: it cannot be imported here")
    from ray.autoscaler._private.util import prepare_config, validate_config

    cluster = yaml.safe_load((DEPLOY / "ray-cluster.yaml").read_text())
    assert all((DEPLOY.parent / mount).exists() for mount in cluster["file_mounts"].values())
    loaded = config.load(DEPLOY / "ray-config.yaml")
    assert loaded.executor.workers == cluster["max_workers"]
    prepared = prepare_config(cluster)
    validate_config(prepared)
    assert prepared["available_node_types"]["gpu"]["resources"]["GPU"] == 1


def test_the_ray_nodes_of_the_compose_file_join_its_head():
    compose = yaml.safe_load((DEPLOY / "ray-compose.yaml").read_text())
    head, *workers = compose["services"].values()
    assert "ray start --head --port=6379 " in head["command"][0]
    assert len(workers) == 2
    for worker in workers:
        assert worker["entrypoint"] == ["ray"]
        assert "--address=head:6379" in worker["command"]
        assert worker["build"] == head["build"]
        assert "environment" not in worker, "a worker needs no secret"
    devices = [w["deploy"]["resources"]["reservations"]["devices"][0] for w in workers]
    assert devices[0] != devices[1]
    volumes = [v.split(":")[0] for s in (head, *workers) for v in s["volumes"]]
    assert {v for v in volumes if not v.startswith(".")} == set(compose["volumes"])
