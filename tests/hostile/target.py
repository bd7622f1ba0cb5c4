"""The server under attack: started, watched, started again when it dies; and counts of what it answered."""

import http.client
import json
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import psutil
from prometheus_client.parser import text_string_to_metric_families

from service.bench.server import running
from tests.models.published import publish_numbers, publish_softmax
from tests.servers import ServerProcess

HANG_SECONDS = 45.0  # the server itself gives up after 30 s
PROBE_SECONDS = 15.0
MIB = 2**20
SLOWEST = 5
TINY = Path(__file__).parents[2] / "service" / "bench" / "tiny" / "tiny"
DEATHS = "serving_decoder_deaths"
MODELS = ("colour", "tiny")
"""Those of our own server that take images: 8x8 by "stretch", and 224x224 by "crop". Both have the same labels."""


class Answer(NamedTuple):
    """What became of one request."""

    outcome: str
    """The status and the error's code; "hang", or "reset" where the connection broke."""
    seconds: float
    body: bytes = b""


class Target:
    """A server of our own, or one that runs already. Any number of threads may post to it."""

    def __init__(self, url=None, **settings):
        self._lock = threading.Lock()
        self._settings = settings
        self._directory = Path(tempfile.mkdtemp(prefix="hostile-"))
        self.deaths = Counter()
        """How our own servers ended: exit codes, or "hung" of those that no longer answered whether they live."""
        if url is None:
            publish_softmax(self._directory / "models" / "colour")
            publish_numbers(self._directory / "models" / "largest")
            shutil.copytree(TINY, self._directory / "models" / "tiny")
            self._start()
        else:
            served = running(url)
            self._server, self.url, self.pid = None, served.url, served.pid

    def _start(self):
        self._server = ServerProcess(
            self._directory / "server.log",
            repository=self._directory / "models",
            cache=self._directory / "cache",
            **self._settings,
        ).wait_ready()
        self.url, self.pid = self._server.url, self._server.process.pid

    def __enter__(self):
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as with Ctrl-C, the server ends too
        return self

    def __exit__(self, *_):
        """Ends a server of ours."""
        if self._server is not None:
            self._server.kill()
        shutil.rmtree(self._directory)

    def connect(self, seconds=HANG_SECONDS):
        """A connection that opens itself again after the server closed it."""
        parts = urlsplit(self.url)
        return http.client.HTTPConnection(parts.hostname, parts.port, timeout=seconds)

    def post(self, connection, path, body, content_type="application/octet-stream"):
        """The answer. If a server of ours died, there is a new one afterwards, and the connection leads to that."""
        start, content = time.monotonic(), b""
        try:
            connection.request("POST", path, body, {"Content-Type": content_type})
            response = connection.getresponse()
            content = response.read()
            outcome = str(response.status) if response.status < 400 else f"{response.status} {code_of(content)}"
        except TimeoutError:
            outcome = "hang"
        except (OSError, http.client.HTTPException):
            outcome = "reset"
        seconds = time.monotonic() - start
        if outcome in {"hang", "reset"}:
            connection.close()
            self._revive()
            connection.port = urlsplit(self.url).port
        return Answer(outcome, seconds, content)

    def _revive(self):
        with self._lock:
            if self._server is None:
                return
            time.sleep(0.5)  # the connection breaks before the process has ended
            code = self._server.process.poll()
            if code is None and self._lives():
                return
            self.deaths["hung" if code is None else code] += 1
            self._server.kill()
            self._start()

    def _lives(self):
        connection = self.connect(PROBE_SECONDS)
        try:
            connection.request("GET", "/health/live")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def decoder_deaths(self):
        """How many decoders died, by cause; None where the server does not tell."""
        connection = self.connect()
        connection.request("GET", "/metrics")
        families = text_string_to_metric_families(connection.getresponse().read().decode())
        connection.close()
        samples = next((family.samples for family in families if family.name == DEATHS), None)
        if samples is None:
            return None
        found = Counter()
        for sample in samples:
            if sample.name == f"{DEATHS}_total" and sample.value:
                found[", ".join(sample.labels.values())] += int(sample.value)
        return found

    def report(self):
        """Prints how the server is, and tells whether it is still the first one."""
        is_same = not self.deaths and (self.pid is None or psutil.pid_exists(self.pid))
        deaths = self.decoder_deaths()
        print("server:", "the same process as before" if is_same else f"died, {dict(self.deaths)}")
        print("decoders that died, by cause:", "unknown" if deaths is None else dict(deaths) or "none")
        if self.pid is not None:
            print(Sample.of(self.pid))
        return is_same


def code_of(content):
    """The error's code."""
    try:
        return json.loads(content)["error"]["code"]
    except (ValueError, KeyError, TypeError):
        return "without the promised shape"


class Sample(NamedTuple):
    """What a process and all that come from it hold."""

    own_rss_mib: float
    """The process alone."""
    rss_mib: float
    """What they share counts for each of them."""
    pss_mib: float
    """What they share counts once."""
    descriptors: int
    processes: int
    threads: int

    @classmethod
    def of(cls, pid):
        """What they hold now; a process that has just ended holds nothing."""
        found = []
        for process in family(pid):
            with suppress(psutil.NoSuchProcess):
                found.append((process.memory_full_info(), process.num_fds(), process.num_threads()))
        memory = [each for each, _, _ in found]
        return cls(
            own_rss_mib=memory[0].rss / MIB if memory else 0,
            rss_mib=sum(each.rss for each in memory) / MIB,
            pss_mib=sum(each.pss for each in memory) / MIB,
            descriptors=sum(each for _, each, _ in found),
            processes=len(found),
            threads=sum(each for _, _, each in found),
        )

    def __str__(self):
        return (
            f"server {self.own_rss_mib:.0f} MiB; all RSS {self.rss_mib:.0f} MiB, PSS {self.pss_mib:.0f} MiB, "
            f"{self.descriptors} descriptors, {self.processes} processes, {self.threads} threads"
        )


def family(pid):
    """The process and all its descendants."""
    try:
        first = psutil.Process(pid)
        return [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


class Tally:
    """Counts answers; any number of threads may add to it.

    Faults are 5xx, none at all, and what is not `right`, where only one answer is.
    """

    def __init__(self, right=""):
        self._lock = threading.Lock()
        self._right = right
        self.outcomes = Counter()
        self.faults = []
        self._slowest = []

    def add(self, name, answer):
        """Whether the answer is a fault."""
        is_fault = answer.outcome.startswith(("5", "hang", "reset")) or self._right not in answer.outcome
        with self._lock:
            self.outcomes[answer.outcome] += 1
            if is_fault:
                self.faults.append(f"{answer.outcome}  {name}")
            slowest = [*self._slowest, (answer.seconds, answer.outcome, str(name))]
            self._slowest = sorted(slowest, reverse=True)[:SLOWEST]
        return is_fault

    def report(self):
        """Prints the counts, the slowest and the faults."""
        print(f"{self.outcomes.total():,} requests")
        for outcome, count in sorted(self.outcomes.items()):
            print(f"{count:9,}  {outcome}")
        for seconds, outcome, name in self._slowest:
            print(f"{seconds:8.2f} s  {outcome}  {name}")
        for fault in self.faults:
            print(f"FAULT  {fault}")


def together(client, arguments):
    """Runs a client for each of the arguments, until all are done; Ctrl-C ends them all."""
    threads = [threading.Thread(target=client, args=(each,), daemon=True) for each in arguments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
