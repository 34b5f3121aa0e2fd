"""Who is noticed, refused at a glance, replaced, gone and back; nothing is fetched here."""

from dataclasses import replace
from datetime import timedelta

import huggingface_hub
import pytest

import hub_daemon
import turns
from hub_daemon import BASE, CARD, NOON, looks, opened, states, statuses, told
from hub_server import START, TOKEN, HubServer
from kinship_daemon import cycle
from kinship_daemon.errors import KinshipError
from kinship_daemon.retry import reopen
from kinship_daemon.steps import publish, watch
from kinship_storage.lineage import Lineage
from kinship_storage.records import Gate, Model

DAY = timedelta(days=1)


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


def watched(server, home, **overrides):
    with opened(server, home, **overrides) as d:
        turns.take(d, "watch")
        return states(d)


def admitted(d, name):
    d.lineage.update_model(name, weights=f"sha256:{name}")
    d.lineage.move_model(name, "admit")


def test_everyone_is_noticed_once(server, home):
    server.add("org/a", {}, CARD, downloads=7, likes=2)
    server.add("org/plain", {}, {"base_model": BASE})
    server.add("org/other", {}, CARD | {"base_model": "org/another"})
    assert watched(server, home) == {"org/a": ("seen", None), "org/plain": ("seen", None)}
    with opened(server, home) as d:
        turns.take(d, "watch")
        assert set(states(d)) == {"org/a", "org/plain"}
        assert told(d, "notice") == []
        candidate = d.lineage.candidate("org/a")
        assert (candidate.downloads, candidate.likes, candidate.triaged) == (7, 2, False)
        assert candidate.modified == "2025-01-01T00:02:00Z"


def test_a_look_with_nothing_new_is_one_request_until_everyone_is_listed_again(server, home):
    server.add("org/a", {}, CARD)
    with opened(server, home) as d:
        turns.take(d, "watch")
        server.log.clear()
        turns.take(d, "watch")
        assert len(server.log) == 1
        d.now.now = NOON + DAY
        turns.take(d, "watch")
        assert len(server.log) > 2


def test_what_is_refused_at_a_glance_is_never_asked_for(server, home):
    glanced = {
        "org/gptq": (CARD | {"base_model_relation": "quantized"}, {}, "a quantised copy"),
        "org/a-GGUF": (CARD, {}, "quantised, by its name or tags (gguf)"),
        "org/tag": (CARD | {"tags": ["awq"]}, {}, "quantised, by its name or tags (awq)"),
        "org/gated": (CARD, {"gated": "auto"}, "gated (triage.allow_gated admits such)"),
        "org/off": (CARD, {"disabled": True}, "disabled by the hub"),
        "org/merged": (
            CARD | {"base_model_relation": "merge"},
            {},
            "a merge (triage.allow_merges admits such)",
        ),
        "org/lora": (
            CARD | {"base_model_relation": "adapter"},
            {},
            "an adapter (triage.allow_adapters admits such)",
        ),
    }
    for name, (card, attributes, _) in glanced.items():
        server.add(name, {}, card, **attributes)
    with opened(server, home, triage__allow_adapters="false") as d:
        turns.take(d, "watch")
        assert states(d) == {name: ("refused", reason) for name, (*_, reason) in glanced.items()}
        turns.take(d, "watch", "triage")
        assert all(c.triaged for c in d.lineage.candidates())
    assert [looks(server, name) for name in glanced] == [0] * len(glanced)


def test_what_the_settings_allow_waits(server, home):
    server.add("org/gated", {}, CARD, gated="auto")
    server.add("org/merged", {}, CARD | {"base_model_relation": "merge"})
    server.add("org/lora", {}, CARD | {"base_model_relation": "adapter"})
    allowed = {"triage__allow_gated": "true", "triage__allow_merges": "true"}
    assert {status for status, _ in watched(server, home, **allowed).values()} == {"seen"}


def test_a_new_commit_is_another_candidate_and_the_one_that_waits_is_refused(server, home):
    server.add("org/a", {}, CARD)
    watched(server, home)
    sha = server.add("org/a", {"x": b"y"}, CARD)
    name = f"org/a@{sha[:8]}"
    reason = f"changed on the hub before it was admitted; see {name}"
    assert watched(server, home) == {"org/a": ("refused", reason), name: ("seen", None)}
    later = server.add("org/a", {"x": b"z"}, CARD)
    found = watched(server, home)
    assert found[f"org/a@{later[:8]}"] == ("seen", None)
    assert found[name] == ("refused", reason.replace(sha[:8], later[:8]))


def test_an_admitted_one_stays_when_the_repo_changes(server, home):
    server.add("org/a", {}, CARD)
    with opened(server, home) as d:
        turns.take(d, "watch")
        admitted(d, "org/a")
        sha = server.add("org/a", {"x": b"y"}, CARD)
        turns.take(d, "watch")
        assert statuses(d) == {"org/a": "admitted", f"org/a@{sha[:8]}": "seen"}


def test_commits_that_begin_alike_are_told_apart(server, home):
    with opened(server, home) as d:
        sha = server.add("org/a", {}, CARD)
        for number, other in enumerate((sha[:8] + "0" * 32, sha[:8] + "1" * 32)):
            name = "org/a" if number == 0 else f"org/a@{other[:8]}"
            model = Model(id=name, kind="finetune", status="seen", repo="org/a", revision=other)
            d.lineage.add_model(model)
        turns.take(d, "watch")
        assert set(states(d)) == {"org/a", f"org/a@{sha[:8]}", f"org/a@{sha}"}


def passed(d, name):
    d.lineage.add_model(
        Model(id=name, kind="merge", status="proposed", weights=f"recipe:{name}", recipe={})
    )
    d.lineage.move_model(name, "admit")
    verdict = {"against": BASE, "passed": True, "gain": 1.0, "low": 0.5, "high": 2.0, "n": 9}
    d.lineage.add_gate(Gate(model=name, evaluation="", reason="", **verdict))


def test_what_we_published_ourselves_is_no_candidate_though_we_were_killed_before_we_knew(
    server, home
):
    with opened(server, home) as d:
        ours = d.config.publish.model_copy(update={"namespace": "us", "name": "{model}-x"})
        d = replace(d, config=d.config.model_copy(update={"publish": ours}))
        passed(d, "model-1-1")
        mine = publish.repo_id(d, d.lineage.require("model-1-1"))
        server.add(mine, {}, CARD | {"base_model_relation": "merge"})
        server.add("us/another", {}, CARD)
        turns.take(d, "watch")
        assert mine == "us/model-1-1-x"
        assert set(states(d)) == {"us/another"}


def relisted(server, home, days):
    """Who is who when everyone is listed so many days later, and who is gone."""
    with opened(server, home, now=NOON + days * DAY) as d:
        turns.take(d, "watch")
        return states(d), {c.model for c in d.lineage.candidates() if c.gone}, told(d, "back")


def test_one_that_waits_is_refused_when_it_is_gone_and_waits_again_when_it_is_back(server, home):
    server.add("org/a", {}, CARD)
    server.add("org/b", {}, CARD)
    watched(server, home)
    kept = server.repos.pop("org/a")
    found, gone, _ = relisted(server, home, 1)
    assert found == {"org/a": ("refused", "gone from the hub"), "org/b": ("seen", None)}
    assert gone == {"org/a"}
    assert relisted(server, home, 2) == (found, gone, [])
    server.repos["org/a"] = kept
    found, gone, back = relisted(server, home, 3)
    assert found == {"org/a": ("seen", None), "org/b": ("seen", None)}
    assert not gone
    assert back == ["org/a is on the hub again"]


def test_one_that_is_back_may_have_been_opened_by_hand_during_the_look(server, home, monkeypatch):
    server.add("org/a", {}, CARD)
    watched(server, home)
    kept = server.repos.pop("org/a")
    relisted(server, home, 1)
    server.repos["org/a"] = kept
    with opened(server, home, now=NOON + 3 * DAY) as d:

        def opens(*_):
            reopen(d.lineage, d.lineage.require("org/a"))
            return ()

        monkeypatch.setattr(watch, "_unrelated", opens)
        turns.take(d, "watch")
        assert states(d) == {"org/a": ("seen", None)}
        assert not d.lineage.candidate("org/a").gone


def test_an_admitted_one_keeps_its_lineage_when_it_is_gone(server, home):
    server.add("org/a", {}, CARD)
    with opened(server, home) as d:
        turns.take(d, "watch")
        admitted(d, "org/a")
        kept = server.repos.pop("org/a")
        d.now.now = NOON + DAY
        turns.take(d, "watch")
        assert statuses(d) == {"org/a": "admitted"}
        assert d.lineage.candidate("org/a").gone
        said = "org/a was removed from the hub; it stays in the lineage"
        assert told(d, "gone") == [said]
        server.repos["org/a"] = kept
        d.now.now = NOON + 2 * DAY
        turns.take(d, "watch")
        assert statuses(d) == {"org/a": "admitted"}
        assert not d.lineage.candidate("org/a").gone
        assert told(d, "back") == ["org/a is on the hub again"]


def test_one_that_only_dropped_its_tag_or_its_name_or_is_gated_now_is_not_gone(server, home):
    for name in ("org/a", "org/b", "org/c"):
        server.add(name, {}, CARD)
    watched(server, home)
    server.add("org/a", {}, {"license": "mit"})
    server.rename("org/b", "org/called-now")
    server.index.renew("org/c", server.repos["org/a"].facts)
    server.repos["org/c"].gated = "manual"
    found, gone, _ = relisted(server, home, 1)
    assert not gone
    assert {found[name][0] for name in ("org/a", "org/b", "org/c")} == {"seen"}


def test_one_that_is_deleted_after_it_was_listed_is_gone_when_it_is_looked_into(server, home):
    server.add("org/a", {}, CARD)
    with opened(server, home) as d:
        turns.take(d, "watch")
        server.delete("org/a")
        turns.take(d, "triage")
        assert states(d) == {"org/a": ("refused", "gone from the hub")}
        assert d.lineage.candidate("org/a").gone


def test_other_triage_rules_let_those_wait_again_whom_they_kept_out(server, home):
    server.add("org/gated", {}, CARD, gated="auto")
    server.add("org/merged", {}, CARD | {"base_model_relation": "merge"})
    server.add("org/small-4bit", {}, CARD, gated="auto")
    first = watched(server, home)
    assert {status for status, _ in first.values()} == {"refused"}
    assert watched(server, home) == first
    server.log.clear()
    found = watched(server, home, triage__allow_gated="true")
    assert found["org/gated"] == ("seen", None)
    assert found["org/merged"] == first["org/merged"]
    with opened(server, home, triage__allow_gated="true") as d:
        turns.take(d, "triage")  # its reasons were never looked at beyond the first
        assert states(d)["org/small-4bit"][1].startswith("quantised, by its name")
    assert looks(server, "org/merged") == 0
    found = watched(server, home, triage__allow_gated="true", triage__allow_merges="true")
    assert found["org/merged"] == ("seen", None)


def test_of_a_repo_that_changed_meanwhile_only_the_newest_waits_again(server, home):
    server.add("org/a", {}, CARD, gated="auto")
    watched(server, home)
    sha = server.add("org/a", {"x": b"y"}, CARD)
    watched(server, home)
    found = watched(server, home, triage__allow_gated="true")
    assert {name: status for name, (status, _) in found.items()} == {
        "org/a": "refused",
        f"org/a@{sha[:8]}": "seen",
    }


def test_a_change_that_claims_to_be_of_tomorrow_does_not_hide_those_of_today(server, home):
    server.add("org/odd", {}, CARD, modified=NOON + 400 * DAY)
    watched(server, home)
    server.add("org/a", {}, CARD, modified=NOON - timedelta(minutes=5))
    assert set(watched(server, home)) == {"org/odd", "org/a"}


def test_a_kill_amid_a_look_writes_nothing_and_repeats_nothing(server, home, monkeypatch):
    names = [f"org/a{number}" for number in range(7)]
    for name in names:
        server.add(name, {}, CARD)
    real, written = Lineage.add_candidate, []

    def killed(lineage, candidate):
        if len(written) == 5:
            raise KeyboardInterrupt
        written.append(candidate.model)
        return real(lineage, candidate)

    with opened(server, home) as d, monkeypatch.context() as patch:
        patch.setattr(Lineage, "add_candidate", killed)
        with pytest.raises(KeyboardInterrupt):
            turns.take(d, "watch")
        assert states(d) == {}
    with opened(server, home) as d:
        turns.take(d, "watch")
        assert told(d, "notice") == [f"{name} descends from {BASE}" for name in names]
        assert set(states(d)) == set(names)


def test_a_hub_that_fails_amid_a_listing_leaves_the_cursor_where_it_was(server, home):
    server.add("org/a", {}, CARD)
    watched(server, home)
    late = server.add("org/b", {}, CARD, modified=START)  # older than the cursor's overlap
    assert late
    assert "org/b" in watched(server, home)  # within the overlap
    server.add("org/c", {}, CARD, modified=START - DAY)
    assert "org/c" not in watched(server, home)
    with opened(server, home, now=NOON + DAY) as d:
        before = d.lineage.get("watch")
        server.fault("/api/models", n=-1)
        assert "503" in str(turns.take(d, "watch").waiting[-1])
        assert d.lineage.get("watch") == before
        server.calm()
        turns.wait_a_little(d)
        turns.take(d, "watch")
        assert "org/c" in states(d)


# An outage of accounts, a firewall, a proxy: what a refusal without the Hub's own code may be.
REFUSALS = [401, 403, 404, 410, 418]


@pytest.mark.parametrize("status", REFUSALS)
def test_a_hub_that_refuses_us_at_a_restart_is_asked_again(server, home, monkeypatch, status):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with opened(server, home, publish__namespace="tester") as d:
        turns.poll(d)
    server.add("org/late", {}, CARD)
    refusal = server.fault("/api/.*", status=status, n=-1)
    with opened(server, home, publish__namespace="tester") as d:
        (said,) = told(d, "warning")
        assert f"answered {status}" in said
        running = cycle.runner(d)
        for _ in range(2):
            turn = turns.take(d, "watch", running=running)
            assert f"answered {status}" in str(turn.waiting[0])
            assert turn.due > d.now()
            d.now.now += timedelta(hours=1)
        refusal.n = 0
        turns.take(d, "watch", running=running)
        assert statuses(d)["org/late"] == "seen"


@pytest.mark.parametrize("status", REFUSALS)
def test_a_hub_that_never_answered_us_ends_the_first_start(server, home, status):
    server.fault("/api/models", status=status, n=-1)
    with opened(server, home) as d, pytest.raises(KinshipError, match=f"answered {status}"):
        turns.take(d, "watch")


def test_a_wrong_token_ends_the_first_start_also_on_another_hub(server, home, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with opened(server, home, publish__namespace="tester") as d:
        turns.poll(d)
    with HubServer() as other:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", other.url)
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        with (
            pytest.raises(KinshipError, match=r"answered 401 .*use a token"),
            opened(other, home, publish__namespace="tester"),
        ):
            pass


def test_a_wrong_bit_in_a_listed_commit_costs_the_good_one_nothing(server, home):
    server.add("org/a", {}, CARD)
    watched(server, home)

    def other(rows):
        return [row | {"sha": "f" * 40} if row["id"] == "org/a" else row for row in rows]

    server.fault("/api/models", "edit", n=-1, edit=other)
    with opened(server, home) as d:
        d.now.now = NOON + DAY
        turns.take(d, "watch")
        assert states(d)["org/a"] == ("seen", None)


def test_a_description_is_believed_against_a_model_only_when_it_is_told_twice(server, home):
    server.add("org/empty", {}, CARD)
    bits = {"config": {"quantization_config": {}}}
    server.fault("/api/models/org/empty/.*", "edit", edit=lambda info: info | bits)
    with opened(server, home) as d:
        turns.take(d, "watch", "triage")
        assert states(d) == {"org/empty": ("seen", None)}
        assert "differently each time" in told(d, "warning")[-1]
        d.now.now = NOON + DAY
        turns.take(d, "triage")
        assert statuses(d) == {"org/empty": "refused"}
