"""
Every state of a model and of a job, and every event that leads from one to the next.

Nothing else changes a state. `python -m kinship_storage.transitions` prints the page
`docs/life-cycles.md`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Generic, Literal, TypeVar, get_args

from kinship_storage.errors import LineageError

__all__ = [
    "CAUSES",
    "JOBS",
    "MODELS",
    "Cause",
    "JobEvent",
    "JobStatus",
    "LifeCycle",
    "ModelEvent",
    "Status",
    "life_cycles",
]

Cause = Literal["model", "world", "settings"]
Status = Literal["seen", "proposed", "admitted", "refused", "quarantined"]
JobStatus = Literal["pending", "running", "waiting", "done", "failed"]
ModelEvent = Literal[
    "notice",
    "notice_refused",
    "propose",
    "found",
    "admit",
    "refuse",
    "quarantine",
    "forget",
    "reopen",
    "repropose",
]
JobEvent = Literal["submit", "start", "finish", "wait", "fail", "interrupt", "retry", "lose"]

State = TypeVar("State", bound=str)
Event = TypeVar("Event", bound=str)

CAUSES: Mapping[Cause, str] = MappingProxyType(
    {
        "model": (
            "A checked fact about its own bytes: they are bad, are those of another model too, or "
            "a newer revision replaced them. Final for those bytes, but a copy is looked at again "
            "when the other model's bytes are lost."
        ),
        "world": (
            "The hub, the disk, memory, a worker or a policy process. "
            "Tried again with growing waits, and at the next start."
        ),
        "settings": "A rule or an evaluation setting. Tried again when that setting changes.",
    }
)


@dataclass(frozen=True)
class LifeCycle(Generic[State, Event]):
    """
    The states and events of one kind of thing.

    Attributes:
        of: What lives it: `model` or `job`.
        states: What each state means, in plain words.
        events: What each event means, in plain words.
        causes: The causes that an event can give; an event that is not here gives none.
        transitions: (state, event) -> state; the state is None before the thing exists.
    """

    of: str
    states: Mapping[State, str]
    events: Mapping[Event, str]
    causes: Mapping[Event, tuple[Cause, ...]]
    transitions: Mapping[tuple[State | None, Event], State]

    def after(self, name: str, state: State, event: Event) -> State:
        """
        The state that the event leads to.

        Raises:
            LineageError: The state does not have this event.
        """
        following = self.transitions.get((state, event))
        if following is None:
            raise LineageError(
                f"{self.of} {name} is {state} and cannot {event}; it can {self._can(state)}"
            )
        return following

    @property
    def first(self) -> tuple[State, ...]:
        """The states that a new one can have, in the order of the table."""
        return tuple(to for (state, _), to in self.transitions.items() if state is None)

    @property
    def set_aside(self) -> tuple[State, ...]:
        """The states that always come with a cause."""
        reached = {to for (_, event), to in self.transitions.items() if event in self.causes}
        return tuple(state for state in self.states if state in reached)

    def ways_out(self, state: State) -> dict[Event, State]:
        """The events that a state has, and where each leads."""
        return {event: to for (of, event), to in self.transitions.items() if of == state}

    def _can(self, state: State) -> str:
        return ", ".join(sorted(self.ways_out(state)))


_ANY: tuple[Cause, ...] = get_args(Cause)

MODELS: LifeCycle[Status, ModelEvent] = LifeCycle(
    of="model",
    states=MappingProxyType(
        {
            "seen": "A hub lists it. It waits for triage and admission.",
            "proposed": "A policy asked for this merge. It waits to be made and scored.",
            "admitted": "It is part of the population: policies may choose it.",
            "refused": "A rule, the hub, or somebody who said `forget` keeps it out.",
            "quarantined": "Something went wrong with it. It costs nobody else anything.",
        }
    ),
    events=MappingProxyType(
        {
            "notice": "A watch finds it on the hub.",
            "notice_refused": "A watch finds it on the hub, and a rule refuses it at a glance.",
            "propose": "A decision of the policy names it.",
            "found": "The daemon starts with it as its base.",
            "admit": "It passed every check (what came from a hub), or it has scores (a merge).",
            "refuse": "A rule says no, or the quick screen does. Not for merges.",
            "quarantine": "A step on it failed for good, or for now.",
            "forget": "Somebody wants it out, for good: only `retry` with its name undoes that.",
            "reopen": "Its cause is gone: it waits for triage again. Not for merges.",
            "repropose": "Its cause is gone: it waits to be made again. Only for merges.",
        }
    ),
    causes=MappingProxyType(
        {
            "notice_refused": _ANY,
            "refuse": _ANY,
            "quarantine": _ANY,
            "forget": ("settings",),
        }
    ),
    transitions=MappingProxyType(
        {
            (None, "notice"): "seen",
            (None, "notice_refused"): "refused",
            (None, "propose"): "proposed",
            (None, "found"): "admitted",
            ("seen", "admit"): "admitted",
            ("seen", "refuse"): "refused",
            ("seen", "quarantine"): "quarantined",
            ("proposed", "admit"): "admitted",
            ("proposed", "quarantine"): "quarantined",
            ("admitted", "refuse"): "refused",
            ("admitted", "quarantine"): "quarantined",
            ("seen", "forget"): "refused",
            ("proposed", "forget"): "refused",
            ("admitted", "forget"): "refused",
            ("refused", "forget"): "refused",
            ("quarantined", "forget"): "refused",
            ("refused", "reopen"): "seen",
            ("refused", "repropose"): "proposed",
            ("quarantined", "reopen"): "seen",
            ("quarantined", "repropose"): "proposed",
        }
    ),
)

JOBS: LifeCycle[JobStatus, JobEvent] = LifeCycle(
    of="job",
    states=MappingProxyType(
        {
            "pending": "It can start now.",
            "running": "A worker is at it. After a kill it is pending again.",
            "waiting": "The world was in its way. It can start when its wait is over.",
            "done": "Its result is in the lineage, written in one transaction with this state.",
            "failed": "It cannot succeed as things are.",
        }
    ),
    events=MappingProxyType(
        {
            "submit": "A step has work to do.",
            "start": "A worker takes it. From `waiting` only once its wait is over.",
            "finish": "Its result is written.",
            "wait": "The world was in its way: it has a time to be tried again.",
            "fail": "The model or a setting is at fault.",
            "interrupt": "A kill, or the daemon was asked to stop.",
            "retry": "Its cause is gone, or somebody asks for it.",
            "lose": "What it left is gone.",
        }
    ),
    causes=MappingProxyType({"wait": ("world",), "fail": ("model", "settings")}),
    transitions=MappingProxyType(
        {
            (None, "submit"): "pending",
            ("pending", "start"): "running",
            ("pending", "fail"): "failed",
            ("waiting", "start"): "running",
            ("waiting", "retry"): "pending",
            ("running", "finish"): "done",
            ("running", "wait"): "waiting",
            ("running", "fail"): "failed",
            ("running", "interrupt"): "pending",
            ("failed", "retry"): "pending",
            ("done", "lose"): "pending",
        }
    ),
)


def life_cycles() -> str:
    """The page `docs/life-cycles.md`: both life cycles, drawn and in tables (Markdown)."""
    lines = [
        "<!-- Made by `python -m kinship_storage.transitions > docs/life-cycles.md`;"
        " do not edit. -->",
        "",
        "# Life cycles",
        "",
        "Every model and every job is in one state. Only the events on this page change it.",
        "",
        "What is set aside has a cause, and the cause says when it is tried again:",
        "",
        *_table(("cause", "meaning"), [(f"`{cause}`", words) for cause, words in CAUSES.items()]),
        "",
        *_page(MODELS),
        "",
        *_page(JOBS),
    ]
    return "\n".join(lines) + "\n"


def _page(cycle: LifeCycle[State, Event]) -> list[str]:
    arrows = [
        f"    {state or '[*]'} --> {to}: {event}"
        for (state, event), to in cycle.transitions.items()
    ]
    states = [
        (
            f"`{state}`",
            words,
            ", ".join(f"`{e}` -> {to}" for e, to in cycle.ways_out(state).items()),
        )
        for state, words in cycle.states.items()
    ]
    events = [
        (f"`{event}`", words, ", ".join(cycle.causes.get(event, ())) or "none")
        for event, words in cycle.events.items()
    ]
    return [
        f"## The life of a {cycle.of}",
        "",
        "```mermaid",
        "stateDiagram-v2",
        *arrows,
        "```",
        "",
        *_table(("state", "meaning", "ways out"), states),
        "",
        *_table(("event", "meaning", "causes"), events),
    ]


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (heads, ("---",) * len(heads), *rows)]


if __name__ == "__main__":
    print(life_cycles(), end="")
