"""A real server process and crowds of connections: busy, idle, in bursts, and on their way when it stops."""

import asyncio
import resource
import signal
import socket
import struct
from contextlib import ExitStack, contextmanager, suppress

import pytest

from service.http.descriptors import raise_limit
from tests.servers import until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

ASK = b"GET /models/colour/ready HTTP/1.1\r\nHost: x\r\n\r\n"
ASK_ONCE = b"GET /models/colour/ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
PROBE = b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
ANSWER = b"HTTP/1.1 200"

LIMITED = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
from service.__main__ import main
main()
"""


def connect(server):
    return socket.create_connection(("127.0.0.1", server.port), timeout=60)


@contextmanager
def connections(server, count):
    raise_limit()
    with ExitStack() as stack:
        yield [stack.enter_context(connect(server)) for _ in range(count)]


def answer_to_probe(server):
    with connect(server) as client:
        client.sendall(PROBE)
        return client.makefile("rb").read()


def answers_until_now(clients):
    """How many answers have arrived that were not yet counted."""
    arrived = 0
    for each in clients:
        each.settimeout(0)
        with suppress(BlockingIOError):
            while data := each.recv(2**20):
                arrived += data.count(ANSWER)
    return arrived


@pytest.mark.parametrize("path", ["/health/live", "/models/colour/ready"])
def test_new_connections_do_not_starve_beside_a_crowd(serve, repository, path):
    """Counted in answers that the crowd gets meanwhile, whatever the machine's speed."""
    server = serve(repository=repository).wait_ready()
    probe = PROBE.replace(b"/health/live", path.encode())
    with connections(server, 200) as crowd:
        for each in crowd:
            each.sendall(ASK * 300)
        with connections(server, 200) as fresh:
            answers_until_now(crowd)
            for each in fresh:
                each.sendall(probe)
            for each in fresh:
                assert each.makefile("rb").read().startswith(ANSWER)
            meanwhile = answers_until_now(crowd)
    assert meanwhile < 80 * len(crowd)  # one new connection in a turn of the loop would make it 200 times


def test_a_burst_of_connections_is_taken(serve, repository):
    server = serve(repository=repository).wait_ready()
    raise_limit()
    with ExitStack() as stack:
        burst = [stack.enter_context(socket.socket()) for _ in range(2000)]
        for each in burst:
            each.settimeout(0)
            each.connect_ex(("127.0.0.1", server.port))
        assert answer_to_probe(server).startswith(ANSWER)


def test_connections_that_are_reset_at_once_leave_nothing(serve, repository):
    server = serve(repository=repository).wait_ready()
    before = server.descriptors()
    for _ in range(1000):
        client = connect(server)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    assert answer_to_probe(server).startswith(ANSWER)
    until(lambda: server.descriptors() <= before)
    assert "Traceback" not in server.log()


def test_the_usual_soft_limit_of_descriptors_is_raised(serve, repository):
    limits = LIMITED.format(soft=1024, hard=4096)
    server = serve(repository=repository, command=("-c", limits, "serve")).wait_ready()
    with connections(server, 1200):
        assert answer_to_probe(server).startswith(ANSWER)


def test_when_the_descriptors_run_out_the_server_waits_and_goes_on(serve, repository):
    server = serve(repository=repository).wait_ready()
    _, hard = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (server.descriptors() + 5, hard))
    with connections(server, 50):
        until(lambda: "no connection can be accepted for now" in server.log())
        before = server.cpu_seconds()
        with connect(server) as waiting:
            waiting.settimeout(3)
            with pytest.raises(TimeoutError):
                waiting.recv(1)
        assert server.cpu_seconds() - before < 1.5  # of 3 s: it does not ask again and again
    assert answer_to_probe(server).startswith(ANSWER)
    assert server.log().count("no connection can be accepted for now") == 1


class Client:
    """Asks again and again until the server refuses, and notes what became of each request."""

    def __init__(self, port, question):
        self._port = port
        self._question = question
        self.answered = 0
        self.lost = []

    async def ask_in_new_connections(self):
        while (streams := await self._connected()) is not None:
            reader, writer = streams
            await self._ask(reader, writer)
            writer.close()

    async def ask_in_one_connection(self):
        while (streams := await self._connected()) is not None:
            reader, writer = streams
            goes_on = True
            while goes_on:
                goes_on = await self._ask(reader, writer)
            writer.close()

    async def _connected(self):
        try:
            return await asyncio.open_connection("127.0.0.1", self._port)
        except ConnectionRefusedError:  # before anything was sent
            return None

    async def _ask(self, reader, writer):
        """Whether the connection goes on."""
        try:
            writer.write(self._question)
            await writer.drain()
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length: ")[2].split()[0])
            await reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError) as error:
            self.lost.append(repr(error))
            return False
        self.answered += 1
        return b"connection: close" not in head


@pytest.mark.parametrize(
    ("ask", "question"),
    [(Client.ask_in_new_connections, ASK_ONCE), (Client.ask_in_one_connection, ASK)],
    ids=["new connections", "one connection"],
)
async def test_sigterm_loses_no_request_that_was_sent(serve, repository, ask, question):
    server = serve(repository=repository, drain_delay_seconds=0)
    await asyncio.to_thread(server.wait_ready)
    clients = [Client(server.port, question) for _ in range(100)]
    asking = [asyncio.ensure_future(ask(client)) for client in clients]
    await asyncio.to_thread(until, lambda: sum(client.answered for client in clients) > 1000)
    server.process.send_signal(signal.SIGTERM)
    await asyncio.gather(*asking)
    assert [client.lost for client in clients if client.lost] == []
    assert await asyncio.to_thread(server.process.wait, 60) == 0


def test_what_is_sent_to_a_silent_connection_while_the_server_stops_is_answered(serve, repository):
    server = serve(repository=repository, drain_delay_seconds=0).wait_ready()
    with connections(server, 20) as silent:
        server.process.send_signal(signal.SIGTERM)
        until(lambda: "draining" in server.log())
        for each in silent:
            each.sendall(ASK_ONCE)
        for each in silent:
            assert each.makefile("rb").read().startswith(ANSWER)
    assert server.process.wait(60) == 0
