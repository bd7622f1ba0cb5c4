"""What the benchmark needs."""

import os
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _wrk_is_there(tmp_path_factory, monkeypatch):
    """wrk, or where it is not installed a stand-in that sends real requests too."""
    if shutil.which("wrk") is None:
        directory = tmp_path_factory.mktemp("wrk")
        (directory / "wrk").write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m tests.wrk "$@"\n')
        (directory / "wrk").chmod(0o755)
        monkeypatch.setenv("PATH", f"{directory}{os.pathsep}{os.environ['PATH']}")
