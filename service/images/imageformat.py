"""Which format an image file's bytes begin like."""

import re

# A BMP's header says its own length, of one byte: text that begins with "BM" is none.
_MAGIC = re.compile(
    rb"(?P<JPEG>\xff\xd8\xff)|(?P<PNG>\x89PNG\r\n\x1a\n)|(?P<WEBP>RIFF....WEBP)|(?P<GIF>GIF8[79]a)|(?P<BMP>BM.{13}\0\0\0)",
    re.DOTALL,
)


def image_format(body: bytes | memoryview) -> str | None:
    """JPEG, PNG, WEBP, GIF or BMP; None if it is none of them."""
    magic = _MAGIC.match(body)
    return magic.lastgroup if magic else None
