"""A stand-in for wrk on machines without it, with the options that the benchmark uses.

    python -m tests.wrk -tTHREADS -cCLIENTS -dSECONDSs --timeout 60s -s SCRIPT URL -- BODY_FILE CONTENT_TYPE

It sends real requests, from one process: each client keeps its connection, and sends its next request once it has the
whole answer. It prints the line of JSON that service/bench/wrk.lua prints.
"""

import argparse
import asyncio
import json
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

HEAD = "POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"


async def client(host: str, port: int, request: bytes, until: float, answers: list[tuple[float, bool]]) -> int:
    """Sends until then, and notes of each answer its seconds and whether it was an error. Returns the failures."""
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


async def load(url: str, body: bytes, kind: str, clients: int, seconds: float) -> dict[str, float]:
    """The figures of all clients."""
    parts = urlsplit(url)
    assert parts.hostname
    head = HEAD.format(path=parts.path, host=parts.netloc, kind=kind, length=len(body)).encode()
    started, answers = time.monotonic(), list[tuple[float, bool]]()
    sending = (
        client(parts.hostname, parts.port or 80, head + body, started + seconds, answers) for _ in range(clients)
    )
    broken = sum(await asyncio.gather(*sending))
    took = [seconds for seconds, _ in answers] or [0.0]
    p50, p95, p99 = (float(each) for each in np.percentile(took, [50, 95, 99]))
    refused = sum(is_error for _, is_error in answers)
    elapsed = time.monotonic() - started
    return {"requests": len(answers), "seconds": elapsed, "refused": refused, "broken": broken} | {
        "p50": p50,
        "p95": p95,
        "p99": p99,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("-t", type=int)
    parser.add_argument("-c", type=int)
    parser.add_argument("-d", type=lambda text: float(text.removesuffix("s")))
    parser.add_argument("--timeout")
    parser.add_argument("-s")
    parser.add_argument("url")
    parser.add_argument("rest", nargs=2)
    options = parser.parse_args()
    file, content_type = options.rest
    found = asyncio.run(load(options.url, Path(file).read_bytes(), content_type, options.c, options.d))
    print(json.dumps(found))
