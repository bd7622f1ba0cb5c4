"""Swaps under load, in a real server with real clients: no request fails, and every answer is its version's own."""

import random
import shutil
import threading
import time
from pathlib import Path

import httpx2
import numpy as np
import psutil
import pytest

from models.artifact.manifest import MANIFEST_FILE
from service.repository.publisher import STAGING
from tests.client import AUTHORIZED, JPEG, TOKEN, picture, tar_of, total
from tests.models.make_twins import make_twins
from tests.models.published import publish_ballast, publish_softmax
from tests.servers import until

pytestmark = pytest.mark.slow

SAMPLES = sorted((Path(__file__).parent.parent / "models" / "samples").glob("*.[jp][pn]g"))
CLIENTS = 16


class Load:
    """Clients that post pictures one after the other until they are told to stop."""

    def __init__(self, url, model, pictures):
        self._url, self._pictures = f"{url}/predict/{model}?top_k=3", pictures
        self._stop = threading.Event()
        self.answers = []
        """(when, seconds, status, picture, body) of each request."""
        self._threads = [threading.Thread(target=self._post, args=(number,)) for number in range(CLIENTS)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _post(self, number):
        with httpx2.Client(timeout=60) as client:
            while not self._stop.is_set():
                number = (number + 1) % len(self._pictures)
                started = time.monotonic()
                answer = client.post(self._url, content=self._pictures[number], headers=JPEG)
                record = (started, time.monotonic() - started, answer.status_code, number, answer.json())
                self.answers.append(record)

    def wait(self, answers):
        """Waits for that many more."""
        target = len(self.answers) + answers
        until(lambda: len(self.answers) >= target)

    def p99(self, since, to):
        return float(np.quantile([seconds for when, seconds, *_ in self.answers if since <= when < to], 0.99))


def admin(server, method, path, **options):
    return httpx2.request(method, f"{server.url}/admin/models/{path}", headers=AUTHORIZED, timeout=300, **options)


def upload(server, model, content):
    headers = AUTHORIZED | {"Content-Type": "application/x-tar"}
    return httpx2.post(f"{server.url}/admin/models/{model}/versions", content=content, headers=headers, timeout=300)


def shown(server, model, number):
    versions = server.get(f"/models/{model}").json()["versions"]
    return next((each for each in versions if each["version"] == number), None)


def test_twenty_swaps_between_pytorch_and_keras_under_load(serve, tmp_path, record_property):
    twins = make_twins(tmp_path / "repository" / "twins")
    (twins / "routing.toml").write_text("live = 1\n[versions.2]\nload = true\n")
    server = serve(repository=tmp_path / "repository", admin_token=TOKEN).wait_ready()
    until(lambda: all(shown(server, "twins", version)["state"] == "READY" for version in (1, 2)), 300)

    # PyTorch with torchvision's normalisation and Keras with caffe's: the same answers, each with its own labels.
    pictures = [path.read_bytes() for path in SAMPLES if not path.name.startswith("digit")]
    expected = {}
    for version in (1, 2):
        for number, content in enumerate(pictures):
            path = f"/predict/twins?top_k=3&version={version}"
            expected[version, number] = server.post(path, content=content, headers=JPEG).json()["predictions"]
    for number in range(len(pictures)):
        for mine, other in zip(expected[1, number], expected[2, number], strict=True):
            assert mine["probability"] == pytest.approx(other["probability"], abs=1e-4)
            assert mine["label"].removeprefix("torch") == other["label"].removeprefix("keras")
    assert len({expected[1, number][0]["probability"] for number in range(len(pictures))}) == len(pictures)

    with Load(server.url, "twins", pictures) as load:
        load.wait(200)
        before = time.monotonic()
        time.sleep(4)
        swapping = time.monotonic()
        for swap in range(20):
            answer = admin(server, "POST", f"twins/versions/{2 - swap % 2}/activate")
            assert answer.status_code == 200, answer.text
            assert server.get("/models/twins").json()["live"] == 2 - swap % 2
            load.wait(20)
        swapped = time.monotonic()
        # A new version, which is converted first.
        assert admin(server, "POST", "twins/unpin").status_code == 200
        shutil.copytree(twins / "1", tmp_path / "3")
        toml = tmp_path / "3" / "artifact.toml"
        toml.write_text(toml.read_text().replace("torch0", "torch10", 1))
        assert upload(server, "twins", tar_of(tmp_path / "3")).status_code == 201
        until(lambda: server.get("/models/twins").json()["live"] == 3, 300)
        load.wait(100)
        converted = time.monotonic()
        # A version that is no version: refused with the reason while everybody is answered.
        failed = total(server, "serving_swaps_total", model="twins", outcome="failed")
        content = (twins / "1" / "weights.pth").read_bytes()
        (tmp_path / "3" / "weights.pth").write_bytes(content[: len(content) // 2])
        assert upload(server, "twins", tar_of(tmp_path / "3")).status_code == 201
        until(lambda: shown(server, "twins", 4)["state"] == "UNAVAILABLE", 300)
        assert "weights.pth" in shown(server, "twins", 4)["reason"]
        assert total(server, "serving_swaps_total", model="twins", outcome="failed") == failed + 1
        assert server.get("/models/twins").json()["live"] == 3
        load.wait(100)

    assert {status for _, _, status, _, _ in load.answers} == {200}
    assert {body["version"] for *_, body in load.answers} == {1, 2, 3}
    for *_, number, body in load.answers:
        found, sound = body["predictions"][0], expected[min(body["version"], 2), number][0]
        if body["version"] == 3:
            sound = expected[1, number][0] | {"label": expected[1, number][0]["label"].replace("torch0", "torch10")}
        assert found["label"] == sound["label"]
        assert found["probability"] == pytest.approx(sound["probability"], abs=1e-4)
    usual, swaps, conversion = (
        load.p99(*span) for span in ((before, swapping), (swapping, swapped), (swapped, converted))
    )
    record_property(
        "row",
        f"20 swaps under {CLIENTS} clients: {len(load.answers)} answers, 0 failed; "
        f"p99 {usual * 1000:.0f} ms before, {swaps * 1000:.0f} ms during ({swaps / usual:.2f}x), "
        f"{conversion * 1000:.0f} ms while converting ({conversion / usual:.2f}x); "
        f"{(swapped - swapping) / 20:.2f} s a swap",
    )
    assert server.stop() == 0


def resident_bytes(server):
    return psutil.Process(server.process.pid).memory_info().rss


def test_the_memory_of_a_model_that_goes_comes_back(serve, tmp_path, record_property):
    size = 100 * 2**20
    for version in (1, 2):
        publish_ballast(tmp_path / "repository" / "heavy", size, version)
    (tmp_path / "repository" / "heavy" / "routing.toml").write_text("live = 1\n")
    server = serve(repository=tmp_path / "repository", admin_token=TOKEN, max_batch_size=4).wait_ready()
    resident = []
    for swap in range(50):
        number = 2 - swap % 2
        assert admin(server, "POST", f"heavy/versions/{number}/activate").status_code == 200
        answer = server.post("/predict/heavy", content=picture(), headers=JPEG).json()
        assert answer["version"] == number
        until(lambda number=number: shown(server, "heavy", 3 - number) is None)
        resident.append(resident_bytes(server))
    record_property(
        "row",
        f"swaps of a 100 MB model: {resident[4] / 2**20:.0f} MB resident after 5, {resident[-1] / 2**20:.0f} after 50",
    )
    assert resident[-1] <= 1.15 * resident[4]
    # What would show if one were kept: another version of it, loaded beside.
    assert admin(server, "POST", "heavy/versions/2/load").status_code == 200
    assert admin(server, "POST", "heavy/versions/1/load").status_code == 200
    assert resident_bytes(server) > 1.15 * resident[4]


def test_a_server_killed_at_any_moment_serves_what_was_published_last(serve, tmp_path, record_property):
    """Thirty times: uploads, loads, activations and deletions are under way when SIGKILL comes."""
    repository, seed = tmp_path / "repository", random.Random(0)
    publish_softmax(repository / "colour", 1)
    content = tar_of(publish_ballast(tmp_path / "spare", 8 * 2**20))
    stages = []
    for _ in range(30):
        server = serve(repository=repository, admin_token=TOKEN, poll_seconds=0.2)
        server.wait_ready(60)
        listed = server.get("/models/colour").json()
        numbers = sorted(int(path.name) for path in (repository / "colour").iterdir() if path.name.isdigit())
        assert listed["live"] == numbers[-1]
        assert [each["state"] for each in listed["versions"] if each["version"] == numbers[-1]] == ["READY"]
        assert server.post("/predict/colour", content=picture(), headers=JPEG).status_code == 200
        for number in numbers:  # each is whole
            assert (repository / "colour" / str(number) / MANIFEST_FILE).exists()
            assert not list((repository / "colour").glob("*/archive.tar"))
        assert not list((repository / STAGING).glob("*"))  # what the last one left is gone

        stage = ["nothing"]

        def work(server=server, stage=stage, numbers=numbers):
            try:
                for step in range(100):
                    stage[0] = f"upload {step}"
                    upload(server, "colour", slowly(content))
                    stage[0] = f"load {step}"
                    admin(server, "POST", f"colour/versions/{numbers[-1] + step + 1}/load")
                    stage[0] = f"delete {step}"
                    admin(server, "DELETE", f"colour/versions/{numbers[-1] + step}")
            except httpx2.TransportError:
                pass

        thread = threading.Thread(target=work)
        thread.start()
        time.sleep(seed.uniform(0, 0.8))
        server.kill()
        stages.append(stage[0].split()[0])
        thread.join()
    counts = {name: stages.count(name) for name in sorted(set(stages))}
    record_property("row", f"30 times SIGKILL: the server always started again; killed during {counts}")
    assert len(counts) >= 2


def slowly(content):
    for start in range(0, len(content), 2**20):
        yield content[start : start + 2**20]
        time.sleep(0.01)
