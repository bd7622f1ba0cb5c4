"""Clients for machines without wrk, in one process: `-m service.bench.client URL BODY_FILE TYPE CLIENTS SECONDS`.

Each client keeps its connection, and sends its next request once it has the whole answer. Prints one line of JSON.
"""

import asyncio
import json
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

HEAD = "POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"


async def _client(host: str, port: int, request: bytes, until: float, answers: list[tuple[float, bool]]) -> int:
    """Sends until then, and notes of each answer how long it took and whether it was refused; returns what broke."""
    broken = 0
    while time.monotonic() < until:
        writer: asyncio.StreamWriter | None = None
        try:
            reader, writer = await asyncio.open_connection(host, port, limit=2**20)
            while (started := time.monotonic()) < until:
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                await reader.readexactly(int(length.partition(b":")[2]))
                answers.append((time.monotonic() - started, not head.startswith(b"HTTP/1.1 2")))
        except (OSError, asyncio.IncompleteReadError):
            broken += 1
            await asyncio.sleep(0.1)  # a server that is down is not asked a million times
        finally:
            if writer is not None:
                writer.close()
    return broken


async def run(url: str, body: bytes, kind: str, clients: int, seconds: float) -> dict[str, object]:
    """What all clients saw."""
    parts = urlsplit(url)
    assert parts.hostname
    path = f"{parts.path}?{parts.query}" if parts.query else parts.path
    head = HEAD.format(path=path, host=parts.netloc, kind=kind, length=len(body))
    started, answers = time.monotonic(), list[tuple[float, bool]]()
    until = started + seconds
    sending = (_client(parts.hostname, parts.port or 80, head.encode() + body, until, answers) for _ in range(clients))
    broken = sum(await asyncio.gather(*sending))
    return {
        "seconds": time.monotonic() - started,
        "latencies": [took for took, _ in answers],
        "refused": sum(refused for _, refused in answers),
        "broken": broken,
    }


if __name__ == "__main__":
    address, file, content_type, count, duration = sys.argv[1:]
    found = asyncio.run(run(address, Path(file).read_bytes(), content_type, int(count), float(duration)))
    sys.stdout.write(json.dumps(found) + "\n")
