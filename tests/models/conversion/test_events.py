"""Whatever a job raises is reported in one line, with a reason and a cure."""

import json
import subprocess
import sys

import pytest

SCRIPT = """
import sys
from models.errors import ArtifactError
from models.conversion.events import Events
from models.process import peak_resident_bytes, resident_bytes

class Panic(BaseException):
    "As Rust's libraries raise it."

events = Events("MENAGERIE_SOME_MEMORY_BYTES")
raised = {
    "artifact": ArtifactError("it is broken", "mend it"),
    "missing": ModuleNotFoundError("no", name="torch"),
    "disk": OSError(28, "No space left on device"),
    "hdf5": OSError("Unable to open file (truncated)"),
    "memory": MemoryError(),
    "key": KeyError("weights"),
    "panic": Panic("index out of range"),
    "recursion": RecursionError("maximum recursion depth exceeded"),
    "nothing": ValueError(),
    "long": ArtifactError("x" * 10**6, "shorten it"),
    "half": ArtifactError("a name with \\ud800", "rename it"),
    "exit": SystemExit(0),
}

def fail(name):
    with events.step(name):
        raise raised[name]

for name in raised:
    assert events.run(lambda: fail(name), lambda: "keras") == 1
assert events.run(lambda: None, lambda: "keras") == 0
assert 0 < resident_bytes() <= peak_resident_bytes()
"""


@pytest.fixture(scope="module")
def told():
    done = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert max(map(len, done.stdout.splitlines())) < 10_000
    return {event["failed"]: (event["reason"], event["cure"]) for event in events if "failed" in event}


@pytest.mark.parametrize(
    ("name", "reason", "cure"),
    [
        ("artifact", "it is broken", "mend it"),
        ("missing", "torch is not installed, and keras models need it", "pip install 'menagerie[keras]'"),
        ("disk", "a file could not be written or read: No space left on device", "MENAGERIE_CACHE"),
        ("hdf5", "it could not be read: OSError: Unable to open file (truncated)", "report it"),
        ("memory", "memory ran out", "MENAGERIE_SOME_MEMORY_BYTES"),
        ("key", "it could not be read: KeyError: 'weights'", "report it"),
        ("panic", "it could not be read: Panic: index out of range", "report it"),
        ("recursion", "it could not be read: RecursionError", "report it"),
        ("nothing", "it could not be read: ValueError", "report it"),
        ("long", "xxxxxxxx", "shorten it"),
        ("half", "a name with ?", "rename it"),
        ("exit", "it could not be read: SystemExit", "report it"),
    ],
)
def test_it_is_told(told, name, reason, cure):
    assert reason in told[name][0]
    assert cure in told[name][1]
