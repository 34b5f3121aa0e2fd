"""What `doctor` says of a configuration before it costs an evening."""

import pytest

import command
from hub_server.people import TOKEN, Token
from hub_server.server import HubServer
from small_lineage import fill, open_lineage


@pytest.fixture
def server(tiny_hub):
    with HubServer() as server:
        for place in sorted(tiny_hub.glob("*/*")):
            server.add(place.relative_to(tiny_hub).as_posix(), place)
        yield server


@pytest.fixture
def doctor(monkeypatch, capfd, tmp_path):
    """Lines of its report by what they are about, and the exit code."""

    def ask(*arguments, base="org/base"):
        home = ["--home", tmp_path / "home"]
        result = command.call(["doctor", "--base", base, *home, *arguments], monkeypatch, capfd)
        found = {}
        for line in result.out.splitlines():
            found.setdefault(line[4:].split()[0], []).append(line)
        return found, result.code

    return ask


def on(server, monkeypatch, token):
    """A hub's flags. The server counts as the one that the machine's token is for."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", token)
    return ["--hub", server.url, "--set", "publish.namespace=tester"]


def test_a_token_that_may_write_is_said_with_whose_it_is(server, doctor, monkeypatch):
    server.tokens[TOKEN] = Token("tester")
    found, code = doctor(*on(server, monkeypatch, TOKEN))
    assert found["publish"] == ["ok  publish   under tester/ as tester"]
    assert code == 0


@pytest.mark.parametrize(
    ("token", "said"),
    [
        (Token("tester", role="read"), "may only read"),
        (Token("someone"), "tester is neither someone nor"),
        (Token("someone", orgs={"tester": "read"}), "may not write"),
        (Token("tester", role="fineGrained"), "no repo.write for tester"),
    ],
)
def test_a_token_that_may_not_write_would_stop_a_run(server, doctor, monkeypatch, token, said):
    server.tokens[TOKEN] = token
    found, code = doctor(*on(server, monkeypatch, TOKEN))
    (line,) = found["publish"]
    assert line.startswith("BAD publish")
    assert said in line
    assert code == 3


def test_no_token_and_a_wrong_one_would_stop_a_run(server, doctor, monkeypatch):
    none, code = doctor(*on(server, monkeypatch, ""))
    assert none["publish"][0].startswith("BAD publish")
    assert "no token" in none["publish"][0]
    assert code == 3
    wrong, code = doctor(*on(server, monkeypatch, "hf_nobodys"))
    assert wrong["hub"][0].startswith("BAD hub")
    assert code == 3


def test_limits_beyond_what_is_there_are_odd(tiny_hub, doctor):
    beyond = ["limits.disk_gb=1e9", "limits.eval_hours_per_day=30", "evaluate.threads=9999"]
    found, code = doctor("--hub", tiny_hub, *[word for key in beyond for word in ("--set", key)])
    assert len(found["limits"]) == 3
    assert all(line.startswith("odd") for line in found["limits"])
    assert code == 0
    assert "limits" not in doctor("--hub", tiny_hub, "--set", "limits.disk_gb=0.001")[0]


def test_a_folder_hub_is_asked_whether_it_can_be_written(tiny_hub, doctor):
    found, code = doctor("--hub", tiny_hub, "--set", "publish.namespace=us")
    assert found["publish"] == [f"ok  publish   into {tiny_hub / 'us'}"]
    assert code == 0
    assert not (tiny_hub / "us").exists(), "nothing is written to find out"


def test_without_a_namespace_nothing_is_published_and_all_is_well(tiny_hub, doctor):
    found, code = doctor("--hub", tiny_hub)
    assert found["publish"] == ["ok  publish   publish.namespace is not set"]
    assert "webhook" not in found
    assert "config" not in found
    assert code == 0


def test_a_webhook_needs_its_secret(tiny_hub, doctor, monkeypatch):
    monkeypatch.delenv("KINSHIP_WEBHOOK_SECRET", raising=False)
    flags = ["--hub", tiny_hub, "--set", "watch.webhook_port=8089"]
    found, code = doctor(*flags)
    assert found["webhook"][0].startswith("BAD webhook")
    assert "KINSHIP_WEBHOOK_SECRET" in found["webhook"][0]
    assert code == 3
    monkeypatch.setenv("KINSHIP_WEBHOOK_SECRET", "of tests")
    found, code = doctor(*flags)
    assert found["webhook"] == ["ok  webhook   at http://127.0.0.1:8089/webhook"]
    assert code == 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["limits.download_gb_per_day=5"], "limits.download_gb_per_day 5 is below triage.max_gb"),
        (["limits.disk_gb=39"], "limits.disk_gb 39 is below triage.max_gb 40"),
        (["triage.sample=0", "admission.popularity=0"], "nobody's novelty is known"),
        (
            ["admission.screen_documents=300", "evaluate.limit=300"],
            "no less than evaluate.limit",
        ),
        (["evaluate.limit=199"], "evaluate.limit 199 is below 200"),
    ],
)
def test_settings_that_contradict_each_other_are_said_and_stop_nothing(
    tiny_hub, doctor, settings, said
):
    overrides = [flag for setting in settings for flag in ("--set", setting)]
    found, code = doctor("--hub", tiny_hub, *overrides)
    (line,) = found["config"]
    assert line.startswith("odd config")
    assert said in line
    assert code == 0


def test_a_base_that_is_not_there_would_stop_a_run(tiny_hub, doctor):
    found, code = doctor("--hub", tiny_hub, base="org/nothing")
    assert found["base"][0].startswith("BAD base")
    assert "org/nothing" in found["base"][0]
    assert code == 3


def test_a_home_of_another_base_would_stop_a_run(tiny_hub, doctor, tmp_path):
    (tmp_path / "home").mkdir()
    with open_lineage(tmp_path / "home" / "lineage.db") as lineage:
        fill(lineage)
    found, code = doctor("--hub", tiny_hub)
    assert found["home"][0].startswith("BAD home")
    assert "is that of base demo/base, not org/base" in found["home"][0]
    assert code == 3
