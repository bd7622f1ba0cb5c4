"""The processor cores, memory and GPUs of the host."""

import ctypes
import os
import platform
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")
_CGROUP_CPU_MAX = _CGROUP / "cpu.max"


def usable_cores(cgroup: Path = _CGROUP_CPU_MAX) -> int:
    """Cores that this process may use, by its affinity and its container's quota. At least 1."""
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
    """The processor's name, or its architecture where the system does not name it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def available_memory_bytes(cgroup: Path = _CGROUP) -> int:
    """Memory that can still be allocated: the machine's, or less where the container's limit is nearer."""
    found: int = psutil.virtual_memory().available
    try:
        limit, used = (int((cgroup / name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text(encoding="ascii").splitlines())
        # The kernel drops cached files that have not been read lately when memory is needed.
        return min(found, max(0, limit - used + int(stat["inactive_file"])))
    except (OSError, ValueError, KeyError):  # no cgroup, or its limit is "max"
        return found


def free_gpu_bytes(device_id: int) -> int | None:
    """Free memory of a GPU; None where there is no driver, or it does not answer."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, context, free, total = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
    # The primary context is retained and never released: ONNX Runtime uses it too, and creating it takes 0.1 s.
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

    The driver is asked because ONNX Runtime's GPU package lists its CUDA provider on hosts without a GPU too.
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
