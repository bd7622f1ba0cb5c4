"""glibc's malloc: keep the buffers that every image needs, hand back what a model leaves. Elsewhere, nothing."""

import ctypes
import sys

MIB = 2**20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def tune_malloc() -> None:
    """Makes glibc keep image-sized buffers instead of mapping and unmapping each; elsewhere, does nothing.

    To be called before the first image. Up to 256 MiB of freed memory stay with the process.
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
    """Hands freed memory back to the system, which glibc keeps otherwise."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)
