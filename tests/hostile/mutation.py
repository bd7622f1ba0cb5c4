"""The files of a corpus, and broken copies of them; one seed gives one copy, so that a finding can be made again."""

import random
import re
import struct
import zlib

# What sizes, counts and lengths go wrong at: 0, and around each power of two.
EDGES = sorted({0, *(2**n - less for n in range(33) for less in (0, 1))})
JPEG_MARKER = re.compile(rb"\xff[\xc0-\xc7\xc9-\xcf\xda-\xdf\xe0-\xef]")
MAX_BYTES = 2**18  # larger files teach nothing more, and cost more


def files(paths):
    """These files, and all below these directories but what git keeps there."""
    for path in paths:
        found = [path] if path.is_file() else sorted(path.rglob("*"))
        yield from (each for each in found if each.is_file() and ".git" not in each.parts)


def bodies(paths):
    """What is in the files, the large ones apart."""
    return [body for file in files(paths) if 0 < len(body := file.read_bytes()) <= MAX_BYTES]


def broken(seed, corpus):
    """One file of the corpus, a list of bytes, with one to four faults."""
    rng = random.Random(seed)
    body = bytearray(rng.choice(corpus))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        if body:
            body = rng.choice(FAULTS)(rng, body, corpus)[:MAX_BYTES]
    return bytes(crc_repaired(body) if rng.random() < 0.8 else body)


def bits(rng, body, _):
    """Some bits the other way round."""
    for _ in range(rng.choice((1, 2, 8, 64))):
        body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
    return body


def bytes_(rng, body, _):
    """Some bytes at random."""
    for _ in range(rng.choice((1, 2, 8, 64))):
        body[rng.randrange(len(body))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return body


def cut(rng, body, _):
    """The end missing."""
    return body[: rng.randrange(len(body))]


def without(rng, body, _):
    """Something missing in the middle."""
    start = rng.randrange(len(body))
    del body[start : start + rng.choice((1, 2, 4, 64, 1024))]
    return body


def twice(rng, body, _):
    """A part again, elsewhere."""
    start, at = rng.randrange(len(body)), rng.randrange(len(body))
    body[at:at] = body[start : start + rng.choice((4, 64, 1024, 16384))] * rng.choice((1, 1, 2, 16))
    return body


def spliced(rng, body, corpus):
    """The beginning of one file and the end of another."""
    other = rng.choice(corpus)
    return body[: rng.randrange(len(body))] + other[rng.randrange(len(other) + 1) :]


def number(rng, body, _):
    """A number of the first 64 bytes or of a JPEG's segment: a size, a count, a length."""
    starts = [match.start() + 2 for match in JPEG_MARKER.finditer(body)] or [0]
    at = rng.choice((0, rng.choice(starts))) + rng.randrange(64 if body[:1] != b"\xff" else 20)
    kind, size = rng.choice((("B", 1), (">H", 2), ("<H", 2), (">I", 4), ("<I", 4)))
    if at + size <= len(body):
        struct.pack_into(kind, body, at, rng.choice(EDGES) & (256**size - 1))
    return body


def frame(rng, body, _):
    """A JPEG of another kind: baseline, progressive, lossless, arithmetic; other sampling, precision or components."""
    found = re.search(rb"\xff[\xc0-\xc3\xc5-\xc7\xc9-\xcb]\0.", bytes(body), re.DOTALL)
    if found and found.end() + 15 < len(body):
        at, edit = found.start(), rng.randrange(4)
        if edit == 0:
            body[at + 1] = rng.choice(b"\xc0\xc1\xc2\xc3\xc5\xc6\xc7\xc9\xca\xcb\xcd\xce\xcf")
        elif edit == 1:
            body[at + 11 + 3 * rng.randrange(3)] = rng.choice((1, 2, 3, 4)) << 4 | rng.choice((1, 2, 3, 4))
        elif edit == 2:
            body[at + 4] = rng.choice((1, 7, 8, 9, 12, 16, 255))
        else:
            struct.pack_into(
                ">HH", body, at + 5, rng.choice((1, 7, 8, 9, 255, 4096)), rng.choice((1, 8, 17, 255, 4096))
            )
    return body


FAULTS = (bits, bytes_, cut, without, twice, spliced, number, number, frame)


def crc_repaired(body):
    """A PNG whose chunks have the checksums that they should have, so that what is broken gets further."""
    at = 8
    while body.startswith(b"\x89PNG") and at + 12 <= len(body):
        end = at + 8 + int.from_bytes(body[at : at + 4], "big")
        if end + 4 > len(body):
            break
        struct.pack_into(">I", body, end, zlib.crc32(body[at + 4 : end]))
        at = end + 4
    return body
