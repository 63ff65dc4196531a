"""The table of states, pair by pair, and the promises that its prose makes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from initd.supervise.states import HAS_PROCESS, IGNORED, TABLE, WANTED, Action, Event, State, step

ENDS = {Event.EXITED, Event.EXITED_AGAIN, Event.EXITED_EARLY}
PAIRS = [(state, event) for state in State for event in Event]


def names(value: State | Event) -> str:
    return value.name


LIVING = sorted(HAS_PROCESS, key=names)
UP = sorted(WANTED, key=names)


@pytest.mark.parametrize(("state", "event"), PAIRS, ids=names)
def test_each_pair_is_in_the_table_or_ignored(state: State, event: Event) -> None:
    assert (event in TABLE[state]) != ((state, event) in IGNORED)
    if (state, event) in IGNORED:
        assert step(state, event) == (state, None)


@pytest.mark.parametrize(("state", "event"), PAIRS, ids=names)
def test_a_process_is_started_only_where_none_lives(state: State, event: Event) -> None:
    if step(state, event).action is Action.SPAWN:
        assert state not in HAS_PROCESS or event in ENDS


@pytest.mark.parametrize("state", State, ids=names)
def test_the_end_of_a_process_leaves_no_state_that_has_one_but_by_a_start(state: State) -> None:
    for event in ENDS:
        after, action = step(state, event)
        assert after not in HAS_PROCESS or action is Action.SPAWN or state not in HAS_PROCESS
        if state in HAS_PROCESS:
            assert event in TABLE[state], "a process that ends unheard would be waited for for ever"


@pytest.mark.parametrize("state", LIVING, ids=names)
def test_a_process_that_is_told_to_end_is_killed_when_it_does_not(state: State) -> None:
    after, action = step(state, Event.STOP)
    assert after in {State.STOPPING, State.DOWN}
    if state in {State.STARTING, State.RUNNING}:
        assert action is Action.TERMINATE
    assert step(State.STOPPING, Event.TIMER) == (State.STOPPING, Action.KILL)


@pytest.mark.parametrize("state", State, ids=names)
def test_stop_unwants_and_start_wants_in_every_state(state: State) -> None:
    assert step(state, Event.STOP).state not in WANTED
    assert step(state, Event.START).state in WANTED
    assert step(state, Event.RESTART).state in WANTED


@pytest.mark.parametrize("state", UP, ids=names)
def test_only_a_stop_unwants(state: State) -> None:
    assert {event for event in Event if step(state, event).state not in WANTED} == {Event.STOP}


@given(st.lists(st.sampled_from(Event)))
def test_any_history_keeps_one_process_and_the_last_wish(sequence: list[Event]) -> None:
    state, lives, wanted = State.DOWN, False, False
    for event in sequence:
        if (event in ENDS and not lives) or (event is Event.SPAWN_FAILED and state is not State.STARTING):
            continue  # it cannot happen
        if event in {Event.START, Event.RESTART, Event.STOP}:
            wanted = event is not Event.STOP
        if event in ENDS or event is Event.SPAWN_FAILED:
            lives = False
        state, action = step(state, event)
        if action is Action.SPAWN:
            assert not lives
            lives = True
        assert lives == (state in HAS_PROCESS)
        assert wanted == (state in WANTED)


@given(st.lists(st.sampled_from(sorted(set(Event) - {Event.START, Event.RESTART}, key=names))))
def test_a_stop_leads_down_whatever_comes_in_between(others: list[Event]) -> None:
    for begin in State:
        state = step(begin, Event.STOP).state
        for event in others:
            state = step(state, event).state
            assert state in {State.STOPPING, State.DOWN}
        assert step(state, Event.EXITED).state is State.DOWN
