"""Cores and memory of a machine, and of a container on it."""

import os
from types import SimpleNamespace

from service.host.machine import available_memory_bytes, usable_cores


def files(directory, **contents):
    directory.mkdir(exist_ok=True)
    for name, content in contents.items():
        (directory / name.replace("_", ".")).write_text(content)
    return directory


def test_memory_is_what_the_machine_and_the_container_leave(tmp_path, monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=6000 * 1024))
    assert available_memory_bytes(tmp_path / "none") == 6000 * 1024
    cgroup = files(
        tmp_path, memory_max="4000000\n", memory_current="3000000\n", memory_stat="anon 1\ninactive_file 500000\n"
    )
    assert available_memory_bytes(cgroup) == 1_500_000
    assert available_memory_bytes(files(tmp_path, memory_max="max\n")) == 6000 * 1024


def test_cores_are_those_of_the_container(tmp_path):
    assert usable_cores(files(tmp_path, cpu_max="100000 100000\n") / "cpu.max") == 1
    assert usable_cores(tmp_path / "none") == len(os.sched_getaffinity(0))
