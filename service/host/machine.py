"""What this host has: processor cores, memory and GPUs."""

import ctypes
import os
import platform
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_CGROUP_CPU_MAX = _CGROUP / "cpu.max"


def usable_cores(cgroup: Path = _CGROUP_CPU_MAX) -> int:
    """Cores that this process may use: its affinity, and in a container its share of them. At least 1."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        cores = os.cpu_count() or 1
    try:
        quota, period = cgroup.read_text(encoding="ascii").split()
        cores = min(cores, round(int(quota) / int(period)))
    except (OSError, ValueError):  # no cgroup, or its quota is "max"
        pass
    return max(1, cores)


def processor() -> str:
    """The processor's name; its kind where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def available_memory_bytes(cgroup: Path = _CGROUP, meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Memory that can still be had, of the machine's and in a container of its share; None where nobody says."""
    found = []
    if (free := _kilobytes(meminfo).get("MemAvailable")) is not None:
        found.append(free * 1024)
    try:
        limit, used = (int((cgroup / name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text(encoding="ascii").splitlines())
        found.append(max(0, limit - used + int(stat["inactive_file"])))  # files that nobody reads make room
    except (OSError, ValueError, KeyError):  # no cgroup, or its limit is "max"
        pass
    return min(found, default=None)


def resident_bytes(process: int) -> int:
    """What a process has in memory and in swap; 0 where the system does not say, or it has ended."""
    status = _kilobytes(Path(f"/proc/{process}/status"))
    return 1024 * (status.get("VmRSS", 0) + status.get("VmSwap", 0))


def _kilobytes(path: Path) -> dict[str, int]:
    """The figures of a file of lines like `VmRSS:    1024 kB`; none where there is no such file."""
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        return {}
    return {words[0].rstrip(":"): int(words[1]) for words in lines if words[2:] == ["kB"]}


def free_gpu_bytes(device_id: int) -> int | None:
    """Memory that is free on that GPU; None where the driver does not say."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, context, free, total = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
    # The device's primary context, which ONNX Runtime uses too, is kept: to make it again costs a tenth of a second.
    retained = (
        driver.cuInit(0) == 0
        and driver.cuDeviceGet(ctypes.byref(device), device_id) == 0
        and driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) == 0
        and driver.cuCtxPushCurrent_v2(context) == 0
    )
    if not retained:
        return None
    known = driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)) == 0
    driver.cuCtxPopCurrent_v2(ctypes.byref(context))
    return free.value if known else None


def gpu_names() -> list[str]:
    """Names of the NVIDIA GPUs that the driver shows, in device order.

    ONNX Runtime's GPU package lists its CUDA provider on hosts without a GPU too, so the driver is asked.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return []
    names = []
    for index in range(count.value):
        device, name = ctypes.c_int(), ctypes.create_string_buffer(100)
        driver.cuDeviceGet(ctypes.byref(device), index)
        driver.cuDeviceGetName(name, len(name), device)
        names.append(name.value.decode(errors="replace"))
    return names
