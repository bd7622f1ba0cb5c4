"""Mixed load for some minutes, and what the server's processes hold meanwhile.

    python -m tests.hostile.soak --minutes 10

Good pictures of several sizes, broken ones, numbers, JSON and forms, clients that hang up and clients that dribble.
Exit code 1: an answer of 5xx, none at all, a good request answered otherwise than with 200, or a server that died.
"""

import argparse
import base64
import json
import random
import socket
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np

from tests.hostile.mutation import bodies, broken
from tests.hostile.target import HANG_SECONDS, Answer, Sample, Tally, Target, together
from tests.images import gif, gradient, jpeg, lying_jpeg, noise, png, webp

BODY_TIMEOUT_SECONDS = 5  # of the server, so that what dribbles is cut off often
VANISH_SECONDS = 0.02
SAMPLE_SECONDS = 15.0
FORM = "multipart/form-data; boundary=frontier"


def form(*bodies):
    """A form of these files."""
    head = b'--frontier\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    return b"".join(head + body + b"\r\n" for body in bodies) + b"--frontier--\r\n"


def instances(*bodies):
    """JSON of these images."""
    return json.dumps({"instances": [{"b64": base64.b64encode(body).decode()} for body in bodies]}).encode()


PICTURES = [
    jpeg(gradient(120, 80)),
    jpeg(gradient(500, 375)),
    jpeg(noise(1200, 900), quality=85),
    jpeg(gradient(4000, 3000), quality=85),
    png(gradient(700, 500)),
    webp(gradient(640, 480)),
    gif(gradient(200, 150)),
]
GOOD = [
    *[("colour", body, "image/jpeg") for body in PICTURES],
    *[("tiny", body, "application/octet-stream") for body in PICTURES],
    ("tiny", form(*PICTURES[:2]), FORM),
    ("colour", instances(*PICTURES[:2]), "application/json"),
    ("largest", b'{"instances": [[1, 2, 3], [3, 2, 1]]}', "application/json"),
]


class Load:
    """The clients: each method is one request of its kind."""

    def __init__(self, target, corpus, seed):
        self.target = target
        self.corpus = corpus
        self.rng = random.Random(seed)
        self.connection = target.connect()

    def good(self):
        model, body, kind = self.rng.choice(GOOD)
        return self.target.post(self.connection, f"/predict/{model}", body, kind)

    def bad(self):
        body = broken(self.rng.randrange(2**32), self.corpus)
        return self.target.post(self.connection, f"/predict/{self.rng.choice(('colour', 'tiny'))}", body)

    def mixed(self):
        """Good and bad in one request: what is good is answered."""
        body = broken(self.rng.randrange(2**32), self.corpus)
        return self.target.post(self.connection, "/predict/tiny", form(PICTURES[0], body, PICTURES[1]), FORM)

    def vanish(self):
        """Hangs up in the middle of the body, or before the answer."""
        body, start = self.rng.choice(PICTURES), time.monotonic()
        with self._half_sent(body, self.rng.choice((0, len(body) // 2, len(body)))):
            time.sleep(VANISH_SECONDS)  # each costs the machine a port for a minute
            return Answer("200, had it waited", time.monotonic() - start)

    def dribble(self):
        """Sends a byte now and then, until it is told off."""
        start = time.monotonic()
        with self._half_sent(PICTURES[1], 100) as client:
            client.settimeout(0.5)
            while (seconds := time.monotonic() - start) < HANG_SECONDS:
                try:
                    client.sendall(b"x")
                    words = client.recv(4096).split()
                    return Answer(words[1].decode() if words else "closed", seconds)
                except TimeoutError:
                    continue
                except OSError:  # it was sent while the last byte came
                    return Answer("408 unread", seconds)
        return Answer("hang", seconds)

    def _half_sent(self, body, count):
        parts = urlsplit(self.target.url)
        client = socket.create_connection((parts.hostname, parts.port), timeout=30)
        head = f"POST /predict/tiny HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body[:count])
        return client


class Kind(NamedTuple):
    """A kind of client."""

    clients: int
    right: str
    """How each of its answers begins, where there is only one right answer."""


MIX = {
    "good": Kind(3, "200"),
    "bad": Kind(2, ""),
    "mixed": Kind(1, "200"),
    "vanish": Kind(1, ""),
    "dribble": Kind(2, "408"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", type=Path, nargs="*", metavar="PATH", help="what is broken; default: our own images")
    parser.add_argument("--minutes", type=float, default=10)
    options = parser.parse_args()
    with Target(body_timeout_seconds=BODY_TIMEOUT_SECONDS) as target:
        return run(target, options)


def run(target, options):
    corpus = bodies(options.paths) or [*PICTURES, lying_jpeg()]
    tallies = {name: Tally(kind.right) for name, kind in MIX.items()}
    end = time.monotonic() + options.minutes * 60
    clients = [name for name, kind in MIX.items() for _ in range(kind.clients)]

    def client(number):
        load, name = Load(target, corpus, number), clients[number]
        while time.monotonic() < end:
            tallies[name].add(name, getattr(load, name)())

    watched = threading.Thread(target=together, args=(client, range(len(clients))), daemon=True)
    watched.start()
    watch(target.pid, end)
    watched.join()
    print("afterwards:", Sample.of(target.pid))
    for name, tally in tallies.items():
        print(f"{name}: ", end="")
        tally.report()
    return int(not target.report() or any(tally.faults for tally in tallies.values()))


def watch(pid, end):
    """Prints what the processes hold until then, and by how much that grew in the second half."""
    samples, start = {}, time.monotonic()
    while (now := time.monotonic()) < end:
        samples[(now - start) / 60] = sample = Sample.of(pid)
        print(f"{now - start:5.0f} s  {sample}", flush=True)
        time.sleep(min(SAMPLE_SECONDS, max(0, end - time.monotonic())))
    half = list(samples)[len(samples) // 2 :]
    for field in Sample._fields:
        slope, _ = np.polyfit(half, [getattr(samples[minute], field) for minute in half], 1)
        print(f"second half: {slope:+.3f} {field} a minute")


if __name__ == "__main__":
    sys.exit(main())
