"""What several modules of tests of the models share."""

import json
import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def make_row():
    """Asks the process that makes rows for one of them."""
    command = [sys.executable, "-m", "tests.models.make_row"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **pipes, text=True) as process:

        def make(*words):
            print(*words, file=process.stdin)
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            assert "error" not in answer, answer["error"]
            return answer

        yield make
        process.stdin.close()
