"""Asks a policy in a process of its own: it may raise, hang or die without harming the daemon."""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from kinship_daemon.errors import KinshipError
from kinship_policies.policy import Decision, Policy, Population

__all__ = ["FAILED", "NOTHING_NEW", "SPENT", "PolicyFailed", "ask"]

# How a stop begins that the daemon decides: for a policy that failed, or where nothing may come of
# what it proposed.
FAILED = "the policy failed: "
NOTHING_NEW = "the policy proposed nothing new"
SPENT = "no more merges are allowed: limits.merges_total"

# The parent alone decides when the child ends; Ctrl-C and systemd signal the whole group.
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class PolicyFailed(KinshipError):
    """A policy raised, took too long, or answered what is no decision."""


def ask(policy: Policy, population: Population, seconds: float) -> Decision:
    """
    The policy's decision.

    Args:
        seconds: After which it is stopped, its process's start included.

    Raises:
        PolicyFailed: There is none, or it is about models that the population does not have.
    """
    deadline = time.monotonic() + seconds
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_answer, args=(theirs,), name="policy", daemon=True)
    # Blocked, not ignored: inherited by the child for the time until it can say that it ignores
    # them, and for this thread only.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    try:
        decision = _answered(ours, _packed(policy, population), deadline, seconds)
    finally:
        process.kill()
        process.join()
        ours.close()
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


def _answered(pipe: Connection, question: bytes, deadline: float, seconds: float) -> Decision:
    try:
        pipe.send_bytes(question)
        if not pipe.poll(max(0.0, deadline - time.monotonic())):
            raise PolicyFailed(f"it took longer than limits.decision_seconds ({seconds:g})")
        kind, text = pipe.recv()
    except (EOFError, ConnectionError):
        raise PolicyFailed("its process died") from None
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
    """The child's life: one question, one answer."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.dup2(2, 1)  # what a policy prints is no event of the daemon's
    try:
        policy, population = pickle.loads(pipe.recv_bytes())  # noqa: S301 - from our own parent
        answer = ("decision", _decided(policy, population))
    except Exception as error:
        answer = ("error", _line(error))
    sys.stdout.flush()  # this process may be killed as soon as it has answered
    with suppress(BrokenPipeError):  # nobody is left who asked
        pipe.send(answer)


def _end_with_parent() -> None:
    """A policy that hangs is not to outlive the daemon."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _decided(policy: Policy, population: Population) -> str:
    decision = policy.propose(population)
    if not isinstance(decision, Decision):
        raise TypeError(f"it answered with a {type(decision).__name__}, which is no Decision")
    return json.dumps(decision.to_json(), allow_nan=False)


def _line(error: Exception) -> str:
    """The error and where it was raised, in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}"
