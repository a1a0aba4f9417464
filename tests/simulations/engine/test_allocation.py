"""Freed memory is used again, here and in workers."""

import gc
import os
import platform
import subprocess
import sys

import pytest

from simulations.engine.memory import WORKERS, lasting_objects

FAULTS = """
import resource, sys, threading
import numpy as np
if sys.argv[1] == "here":
    from simulations.engine.memory import reuse_memory
    reuse_memory()
sizes = [9 << 20, 11 << 20] * 20
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for size in sizes:
    first, second = np.empty(size, np.uint8), np.empty(size, np.uint8)
    first[:], second[:] = 1, 2
    del first, second
    if "threads" in sys.argv:  # what this thread freed, the next ones take
        threads = [threading.Thread(target=lambda: np.empty(size, np.uint8).fill(3)) for _ in range(2)]
        for thread in threads:
            thread.start()
            thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*how: str) -> int:
    """Pages that the system had to give while 40 pairs of arrays of 2,300 to 2,800 pages were made and freed."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    plain["NUMPY_MADVISE_HUGEPAGE"] = "0"
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, *how],
        env=plain | (WORKERS if "workers" in how else {}),
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has no such setting")
@pytest.mark.parametrize("how", ["here", "workers"])
def test_arrays_take_the_place_of_those_before(how):
    assert faults(how) < 0.2 * faults("plain")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has no such setting")
@pytest.mark.parametrize("how", ["here", "workers"])
def test_threads_share_what_was_freed(how):
    alone = faults(how)
    assert faults(how, "threads") < 1.2 * alone + 1000


FREED = """
import psutil
import numpy as np
from fl_peel.mmap_arrays import release_memory
from simulations.engine.memory import reuse_memory
reuse_memory()
arrays = [np.ones(1 << 20, np.uint8) for _ in range(200)]
last = np.ones(1 << 20, np.uint8)  # above them
del arrays
held = psutil.Process().memory_info().rss
release_memory()
print(held - psutil.Process().memory_info().rss)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has no such function")
def test_between_stages_what_is_free_is_given_back():
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 150 << 20


def test_what_was_there_before_a_run_is_not_looked_through():
    before = gc.get_freeze_count()
    with lasting_objects():
        during = gc.get_freeze_count()
    assert during > before + 10_000
    assert gc.get_freeze_count() == 0
