"""A client's requests and how its answers are read."""

import io
import tarfile
from pathlib import Path
from typing import Protocol

import httpx2
from PIL import Image

JPEG = {"Content-Type": "image/jpeg"}
TOKEN = "correct horse battery"
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}


class Client(Protocol):
    """What fetches a path: a client of an application, or of a server in a process of its own."""

    def get(self, path: str, /) -> httpx2.Response: ...


def picture(colour: str = "green", size: tuple[int, int] = (40, 30), kind: str = "PNG") -> bytes:
    """An image of one colour."""
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return file.getvalue()


def error_of(answer: httpx2.Response) -> tuple[int, str]:
    """The status and the code of an error; each has one shape, with a code, a message and a cure."""
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message", "cure"}
    assert all(body["error"].values())
    assert answer.headers["X-Request-ID"]
    return answer.status_code, body["error"]["code"]


def total(client: Client, name: str, **labels: str) -> float:
    """The value of a counter, as Prometheus would scrape it."""
    wanted = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"{name}{{{wanted}}}"))


def tar_of(directory: Path, **more: bytes) -> bytes:
    """A tar of the files in a directory, and of more files by name."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for path in sorted(directory.iterdir()):
            tar.add(path, path.name)
        for name, content in more.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()
