"""Stands for a converter that an artifact has taken over: the note in its weights file says what it does.

Run by service.host.child in place of models.conversion.convert. What it tries and may not do, it tells as its failure.
"""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.models.saved import note_of


def tell(**event):
    print(json.dumps(event), flush=True)


def flood(stream, text):
    while True:
        stream.write(text)


def hold(number):
    tell(step="load")
    held = []
    while len(held) < number:
        held.append(bytearray(os.urandom(2**20)) * 10)
    signal.pause()


def write(path, size):
    with path.open("wb") as file:
        file.truncate(size)


def leave_something(directory, manifest, onnx):
    directory.mkdir()
    (directory / "manifest.json").write_text(manifest)
    onnx(directory / "model.onnx")


def nest(directory, depth):
    for _ in range(depth):
        directory.mkdir()
        os.chdir(directory)
        directory = Path("deeper")


def sleepers(number):
    """Processes that ignore what they may, and hold the pipes open."""
    for _ in range(number):
        if os.fork() == 0:
            for each in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                signal.signal(each, signal.SIG_IGN)
            time.sleep(600)


def in_a_session_of_its_own():
    os.setsid()


def publish_sound(job):
    """Does what it is asked for: the softmax of its input."""
    from models.artifact.artifact import Spec
    from tests.models.published import edited, publish, softmax_onnx

    spec = Spec.model_validate(job["artifact"]["spec"])
    made = publish(Path(job["directory"]).parent / "made", spec, softmax_onnx(spec))
    edited(made, fingerprint=job["artifact"]["fingerprint"]).rename(job["directory"])


def tried(action):
    try:
        outcome = repr(action())
    except OSError as error:
        outcome = type(error).__name__
    tell(failed="tried", reason=outcome, cure="none")


def main():
    job = json.load(sys.stdin)
    directory, server = Path(job["directory"]), os.getppid()
    what, _, argument = note_of(Path(job["artifact"]["weights"])).partition(" ")
    {
        "loop": lambda: [None for _ in iter(int, 1)],
        "hog": lambda: hold(10**9),
        "null": lambda: ctypes.string_at(0),
        "abort": os.abort,
        "odd signal": lambda: os.kill(os.getpid(), 40),
        "exit": lambda: None,
        "sound": lambda: publish_sound(job),
        "big file": lambda: write(directory.parent / "big", int(argument)),
        "nest": lambda: nest(directory, 2000),
        "lines": lambda: flood(sys.stdout, json.dumps({"step": "again"}) + "\n"),
        "line": lambda: flood(sys.stdout, "x" * 65536),
        "words": lambda: flood(sys.stderr, "x" * 65536),
        "no json": lambda: print("Using TensorFlow backend"),
        "no event": lambda: print("[" * 10000),
        "connect": lambda: tried(lambda: socket.create_connection(("127.0.0.1", int(argument)), timeout=5)),
        "send": lambda: tried(lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", int(argument)))),
        "unix": lambda: tried(lambda: socket.socket(socket.AF_UNIX).connect(argument)),
        "fork": lambda: tried(lambda: sleepers(3)),
        "run": lambda: tried(lambda: subprocess.run(["true"], check=True)),
        "session": lambda: tried(in_a_session_of_its_own),
        "signal the server": lambda: tried(lambda: os.kill(server, 0)),
        "read the server": lambda: tried(lambda: Path(f"/proc/{server}/environ").read_bytes()),
        "overwrite": lambda: tried(lambda: Path(argument).write_text("mine")),
        "make": lambda: tried(lambda: Path(argument).mkdir()),
        "remove": lambda: tried(lambda: Path(argument).unlink()),
        "environment": lambda: tell(failed="tried", reason=json.dumps(dict(os.environ)), cure="none"),
        "crowd": lambda: (sleepers(3), tell(step=str(os.getpid())), os.abort()),
        "orphans": lambda: sleepers(3),
        "other files": lambda: leave_something(directory, argument, lambda path: path.write_bytes(b"12345")),
        "a link": lambda: leave_something(directory, argument, lambda path: path.symlink_to("/etc/passwd")),
        "a pipe": lambda: leave_something(directory, argument, os.mkfifo),
    }[what.replace("-", " ")]()


if __name__ == "__main__":
    main()
