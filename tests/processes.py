"""The processes that run on this machine."""

import contextlib
import os
from pathlib import Path


def groups() -> dict[int, tuple[int, bool]]:
    """The process group of every process that runs, by its number; and which are ours."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent, group = stat.read_text().rpartition(")")[2].split()[:3]
            if state != "Z":
                found[int(stat.parent.name)] = int(group), int(parent) == os.getpid()
    return found


def converting() -> set[int]:
    """The groups that conversions of this process lead."""
    leaders = {group for pid, (group, ours) in groups().items() if ours and pid == group}
    sandbox = b"models.conversion.sandbox"
    return {leader for leader in leaders if sandbox in command_of(leader)}  # the others decode images


def command_of(process: int) -> bytes:
    """Its words, each ended by a zero byte; nothing where it has ended."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:  # it has ended meanwhile
        return b""
