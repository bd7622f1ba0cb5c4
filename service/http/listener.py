"""Listening sockets: they accept every connection that has arrived, and close without losing one.

uvloop's own server accepts one connection in each iteration of its loop, which is a few a second beside a thousand busy
clients, and it stops for good when the process runs out of file descriptors. Closing a listening socket resets the
connections in its backlog, so they are accepted first.
"""

import asyncio
import ctypes
import errno
import os
import socket
import struct
from collections.abc import Callable, Iterable, Sequence

import structlog

from service.errors import ServiceError

log = structlog.get_logger()

BACKLOG = 4096  # the kernel lowers it to net.core.somaxconn
ACCEPTED_PER_ITERATION = 256  # for each socket; the rest waits for the next iteration of the loop
EXHAUSTED_SECONDS = 0.1
HANDSHAKE_SECONDS = 0.25  # a few round trips

_NUMERIC = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_CURES = {
    errno.EADDRINUSE: "stop the program that listens there, or choose another port: --port or MENAGERIE_PORT",
    errno.EACCES: "choose a port above 1023: --port or MENAGERIE_PORT",
}

# A classic BPF program that drops every packet that opens a connection.
# Each row is an instruction: code, jump if true, jump if false, operand.
_SO_ATTACH_FILTER = 26
_DROP_SYN = (
    (0x30, 0, 0, 13),  # load the byte with the flags of the TCP header
    (0x45, 0, 1, 0x02),  # is SYN set?
    (0x06, 0, 0, 0),  # drop
    (0x06, 0, 0, 0xFFFFFFFF),  # keep
)


class ListenError(ServiceError):
    """The server cannot listen on this address."""

    code = "cannot_listen"
    cure = "choose an address of this machine: --host or MENAGERIE_HOST"


class Listener:
    """Sockets on every address of a host. They are opened and closed in the thread of their event loop."""

    def __init__(self, sockets: Sequence[socket.socket]) -> None:
        self._sockets = sockets
        self._connect: Callable[[], asyncio.Protocol]
        self._connecting: set[asyncio.Task[None]] = set()
        self._is_exhausted = False

    @classmethod
    def on(cls, host: str, port: int) -> "Listener":
        """Opens the sockets: connections are queued from now on. Port 0 chooses a free one. Raises ListenError."""
        sockets: list[socket.socket] = []
        try:
            for family, name in _addresses(host):
                sockets.append(_listening(family, name, port))
                port = sockets[0].getsockname()[1]  # a free one is the same for all
        except OSError as error:
            for each in sockets:
                each.close()
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
            raise ListenError(f"{_url(host, port)}: {reason}", cure=_CURES.get(error.errno or 0)) from error
        return cls(sockets)

    @property
    def urls(self) -> list[str]:
        """The URLs for clients on this machine."""
        return [_url(*each.getsockname()[:2]) for each in self._sockets]

    def start(self, connect: Callable[[], asyncio.Protocol]) -> None:
        """Accepts connections from now on; `connect` makes the protocol for each."""
        self._connect = connect
        self._watch()

    async def close(self, *, patient: bool) -> None:
        """Accepts the connections in the backlog, hands each to its protocol, and closes the sockets.

        If patient, waits for clients that have begun to connect, where the kernel can be told to refuse new ones.
        """
        if patient and self._refuses_new_clients():
            await asyncio.sleep(HANDSHAKE_SECONDS)
        loop = asyncio.get_running_loop()
        sockets, self._sockets = self._sockets, ()
        for each in sockets:
            loop.remove_reader(each)
            self._accept(each, BACKLOG)
            each.close()
        if self._connecting:
            await asyncio.wait(self._connecting)

    def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        for each in self._sockets:
            loop.add_reader(each, self._accept, each, ACCEPTED_PER_ITERATION)

    def _accept(self, listening: socket.socket, limit: int) -> None:
        for _ in range(limit):
            try:
                connection, _ = listening.accept()
            except BlockingIOError:
                self._is_exhausted = False
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._pause(error)
                    return
                continue  # the client has gone
            connection.settimeout(0)
            task = asyncio.get_running_loop().create_task(self._connected(connection))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _connected(self, connection: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(self._connect, connection)
        except OSError:  # the client has gone
            connection.close()

    def _pause(self, error: OSError) -> None:
        """Leaves connections in the backlog for a while: without a pause, trying again would keep a core busy."""
        if not self._is_exhausted:
            self._is_exhausted = True
            log.warning("no connection can be accepted for now", reason=error.strerror, cure="raise `ulimit -n`")
        loop = asyncio.get_running_loop()
        for each in self._sockets:
            loop.remove_reader(each)
        loop.call_later(EXHAUSTED_SECONDS, self._watch)

    def _refuses_new_clients(self) -> bool:
        """Makes the kernel drop attempts to connect, which clients repeat after a second. False if it is not Linux."""
        code = b"".join(struct.pack("HBBI", *each) for each in _DROP_SYN)
        kept = ctypes.create_string_buffer(code, len(code))
        program = struct.pack("HP", len(_DROP_SYN), ctypes.addressof(kept))
        try:
            for each in self._sockets:
                each.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
        except OSError:
            return False
        return True


def _addresses(host: str) -> Iterable[tuple[socket.AddressFamily, str]]:
    """Each address of the host once, in the resolver's order. Raises OSError."""
    found = socket.getaddrinfo(host or None, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return dict.fromkeys((family, socket.getnameinfo(address, _NUMERIC)[0]) for family, _, _, _, address in found)


def _listening(family: socket.AddressFamily, address: str, port: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.settimeout(0)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # 0.0.0.0 has a socket of its own
        made.bind((address, port))
        made.listen(BACKLOG)
    except OSError:
        made.close()
        raise
    return made


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
