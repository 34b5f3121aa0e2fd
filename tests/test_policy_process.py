"""A policy that misbehaves harms nobody but itself."""

import os
import threading
import time
from dataclasses import dataclass, replace

import pytest
from huggingface_hub import get_token

from kinship_daemon import policy_process
from kinship_daemon.errors import Stopped
from kinship_daemon.policy_process import PolicyDied, PolicyFailed, ask
from kinship_policies.policy import Decision, Member, Population, Proposal
from kinship_policies.topk import TopKGreedy

PAIR = Population(
    generation=1,
    members=(Member("a", 0.5), Member("b", 0.6)),
    kinship=((1.0, 0.2), (0.2, 1.0)),
)

UNSOUND = {
    "hollow": Decision(None, (), None),
    "parentless": Decision((Proposal(5, "pair", "why"),), (), None),
    "wordy": Decision((), (), "high", stop="done"),
    "alone": Decision((Proposal(("a", "a"), "pair", "why"),), (), None),
    "unknown names": Decision((), ("nobody",), None, stop="done"),
}


@dataclass
class Odd:
    """Does what it is told to instead of deciding."""

    way: str

    def propose(self, _population):
        print("a policy may chat")
        match self.way:
            case "raises":
                raise KeyError("no such member")
            case "hangs":
                time.sleep(60)
            case "dies":
                os._exit(1)
            case "nonsense":
                return {"merges": []}
            case "nan":
                return Decision((), ("a",), float("nan"), stop="done")
        return UNSOUND.get(self.way)


class Nosy:
    def propose(self, _population):
        raise RuntimeError(f"token {get_token()}, {sorted(k for k in os.environ if 'TOKEN' in k)}")


def test_a_policy_finds_no_token(tmp_path, monkeypatch):
    (tmp_path / "token").write_text("hf_ofafile")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "hf_oftheenvironment")
    with pytest.raises(PolicyFailed, match="token None") as told:
        ask(Nosy(), PAIR, 60)
    assert "'HF_TOKEN'" not in str(told.value)


def test_a_policy_answers_as_it_would_here():
    policy = TopKGreedy(k=2)
    assert ask(policy, PAIR, 60) == policy.propose(PAIR)


@pytest.mark.parametrize(
    ("way", "said"),
    [
        ("raises", r"KeyError: 'no such member' \(test_policy_process.py:\d+\)"),
        ("dies", "its process died"),
        ("nonsense", "it answered with a dict"),
        ("nan", "not JSON compliant"),
        ("hollow", "merges of its decision: Input should be a valid"),
        ("parentless", "merges.0.parents of its decision: Input should be a valid"),
        ("wordy", "top_mean_kinship of its decision: Input should be a valid number"),
        ("alone", "it proposed to merge a, a alone"),
        ("unknown names", "its top names nobody"),
    ],
)
def test_what_a_policy_does_instead_is_said_in_one_line(way, said):
    with pytest.raises(PolicyFailed, match=said) as failed:
        ask(Odd(way), PAIR, 60)
    assert "\n" not in str(failed.value)


def test_a_policy_that_hangs_is_stopped():
    start = time.monotonic()
    with pytest.raises(PolicyFailed, match=r"limits.decision_seconds \(3\)"):
        ask(Odd("hangs"), PAIR, 3)
    assert time.monotonic() - start < 40


def deaf(_pipe):
    time.sleep(60)


def test_one_that_takes_no_request_is_stopped_too(monkeypatch):
    """A large request does not fit into the pipe."""
    monkeypatch.setattr(policy_process, "_answer", deaf)
    members = tuple(Member(f"{number} {'x' * 1000}", 0.5) for number in range(2000))
    with pytest.raises(PolicyDied, match=r"limits.decision_seconds \(3\)"):
        ask(TopKGreedy(k=2), replace(PAIR, members=members, kinship=()), 3)


def test_a_stop_ends_the_wait_for_a_policy():
    stop = threading.Event()
    timer = threading.Timer(1, stop.set)
    timer.start()
    start = time.monotonic()
    with pytest.raises(Stopped):
        ask(Odd("hangs"), PAIR, 60, stop)
    assert time.monotonic() - start < 40
    timer.join()


def test_a_policy_that_cannot_travel_is_told_why():
    class Local:
        def propose(self, _population):
            return Decision((), (), None, stop="done")

    with pytest.raises(PolicyFailed, match="a class at the top of a module"):
        ask(Local(), PAIR, 60)


def test_what_a_policy_prints_is_no_output_of_ours(capfd):
    with pytest.raises(PolicyFailed):
        ask(Odd("nonsense"), PAIR, 60)
    out, err = capfd.readouterr()
    assert out == ""
    assert "a policy may chat" in err
