"""Decoders for tests: real ones that misbehave on marked images, and threads that stand for processes."""

import asyncio
import ctypes
import os
import signal
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np

from service.errors import UndecodableImage
from service.images.decoder import main, serve
from service.images.decoding import Reply, Status
from service.images.preprocess import decode

MARK = b"#!marked!"


def marked(body, what):
    """The image, with a note for `misbehave` after its end; what follows | only makes it another image."""
    return body + MARK + what.encode()


class ThreadForks:
    """Decoders that are threads of this process, with a `decode` of the test's own."""

    def __init__(self, decode):
        self._decode = decode
        self._threads = []
        self.killed = []

    def start(self, on_ended, on_lost):
        self._on_ended = on_ended

    def fork(self, decoder):
        connection, memory = os.dup(decoder.theirs.fileno()), os.dup(decoder.memory)
        decoder.theirs.close()

        def run():
            try:
                serve(connection, memory, self._decode)
            finally:
                os.close(connection)
                os.close(memory)

        self._threads.append(threading.Thread(target=run, daemon=True))
        self._threads[-1].start()

    def kill(self, decoder):
        self.killed.append(decoder.number)

    async def close(self):
        for thread in self._threads:
            await asyncio.to_thread(thread.join, 10)
            assert not thread.is_alive()


def hog():
    held = []
    while True:
        held.append(bytearray(2**24))


def write_everywhere(data, offset):
    """To whatever takes it: a decoder has its memory file, and its socket."""
    for descriptor in range(64):
        with suppress(OSError):
            os.pwrite(descriptor, data, offset)


def scribble():
    """Writes over all of its memory file, and beyond."""
    for offset in (0, 2**16, 2**24):
        write_everywhere(b"\xaa" * 2**18, offset)


def babble():
    """Says what no decoder says."""
    for descriptor in range(64):
        with suppress(OSError):
            os.write(descriptor, b"\1" * 20)


def boast():
    """Says that it is done before it is, with the task's own key."""
    frame = sys._getframe()
    while "task" not in frame.f_locals:
        frame = frame.f_back
    for descriptor in range(3, 64):
        with suppress(OSError):
            os.write(descriptor, Reply(Status.PIXELS).packed(frame.f_locals["task"].key))


def pretend():
    """Says that its image was broken, and goes on for ever."""
    frame = sys._getframe()
    while "task" not in frame.f_locals:
        frame = frame.f_back
    reply = Reply(Status.BROKEN, error=UndecodableImage("so it was marked"))
    for descriptor in range(3, 64):
        with suppress(OSError):
            os.write(descriptor, reply.packed(frame.f_locals["task"].key))
    loop()


def later():
    """Leaves a decoder that dies of the next image."""
    global decode  # noqa: PLW0603 - a thing that is broken for all who come after
    decode = lambda *_, **__: os.abort()  # noqa: E731


ATTEMPTS = {
    "open": lambda: os.open("/etc/hostname", os.O_RDONLY),
    "make": lambda: os.open("/tmp/made-by-a-decoder", os.O_CREAT | os.O_WRONLY),
    "list": lambda: list(Path("/").iterdir()),
    "socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM),
    "unix": lambda: socket.socket(socket.AF_UNIX),
    "fork": os.fork,
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "thread": lambda: threading.Thread(target=int).start(),
    "kill": lambda: os.kill(os.getppid(), 0),
    "memory": lambda: os.memfd_create("another"),
    "limits": lambda: __import__("resource").setrlimit(__import__("resource").RLIMIT_AS, (-1, -1)),
    "large file": lambda: write_everywhere(b"x", 2**40),
}


def tried(name):
    """Pixels of 0 where it is not permitted, else of 1."""
    try:
        ATTEMPTS[name]()
    except (OSError, RuntimeError, ValueError):
        return 0
    return 1


def end_by(name):
    signal.raise_signal(signal.Signals[name])


def loop():
    while True:
        pass


def fail(kind):
    raise {"mistake": RuntimeError, "broken": UndecodableImage}[kind]("so it was marked")


def misbehave(data, spec, **options):
    """`preprocess.decode`, but for what a mark says."""
    what, _, argument = data.partition(MARK)[2].decode().partition("|")[0].partition(" ")
    if what == "try":
        return np.full(spec.shape, tried(argument), np.uint8)
    if what == "environment":
        return np.full(spec.shape, any(name.startswith("MENAGERIE") for name in os.environ), np.uint8)
    decode_now = decode
    actions = {
        "": lambda: None,
        "signal": lambda: end_by(argument),
        "null": lambda: ctypes.string_at(0),
        "abort": os.abort,
        "exit": lambda: os._exit(3),
        "loop": loop,
        "hog": hog,
        "scribble": scribble,
        "babble": babble,
        "boast": boast,
        "pretend": pretend,
        "later": later,
        "mistake": lambda: fail("mistake"),
        "broken": lambda: fail("broken"),
    }
    actions[what]()
    return decode_now(data, spec, **options)


if __name__ == "__main__":
    main(sys.argv[1:], misbehave)
