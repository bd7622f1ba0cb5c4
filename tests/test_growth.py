"""Forty models in one process: they start, idle for nothing, and answer in turn."""

import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.client import JPEG, picture
from tests.models.published import publish_numbers, publish_softmax

pytestmark = pytest.mark.slow

MODELS = [f"model{number:02}" for number in range(40)]


def test_forty_models_in_one_process(serve, tmp_path, record_property):
    repository = tmp_path / "repository"
    publish_softmax(repository / MODELS[0])
    for name in MODELS[1:]:
        shutil.copytree(repository / MODELS[0], repository / name)
    publish_numbers(repository / "numbers")
    started = time.monotonic()
    server = serve(repository=repository).wait_ready()
    ready = time.monotonic() - started
    models = server.get("/models").json()["models"]
    assert len(models) == 41
    assert all(version["memory_bytes"] >= 0 for model in models for version in model["versions"])

    before = server.cpu_seconds()
    time.sleep(3)
    idle = (server.cpu_seconds() - before) / 3
    assert idle < 0.1  # of a core: nobody polls

    def ask(name):
        return server.post(f"/predict/{name}", content=picture(), headers=JPEG)

    with ThreadPoolExecutor(16) as clients:
        answers = list(clients.map(ask, MODELS * 3))
    assert [answer.status_code for answer in answers] == [200] * 120
    assert [answer.json()["model"] for answer in answers] == MODELS * 3

    files = [("file", picture(colour)) for colour in ("red", "green", "blue", "red") * 16]
    answer = server.post(f"/predict/{MODELS[7]}?top_k=1", files=files).json()
    labels = [result["predictions"][0]["label"] for result in answer["results"]]
    assert labels == ["red", "green", "blue", "red"] * 16
    record_property("row", f"41 models: ready after {ready:.1f} s, idle at {idle:.1%} of a core")
