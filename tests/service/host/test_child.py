"""A converting process that misbehaves costs its own load and nothing else."""

import asyncio
import json
import os
import socket
import subprocess
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from service.conversion.conversion import Converter
from service.errors import ConversionError
from service.host.child import CHILD_ENVIRONMENT, environment
from service.repository.repository import Repository
from tests.models.saved import torch_bytes
from tests.processes import converting, groups
from tests.servers import until

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[3]
LIMITS = {"timeout_seconds": 30, "memory_bytes": 160_000_000, "file_bytes": 300_000_000}


def artifact(repository, content):
    """The first version of `model`, with such weights."""
    version = repository / "model" / "1"
    version.mkdir(parents=True, exist_ok=True)
    (version.parent / "model.toml").write_text('architecture = "mlp_iris"')
    (version / "weights.pth").write_bytes(torch_bytes(content.encode()))
    return Repository(repository).resolve("model", 1).source


@pytest.fixture
def misbehave(tmp_path, monkeypatch):
    """Runs a behaviour of tests/misbehaving.py; what the ConversionError says. Nothing may be left of it."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "path"), str(ROOT)]))
    cache = tmp_path / "cache"

    async def run(behaviour, on_step=lambda _: None, **limits):
        converter = Converter(cache, **(LIMITS | limits), module="tests.misbehaving")
        with pytest.raises(ConversionError) as caught:
            await converter.convert(artifact(tmp_path / "weights", behaviour), on_step)
        assert not converting()
        assert [path.name for path in cache.iterdir()] == ["staging"]
        assert {path.suffix for path in (cache / "staging").iterdir()} == {".lock"}
        return caught.value

    return run


async def test_an_endless_loop_ends_with_its_time(misbehave):
    error = await misbehave("loop", timeout_seconds=0.5)
    assert "killed after" in error.message
    assert "MENAGERIE_CONVERSION_TIMEOUT_SECONDS" in error.cure


async def test_a_memory_hog_is_told_how_much_it_had_and_may_have(misbehave):
    error = await misbehave("hog")
    assert "load: the conversion was killed with" in error.message
    assert "it may have 0.2 GB" in error.message
    assert "MENAGERIE_CONVERSION_MEMORY_BYTES" in error.cure


async def test_no_conversion_may_have_more_memory_than_is_free(misbehave, monkeypatch):
    monkeypatch.setattr("service.host.child.available_memory_bytes", lambda: 100_000_000)
    error = await misbehave("hog", memory_bytes=10**12)
    assert "it may have 0.1 GB" in error.message
    assert "larger machine" in error.cure


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ("null", "was ended by SIGSEGV"),
        ("abort", "was ended by SIGABRT"),
        ("odd-signal", "was ended by signal 40"),
        ("exit", "did not leave the files of this artifact"),
        ("big-file 300000001", "wrote a file of more than 0.3 GB"),
        ("lines", "something else than its steps"),
        ("line", "something else than its steps"),
        ("no-json", "something else than its steps"),
        ("no-event", "something else than its steps"),
        ("words", "bytes to standard error"),
        ("orphans", "PermissionError"),
    ],
)
async def test_whatever_ends_it_is_told(misbehave, behaviour, words):
    error = await misbehave(behaviour)
    assert words in f"{error.message} {error.detail}"


async def test_nothing_arrives_from_it(misbehave, tmp_path):
    path = str(tmp_path / "socket")
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(type=socket.SOCK_DGRAM) as udp,
        socket.socket(socket.AF_UNIX) as unix,
    ):
        udp.bind(("127.0.0.1", 0))
        unix.bind(path)
        unix.listen()
        for behaviour in (f"connect {tcp.getsockname()[1]}", f"send {udp.getsockname()[1]}", f"unix {path}"):
            assert (await misbehave(behaviour)).message == "tried: PermissionError"
        for listener, receive in ((tcp, tcp.accept), (unix, unix.accept), (udp, lambda: udp.recv(1))):
            listener.settimeout(0)
            with pytest.raises(BlockingIOError):
                receive()


@pytest.mark.parametrize("behaviour", ["fork", "run", "session", "signal-the-server", "read-the-server"])
async def test_it_has_no_other_process(misbehave, behaviour):
    assert (await misbehave(behaviour)).message == "tried: PermissionError"


async def test_it_writes_into_its_own_directory_alone(misbehave, tmp_path):
    other = tmp_path / "cache" / "other"
    mine = tmp_path / "mine"
    mine.write_text("whole")
    for behaviour in (f"overwrite {mine}", f"remove {mine}", f"make {other}", f"make {tmp_path / 'new'}"):
        assert (await misbehave(behaviour)).message == "tried: PermissionError"
    assert mine.read_text() == "whole"


async def test_no_secret_of_the_server_reaches_it(misbehave, monkeypatch):
    for name in ("MENAGERIE_MODELS", "AWS_SECRET_ACCESS_KEY", "PATH_TOKEN", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    told = (await misbehave("environment")).message.removeprefix("tried: ")
    given = json.loads(told)
    assert "secret" not in given.values()
    assert {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", **CHILD_ENVIRONMENT}.items() <= given.items()
    assert "staging" in given["TMPDIR"]
    assert "staging" in environment({"TMPDIR": "/tmp"}, Path("staging"))["TMPDIR"]


@pytest.mark.parametrize("behaviour", ["other-files", "a-link", "a-pipe"])
@pytest.mark.parametrize("fingerprint", ["another", "its own"])
async def test_only_the_files_of_this_artifact_are_published(misbehave, tmp_path, behaviour, fingerprint):
    manifest = {
        "fingerprint": fingerprint,
        "spec": {},
        "parity": {"relative_error": 0, "probability_error": 0, "top1_agreement": 1, "batches": [1], "items": 1},
        "onnx_sha256": "",
        "onnx_bytes": 5,
        "opset": 20,
        "producers": {},
        "seconds": {},
    }
    error = await misbehave(f"{behaviour} {json.dumps(manifest)}")
    assert error.message == "publish: the converting process did not leave the files of this artifact"


async def test_where_a_system_offers_no_filter_that_is_told_and_its_children_die_too(misbehave, tmp_path):
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text("import platform\nplatform.machine = lambda: 'riscv64'\n")
    leaders = []
    with capture_logs() as logs:
        error = await misbehave("crowd", leaders.append)
    assert "was ended by SIGABRT" in error.message
    (leader,) = map(int, leaders)
    until(lambda: leader not in {group for group, _ in groups().values()})
    (entry,) = logs
    assert entry["missing"] == "network and processes (not known for linux on riscv64)"
    assert entry["log_level"] == "warning"


async def test_a_directory_that_cannot_be_removed_costs_no_more(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    converter = Converter(tmp_path / "cache", **LIMITS, module="tests.misbehaving")
    with pytest.raises(ConversionError, match="did not leave the files"):
        await converter.convert(artifact(tmp_path / "weights", "nest"))
    await asyncio.to_thread(subprocess.run, ["rm", "-r", tmp_path / "cache"], check=True)  # pytest could not, either


async def test_what_a_killed_server_left_is_removed(misbehave, tmp_path):
    left = tmp_path / "cache" / "staging" / f"{artifact(tmp_path / 'weights', 'exit').fingerprint}.left" / "published"
    left.mkdir(parents=True)
    await misbehave("exit")


def test_the_server_goes_on_and_says_what_the_matter_was(application, repository, tmp_path):
    artifact(repository, "anything")
    with application(wait=False, conversion_memory_bytes=1_000_000) as client:

        def versions():
            return client.get("/models/model").json().get("versions", [])

        until(lambda: [version["state"] for version in versions()] == ["UNAVAILABLE"])
        (version,) = versions()
        assert "start: the conversion was killed with" in version["reason"]
        assert "MENAGERIE_CONVERSION_MEMORY_BYTES" in version["reason"]
        until(lambda: client.get("/models/largest/ready").status_code == 200)
        assert client.post("/predict/largest", json={"instances": [[1, 2, 3]]}).status_code == 200
    assert {path.suffix for path in (tmp_path / "cache").rglob("*")} == {"", ".lock"}
