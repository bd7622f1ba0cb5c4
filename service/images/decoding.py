"""What the server and its decoders say to each other: messages of a fixed length, of which nothing is trusted.

A file's bytes and the pixels do not travel in messages, but in a memory file that each decoder has, where the pixels
take the place of the bytes.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Literal, Self

from models.inputs import ImageInput
from service.errors import (
    EmptyBody,
    ImageTooLarge,
    ServiceError,
    UndecodableImage,
    UnsupportedAspectRatio,
    UnsupportedImage,
)
from service.images.shortcuts import Shortcuts

LARGE_PIXELS = 2**22
"""A picture that claims more waits in a queue of its own."""

FORK, KILL = 0, 1
ORDER = struct.Struct("<BI")
"""To the fork server: FORK (with a socket and a memory file) or KILL, and a decoder's number."""
ENDED = struct.Struct("<Ii")
"""From the fork server: a decoder's number, and its wait status, or NOT_STARTED."""
NOT_STARTED = -1

_TASK = struct.Struct("<QQQQ")
_MANNER = struct.Struct("<IIIBBB?d")
_REPLY = struct.Struct("<QBBQ480s224s")
REPLY_BYTES = _REPLY.size
TASK_BYTES = _TASK.size + _MANNER.size

_RESIZES: tuple[Literal["crop", "stretch"], ...] = ("crop", "stretch")
_INTERPOLATIONS: tuple[Literal["nearest", "bilinear", "bicubic", "lanczos"], ...] = (
    "nearest",
    "bilinear",
    "bicubic",
    "lanczos",
)
_REFUSALS: tuple[type[ServiceError], ...] = (
    EmptyBody,
    UnsupportedImage,
    ImageTooLarge,
    UnsupportedAspectRatio,
    UndecodableImage,
)


@dataclass(frozen=True, slots=True)
class Task:
    """One image to decode, whose bytes lie in the memory file."""

    key: int
    """A random number, which its reply repeats: a decoder can answer no task that it has not been given."""
    data_bytes: int
    max_pixels: int
    """A picture that claims more is refused."""
    pixels_now: int
    """One that claims more than this is not decoded yet: `Verdict.LARGE` says how many it claims."""
    spec: ImageInput
    shortcuts: Shortcuts

    def packed(self) -> bytes:
        """As a message of TASK_BYTES."""
        numbers = _TASK.pack(self.key, self.data_bytes, self.max_pixels, self.pixels_now)
        return numbers + _packed(self.spec, self.shortcuts)

    @classmethod
    def unpacked(cls, message: bytes) -> Self:
        """The task of such a message."""
        key, data_bytes, max_pixels, pixels_now = _TASK.unpack_from(message)
        return cls(key, data_bytes, max_pixels, pixels_now, *_unpacked(message[_TASK.size :]))


# A model's images are all decoded in the same manner.


@lru_cache(maxsize=256)
def _packed(spec: ImageInput, shortcuts: Shortcuts) -> bytes:
    return _MANNER.pack(
        spec.height,
        spec.width,
        spec.resize_to or 0,
        spec.channels,
        _RESIZES.index(spec.resize),
        _INTERPOLATIONS.index(spec.interpolation),
        shortcuts.simd,
        shortcuts.margin,
    )


@lru_cache(maxsize=256)
def _unpacked(manner: bytes) -> tuple[ImageInput, Shortcuts]:
    height, width, resize_to, channels, resize, interpolation, simd, margin = _MANNER.unpack(manner)
    spec = ImageInput(
        height=height,
        width=width,
        resize_to=resize_to or None,
        channels=channels,
        resize=_RESIZES[resize],
        interpolation=_INTERPOLATIONS[interpolation],
    )
    return spec, Shortcuts(simd=simd, margin=margin)


class Verdict(IntEnum):
    """What became of a task."""

    READY = 0
    """Of none yet: the decoder takes tasks from now on."""
    PIXELS = 1
    """They lie in the memory file."""
    REFUSED = 2
    """The error says why."""
    BROKEN = 3
    """The same, after native code had met it: nobody knows what it has left behind in the decoder."""
    LARGE = 4
    """Nothing yet: it claims `pixels`."""
    OUT_OF_MEMORY = 5
    MISTAKE = 6
    """An error of ours; the text is for the log."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A decoder's answer to one task."""

    verdict: Verdict
    error: ServiceError | None = None
    pixels: int = 0
    text: str = ""
    key: int = 0
    """The task's; 0 where it answers none."""

    def packed(self, key: int = 0) -> bytes:
        """As a message of REPLY_BYTES that answers the task with this key; a text that is too long is cut off."""
        kind = _REFUSALS.index(type(self.error)) if self.error else 0
        text, cure = (self.error.message, self.error.cure) if self.error else (self.text, "")
        return _REPLY.pack(key, self.verdict, kind, self.pixels, text.encode(), cure.encode())

    @classmethod
    def unpacked(cls, message: bytes) -> Self:
        """The reply of such a message. Raises ValueError where it is none."""
        if len(message) != REPLY_BYTES:
            raise ValueError(f"a reply of {len(message)} bytes")
        key, number, kind, pixels, text, cure = _REPLY.unpack(message)
        verdict, told = Verdict(number), _text(text)
        if verdict not in (Verdict.REFUSED, Verdict.BROKEN):
            return cls(verdict, pixels=pixels, text=told, key=key)
        if kind >= len(_REFUSALS):
            raise ValueError(f"an error of kind {kind}")
        return cls(verdict, error=_REFUSALS[kind](told, cure=_text(cure) or None), key=key)


def _text(padded: bytes) -> str:
    return padded.rstrip(b"\0").decode(errors="ignore")  # cut off within a letter
