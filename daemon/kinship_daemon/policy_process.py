"""Asks a policy in a process of its own: it may raise, hang or die without harming the daemon."""

from __future__ import annotations

import json
import pickle
import sys
import threading
import time
import traceback
from contextlib import closing, suppress
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path

from kinship_daemon.child_process import ChildProcess, settle
from kinship_daemon.errors import KinshipError, Stopped
from kinship_policies.policy import Decision, Policy, Population

__all__ = ["PolicyDied", "PolicyFailed", "ask"]

# So often a wait for the policy looks whether it is over.
_TICK_SECONDS = 0.1
# So long a talk may take to end once the child was killed, whose own children may hold the pipe.
_END_SECONDS = 1.0


class PolicyFailed(KinshipError):
    """A policy raised, or answered what is no decision: it would again."""


class PolicyDied(PolicyFailed):
    """It was killed, out of memory, or too slow: it may well answer next time."""


def ask(
    policy: Policy, population: Population, seconds: float, stop: threading.Event | None = None
) -> Decision:
    """
    The policy's decision.

    Args:
        seconds: After which it is stopped, its process's start included.
        stop: Ends the wait for it.

    Raises:
        Stopped: `stop` was set meanwhile.
        PolicyDied: Its process was killed, or had too little memory or time.
        PolicyFailed: There is none, or it is about models that the population does not have.
    """
    deadline = time.monotonic() + seconds
    request = _packed(policy, population)
    with (
        closing(ChildProcess("policy", _answer)) as child,
        closing(_Talk(child, request)) as talk,
    ):
        while not talk.is_over():
            if stop is not None and stop.is_set():
                raise Stopped
            if time.monotonic() > deadline:
                raise PolicyDied(f"it took longer than limits.decision_seconds ({seconds:g})")
        decision = _decision(child, talk.answer)
    _check_names(decision, population)
    return decision


def _packed(policy: Policy, population: Population) -> bytes:
    try:
        return pickle.dumps((policy, population))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise PolicyFailed(
            f"it cannot be sent to a process of its own ({error}); "
            "a policy is a class at the top of a module, with plain settings"
        ) from None


class _Talk:
    """A request and its answer, in a thread: a pipe that is full, or half read, is left alone."""

    def __init__(self, child: ChildProcess, request: bytes) -> None:
        self.answer: tuple[str, str] | None = None  # kind and text; None where the child died
        self._child = child
        self._thread = threading.Thread(
            target=self._talk, args=(request,), name="policy", daemon=True
        )
        self._thread.start()

    def is_over(self) -> bool:
        """Waits a moment for it."""
        self._thread.join(_TICK_SECONDS)
        return not self._thread.is_alive()

    def close(self) -> None:
        self._child.kill()
        self._thread.join(_END_SECONDS)

    def _talk(self, request: bytes) -> None:
        with suppress(EOFError, OSError):
            self._child.pipe.send_bytes(request)
            self.answer = self._child.pipe.recv()


def _decision(child: ChildProcess, answer: tuple[str, str] | None) -> Decision:
    if answer is None:
        how = child.ending()
        # An exit is the policy's own doing; a signal is somebody else's.
        died = PolicyFailed if how.startswith("exit code") else PolicyDied
        raise died(f"its process died ({how})")
    kind, text = answer
    if kind == "memory":
        raise PolicyDied("it needs more memory than there is")
    if kind == "error":
        raise PolicyFailed(text)
    try:
        return Decision.read(text)
    except ValueError as error:
        raise PolicyFailed(str(error)) from None


def _check_names(decision: Decision, population: Population) -> None:
    for proposal in decision.merges:
        if unknown := [name for name in proposal.parents if name not in population]:
            raise PolicyFailed(
                f"it proposed to merge {', '.join(unknown)}, which the population does not have"
            )
        if len({*proposal.parents}) < max(2, len(proposal.parents)):
            raise PolicyFailed(f"it proposed to merge {', '.join(proposal.parents)} alone")
    if unknown := [name for name in decision.top if name not in population]:
        raise PolicyFailed(f"its top names {', '.join(unknown)}, who is not there")


def _answer(pipe: Connection) -> None:
    """The child's life: one request, one answer."""
    settle()
    try:
        policy, population = pickle.loads(pipe.recv_bytes())  # noqa: S301 - from our own parent
        answer = ("decision", _decided(policy, population))
    except MemoryError:
        answer = ("memory", "")
    except Exception as error:
        answer = ("error", _line(error))
    sys.stdout.flush()  # this process may be killed as soon as it has answered
    with suppress(BrokenPipeError):  # nobody is left who asked
        pipe.send(answer)


def _decided(policy: Policy, population: Population) -> str:
    decision = policy.propose(population)
    if not isinstance(decision, Decision):
        raise TypeError(f"it answered with a {type(decision).__name__}, which is no Decision")
    return json.dumps(asdict(decision), allow_nan=False)


def _line(error: Exception) -> str:
    """The error and where it was raised, in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}"
