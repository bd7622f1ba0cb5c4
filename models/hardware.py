"""The hardware that decides which precision is fastest here: a GPU, and the processor's 8-bit instructions."""

import platform
from pathlib import Path

_GPU_DEVICES = (Path("/dev/nvidiactl"), Path("/dev/dxg"))  # on Linux, and on the Windows Subsystem for Linux
_CPUINFO = Path("/proc/cpuinfo")


def has_gpu(devices: tuple[Path, ...] = _GPU_DEVICES) -> bool:
    """Whether a server on this host would use an NVIDIA GPU. The conversion itself runs on the CPU."""
    return any(device.exists() for device in devices)


def int8_saturates(cpuinfo: Path = _CPUINFO, processor: str = "") -> bool:
    """Whether the sum of two 8-bit products may overflow, so that weights must be limited to 7 bits.

    It may on x86 processors without VNNI instructions.
    """
    if (processor or platform.machine()).lower() not in {"x86_64", "amd64"}:
        return False
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return True
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    return not {"avx512_vnni", "avx_vnni"} & set(flags)
