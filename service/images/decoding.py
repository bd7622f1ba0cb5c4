"""The messages between the server and its decoders. They have a fixed length, and the server trusts none of them.

A file's bytes and the pixels are not part of a message. Each decoder shares a memory file with the server: the server
writes the bytes there, and the decoder overwrites them with the pixels.
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
"""A picture whose header claims more is large: it waits in a queue of its own."""

FORK, KILL = 0, 1
COMMAND = struct.Struct("<BI")
"""To the fork server: FORK (with a socket and a memory file) or KILL, and a decoder's number."""
ENDED = struct.Struct("<Ii")
"""From the fork server: a decoder's number, and its wait status or NOT_STARTED."""
NOT_STARTED = -1

_TASK = struct.Struct("<QQQQ")
_OPTIONS = struct.Struct("<IIIBBB?d")
_REPLY = struct.Struct("<QBBQ480s224s")
REPLY_BYTES = _REPLY.size
TASK_BYTES = _TASK.size + _OPTIONS.size

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
    """One image to decode. Its bytes are in the memory file."""

    key: int
    """A random number that the reply repeats, so that a decoder cannot answer a task that it was not given."""
    data_bytes: int
    max_pixels: int
    """A picture whose header claims more is refused."""
    pixels_now: int
    """A picture whose header claims more is not decoded yet: the reply is `Status.LARGE`, with the number of pixels."""
    spec: ImageInput
    shortcuts: Shortcuts

    def packed(self) -> bytes:
        """The task as a message of TASK_BYTES."""
        numbers = _TASK.pack(self.key, self.data_bytes, self.max_pixels, self.pixels_now)
        return numbers + _packed(self.spec, self.shortcuts)

    @classmethod
    def unpacked(cls, message: bytes) -> Self:
        """The task in such a message."""
        key, data_bytes, max_pixels, pixels_now = _TASK.unpack_from(message)
        return cls(key, data_bytes, max_pixels, pixels_now, *_unpacked(message[_TASK.size :]))


# The images of one model all have the same options, so these are cached.


@lru_cache(maxsize=256)
def _packed(spec: ImageInput, shortcuts: Shortcuts) -> bytes:
    return _OPTIONS.pack(
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
def _unpacked(options: bytes) -> tuple[ImageInput, Shortcuts]:
    height, width, resize_to, channels, resize, interpolation, simd, margin = _OPTIONS.unpack(options)
    spec = ImageInput(
        height=height,
        width=width,
        resize_to=resize_to or None,
        channels=channels,
        resize=_RESIZES[resize],
        interpolation=_INTERPOLATIONS[interpolation],
    )
    return spec, Shortcuts(simd=simd, margin=margin)


class Status(IntEnum):
    """The result of a task."""

    READY = 0
    """Not a result: the decoder has started, and takes tasks from now on."""
    PIXELS = 1
    """The image is decoded, and the pixels are in the memory file."""
    REFUSED = 2
    """The error says why."""
    BROKEN = 3
    """Refused after native code has read it, so that the decoder's memory may be corrupted."""
    LARGE = 4
    """Not decoded yet: the header claims `pixels`."""
    OUT_OF_MEMORY = 5
    MISTAKE = 6
    """A bug of this project or of a library; the text is for the log."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A decoder's answer to one task."""

    status: Status
    error: ServiceError | None = None
    pixels: int = 0
    text: str = ""
    key: int = 0
    """The task's key; 0 if the reply belongs to no task."""

    def packed(self, key: int = 0) -> bytes:
        """The reply to the task with this key, as a message of REPLY_BYTES. A text that is too long is cut off."""
        kind = _REFUSALS.index(type(self.error)) if self.error else 0
        text, cure = (self.error.message, self.error.cure) if self.error else (self.text, "")
        return _REPLY.pack(key, self.status, kind, self.pixels, text.encode(), cure.encode())

    @classmethod
    def unpacked(cls, message: bytes) -> Self:
        """The reply in such a message. Raises ValueError if it is malformed."""
        if len(message) != REPLY_BYTES:
            raise ValueError(f"a reply of {len(message)} bytes")
        key, number, kind, pixels, text, cure = _REPLY.unpack(message)
        status, message_text = Status(number), _text(text)
        if status not in (Status.REFUSED, Status.BROKEN):
            return cls(status, pixels=pixels, text=message_text, key=key)
        if kind >= len(_REFUSALS):
            raise ValueError(f"an error of kind {kind}")
        return cls(status, error=_REFUSALS[kind](message_text, cure=_text(cure) or None), key=key)


def _text(padded: bytes) -> str:
    return padded.rstrip(b"\0").decode(errors="ignore")  # it may be cut off inside a letter
