"""processes: how long one has been there."""

import os
import time

from fedmask.processes import seconds_since_start

TICK_SECONDS = 0.01


def test_a_forked_process_starts_with_its_fork() -> None:
    time.sleep(0.2)
    before = seconds_since_start()
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        os.write(writer, str(seconds_since_start()).encode())
        os._exit(0)
    os.waitpid(child, 0)
    told = float(os.read(reader, 100))
    os.close(reader)
    os.close(writer)
    assert -TICK_SECONDS <= told <= seconds_since_start() - before + 2 * TICK_SECONDS
    assert before >= 0.2
