"""The processes that run on this machine."""

import contextlib
import os

import psutil


def groups() -> dict[int, tuple[int, bool]]:
    """The process group of every running process, by process id, and whether this process started it."""
    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):  # it has ended meanwhile
            if process.status() != psutil.STATUS_ZOMBIE:
                found[process.pid] = os.getpgid(process.pid), process.ppid() == os.getpid()
    return found


def converting() -> set[int]:
    """The process groups of the conversions that this process started. The other groups decode images."""
    leaders = {group for pid, (group, ours) in groups().items() if ours and pid == group}
    return {leader for leader in leaders if "models.conversion.sandbox" in command_of(leader)}


def command_of(process: int) -> list[str]:
    """The command line of a process; empty if it has ended."""
    try:
        found: list[str] = psutil.Process(process).cmdline()
    except psutil.NoSuchProcess:
        return []
    return found
