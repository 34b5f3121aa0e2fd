"""At triage: who is no descendant of the base, and who is a merge of known models."""

import pytest
import torch
from safetensors.torch import load_file, save_file

import hub_daemon
import tiny
import turns
from hub_daemon import BASE, CARD, opened, states, told
from hub_server import HubServer

SAMPLE = {"triage__sample": 0.5}


@pytest.fixture(autouse=True)
def _online():
    with hub_daemon.online():
        yield


@pytest.fixture(scope="module")
def kin(tiny_base, tmp_path_factory):
    """Two fine-tunes, their mean, and one whose weights were never the base's."""
    scratch = tmp_path_factory.mktemp("kin")
    made = {
        name: tiny.finetune(tiny_base, scratch / name, seed=seed, shard_size=None)
        for name, seed in (("a", 1), ("b", 2), ("mix", 3), ("alien", 4))
    }
    a, b = (load_file(made[name] / "model.safetensors") for name in ("a", "b"))
    mix = {name: ((a[name].float() + b[name].float()) / 2).to(a[name].dtype) for name in a}
    chance = torch.Generator().manual_seed(0)
    alien = {
        name: x if x.ndim < 2 else (torch.randn(x.shape, generator=chance) * 0.2).to(x.dtype)
        for name, x in a.items()
    }
    for name, tensors in {"mix": mix, "alien": alien}.items():
        save_file(tensors, made[name] / "model.safetensors", metadata={"format": "pt"})
    return made


@pytest.fixture
def server(tiny_base, kin):
    with HubServer() as running:
        running.add(BASE, tiny_base, {"license": "apache-2.0"})
        for name, folder in kin.items():
            running.add(f"org/{name}", folder, CARD)
        yield running


def parts(d, name):
    ancestry = d.lineage.candidate(name).ancestry
    return {part["model"]: part["coefficient"] for part in ancestry["parts"]}


def test_merges_and_strangers_are_marked_and_admitted_all_the_same(server, tmp_path):
    with opened(server, tmp_path / "home", **SAMPLE) as d:
        turns.take(d, "watch", "triage")
        assert {status for status, _ in states(d).values()} == {"seen"}
        found = {c.model: c.ancestry for c in d.lineage.candidates()}
        assert [name for name in found if found[name]["stranger"]] == ["org/alien"]
        assert [name for name in found if found[name]["merge"]] == ["org/mix"]
        assert parts(d, "org/mix") == pytest.approx({"org/a": 0.5, "org/b": 0.5}, abs=0.01)
        (alien, mix) = (line for line in told(d, "warning") if "org/" in line)
        assert alien.startswith("org/alien: no descendant (cosine with the base ")
        assert "a merge: 0.50" in mix
        turns.take(d, "admit")
        assert {status for status, _ in states(d).values()} == {"admitted"}


def test_they_are_refused_where_the_rule_says_so(server, tmp_path):
    home = tmp_path / "home"
    with opened(server, home, triage__ancestry="refuse", **SAMPLE) as d:
        turns.poll(d)
        found = states(d)
        assert {name for name, (status, _) in found.items() if status == "admitted"} == {
            *("org/a", "org/b")
        }
        assert found["org/alien"][1].endswith("(triage.ancestry admits such)")
        assert found["org/mix"][1].startswith("a merge: 0.50")
        assert found["org/mix"][1].endswith("(triage.allow_merges admits such)")
        assert not (d.home.cache / "org--mix").exists()
    # Its own rule lets each in.
    now = {"triage__ancestry": "refuse", "triage__allow_merges": "true"}
    with opened(server, home, **now, **SAMPLE) as d:
        turns.poll(d)
        assert states(d)["org/mix"][0] == "admitted"
        assert states(d)["org/alien"][0] == "refused"
    with opened(server, home, triage__allow_merges="true", **SAMPLE) as d:
        turns.poll(d)
        assert {status for status, _ in states(d).values()} == {"admitted"}


def test_a_merge_that_was_triaged_before_its_parents_is_found_before_it_is_fetched(
    server, kin, tmp_path
):
    for name in ("a", "b", "alien"):
        server.delete(f"org/{name}")
    with opened(server, tmp_path / "home", triage__ancestry="refuse", **SAMPLE) as d:
        turns.take(d, "watch", "triage")
        assert parts(d, "org/mix") == {}
        for name in ("a", "b"):
            server.add(f"org/{name}", kin[name], CARD, likes=900)
        turns.poll(d)
        assert states(d)["org/mix"][0] == "refused"
        assert parts(d, "org/mix") == pytest.approx({"org/a": 0.5, "org/b": 0.5}, abs=0.01)
        assert not (d.home.cache / "org--mix").exists()


def test_nobody_is_looked_at_where_it_is_ignored(server, tmp_path):
    with opened(server, tmp_path / "home", triage__ancestry="ignore", **SAMPLE) as d:
        turns.take(d, "watch", "triage")
        assert {c.ancestry for c in d.lineage.candidates()} == {None}
        assert not [line for line in told(d, "warning") if "org/" in line]
