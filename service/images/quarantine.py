"""Remembers images that ended a decoder, so that the same bytes do not end another one."""

import hashlib
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import NamedTuple

MAX_IMAGES = 1024


class Suspect(NamedTuple):
    """An image whose decoder ended while it was being decoded."""

    size: int
    cause: str
    until: float


class Quarantine:
    """The last MAX_IMAGES images, each for a limited time: the image need not be the reason why the decoder ended."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._suspects: OrderedDict[bytes, Suspect] = OrderedDict()
        """By SHA-256, oldest first."""
        self._sizes: Counter[int] = Counter()

    def add(self, data: bytes | memoryview, cause: str, seconds: float) -> str:
        """Remembers an image for some seconds. Returns its SHA-256 in hexadecimal digits."""
        digest = hashlib.sha256(data)
        self._remove(digest.digest())
        self._suspects[digest.digest()] = Suspect(len(data), cause, self._now() + seconds)
        self._sizes[len(data)] += 1
        if len(self._suspects) > MAX_IMAGES:
            self._remove(next(iter(self._suspects)))
        return digest.hexdigest()

    def cause(self, data: bytes | memoryview) -> str | None:
        """Why the decoder of this image ended; None if the image is not in quarantine."""
        if not self._sizes[len(data)]:  # most images: they need not be hashed
            return None
        digest = hashlib.sha256(data).digest()
        suspect = self._suspects.get(digest)
        if suspect is not None and suspect.until < self._now():
            self._remove(digest)
            return None
        return suspect.cause if suspect else None

    def _remove(self, digest: bytes) -> None:
        suspect = self._suspects.pop(digest, None)
        if suspect is not None:
            self._sizes -= Counter([suspect.size])  # which drops counts of 0
