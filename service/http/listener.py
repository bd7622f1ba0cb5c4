"""The sockets that listen: they accept all that has arrived, and close without losing a connection.

uvloop's own server accepts one connection in a turn of its loop, a few a second beside a thousand busy clients,
and it stops for good when the process has no descriptor left. A socket that listens resets its backlog when it closes.
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
ACCEPTED_IN_A_TURN = 256  # of each socket; the rest waits for the loop's next turn
EXHAUSTED_SECONDS = 0.1
HANDSHAKE_SECONDS = 0.25  # a few round trips

_NUMERIC = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_CURES = {
    errno.EADDRINUSE: "stop what listens there, or choose another port: --port or MENAGERIE_PORT",
    errno.EACCES: "choose a port above 1023: --port or MENAGERIE_PORT",
}

# A classic BPF program that drops every packet with which a client begins to connect.
# Each row is an instruction: code, jump if true, jump if false, operand.
_SO_ATTACH_FILTER = 26
_DROP_SYN = (
    (0x30, 0, 0, 13),  # load the byte of the TCP header that holds its flags
    (0x45, 0, 1, 0x02),  # is SYN among them?
    (0x06, 0, 0, 0),  # drop
    (0x06, 0, 0, 0xFFFFFFFF),  # keep
)


class ListenError(ServiceError):
    """The address cannot be listened on."""

    code = "cannot_listen"
    cure = "choose an address of this machine: --host or MENAGERIE_HOST"


class Listener:
    """Sockets on every address of a host. Opened and closed in the thread of the loop that they serve."""

    def __init__(self, sockets: Sequence[socket.socket]) -> None:
        self._sockets = sockets
        self._connect: Callable[[], asyncio.Protocol]
        self._connecting: set[asyncio.Task[None]] = set()
        self._is_exhausted = False

    @classmethod
    def on(cls, host: str, port: int) -> "Listener":
        """Connections are queued from now on. Port 0 takes a free one. Raises ListenError."""
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
        """Where the clients of this machine find it."""
        return [_url(*each.getsockname()[:2]) for each in self._sockets]

    def start(self, connect: Callable[[], asyncio.Protocol]) -> None:
        """Connections are accepted from now on, each for a protocol that `connect` makes."""
        self._connect = connect
        self._watch()

    async def close(self, *, patient: bool) -> None:
        """Accepts what is in the backlog, and closes. When it returns, each has been given to its protocol.

        If patient, clients that have begun to connect are waited for, where the kernel can be told to take no others.
        """
        if patient and self._takes_no_others():
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
            loop.add_reader(each, self._accept, each, ACCEPTED_IN_A_TURN)

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
                continue  # the client is gone again
            connection.settimeout(0)
            task = asyncio.get_running_loop().create_task(self._connected(connection))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _connected(self, connection: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(self._connect, connection)
        except OSError:  # the client is gone again
            connection.close()

    def _pause(self, error: OSError) -> None:
        """The backlog waits until others have closed their descriptors; to ask without a pause would take a core."""
        if not self._is_exhausted:
            self._is_exhausted = True
            log.warning("no connection can be accepted for now", reason=error.strerror, cure="raise `ulimit -n`")
        loop = asyncio.get_running_loop()
        for each in self._sockets:
            loop.remove_reader(each)
        loop.call_later(EXHAUSTED_SECONDS, self._watch)

    def _takes_no_others(self) -> bool:
        """Tells the kernel to drop attempts to connect, which clients repeat after a second. Only Linux can."""
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
