"""What every test gets."""

import os

import pytest

os.environ["ORT_DISABLE_TELEMETRY"] = "1"


@pytest.fixture
def anyio_backend():
    return "asyncio"
