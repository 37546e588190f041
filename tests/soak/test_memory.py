"""What a soak reads of memory is what is held."""

from __future__ import annotations

import subprocess
import sys

import pytest

from workbench.soak.memory import MIB, resident_mib

# Four threads allocate at the same time; glibc tells of each heap that there is.
THREADS = """
import ctypes
import threading
from workbench.soak.memory import use_one_heap

libc = ctypes.CDLL(None)
use_one_heap()
together = threading.Barrier(4)

def allocate():
    together.wait()
    libc.malloc(1000)
    together.wait()

threads = [threading.Thread(target=allocate) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc.malloc_stats()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks glibc")
def test_threads_allocate_from_one_heap() -> None:
    told = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, check=True).stderr
    assert told.count("Arena ") == 1, told


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_is_held_is_seen_and_what_was_freed_is_not() -> None:
    held = [bytes([1]) * size for size in [1000] * 40_000]
    during = resident_mib()
    assert during is not None
    del held
    after = resident_mib()
    assert after is not None
    assert during - after > 0.9 * 40_000 * 1000 / MIB
