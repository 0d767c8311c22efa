"""A round that waited for cores is told; one that had them is not, however its work was spread."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmask.runs.busy_machine import busy_line


@pytest.mark.parametrize(
    ("wall", "cpu", "threads", "is_told"),
    [
        (91.8, 33.2, 2, True),  # two threads on cores that others take
        (16.6, 33.2, 2, False),  # both threads busy all the time
        (33.2, 33.2, 16, False),  # work for one thread, fifteen idle
        (4.0, 1.0, 2, False),  # too short to judge
        (40.0, 20.0, 1, False),  # a core shared with one other process
        (80.0, 20.0, 1, True),
    ],
)
def test_what_is_told(wall: float, cpu: float, threads: int, is_told: bool) -> None:
    assert (busy_line(wall, cpu, threads) is not None) == is_told


def test_the_line_says_what_was_measured_and_what_helps() -> None:
    assert busy_line(91.84, 33.21, 2) == (
        "the round took 91.8 s for 33.2 s of CPU time on threads=2: other processes take this machine's cores; wait "
        "for them, or take fewer threads (another number of threads gives other bits)"
    )


@given(cpu=st.floats(0, 1e6), threads=st.integers(1, 256), share=st.floats(0, 1.4))
def test_a_round_that_kept_one_core_busy_is_never_told(cpu: float, threads: int, share: float) -> None:
    assert busy_line(share * cpu, cpu, threads) is None
