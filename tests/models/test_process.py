"""Memory of a process."""

import mmap
import os

from models.process import peak_resident_bytes, resident_bytes


def test_memory_that_is_written_counts():
    written = os.urandom(2**20)
    before = resident_bytes(os.getpid())
    with mmap.mmap(-1, 50 * 2**20) as held:  # fresh, where malloc might give what was resident already, or keep a copy
        for _ in range(50):
            held.write(written)
        assert before + 40 * 2**20 < resident_bytes(os.getpid()) < before + 100 * 2**20
    assert resident_bytes(2**22 + 1) == 0  # no process has such a number
    assert resident_bytes() <= peak_resident_bytes()
