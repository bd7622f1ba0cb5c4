"""Images that ended a decoder: the same bytes do not end another."""

import hashlib
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import NamedTuple

MOST = 1024


class Suspect(NamedTuple):
    """An image that was in a decoder's hands when that ended."""

    size: int
    cause: str
    until: float


class Quarantine:
    """Remembers the last MOST images for a time, because a decoder may also end by what its image cannot help."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._suspects: OrderedDict[bytes, Suspect] = OrderedDict()
        """By SHA-256, the oldest first."""
        self._sizes: Counter[int] = Counter()

    def add(self, data: bytes | memoryview, cause: str, seconds: float) -> str:
        """Remembers an image for so long. Returns its SHA-256 in hexadecimal digits."""
        digest = hashlib.sha256(data)
        self._remove(digest.digest())
        self._suspects[digest.digest()] = Suspect(len(data), cause, self._now() + seconds)
        self._sizes[len(data)] += 1
        if len(self._suspects) > MOST:
            self._remove(next(iter(self._suspects)))
        return digest.hexdigest()

    def cause(self, data: bytes | memoryview) -> str | None:
        """Why this image ended a decoder; None if it is not known to have done so."""
        if not self._sizes[len(data)]:  # most images: nothing is to be hashed
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
            self._sizes -= Counter([suspect.size])  # which drops what is 0
