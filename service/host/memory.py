"""Settings of glibc's malloc: keep image-sized buffers, return the memory of unloaded models. No effect elsewhere."""

import ctypes
import sys

MIB = 2**20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def tune_malloc() -> None:
    """Makes glibc keep freed image-sized buffers instead of unmapping each. No effect on other systems.

    Call it before the first image. The process keeps up to 256 MiB of freed memory.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return
    mallopt(_M_TRIM_THRESHOLD, 256 * MIB)
    for mebibytes in (64, 32):  # older glibc takes 32 at most
        if mallopt(_M_MMAP_THRESHOLD, mebibytes * MIB) == 1:
            break


def trim_malloc() -> None:
    """Returns freed memory, which glibc would keep, to the system."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)
