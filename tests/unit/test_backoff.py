"""The delays between starts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from initd.supervise.backoff import FIRST, HEALTHY, LONGEST, LOOP, Backoff


def test_delays_double_up_to_the_longest() -> None:
    backoff = Backoff()
    delays = [backoff.failed(0.0) for _ in range(12)]
    for index, delay in enumerate(delays):
        whole = min(FIRST * 2**index, LONGEST)
        assert whole * 0.8 <= delay <= whole
    assert delays[-1] > LONGEST / 2


def test_a_loop_is_seen_and_ends_with_health() -> None:
    backoff = Backoff()
    seen = []
    for _ in range(LOOP):
        backoff.failed(1.0)
        seen.append(backoff.looping)
    assert seen == [False] * (LOOP - 1) + [True]
    assert backoff.failed(HEALTHY) == 0.0, "started again at once"
    assert not backoff.looping


@given(st.lists(st.floats(0, 1e9), min_size=1))
def test_it_never_gives_up_and_never_spins(lives: list[float]) -> None:
    backoff = Backoff()
    for ready in lives:
        delay = backoff.failed(ready)
        assert FIRST * 0.8 <= delay <= LONGEST or (delay == 0.0 and ready >= HEALTHY)


@given(st.integers(1, 5000))
def test_thousands_of_failures_overflow_nothing(failures: int) -> None:
    backoff = Backoff()
    backoff.failures = failures
    assert backoff.failed(0.0) <= LONGEST
