"""The server's hold on its fork server and on the decoders that it forks (`service/images/decoder.py`)."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

import numpy as np

from models.inputs import MAX_ITEM_BYTES, ImageInput
from service.host.child import inherited
from service.images.decoding import ENDED, FORK, KILL, NOT_STARTED, ORDER, REPLY_BYTES, Reply, Task

_STOP_SECONDS = 5.0
_AGAIN_SECONDS = 0.1
# One thread, so that it can fork; and each decoder is to use one core.
_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
_KEPT_BYTES = 2**20  # of a memory file between two images; what a larger image took goes back


class NoRoom(Exception):
    """There is no memory for an image's bytes."""


class Decoder:
    """One process that decodes one image at a time. Raises OSError where it has ended, or no descriptor is left."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.memory = os.memfd_create(f"decoder-{number}", os.MFD_CLOEXEC)
        try:
            self.connection, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError:
            os.close(self.memory)
            raise
        self.connection.setblocking(False)  # noqa: FBT003 - the standard library's

    def begin(self, data: bytes | memoryview, task: Task) -> None:
        """Hands an image over. Raises NoRoom."""
        try:
            written = os.pwrite(self.memory, data, 0)
        except OSError as error:
            raise NoRoom from error
        if written != len(data):
            raise NoRoom
        self.connection.send(task.packed())

    def reply(self) -> Reply | None:
        """What it has said; None if it has said nothing. Raises ValueError where that makes no sense."""
        try:
            message = self.connection.recv(REPLY_BYTES + 1)
        except BlockingIOError:
            return None
        if not message:
            raise ConnectionResetError
        return Reply.unpacked(message)

    def pixels(self, spec: ImageInput) -> np.ndarray:
        """What it has decoded, in memory of our own. Raises ValueError where there is less."""
        found = np.empty(spec.shape, np.uint8)
        if os.preadv(self.memory, [found], 0) != found.nbytes:  # type: ignore[list-item]  # a buffer
            raise ValueError("it has fewer pixels than it said")
        return found

    def forget(self) -> None:
        """Gives back the memory that a large image took, and whatever else the decoder has written."""
        if os.fstat(self.memory).st_size > _KEPT_BYTES:
            os.ftruncate(self.memory, 0)

    def close(self) -> None:
        """Lets go of it: it ends when it next waits for an image."""
        self.connection.close()
        self.theirs.close()
        os.close(self.memory)


class Forks(Protocol):
    """What forks decoders. Every method is called on one event loop, and the callbacks come on it."""

    def start(self, on_ended: Callable[[int, int], None], on_lost: Callable[[], None]) -> None:
        """Takes orders from now on. `on_ended` hears a decoder's number and wait status; `on_lost`: all are gone."""

    def fork(self, decoder: Decoder) -> None:
        """Starts the decoder's process; when it cannot, `on_ended` hears so."""

    def kill(self, decoder: Decoder) -> None:
        """Ends the decoder's process, if it has not ended."""

    async def close(self) -> None:
        """Ends every decoder."""


class ForkServer:
    """A child with all that decoding needs imported, which forks decoders within milliseconds."""

    def __init__(self, memory_bytes: int, module: str = "service.images.decoder") -> None:
        self._command = ("-m", module)
        self._limits = (str(memory_bytes), str(MAX_ITEM_BYTES))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, on_ended: Callable[[int, int], None], on_lost: Callable[[], None]) -> None:
        """Starts the process; what is ordered meanwhile waits for it. Raises OSError."""
        self._on_ended, self._on_lost = on_ended, on_lost
        control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                # By this thread: the kernel ends the child when it ends.
                self._process = subprocess.Popen(  # noqa: S603 - our own module
                    # -P: a directory called service where the server was started is not our package
                    [sys.executable, "-P", *self._command, str(theirs.fileno()), *self._limits],
                    env=inherited(os.environ) | _ENVIRONMENT,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                )
            except OSError:
                control.close()
                raise
        self._control = control
        self._control.setblocking(False)  # noqa: FBT003 - the standard library's
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._control, self._hear)

    def fork(self, decoder: Decoder) -> None:
        """Has it forked."""
        if not self._order(FORK, decoder.number, decoder.theirs.fileno(), decoder.memory):
            self._loop.call_soon(self._on_ended, decoder.number, NOT_STARTED)
        decoder.theirs.close()

    def kill(self, decoder: Decoder) -> None:
        """Has it killed."""
        self._kill(decoder.number)

    def _kill(self, number: int) -> None:
        if not self._order(KILL, number):
            self._loop.call_later(_AGAIN_SECONDS, self._kill, number)

    def _order(self, order: int, number: int, *descriptors: int) -> bool:
        """Returns whether that was taken: not where more orders wait than the socket holds."""
        with suppress(OSError):  # it has ended, which is told in its turn
            try:
                socket.send_fds(self._control, [ORDER.pack(order, number)], descriptors)
            except BlockingIOError:
                return False
        return True

    def _hear(self) -> None:
        try:
            message = self._control.recv(ENDED.size)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if message:
            self._on_ended(*ENDED.unpack(message))
        else:
            process = self._let_go()
            assert process is not None
            process.kill()  # it has ended, or is about to
            process.wait()
            self._reap(process.pid)
            self._on_lost()

    def _reap(self, group: int) -> None:
        """Waits for the decoders of a fork server that has ended, which are ours where we are a container's first."""
        with suppress(ChildProcessError):
            while os.waitpid(-group, os.WNOHANG) != (0, 0):
                pass
            self._loop.call_later(_AGAIN_SECONDS, self._reap, group)

    def _let_go(self) -> subprocess.Popen[bytes] | None:
        """Closes our end of the socket, which ends it. Returns what is to be waited for."""
        process, self._process = self._process, None
        if process is not None:
            self._loop.remove_reader(self._control)
            self._control.close()
        return process

    async def close(self) -> None:
        """Ends it and, with it, every decoder."""
        process = self._let_go()
        if process is None:
            return
        try:
            await asyncio.to_thread(process.wait, _STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            await asyncio.to_thread(process.wait)
