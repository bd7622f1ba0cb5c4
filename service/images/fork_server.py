"""Starts and controls the fork server and its decoders (`service/images/decoder.py`), from within the server."""

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
from service.images.decoding import COMMAND, ENDED, FORK, KILL, NOT_STARTED, REPLY_BYTES, Reply, Task

_STOP_SECONDS = 5.0
_RETRY_SECONDS = 0.1
# The fork server must have one thread to be able to fork, and each decoder should use one core.
_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
_KEPT_BYTES = 2**20  # size that a memory file may keep between two images; above that it is given back


class NoRoom(Exception):
    """There is not enough memory for an image's bytes."""


class Decoder:
    """The server's end of one decoder process, which decodes one image at a time.

    Its methods raise OSError if the process has ended, or if no descriptor is left.
    """

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
        """Sends an image to the decoder. Raises NoRoom."""
        try:
            written = os.pwrite(self.memory, data, 0)
        except OSError as error:
            raise NoRoom from error
        if written != len(data):
            raise NoRoom
        self.connection.send(task.packed())

    def reply(self) -> Reply | None:
        """The next reply, or None if there is none yet. Raises ValueError if it is malformed."""
        try:
            message = self.connection.recv(REPLY_BYTES + 1)
        except BlockingIOError:
            return None
        if not message:
            raise ConnectionResetError
        return Reply.unpacked(message)

    def pixels(self, spec: ImageInput) -> np.ndarray:
        """A copy of the decoded pixels, which the decoder cannot change. Raises ValueError if there are too few."""
        found = np.empty(spec.shape, np.uint8)
        if os.preadv(self.memory, [found], 0) != found.nbytes:  # type: ignore[list-item]  # a buffer
            raise ValueError("the decoder wrote too few pixels")
        return found

    def release_memory(self) -> None:
        """Gives back the memory of a large image, and of anything else that the decoder has written."""
        if os.fstat(self.memory).st_size > _KEPT_BYTES:
            os.ftruncate(self.memory, 0)

    def close(self) -> None:
        """Closes the descriptors. The process ends when it next waits for an image."""
        self.connection.close()
        self.theirs.close()
        os.close(self.memory)


class Forks(Protocol):
    """Forks decoders. Every method, and every callback, is called on one event loop."""

    def start(self, on_ended: Callable[[int, int], None], on_lost: Callable[[], None]) -> None:
        """Starts it.

        `on_ended` is called with the number and wait status of a decoder that ended; `on_lost` when all have ended.
        """

    def fork(self, decoder: Decoder) -> None:
        """Starts the decoder's process. If that fails, `on_ended` is called."""

    def kill(self, decoder: Decoder) -> None:
        """Kills the decoder's process, if it is still running."""

    async def close(self) -> None:
        """Ends every decoder."""


class ForkServer:
    """A child process that has imported all that decoding needs, so that it forks a decoder within milliseconds."""

    def __init__(self, memory_bytes: int, module: str = "service.images.decoder") -> None:
        self._command = ("-m", module)
        self._limits = (str(memory_bytes), str(MAX_ITEM_BYTES))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, on_ended: Callable[[int, int], None], on_lost: Callable[[], None]) -> None:
        """Starts the process. Commands that are sent before it is ready wait in the socket. Raises OSError."""
        self._on_ended, self._on_lost = on_ended, on_lost
        control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                # In this thread: the kernel ends the child when the thread ends.
                self._process = subprocess.Popen(  # noqa: S603 - our own module
                    # -P: a directory called service in the working directory must not be imported instead
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
        self._loop.add_reader(self._control, self._on_readable)

    def fork(self, decoder: Decoder) -> None:
        """Asks the fork server for the process."""
        if not self._send(FORK, decoder.number, decoder.theirs.fileno(), decoder.memory):
            self._loop.call_soon(self._on_ended, decoder.number, NOT_STARTED)
        decoder.theirs.close()

    def kill(self, decoder: Decoder) -> None:
        """Asks the fork server to kill the process."""
        self._kill(decoder.number)

    def _kill(self, number: int) -> None:
        if not self._send(KILL, number):
            self._loop.call_later(_RETRY_SECONDS, self._kill, number)

    def _send(self, command: int, number: int, *descriptors: int) -> bool:
        """Returns False if the socket is full: the command was not sent."""
        with suppress(OSError):  # it has ended; `_on_readable` notices that
            try:
                socket.send_fds(self._control, [COMMAND.pack(command, number)], descriptors)
            except BlockingIOError:
                return False
        return True

    def _on_readable(self) -> None:
        try:
            message = self._control.recv(ENDED.size)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if message:
            self._on_ended(*ENDED.unpack(message))
        else:
            process = self._disconnect()
            assert process is not None
            process.kill()  # it has ended, or is about to
            process.wait()
            self._reap(process.pid)
            self._on_lost()

    def _reap(self, group: int) -> None:
        """Waits for the decoders of a fork server that has ended. This process inherits them if it has PID 1."""
        with suppress(ChildProcessError):
            while os.waitpid(-group, os.WNOHANG) != (0, 0):
                pass
            self._loop.call_later(_RETRY_SECONDS, self._reap, group)

    def _disconnect(self) -> subprocess.Popen[bytes] | None:
        """Closes this end of the socket, so that the fork server ends. Returns its process, if it was running."""
        process, self._process = self._process, None
        if process is not None:
            self._loop.remove_reader(self._control)
            self._control.close()
        return process

    async def close(self) -> None:
        """Ends the fork server and, with it, every decoder."""
        process = self._disconnect()
        if process is None:
            return
        try:
            await asyncio.to_thread(process.wait, _STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            await asyncio.to_thread(process.wait)
