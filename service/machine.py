"""What this host has: processor cores, memory and GPUs."""

import ctypes
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_CGROUP_CPU_MAX = _CGROUP / "cpu.max"
_MEMINFO = Path("/proc/meminfo")


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


def available_memory_bytes(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int | None:
    """Memory that could be taken without swapping or being killed: the host's, or the container's share of it."""
    try:
        fields = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines())
        available = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # not Linux
        return None
    try:
        limit = int((cgroup / "memory.max").read_text(encoding="ascii"))
        used = int((cgroup / "memory.current").read_text(encoding="ascii"))
        lines = (cgroup / "memory.stat").read_text(encoding="ascii").splitlines()
        cached = next(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
    except (OSError, ValueError, StopIteration):  # no cgroup, or its limit is "max"
        return available
    return min(available, max(0, limit - used + cached))


def resident_bytes() -> int:
    """Memory that this process has; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:  # not Linux
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


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
