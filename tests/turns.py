"""The loop turned by hand, without a clock: a look at the hub, or one generation."""

from dataclasses import dataclass

from kinship_daemon import cycle
from kinship_daemon.context import Context
from kinship_daemon.runner import Runner, Turn
from kinship_daemon.steps.decide import converged

HUB = {"watch", "triage", "admit"}
KINDS = {step.kind for step in cycle.STEPS}


@dataclass(frozen=True)
class Outcome:
    """Why there is nothing more to do until a new fine-tune comes; None if there is."""

    stop: str | None


def poll(d: Context) -> None:
    """One look: whoever is new is admitted or refused. Raises what keeps it from being done."""
    turn = take(d, *HUB)
    wait_a_little(d)
    raise_waiting(turn)


def evolve(d: Context) -> Outcome:
    """One generation, from where the last call or the last process left off."""
    raise_waiting(cycle.generation(cycle.runner(d), d))
    stop = converged(d)
    return Outcome(None if stop is None else stop.stop)


def take(d: Context, *kinds: str, running: Runner | None = None) -> Turn:
    """Only these kinds of steps, until none of them has work; `watch` is one look."""
    running, look = running or cycle.runner(d), "watch" in kinds
    while (turn := running.loop(d.now(), look=look, skip=KINDS - set(kinds))).kind is not None:
        look = False
    return turn


def raise_waiting(turn: Turn) -> None:
    for error in reversed(turn.waiting):
        raise error


def wait_a_little(d: Context) -> None:
    """Where a test's clock stands still: until the next look is due."""
    if hasattr(d.now, "pass_minutes"):
        d.now.pass_minutes(d.config.watch.poll_minutes)
