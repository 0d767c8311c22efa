"""Whether other processes kept a round waiting for a core: wall and CPU seconds in, one line for a person out.

Threads of torch's that wait give their core back, so a round on a machine of its own takes at least one core's time:
wall <= CPU. One that had to share its cores shows more wall time than that.
"""

LEAST_WALL_SECONDS = 5.0
"""Shorter rounds are not judged: reading files and starting up weigh too much in them."""
MOST_TIMES_ITS_SHARE, MOST_TIMES_ONE_CORE = 3.0, 1.5


def busy_line(wall_seconds: float, cpu_seconds: float, threads: int) -> str | None:
    """What to tell of a round that this process computed alone; None where it had its cores.

    A round counts as kept waiting where it took more than three times its CPU time over its threads, and more than
    half as much again as its CPU time on one core: work that keeps one thread busy and the others idle is no sign.
    """
    if wall_seconds < LEAST_WALL_SECONDS:
        return None
    is_slow = wall_seconds > MOST_TIMES_ITS_SHARE * cpu_seconds / threads
    if not is_slow or wall_seconds <= MOST_TIMES_ONE_CORE * cpu_seconds:
        return None
    return (
        f"the round took {wall_seconds:.1f} s for {cpu_seconds:.1f} s of CPU time on threads={threads}: other "
        "processes take this machine's cores; wait for them, or take fewer threads "
        "(another number of threads gives other bits)"
    )
