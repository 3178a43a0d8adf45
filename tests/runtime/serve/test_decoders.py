"""The threads that decode: what they are given is done, and whether all of them hang is known."""

from __future__ import annotations

import subprocess
import sys
import threading

from mimruntime.serve.execution.decoders import Decoders


def test_all_threads_have_to_hang_for_decoding_to_be_stuck() -> None:
    decoders, started, go_on = Decoders(2), threading.Semaphore(0), threading.Event()

    def hang() -> None:
        started.release()
        go_on.wait(30)

    assert not decoders.stuck(0)
    decoders.submit(hang)
    assert started.acquire(timeout=30)
    assert not decoders.stuck(0)
    decoders.submit(hang)
    assert started.acquire(timeout=30)
    assert decoders.stuck(0)
    assert not decoders.stuck(3600)
    go_on.set()
    done = threading.Event()
    decoders.submit(done.set)
    assert done.wait(30)
    decoders.close()


def test_what_waits_when_it_is_closed_is_dropped() -> None:
    decoders, started, go_on, dropped = Decoders(1), threading.Event(), threading.Event(), threading.Event()
    threads: list[threading.Thread] = []

    def hang() -> None:
        threads.append(threading.current_thread())
        started.set()
        go_on.wait(30)

    decoders.submit(hang)
    assert started.wait(30)
    decoders.submit(dropped.set)
    decoders.close()
    go_on.set()
    threads[0].join(30)  # by itself, not by its name: a thread of another test may have it
    assert not threads[0].is_alive()
    assert not dropped.is_set()


def test_a_thread_that_hangs_does_not_keep_the_interpreter() -> None:
    script = """import threading
from mimruntime.serve.execution.decoders import Decoders
Decoders(1).submit(threading.Event().wait)"""
    assert subprocess.run([sys.executable, "-c", script], timeout=60, check=False).returncode == 0
