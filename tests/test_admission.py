"""Candidates looked into from afar and fetched in order, within the limits of a day."""

from datetime import timedelta
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import hub_daemon
import tiny
import turns
from hub_daemon import BASE, CARD, NOON, looks, opened, states, statuses, told
from kinship_daemon import cycle, runner
from kinship_daemon.errors import Transient
from test_adapter import adapter

DAY = timedelta(days=1)
LORA = CARD | {"base_model_relation": "adapter", "library_name": "peft"}


@pytest.fixture(autouse=True)
def _online():
    with hub_daemon.online():
        yield


@pytest.fixture
def server(server, tiny_base):
    server.add(BASE, tiny_base, {"license": "apache-2.0"})
    return server


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture(scope="module")
def kin(tiny_base, tmp_path_factory):
    """Near and far: a, one much like it, and two that are like nobody."""
    scratch = tmp_path_factory.mktemp("kin")
    found = {
        "a": tiny.finetune(tiny_base, scratch / "a", seed=1),
        "far": tiny.finetune(tiny_base, scratch / "far", seed=2),
        "other": tiny.finetune(tiny_base, scratch / "other", seed=3),
    }
    found["like-a"] = tiny.finetune(found["a"], scratch / "like-a", seed=4, scale=0.003)
    return found


def looked(server, home, **overrides):
    """Notice and triage; states, candidates by name, and what was said."""
    with opened(server, home, **overrides) as d:
        turns.take(d, "watch", "triage")
        return states(d), {c.model: c for c in d.lineage.candidates()}, told(d, "warning")


def ranges(server, repo):
    """Requests for ranges of a repo's weights."""
    blob = server.repos[repo].facts.blobs["model.safetensors"]
    return server.asked("GET", f"/{repo}/resolve/.*safetensors") + server.asked(
        "GET", f"/lfs/{blob.sha256}", "storage"
    )


def fetched(d):
    """In the order they were admitted."""
    return [message.split()[0] for message in told(d, "admit")]


def reshaped(folder: Path, scratch: Path) -> Path:
    """The same model with one norm of another shape."""
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.zeros(7)
    changed = {path.name: path.read_bytes() for path in folder.iterdir()}
    scratch.mkdir()
    for name, data in changed.items():
        (scratch / name).write_bytes(data)
    save_file(tensors, scratch / "model.safetensors", {"format": "pt"})
    return scratch


def test_each_refusal_has_its_reason_and_is_never_asked_for_again(server, home, kin, tmp_path):
    whole = {path.name: path.read_bytes() for path in kin["a"].iterdir()}
    bare = {name: whole[name] for name in whole if "token" not in name}
    pickled = {name: whole[name] for name in whole if "safetensors" not in name}
    other = whole | {"config.json": b'{"architectures": ["LlamaForCausalLM"]}'}
    quantised = whole | {"config.json": b'{"quantization_config": {"bits": 4}}'}
    refused = {
        "org/no-tokenizer": (bare, "no tokenizer files"),
        "org/pickled": (pickled | {"pytorch_model.bin": b"x"}, "only pickle weights"),
        "org/llama": (other, "another architecture (LlamaForCausalLM"),
        "org/quantised": (quantised, "config.json has a quantization_config"),
    }
    for name, (files, _) in refused.items():
        server.add(name, files, CARD)
    server.add("org/reshaped", reshaped(kin["a"], tmp_path / "reshaped"), CARD)
    found, candidates, _ = looked(server, home)
    for name, (_, reason) in refused.items():
        assert found[name][0] == "refused"
        assert reason in found[name][1]
        assert not server.asked("GET", f"/{name}/resolve/.*")
        assert candidates[name].read_bytes == 0
    assert found["org/reshaped"][0] == "quarantined"
    assert "model.norm.weight is 7, the base's is 32" in found["org/reshaped"][1]
    assert all(candidate.triaged for candidate in candidates.values())
    asked = {name: looks(server, name) for name in found}
    again, _, _ = looked(server, home, triage__max_gb=20)
    with opened(server, home) as d:
        turns.poll(d)
        assert states(d) == again == found
    assert {name: looks(server, name) for name in found} == asked


def test_the_weights_of_a_known_model_are_known_by_their_hash(server, home, kin):
    server.add("org/a", kin["a"], CARD)
    with opened(server, home) as d:
        turns.poll(d)
        assert statuses(d) == {"org/a": "admitted"}
        server.add("org/again", kin["a"], CARD | {"license": "mit"})
        server.add("org/base-again", server.repos[BASE].head[1], CARD)
        server.log.clear()
        turns.poll(d)
        found = states(d)
        assert found["org/again"] == ("refused", "the same weights as org/a")
        assert found["org/base-again"] == ("refused", f"the same weights as {BASE}")
        assert looks(server, "org/again") == 1
        assert d.lineage.candidate("org/again").read_bytes == 0


def test_of_two_that_wait_with_the_same_weights_one_is_fetched(server, home, kin):
    server.add("org/a", kin["a"], CARD)
    server.add("org/b", kin["a"], CARD)
    with opened(server, home) as d:
        turns.poll(d)
        assert states(d) == {
            "org/a": ("admitted", None),
            "org/b": ("refused", "the same weights as org/a"),
        }
        assert not (d.home.cache / "org--b").exists()
        stored = [request for request in ranges(server, "org/b") if request.server == "storage"]
        assert sum("range" not in request.headers for request in stored) == 1


def test_a_server_that_gives_no_pieces_leaves_a_candidate_without_a_sample(server, home, kin):
    server.add("org/a", kin["a"], CARD)
    server.fault(".*safetensors|/lfs/.*", "range-ignored", n=-1)
    found, candidates, warnings = looked(server, home)
    assert found == {"org/a": ("seen", None)}
    assert candidates["org/a"].triaged
    assert candidates["org/a"].novelty is None
    assert any("is not sampled" in warning for warning in warnings)
    with opened(server, home) as d:
        turns.poll(d)
        assert statuses(d) == {"org/a": "admitted"}
        assert d.lineage.sample(d.sampler.plan.identity, "org/a") is not None
        assert d.lineage.candidate("org/a").novelty == 1.0


def test_an_adapter_waits_without_a_sample_and_has_one_when_it_is_admitted(
    server, home, tiny_base, tmp_path
):
    adapter(tiny_base, tmp_path / "lora", target_modules=["q_proj"])
    server.add("org/lora", tmp_path / "lora", LORA)
    found, candidates, _ = looked(server, home)
    assert found == {"org/lora": ("seen", None)}
    assert (candidates["org/lora"].novelty, candidates["org/lora"].read_bytes) == (None, 0)
    with opened(server, home) as d:
        turns.poll(d)
        assert statuses(d) == {"org/lora": "admitted"}
        assert d.lineage.sample(d.sampler.plan.identity, "org/lora") is not None
        assert d.lineage.candidate("org/lora").novelty == 1.0


def test_one_that_does_not_differ_from_the_base_is_not_the_most_novel(
    server, home, kin, tiny_base, tmp_path
):
    tiny.finetune(tiny_base, tmp_path / "same", seed=9, scale=0.0, shard_size="40KB")
    server.add("org/a", kin["a"], CARD)
    with opened(server, home) as d:
        turns.poll(d)
        server.add("org/same", tmp_path / "same", CARD)
        turns.take(d, "watch", "triage")
        assert d.lineage.candidate("org/same").triaged
        assert d.lineage.candidate("org/same").novelty is None


SAMPLED = {"triage__sample": 0.5, "admission__popularity": 0}


def test_novelty_is_one_minus_the_highest_kinship_and_falls_with_each_admission(server, home, kin):
    for name in ("a", "far"):
        server.add(f"org/{name}", kin[name], CARD)
    with opened(server, home, **SAMPLED) as d:
        turns.take(d, "watch", "triage")
        assert {c.novelty for c in d.lineage.candidates()} == {1.0}
        turns.take(d, "admit")
        # The first was compared with nobody; by then the second one knows the first.
        assert d.lineage.candidate("org/a").novelty == 1.0
        assert d.lineage.candidate("org/far").novelty == pytest.approx(1.0, abs=0.1)
        server.add("org/like-a", kin["like-a"], CARD)
        server.add("org/other", kin["other"], CARD)
        turns.take(d, "watch", "triage")
        waiting = {c.model: c for c in d.lineage.candidates("seen")}
        assert waiting["org/like-a"].novelty < 0.1
        assert waiting["org/like-a"].novelty_error > 0
        assert waiting["org/other"].novelty == pytest.approx(1.0, abs=0.1)
        told_before = len(fetched(d))
        turns.take(d, "admit")
        assert fetched(d)[told_before:] == ["org/other", "org/like-a"]


def test_the_order_is_made_again_after_each_admission(server, home, kin):
    """Both kin look new before either is here; popularity decides until novelty does."""
    for name, downloads in (("a", 1000), ("like-a", 900), ("far", 0)):
        server.add(f"org/{name}", kin[name], CARD, downloads=downloads)
    with opened(server, home, triage__sample=0.5) as d:
        turns.poll(d)
        assert fetched(d) == ["org/a", "org/far", "org/like-a"]
    with opened(server, home.with_name("greedy"), admission__novelty=0) as d:
        turns.poll(d)
        assert fetched(d) == ["org/a", "org/like-a", "org/far"]


def test_candidates_are_counted_by_the_day_the_popular_first(server, home, kin, tmp_path):
    for number, name in enumerate(("a", "far", "other")):
        server.add(f"org/{name}", kin[name], CARD, downloads=number)
    server.add("org/reshaped", reshaped(kin["a"], tmp_path / "reshaped"), CARD, downloads=100)
    limit = {"limits__candidates_per_day": 2}
    found, candidates, warnings = looked(server, home, **limit)
    # One that is set aside was looked into as well.
    assert [name for name, c in candidates.items() if c.triaged] == ["org/other", "org/reshaped"]
    assert found["org/reshaped"][0] == "quarantined"
    assert any(
        "limits.candidates_per_day 2 reached; 2 stay queued" in warning for warning in warnings
    )
    server.log.clear()
    looked(server, home, **limit, now=NOON + timedelta(hours=11, minutes=59))
    assert looks(server, "org/far") == looks(server, "org/a") == 0
    _, candidates, warnings = looked(server, home, **limit, now=NOON + timedelta(hours=12))
    assert all(candidate.triaged for candidate in candidates.values())
    assert warnings == []


def test_gigabytes_are_counted_by_the_day_and_smaller_ones_still_fit(
    server, home, kin, tiny_base, tmp_path
):
    adapter(tiny_base, tmp_path / "lora", target_modules=["q_proj"])
    for name in ("a", "far", "other"):
        server.add(f"org/{name}", kin[name], CARD)
    server.add("org/lora", tmp_path / "lora", LORA)
    size = sum(path.stat().st_size for path in kin["a"].iterdir())
    limit = {"limits__download_gb_per_day": 2.6 * size / 1e9, **SAMPLED}
    with opened(server, home, **limit) as d:
        turns.poll(d)
        assert fetched(d) == ["org/a", "org/far", "org/lora"]
        assert statuses(d)["org/other"] == "seen"
        (warning,) = told(d, "warning")
        assert "limits.download_gb_per_day" in warning
        assert d.spent("download_bytes") < 2.6 * size
        turns.poll(d)
        assert statuses(d)["org/other"] == "seen"
        d.now.now = NOON + DAY
        turns.poll(d)
        assert statuses(d)["org/other"] == "admitted"


def test_one_that_the_hub_will_not_show_now_does_not_keep_the_others(server, home, kin):
    for name in ("a", "far"):
        server.add(f"org/{name}", kin[name], CARD)
    server.fault("/api/models/org/a/.*", n=-1)
    with opened(server, home) as d:
        turns.poll(d)
        assert statuses(d) == {"org/a": "seen", "org/far": "admitted"}
        server.calm()
        turns.poll(d)
        assert statuses(d)["org/a"] == "admitted"


def test_a_hub_that_wants_no_calls_for_a_while_gets_none(server, home, kin):
    for name in ("a", "far", "other"):
        server.add(f"org/{name}", kin[name], CARD)
    late = {"Retry-After": "300"}
    server.fault("/api/models/org/far/.*", n=-1, status=429, headers=late)
    with opened(server, home, watch__connections=1) as d:  # or others may be under way already
        running = cycle.runner(d)
        turns.take(d, "watch", "triage", running=running)  # org/a was shown
        assert [c.model for c in d.lineage.candidates() if c.triaged] == ["org/a"]
        assert looks(server, "org/other") == 0
        before = len(server.log)
        turn = running.loop(d.now(), look=True)
        assert turn.waiting[0].retry_seconds > 200
        assert turn.due > d.now() + timedelta(seconds=200)
        assert len(server.log) == before
        assert len([warning for warning in told(d, "warning") if "waits" in warning]) == 1


def test_one_that_is_deleted_before_it_is_fetched_is_gone_and_admitted_when_it_is_back(
    server, home, kin
):
    server.add("org/a", kin["a"], CARD)
    looked(server, home)
    kept = server.repos.pop("org/a")
    with opened(server, home) as d:
        turns.take(d, "admit")
        assert states(d) == {"org/a": ("refused", "gone from the hub")}
        server.repos["org/a"] = kept
        turns.poll(d)
        assert states(d) == {"org/a": ("admitted", None)}


def test_one_refused_by_rules_that_became_strict_waits_again_when_they_are_not(server, home, kin):
    server.add("org/a", kin["a"], CARD)
    looked(server, home)
    with opened(server, home, triage__max_gb=1e-9) as d:
        turns.take(d, "watch", "admit")
        assert "triage.max_gb" in states(d)["org/a"][1]
    with opened(server, home) as d:
        turns.poll(d)
        assert states(d) == {"org/a": ("admitted", None)}


def test_a_hub_that_stays_silent_is_not_asked_for_everyone(server, home):
    for number in range(runner.SILENT + 3):
        server.add(f"org/n{number}", {"config.json": b"{}"}, CARD)
    server.fault("/api/models/org/n.*", "status", n=-1)
    with opened(server, home, watch__connections=1) as d:  # or others may be under way already
        turn = turns.take(d, "watch", "triage")
        assert isinstance(turn.waiting[-1], Transient)
        asked = {request.path for request in server.asked("GET", "/api/models/org/n.*")}
        assert len(asked) == runner.SILENT
        assert all(status == "seen" for status in statuses(d).values() if status != "admitted")
