"""What a machine, or a container on it, has."""

import mmap
import os

from service.host.machine import available_memory_bytes, resident_bytes, usable_cores

MEMINFO = "MemTotal:  8000 kB\nMemAvailable:  6000 kB\nHugePages_Total: 0\n"


def files(directory, **contents):
    directory.mkdir(exist_ok=True)
    for name, content in contents.items():
        (directory / name.replace("_", ".")).write_text(content)
    return directory


def test_memory_is_what_the_machine_and_the_container_leave(tmp_path):
    meminfo = files(tmp_path, meminfo=MEMINFO) / "meminfo"
    assert available_memory_bytes(tmp_path / "none", meminfo) == 6000 * 1024
    cgroup = files(
        tmp_path, memory_max="4000000\n", memory_current="3000000\n", memory_stat="anon 1\ninactive_file 500000\n"
    )
    assert available_memory_bytes(cgroup, meminfo) == 1_500_000
    assert available_memory_bytes(cgroup, tmp_path / "none") == 1_500_000
    assert available_memory_bytes(files(tmp_path, memory_max="max\n"), meminfo) == 6000 * 1024
    assert available_memory_bytes(tmp_path / "none", tmp_path / "none") is None


def test_cores_are_those_of_the_container(tmp_path):
    assert usable_cores(files(tmp_path, cpu_max="100000 100000\n") / "cpu.max") == 1
    assert usable_cores(tmp_path / "none") == len(os.sched_getaffinity(0))


def test_memory_that_is_written_counts():
    written = os.urandom(2**20)
    before = resident_bytes(os.getpid())
    with mmap.mmap(-1, 50 * 2**20) as held:  # fresh, where malloc might give what was resident already, or keep a copy
        for _ in range(50):
            held.write(written)
        assert before + 40 * 2**20 < resident_bytes(os.getpid()) < before + 100 * 2**20
    assert resident_bytes(2**22 + 1) == 0  # no process has such a number
