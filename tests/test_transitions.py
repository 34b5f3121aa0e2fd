"""The tables of the life cycles, and the page that is made of them."""

from pathlib import Path

import pytest

from kinship_storage.errors import LineageError
from kinship_storage.transitions import CAUSES, JOBS, MODELS, life_cycles

PAGE = Path(__file__).parents[1] / "docs" / "life-cycles.md"
BOTH = pytest.mark.parametrize("cycle", [MODELS, JOBS], ids=["models", "jobs"])


def reached(cycle, state):
    """Every state that some run of events leads to."""
    found, waiting = set(), [state]
    while waiting:
        for to in cycle.ways_out(waiting.pop()).values():
            if to not in found:
                found.add(to)
                waiting.append(to)
    return found


@BOTH
def test_every_state_has_a_way_on(cycle):
    assert all(cycle.ways_out(state) for state in cycle.states)


@BOTH
def test_every_state_can_be_reached_and_leads_back_to_work(cycle):
    assert reached(cycle, None) == set(cycle.states)
    for state in cycle.states:
        assert set(cycle.first) & {state, *reached(cycle, state)}


@BOTH
def test_every_state_and_event_of_the_table_is_described_and_no_other(cycle):
    states = set(cycle.transitions.values()) | {
        state for state, _ in cycle.transitions if state is not None
    }
    assert states == set(cycle.states)
    assert {event for _, event in cycle.transitions} == set(cycle.events)
    assert set(cycle.causes) <= set(cycle.events)
    assert all(set(causes) <= set(CAUSES) for causes in cycle.causes.values())


@BOTH
def test_an_event_leads_where_the_table_says_and_nowhere_else(cycle):
    for state in cycle.states:
        for event in cycle.events:
            if (state, event) in cycle.transitions:
                assert cycle.after("x", state, event) == cycle.transitions[state, event]
            else:
                with pytest.raises(LineageError) as error:
                    cycle.after("x", state, event)
                expected = f"{cycle.of} x is {state} and cannot {event}; it can "
                assert str(error.value).startswith(expected)
                assert all(way in str(error.value) for way in cycle.ways_out(state))


def test_states_that_carry_a_cause_are_those_of_what_is_set_aside():
    assert MODELS.set_aside == ("refused", "quarantined")
    assert JOBS.set_aside == ("waiting", "failed")


@BOTH
def test_a_table_cannot_be_changed(cycle):
    with pytest.raises(TypeError):
        cycle.transitions["done", "start"] = "running"


def test_the_documentation_shows_the_tables_as_they_are():
    assert PAGE.read_text(encoding="utf-8") == life_cycles(), (
        "make it again: python -m kinship_storage.transitions > docs/life-cycles.md"
    )
