"""Archives made to do harm: names, sizes, kinds and headers that no honest tar has. And some that only look so."""

import tarfile
from typing import Any

from models.artifact.unpack import MAX_MEMBERS

BLOCK = tarfile.BLOCKSIZE
END = bytes(2 * BLOCK)


def header(name: str | bytes, size: int | bytes = 0, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    """One header as it is stored; the name may be bytes of any kind."""
    info = tarfile.TarInfo("name")
    info.type, info.linkname = kind, link
    raw = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    raw[0:100] = (name.encode() if isinstance(name, str) else name)[:100].ljust(100, b"\0")
    return with_field(bytes(raw), 124, size if isinstance(size, bytes) else b"%011o\0" % size)


def with_field(raw: bytes, at: int, field: bytes) -> bytes:
    """The header with these bytes there, and its sum put right."""
    changed = bytearray(raw)
    changed[at : at + len(field)] = field
    changed[148:156] = b" " * 8
    changed[148:156] = b"%06o\0 " % sum(changed)
    return bytes(changed)


def content(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def file(name: str | bytes = "weights", data: bytes = b"x", **more: Any) -> bytes:
    return header(name, len(data), **more) + content(data)


def extended(data: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    """A header that says more of the next file."""
    return header("more", len(data), kind) + content(data)


def record(key: bytes, value: bytes) -> bytes:
    """A line of a PAX header."""
    line = b" " + key + b"=" + value + b"\n"
    length = len(line) + 1
    while length != len(str(length)) + len(line):
        length = len(str(length)) + len(line)
    return str(length).encode() + line


def pax(name: str = "weights", **records: bytes) -> bytes:
    lines = b"".join(record(key.replace("__", ".").encode(), value) for key, value in records.items())
    return extended(lines) + file(name)


def directory(name: str) -> bytes:
    return extended(record(b"path", name.encode())) + header("directory", kind=tarfile.DIRTYPE)


def base256(number: int) -> bytes:
    """A size in GNU's binary way, of 12 bytes; negative where the number is."""
    return bytes([0xFF if number < 0 else 0x80]) + (number % 2**88).to_bytes(11, "big")


WHOLE = file("weights.pth", b"x" * 1000) + END

HOSTILE = {
    # Sizes.
    "negative size": header("weights", base256(-1024)) + END,
    "negative size that goes back": file() + header("again", base256(-2048)) + END,
    "negative PAX size": pax(size=b"-1024") + END,
    "PAX size of digits": pax(size=b"9" * 4000) + END,
    "PAX size of no digits": pax(size=b"many") + header("y", 9**9) + END,
    "size beyond the archive": header("weights", 2**32) + END,
    "size beyond every disk": header("weights", base256(2**80)) + END,
    "size of garbage": header("weights", b"not a number") + END,
    "mode of garbage": with_field(header("weights"), 100, b"rwxr-xr-") + END,
    "owner of garbage": with_field(header("weights"), 108, b"\xc3garbage") + END,
    "a wrong sum": file().replace(b"weights", b"Weights") + END,
    # Names.
    "NUL in a PAX name": pax(path=b"weights\0.pth") + END,
    "newline in a name": file("wei\nghts") + END,
    "escape in a name": file("\x1b[2Jweights") + END,
    "half a surrogate": file(b"weights\xed\xa0\x80") + END,
    "no UTF-8": file(b"weights\xff\xfe") + END,
    "right to left": file("weights\u202egpj.exe") + END,
    "absolute": file("/tmp/outside") + END,
    "absolute, twice": file("//tmp/outside") + END,
    "absolute by PAX": pax(path=b"/tmp/outside") + END,
    "climbing": file("../outside") + END,
    "climbing later": file("weights/../../outside") + END,
    "climbing by a long name": extended(b"a/" * 60 + b"../" * 61 + b"outside\0", tarfile.GNUTYPE_LONGNAME)
    + file()
    + END,
    "too long for a file": pax(path=b"x" * 300) + END,
    "too long for a path": pax(path=b"x/" * 2500 + b"weights") + END,
    "long name of megabytes": extended(b"x" * 3 * 2**20 + b"\0", tarfile.GNUTYPE_LONGNAME) + file() + END,
    "long name of gigabytes": header("more", 2**33, tarfile.GNUTYPE_LONGNAME) + file() + END,
    "routing.toml": file("weights") + file("routing.toml", b"live = 9") + END,
    "model.toml": file("weights") + file("./model.toml", b'versions = "all"') + END,
    # Kinds.
    "symbolic link": header("weights", kind=tarfile.SYMTYPE, link="/etc/passwd") + END,
    "symbolic link, then a file through it": header("a", kind=tarfile.SYMTYPE, link="/tmp") + file("a/outside") + END,
    "hard link": file("a") + header("weights", kind=tarfile.LNKTYPE, link="a") + END,
    "hard link to itself": header("weights", kind=tarfile.LNKTYPE, link="weights") + END,
    "character device": header("weights", kind=tarfile.CHRTYPE) + END,
    "block device": header("weights", kind=tarfile.BLKTYPE) + END,
    "FIFO": header("weights", kind=tarfile.FIFOTYPE) + END,
    "an unknown kind": header("weights", kind=b"V") + END,
    "GNU sparse": header("weights", kind=tarfile.GNUTYPE_SPARSE) + END,
    "GNU sparse of a terabyte": with_field(header("weights", kind=tarfile.GNUTYPE_SPARSE), 483, base256(2**40)) + END,
    "PAX sparse": pax(GNU__sparse__major=b"1", GNU__sparse__minor=b"0", GNU__sparse__realsize=b"1" * 15) + END,
    "PAX sparse map of garbage": pax(GNU__sparse__map=b"1,x,2,,", GNU__sparse__size=b"9") + END,
    # Headers.
    "PAX of digits": extended(b"1" * 100_000) + file() + END,  # CVE-2024-6232
    "PAX length of digits": extended(b"1" * 5000 + b" path=x\n") + file() + END,
    "PAX length of nothing": extended(b"0 path=weights\n") + file() + END,
    "PAX of gigabytes": header("more", 2**33, tarfile.XHDTYPE) + file() + END,
    "PAX after PAX": extended(record(b"comment", b"x")) * 2000 + file() + END,
    "global PAX": b"".join(extended(record(b"k%d" % i, b"v" * 1000), tarfile.XGLTYPE) for i in range(1500))
    + file()
    + END,
    "PAX and no file": extended(record(b"path", b"weights")) + END,
    # The tree.
    "the same name twice": file() + file() + END,
    "the same name, in two ways": file("weights") + file("./weights") + END,
    "the same letters, in two ways": file("weights.\u00e9") + file("weights.e\u0301") + END,
    "a file, then a directory": file() + file("weights/1") + END,
    "a directory, then a file": file("weights/1") + file() + END,
    "3,000 directories": b"".join(directory("d/" * depth) for depth in (*range(1, 2000, 9), *[3000] * 3)) + END,
    "1,900 directories at once": pax(path=b"d/" * 1900 + b"weights") + END,
    "one file too many": b"".join(header(f"{number:05x}") for number in range(MAX_MEMBERS + 1)) + END,
    "the directory itself": header("2/", kind=b"5") + file("2/weights") + END,
    "directories alone": header("a/", kind=b"5") + header("b/", kind=b"5") + END,
    # The end.
    "no archive": b"no tar",
    "zeros": bytes(10 * 1024),
    "cut in a header": WHOLE[:300],
    "cut after a header": WHOLE[:BLOCK],
    "cut in a file": WHOLE[: BLOCK + 700],
    "cut after a file": WHOLE[: 3 * BLOCK],
    "cut in a later header": WHOLE[: 3 * BLOCK] + WHOLE[:300],
    "cut in a PAX header": pax(path=b"weights")[: BLOCK + 10],
    "cut after a PAX header": pax(path=b"weights")[: 2 * BLOCK],
    "garbage between": WHOLE[: 3 * BLOCK] + b"\xa5" * BLOCK + WHOLE,
    "garbage behind": WHOLE + b"garbage",
    "an archive behind": WHOLE + WHOLE,
    "gzip": b"\x1f\x8b\x08" + bytes(100),
}


# An archive that is sound, with a version's settings that are not.
HOSTILE_SETTINGS = {
    "an artifact.toml of brackets": file("weights") + file("artifact.toml", b"a = " + b"[" * 5000) + END,
    "an artifact.toml of a long key": file("weights") + file("artifact.toml", b"a." * 10_000 + b"a = 1") + END,
    "an artifact.toml of no UTF-8": file("weights") + file("artifact.toml", b"\xff") + END,
    "an artifact.toml of another key": file("weights") + file("artifact.toml", b"x = 1") + END,
}

# What honest tools write, and PAX headers that say nothing.
HARMLESS = {
    "PAX of digits, less of them": ({"weights": b"x"}, extended(b"1" * 4000) + file() + END),
    "PAX without a length": ({"weights": b"x"}, extended(b"path=other\n") + file() + END),
    "from a file": ({"weights.pth": b"x" * 1000}, WHOLE),
    "GNU's blocks of zeros": ({"weights.pth": b"x" * 1000}, WHOLE + bytes(8 * 1024)),
    "names with ./": (
        {"weights": b"x", "notes/a.txt": b"y"},
        header("./", kind=b"5") + file("./weights") + header("./notes/", kind=b"5") + file("./notes/a.txt", b"y") + END,
    ),
    "a SavedModel": (
        {"weights/saved_model.pb": b"graph", "weights/variables/variables.index": b"index"},
        header("weights/", kind=b"5")
        + file("weights/saved_model.pb", b"graph")
        + header("weights/variables/", kind=b"5")
        + file("weights/variables/variables.index", b"index")
        + END,
    ),
    "a SavedModel without its directories": (
        {"weights/saved_model.pb": b"graph"},
        file("weights/saved_model.pb", b"graph") + END,
    ),
    "a checkpoint in a directory": (
        {"export/ckpt.index": b"index", "export/ckpt.data-00000-of-00001": b"values"},
        file("export/ckpt.index", b"index") + file("export/ckpt.data-00000-of-00001", b"values") + END,
    ),
    "macOS": (
        {"weights.pth": b"x"},
        file("./._weights.pth", b"attributes") + file("./weights.pth") + file("./.DS_Store") + END,
    ),
    "long names by PAX": (
        {"notes/" + "é" * 90: b"x", "weights": b"x"},
        pax(path=b"notes/" + "é".encode() * 90) + file() + END,
    ),
    "long names by GNU": (
        {"notes/" + "n" * 150: b"x", "weights": b"x"},
        extended(b"notes/" + b"n" * 150 + b"\0", tarfile.GNUTYPE_LONGNAME) + file("short") + file() + END,
    ),
    "attributes and times": (
        {"weights": b"x"},
        pax(mtime=b"1.5", SCHILY__xattr__user__a=b"b" * 1000, LIBARCHIVE__xattr__c=b"d") + END,
    ),
    "an artifact.toml": (
        {"weights": b"x", "artifact.toml": b"num_classes = 3"},
        file() + file("artifact.toml", b"num_classes = 3") + END,
    ),
}
