"""The processes that decode images: a fork server, and the decoders that it forks.

    python -P -m service.images.decoder CONTROL MEMORY_BYTES FILE_BYTES

CONTROL is the descriptor of a socket to the server. The fork server imports all modules once, drops the privileges that
it can do without, and then forks a decoder within milliseconds whenever the server asks for one. It reports how each
decoder ended, and never reads an image itself. A decoder drops the remaining privileges
(`models/conversion/sandbox.py`) and decodes one image after the other until its socket closes.
"""

import gc
import os
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np

from models.conversion import sandbox
from models.inputs import ImageInput
from service.errors import ImageTooLarge, ServiceError, UndecodableImage
from service.host.memory import trim_malloc, tune_malloc
from service.images.decoding import COMMAND, ENDED, FORK, LARGE_PIXELS, NOT_STARTED, TASK_BYTES, Reply, Status, Task
from service.images.preprocess import decode
from service.images.shortcuts import EXACT, Shortcuts

Decode = Callable[..., np.ndarray]
"""`preprocess.decode`."""


def main(arguments: Sequence[str], decode: Decode = decode) -> None:
    """Runs the fork server until the server closes the socket."""
    control, memory_bytes, file_bytes = map(int, arguments)
    # Ctrl-C and SIGTERM may reach every process of a group. The decoders must live until the server has no more images.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    tune_malloc()
    _warm_up()
    missing = sandbox.confine_fork_server()

    def begin(connection: int, memory: int) -> None:
        os.dup2(1, 2)  # standard output is /dev/null: a decoder may not write to the server's log
        lacking = missing + sandbox.confine_decoder(memory_bytes, file_bytes)
        serve(connection, memory, decode, "; ".join(lacking))

    gc.collect()
    gc.freeze()  # so that the memory shared with the forks stays shared
    with socket.socket(fileno=control) as server, suppress(ConnectionError):
        _ForkServer(server, begin).run()


def _warm_up() -> None:
    """Decodes a picture of each kind, because Pillow and simplejpeg import and allocate on first use."""
    from io import BytesIO  # noqa: PLC0415

    from PIL import Image  # noqa: PLC0415

    fitted = [ImageInput(height=8, width=8, channels=channels, interpolation="bicubic") for channels in (1, 3)]
    for mode, kind in (
        ("RGB", "JPEG"),
        ("L", "JPEG"),
        ("CMYK", "JPEG"),
        ("RGBA", "PNG"),
        ("P", "PNG"),
        ("I;16", "PNG"),
        ("P", "GIF"),
        ("RGB", "WEBP"),
        ("RGB", "BMP"),
    ):
        file = BytesIO()
        Image.new(mode, (32, 24)).save(file, kind)
        for spec in fitted:
            for shortcuts in (EXACT, Shortcuts(margin=1)):
                decode(file.getvalue(), spec, max_pixels=1000, shortcuts=shortcuts)
                with suppress(ServiceError):
                    decode(file.getvalue()[:-10], spec, max_pixels=1000, shortcuts=shortcuts)


class _ForkServer:
    """Forks decoders, kills them, and reports their exits."""

    def __init__(self, server: socket.socket, begin: Callable[[int, int], None]) -> None:
        self._server = server
        self._begin = begin
        self._numbers: dict[int, int] = {}
        """Each decoder's number, by its process id."""
        self._is_running = True

    def run(self) -> None:
        """Handles commands and exits until the server closes its end of the socket."""
        ended, waker = socket.socketpair()
        for end in (ended, waker):
            end.setblocking(False)  # noqa: FBT003 - the standard library's
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(waker.fileno())
        try:
            with selectors.DefaultSelector() as selector:
                self._ended = ended
                self._private = (self._server, ended, waker, selector)
                selector.register(self._server, selectors.EVENT_READ, self._handle_command)
                selector.register(ended, selectors.EVENT_READ, self._report_exits)
                while self._is_running:
                    for key, _ in selector.select():
                        key.data()
        finally:
            signal.set_wakeup_fd(-1)

    def _handle_command(self) -> None:
        message, descriptors, *_ = socket.recv_fds(self._server, COMMAND.size, 2)
        if not message:
            self._is_running = False
            return
        command, number = COMMAND.unpack(message)
        if command == FORK:
            self._fork(number, *descriptors)
        else:
            for process in [each for each, found in self._numbers.items() if found == number]:
                os.kill(
                    process, signal.SIGKILL
                )  # nobody has waited for this child yet, so that the number is still its own

    def _fork(self, number: int, connection: int, memory: int) -> None:
        try:
            process = os.fork()
        except OSError:
            self._server.send(ENDED.pack(number, NOT_STARTED))
        else:
            if process == 0:
                self._become_decoder(connection, memory)
            self._numbers[process] = number
        os.close(connection)
        os.close(memory)

    def _become_decoder(self, connection: int, memory: int) -> None:
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for each in self._private:
                each.close()
            self._begin(connection, memory)
            code = 0
        except BaseException:  # noqa: BLE001 - in any case it must not continue as a second fork server
            traceback.print_exc()
        finally:
            os._exit(code)

    def _report_exits(self) -> None:
        self._ended.recv(4096)
        while self._numbers:
            process, status = os.waitpid(-1, os.WNOHANG)
            if process == 0:
                break
            self._server.send(ENDED.pack(self._numbers.pop(process), status))


def serve(connection: int, memory: int, decode: Decode, unconfined: str = "") -> None:
    """Decodes the image in the memory file, once for each task, until the connection closes.

    Both are descriptors: `connection` of a SOCK_SEQPACKET socket, `memory` of a file.
    """
    with suppress(ConnectionError):  # it was closed while a reply was sent
        os.write(connection, Reply(Status.READY, text=unconfined).packed())
        while message := os.read(connection, TASK_BYTES + 1):
            task = Task.unpacked(message)
            os.write(connection, _run_task(task, memory, decode).packed(task.key))


def _run_task(task: Task, memory: int, decode: Decode) -> Reply:
    try:
        data = os.pread(memory, task.data_bytes, 0)
        os.pwrite(memory, _pixels(data, task, decode).data, 0)
    except MemoryError:
        return Reply(Status.OUT_OF_MEMORY)
    except ServiceError as error:
        return _refusal(error, task)
    except BaseException:  # noqa: BLE001 - a bug, here or in a library: only this image fails
        return Reply(Status.MISTAKE, text=traceback.format_exc()[-400:])
    finally:
        if task.pixels_now > LARGE_PIXELS:  # a large picture: its memory is not needed again soon
            trim_malloc()
    return Reply(Status.PIXELS)


def _pixels(data: bytes, task: Task, decode: Decode) -> np.ndarray:
    try:
        return decode(data, task.spec, max_pixels=min(task.max_pixels, task.pixels_now), shortcuts=task.shortcuts)
    except ImageTooLarge as error:
        if error.pixels <= task.max_pixels:
            raise
        # It is refused again, with the limit that holds in the message.
        return decode(data, task.spec, max_pixels=task.max_pixels, shortcuts=task.shortcuts)


def _refusal(error: ServiceError, task: Task) -> Reply:
    if isinstance(error.__cause__, MemoryError):
        return Reply(Status.OUT_OF_MEMORY)
    if isinstance(error, ImageTooLarge) and task.pixels_now < error.pixels <= task.max_pixels:
        return Reply(Status.LARGE, pixels=error.pixels)
    is_broken = isinstance(error, UndecodableImage) and error.met_codec
    return Reply(Status.BROKEN if is_broken else Status.REFUSED, error=error)


if __name__ == "__main__":
    main(sys.argv[1:])
