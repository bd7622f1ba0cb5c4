"""What of this machine decides which precision serves best on it, and what of its memory this process has."""

import platform
from pathlib import Path

_GPU_DEVICES = (Path("/dev/nvidiactl"), Path("/dev/dxg"))  # on Linux, and on Windows' Linux
_CPUINFO = Path("/proc/cpuinfo")


def has_gpu(devices: tuple[Path, ...] = _GPU_DEVICES) -> bool:
    """Whether there is an NVIDIA GPU that a server here would use; a conversion itself is shown none."""
    return any(device.exists() for device in devices)


def int8_saturates(cpuinfo: Path = _CPUINFO, processor: str = "") -> bool:
    """Whether sums of two 8-bit products may overflow: on x86 without VNNI, whose weights must do with 7 bits."""
    if (processor or platform.machine()).lower() not in {"x86_64", "amd64"}:
        return False
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return True
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    return not {"avx512_vnni", "avx_vnni"} & set(flags)


def resident_bytes() -> tuple[int, int]:
    """What this process has in memory, and the most that it has had; 0 where the system does not say."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return 0, 0
    lines = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    now, most = (int(lines.get(name, "0").split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return now, most
