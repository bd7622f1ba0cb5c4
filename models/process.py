"""Memory of a process, read from /proc/PID/status.

psutil does not have these figures at this price: it counts swap by walking the page tables, and has no peak.
resource.getrusage has a peak, which a child process inherits from its parent.
"""

from pathlib import Path


def resident_bytes(process: int | None = None) -> int:
    """Bytes that a process, by default this one, has in memory and in swap. 0 if it has ended, or on another system."""
    status = _status(process)
    return status.get("VmRSS", 0) + status.get("VmSwap", 0)


def peak_resident_bytes() -> int:
    """The most bytes that this process has had in memory. 0 where the system is not Linux."""
    return _status(None).get("VmHWM", 0)


def _status(process: int | None) -> dict[str, int]:
    """The lines such as `VmRSS:    1024 kB`, in bytes."""
    try:
        text = Path(f"/proc/{process or 'self'}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    lines = [line.split() for line in text.splitlines()]
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[2:] == ["kB"]}
