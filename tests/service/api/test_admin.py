"""The admin API: whatever an operator asks, whoever is live answers, and what was decided survives the process."""

import hashlib
import io
import json
import os
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from models.artifact.versions import MAX_VERSION
from service import metrics
from service.errors import UploadInvalid
from service.repository.publisher import STAGING, _check_unpacked
from service.versions.model import Record
from service.versions.reconciler import Reconciler
from tests import tars
from tests.client import AUTHORIZED, JPEG, TOKEN, error_of, picture, tar_of, total
from tests.models.published import publish_numbers, publish_softmax
from tests.models.saved import torch_bytes
from tests.servers import until

OTHER_LABELS = ("rot", "green", "blue")


@pytest.fixture
def admin(application):
    with application(admin_token=TOKEN) as client:
        client.headers.update(AUTHORIZED)
        yield client


@pytest.fixture
def spare(tmp_path):
    """Makes a published version that lies elsewhere."""

    def make(labels=("red", "green", "blue"), number=1):
        return publish_softmax(tmp_path / "spare" / f"{len(list(tmp_path.glob('spare/*')))}", number, labels=labels)

    return make


def upload(client, content, model="colour", kind="application/x-tar", **query):
    return client.post(f"/admin/models/{model}/versions", content=content, params=query, headers={"Content-Type": kind})


def answering(client, model="colour", **query):
    answer = client.post(f"/predict/{model}", content=picture("red"), headers=JPEG, params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()["version"]


def version(client, number, model="colour"):
    return next((each for each in client.get(f"/models/{model}").json()["versions"] if each["version"] == number), None)


def staged(repository):
    """What lies about, half-written."""
    return sorted(path.name for path in repository.rglob(f"{STAGING}/*"))


def test_without_a_token_there_is_no_admin_api(client):
    assert error_of(client.post("/admin/models/colour/rollback")) == (404, "route_not_found")
    assert not any(path.startswith("/admin") for path in client.get("/openapi.json").json()["paths"])


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer ü"]
)
def test_every_route_wants_the_token(application, header):
    with application(admin_token=TOKEN) as client:
        headers = {} if header is None else {"Authorization": header.encode()}
        paths = client.get("/openapi.json").json()["paths"]
        routes = [(path, method) for path in paths if path.startswith("/admin") for method in paths[path]]
        assert len(routes) == 13
        for path, method in routes:
            url = path.format(model="colour", version=1, label="stable")
            answer = client.request(method, url, headers=headers, content=b"x")
            assert error_of(answer) == (401, "unauthorized")
            assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_the_token_is_shown_nowhere(application, capfd):
    with application(admin_token=TOKEN) as client:
        client.post("/admin/models/colour/rollback", headers=AUTHORIZED)
        client.post("/admin/models/colour/rollback", headers={"Authorization": f"Bearer {TOKEN}x"})
    captured = capfd.readouterr()
    assert TOKEN not in captured.out + captured.err


def test_an_upload_is_published_loaded_and_goes_live(admin, repository, spare):
    content = tar_of(spare(OTHER_LABELS))
    answer = upload(admin, content, sha256=hashlib.sha256(content).hexdigest())
    assert answer.status_code == 201
    assert answer.json() == {
        "model": "colour",
        "version": 2,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    until(lambda: answering(admin) == 2)
    assert sorted(path.name for path in (repository / "colour").iterdir()) == ["1", "2", "model.toml"]
    assert staged(repository) == []
    golden = version(admin, 2)["golden"]
    assert (golden["live"], golden["inputs"]) == (1, 5)
    assert golden["agreement"] == 1 - len(golden["differences"]) / 5


def test_an_upload_can_be_stored_without_going_live(admin, spare):
    assert upload(admin, tar_of(spare()), live=False).json()["version"] == 2
    assert admin.get("/models/colour").json()["live"] == 1
    assert version(admin, 2) is None
    assert admin.get("/models/colour").json()["stored"] == [1, 2]
    answer = admin.post("/admin/models/colour/versions/2/load")
    assert (answer.status_code, answer.json()["state"]) == (200, "READY")
    assert answering(admin) == 1
    assert answering(admin, version=2) == 2


@pytest.mark.parametrize(
    ("content", "query", "expected"),
    [
        (b"", {}, (400, "empty_body")),
        (b"no tar", {}, (422, "upload_invalid")),
        (b"no weights", {"kind": "application/octet-stream"}, (422, "upload_invalid")),
        (b"\0" * 10240, {}, (422, "upload_invalid")),
        (b"weights", {"kind": "application/octet-stream", "sha256": "0" * 64}, (422, "upload_invalid")),
        (b"weights", {"kind": "application/octet-stream", "filename": "../weights"}, (422, "invalid_input")),
        (b"weights", {"kind": "application/octet-stream", "filename": "model.toml"}, (422, "invalid_input")),
        (b"weights", {"kind": "application/octet-stream", "sha256": "abc"}, (422, "invalid_input")),
        (torch_bytes(), {"kind": "application/octet-stream", "version": 1}, (409, "conflict")),
        (b"weights", {"kind": "application/octet-stream", "version": 0}, (422, "invalid_input")),
        (b"weights", {"model": "colours"}, (404, "model_not_found")),
    ],
)
def test_a_bad_upload_is_refused_and_leaves_nothing(admin, repository, content, query, expected):
    assert error_of(upload(admin, content, **query)) == expected
    assert sorted(path.name for path in (repository / "colour").iterdir()) == ["1", "model.toml"]
    assert staged(repository) == []
    assert answering(admin) == 1


def member(name, kind=tarfile.REGTYPE, link="", size=0):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info


@pytest.mark.parametrize(
    "hostile",
    [
        member("../outside", size=1),
        member("/tmp/outside", size=1),
        member("weights/../../outside", size=1),
        member("weights", tarfile.SYMTYPE, "/etc/passwd"),
        member("weights", tarfile.LNKTYPE, "model.toml"),
        member("weights", tarfile.FIFOTYPE),
        member("weights", tarfile.CHRTYPE),
        member("weights", size=2**40),  # says that it is larger than it is
    ],
    ids=lambda each: f"{each.name} {each.type}",
)
def test_an_archive_that_climbs_links_or_lies_is_refused(admin, repository, tmp_path, hostile):
    content = hostile.tobuf() + b"x" * 512 + b"\0" * 1024
    assert error_of(upload(admin, content)) == (422, "upload_invalid")
    assert not list(tmp_path.rglob("outside"))
    assert staged(repository) == []
    assert sorted(path.name for path in (repository / "colour").iterdir()) == ["1", "model.toml"]


@pytest.mark.parametrize("names", [["weights", "weights"], ["weights", "weights/1"], ["x" * 300], ["a/" * 3000 + "b"]])
def test_an_archive_that_cannot_be_laid_out_is_refused(admin, repository, names):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name in names:
            tar.addfile(member(name, size=1), io.BytesIO(b"x"))
    assert error_of(upload(admin, file.getvalue())) == (422, "upload_invalid")
    assert staged(repository) == []


def test_weights_are_uploaded_as_they_are(admin, repository):
    answer = upload(admin, torch_bytes(), kind="application/octet-stream", live=False)
    assert answer.status_code == 201
    assert (repository / "colour" / "2" / "weights").read_bytes() == torch_bytes()


def test_an_upload_is_capped_while_it_arrives(application, repository):
    with application(admin_token=TOKEN, max_upload_bytes=1000) as client:
        client.headers.update(AUTHORIZED)

        def endless():
            for _ in range(1000):
                yield b"x" * 100

        assert error_of(upload(client, endless())) == (413, "body_too_large")
        assert staged(repository) == []


def test_a_version_that_cannot_be_loaded_leaves_the_live_one_with_the_reason(admin, spare):
    directory = spare()
    (directory / "model.onnx").write_bytes(b"broken")
    failed = total(admin, "serving_swaps_total", model="colour", outcome="failed")
    assert upload(admin, tar_of(directory)).status_code == 201
    until(lambda: version(admin, 2)["state"] == "UNAVAILABLE")
    assert "is not the file" in version(admin, 2)["reason"]
    assert answering(admin) == 1
    for action in ("load", "activate"):
        answer = admin.post(f"/admin/models/colour/versions/2/{action}")
        assert error_of(answer) == (422, "load_failed")
        assert "is not the file" in answer.json()["error"]["message"]
    assert answering(admin) == 1
    assert total(admin, "serving_swaps_total", model="colour", outcome="failed") == failed + 3


def test_activate_and_roll_back(admin, spare, repository):
    upload(admin, tar_of(spare(OTHER_LABELS)), live=False)
    answer = admin.post("/admin/models/colour/versions/2/activate")
    assert answer.status_code == 200
    assert answer.json()["golden"]["live"] == 1
    assert answering(admin) == 2
    until(lambda: version(admin, 1) is None)
    assert (repository / "colour" / "1").is_dir()
    assert admin.post("/admin/models/colour/rollback").json()["version"] == 1
    assert answering(admin) == 1
    assert admin.post("/admin/models/colour/rollback").json()["version"] == 2
    assert answering(admin) == 2
    assert (repository / "colour" / "routing.toml").read_text() == "live = 2\nprevious = 1\n"


def test_without_a_version_before_there_is_no_rolling_back(admin):
    assert error_of(admin.post("/admin/models/colour/rollback")) == (409, "conflict")


def test_what_was_decided_survives_the_process(application, repository):
    publish_softmax(repository / "colour", 2)
    with application(admin_token=TOKEN) as client:
        client.headers.update(AUTHORIZED)
        assert answering(client) == 2
        assert client.post("/admin/models/colour/rollback").json()["version"] == 1
        client.put("/admin/models/colour/labels/newest", params={"version": 2})
    with application() as client:
        assert answering(client) == 1
        assert answering(client, version="newest") == 2
    with application(admin_token=TOKEN) as client:
        client.headers.update(AUTHORIZED)
        assert client.post("/admin/models/colour/unpin").json()["live"] == 2
        assert answering(client) == 2


def test_labels(admin, spare):
    upload(admin, tar_of(spare()), live=False)
    assert admin.put("/admin/models/colour/labels/stable", params={"version": 1}).json()["labels"] == {"stable": 1}
    answer = admin.put("/admin/models/colour/labels/candidate", params={"version": 2})
    assert answer.json()["labels"] == {"candidate": 2, "stable": 1}
    assert answering(admin) == 1
    assert answering(admin, version="candidate") == 2
    unknown = admin.post("/predict/colour?version=nonsense", content=picture(), headers=JPEG)
    assert error_of(unknown) == (404, "model_not_found")
    assert "candidate, stable" in unknown.json()["error"]["cure"]
    assert admin.get("/models/colour/labels?version=candidate").json()["version"] == 2
    for action, verb in (("/unload", "post"), ("", "delete")):
        assert error_of(getattr(admin, verb)(f"/admin/models/colour/versions/2{action}")) == (409, "conflict")
    assert admin.delete("/admin/models/colour/labels/candidate").json()["labels"] == {"stable": 1}
    until(lambda: version(admin, 2) is None)
    for bad in ("2", "With Space", "-x"):
        assert error_of(admin.put(f"/admin/models/colour/labels/{bad}?version=1")) == (422, "invalid_input")


def test_unload_and_delete(admin, spare, repository):
    upload(admin, tar_of(spare()), live=False)
    admin.post("/admin/models/colour/versions/2/load")
    assert error_of(admin.post("/admin/models/colour/versions/1/unload")) == (409, "conflict")
    assert error_of(admin.delete("/admin/models/colour/versions/1")) == (409, "conflict")
    assert admin.post("/admin/models/colour/versions/2/unload").status_code == 200
    until(lambda: version(admin, 2) is None)
    assert (repository / "colour" / "2").is_dir()
    assert admin.delete("/admin/models/colour/versions/2").status_code == 200
    assert not (repository / "colour" / "2").exists()
    assert admin.get("/models/colour").json()["stored"] == [1]
    assert staged(repository) == []
    assert error_of(admin.delete("/admin/models/colour/versions/2")) == (404, "model_not_found")
    assert error_of(admin.post("/admin/models/colour/versions/2/load")) == (404, "model_not_found")
    assert answering(admin) == 1


def test_a_model_is_defined_and_its_first_version_uploaded(admin, spare, repository):
    assert error_of(admin.put("/admin/models/Not A Name", content=b"x = 1")) == (422, "invalid_input")
    assert error_of(admin.put("/admin/models/new", content=b"architecture = [")) == (422, "invalid_input")
    assert error_of(admin.put("/admin/models/new", content=b'architectures = "x"')) == (422, "invalid_input")
    assert error_of(admin.put("/admin/models/new", content=b"\xff")) == (400, "bad_request")
    assert not (repository / "new").exists()
    answer = admin.put("/admin/models/new", content=b'architecture = "lenet5"')
    assert (answer.status_code, answer.json()["live"]) == (200, None)
    assert "no version" in answer.json()["problem"]
    upload(admin, tar_of(spare()), "new")
    until(lambda: admin.get("/models/new/ready").status_code == 200)
    assert answering(admin, "new") == 1
    answer = admin.put("/admin/models/new", content=b'architecture = "lenet5"\nmin_agreement = 0.9')
    assert answer.status_code == 200
    assert staged(repository) == []


def test_a_repository_that_cannot_be_written_is_told(admin, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    assert error_of(upload(admin, b"weights")) == (409, "repository_read_only")
    assert error_of(admin.put("/admin/models/colour/labels/stable?version=1")) == (409, "repository_read_only")
    assert answering(admin) == 1


# Loads: joined, cancelled, bounded by memory.


@contextmanager
def held_loads(monkeypatch):
    """Loads begin, and go on only when the context ends."""
    from service.inference.engine import Engine

    go, begun, opened = threading.Event(), threading.Event(), []
    really = Engine.open

    def opening(self, classes):
        opened.append(self)
        begun.set()
        assert go.wait(30)
        really(self, classes)

    monkeypatch.setattr(Engine, "open", opening)
    try:
        yield begun, opened
    finally:
        go.set()
        monkeypatch.undo()


def test_requests_for_the_same_load_share_it_and_it_can_be_followed(admin, spare, monkeypatch):
    following, follow = threading.Event(), Record.follow

    async def followed(record):
        async for each in follow(record):
            yield each
            following.set()  # what there was to tell is told

    monkeypatch.setattr(Record, "follow", followed)
    upload(admin, tar_of(spare()), live=False)
    with ThreadPoolExecutor() as threads:
        with held_loads(monkeypatch) as (begun, opened):
            loads = [threads.submit(admin.post, "/admin/models/colour/versions/2/load") for _ in range(4)]
            assert begun.wait(30)
            progress = threads.submit(admin.get, "/admin/models/colour/versions/2/progress")
            assert following.wait(30)
            assert answering(admin) == 1  # nobody waits for the load
        assert [load.result(30).json()["state"] for load in loads] == ["READY"] * 4
        assert len(opened) == 1
        lines = [json.loads(line) for line in progress.result(30).text.splitlines()]
    assert [lines[0]["state"], lines[-1]["state"]] == ["LOADING", "READY"]
    assert len(admin.get("/admin/models/colour/versions/2/progress").text.splitlines()) == 1


def test_a_load_can_be_cancelled(admin, spare, monkeypatch):
    upload(admin, tar_of(spare()), live=False)
    assert error_of(admin.post("/admin/models/colour/versions/2/cancel")) == (404, "model_not_found")
    with ThreadPoolExecutor() as threads:
        with held_loads(monkeypatch) as (begun, _):
            load = threads.submit(admin.post, "/admin/models/colour/versions/2/load")
            assert begun.wait(30)
            cancelled, really = threading.Event(), Reconciler.cancel
            monkeypatch.setattr(Reconciler, "cancel", lambda *whom: (really(*whom), cancelled.set()))
            cancel = threads.submit(admin.post, "/admin/models/colour/versions/2/cancel")
            assert cancelled.wait(30)  # before the load goes on
        assert cancel.result(30).status_code == 200
        assert error_of(load.result(30)) == (422, "load_failed")
    assert (version(admin, 2)["state"], version(admin, 2)["reason"]) == ("UNAVAILABLE", "its load was cancelled")
    assert error_of(admin.post("/admin/models/colour/versions/2/cancel")) == (409, "conflict")
    assert answering(admin) == 1
    assert admin.post("/admin/models/colour/versions/2/load").json()["state"] == "READY"


def test_what_memory_does_not_hold_is_refused_or_takes_the_live_ones_place(admin, spare, monkeypatch):
    upload(admin, tar_of(spare()), live=False)
    loaded = lambda: len(admin.get("/models/colour").json()["versions"])  # noqa: E731
    # One version fits; a second does so only when the first is gone.
    monkeypatch.setattr("service.versions.loader.available_memory_bytes", lambda: 0 if answers() else 2**40)
    answers = lambda: any(  # noqa: E731
        line.startswith('serving_model_state{model="colour",state="READY"') and line.endswith(" 1.0")
        for line in metrics.generate_latest().decode().splitlines()
    )
    answer = admin.post("/admin/models/colour/versions/2/activate")
    assert error_of(answer) == (422, "load_failed")
    assert "MiB are free" in answer.json()["error"]["message"]
    assert answering(admin) == 1
    answer = admin.post("/admin/models/colour/versions/2/activate?unload_first=true")
    assert answer.status_code == 200
    assert answering(admin) == 2
    assert loaded() == 1


def test_the_live_version_comes_back_where_its_successor_fails(admin, spare, monkeypatch):
    directory = spare()
    (directory / "model.onnx").write_bytes(b"broken")
    upload(admin, tar_of(directory), live=False)
    free = iter([0, 2**40, 2**40])
    monkeypatch.setattr("service.versions.loader.available_memory_bytes", lambda: next(free))
    assert error_of(admin.post("/admin/models/colour/versions/2/activate?unload_first=true")) == (422, "load_failed")
    until(lambda: admin.get("/models/colour/ready").status_code == 200)
    assert answering(admin) == 1


def test_a_live_version_whose_files_change_makes_room_for_itself(admin, repository, monkeypatch):
    free = iter([0, 2**40])
    monkeypatch.setattr("service.versions.loader.available_memory_bytes", lambda: next(free))
    toml = (repository / "colour" / "model.toml").read_text()
    admin.put("/admin/models/colour", content=toml + "unload_first = true\n")
    until(lambda: not version(admin, 1)["reason"])
    assert answering(admin) == 1
    assert list(free) == []


# Trust: golden inputs, canaries, shadows.


def test_a_version_that_disagrees_is_not_activated_where_the_model_says_so(admin, spare, repository):
    (repository / "colour" / "golden").mkdir()
    for colour in ("red", "green", "blue"):
        (repository / "colour" / "golden" / f"{colour}.png").write_bytes(picture(colour))
    toml = (repository / "colour" / "model.toml").read_text()
    admin.put("/admin/models/colour", content=toml + "min_agreement = 0.9\n")
    until(lambda: version(admin, 1)["state"] == "READY" and not version(admin, 1)["reason"])
    upload(admin, tar_of(spare(OTHER_LABELS)))  # as dropped into the repository
    until(lambda: version(admin, 2)["state"] == "UNAVAILABLE")
    assert "red.png is 'rot', and was 'red'" in version(admin, 2)["reason"]
    assert answering(admin) == 1
    upload(admin, tar_of(spare(OTHER_LABELS)), live=False)
    assert admin.post("/admin/models/colour/versions/3/load").status_code == 200  # beside, to be looked at
    golden = version(admin, 3)["golden"]
    assert golden["differences"] == [{"input": "red.png", "label": "rot", "live_label": "red"}]
    assert total(admin, "serving_golden_agreement", model="colour", version="3") == pytest.approx(2 / 3)
    assert error_of(admin.post("/admin/models/colour/versions/3/activate")) == (409, "golden_disagreement")
    assert answering(admin) == 1
    admin.put("/admin/models/colour", content=toml)
    until(lambda: version(admin, 3)["state"] == "READY" and not version(admin, 3)["reason"])
    assert admin.post("/admin/models/colour/versions/3/activate").status_code == 200
    assert answering(admin) == 3


def test_a_canary_answers_its_share_and_a_trial_does_not_go_live(admin, spare):
    upload(admin, tar_of(spare()), live=False)
    assert error_of(admin.put("/admin/models/colour/versions/1/trial?canary=5")) == (409, "conflict")
    answer = admin.put("/admin/models/colour/versions/2/trial?canary=30")
    assert answer.json()["live"] == 1
    assert version(admin, 2)["canary"] == 30
    found = [answering(admin) for _ in range(200)]
    assert 25 <= found.count(2) <= 100  # 60 are expected: less or more once in a hundred million runs
    assert answering(admin, version=1) == 1
    assert error_of(admin.put("/admin/models/colour/versions/2/trial?canary=101")) == (422, "invalid_input")
    assert admin.put("/admin/models/colour/versions/2/trial").json()["live"] == 1
    until(lambda: version(admin, 2) is None)
    assert {answering(admin) for _ in range(20)} == {1}


def test_canaries_share_a_hundred_per_cent(admin, spare):
    for _ in range(2):
        upload(admin, tar_of(spare()), live=False)
    assert admin.put("/admin/models/colour/versions/2/trial?canary=60").status_code == 200
    assert error_of(admin.put("/admin/models/colour/versions/3/trial?canary=60")) == (409, "conflict")
    assert admin.put("/admin/models/colour/versions/3/trial?canary=40").status_code == 200
    assert {answering(admin) for _ in range(40)} == {2, 3}


def test_a_shadow_is_shown_requests_and_answers_nobody(admin, spare):
    def count(outcome):
        return total(admin, "serving_shadow_items_total", model="colour", outcome=outcome, version="2")

    before = {outcome: count(outcome) for outcome in ("agree", "differ", "failed")}
    upload(admin, tar_of(spare(OTHER_LABELS)), live=False)
    assert admin.put("/admin/models/colour/versions/2/trial?shadow=true").json()["live"] == 1
    assert version(admin, 2)["shadow"] == 10
    admin.put("/admin/models/colour/versions/2/trial?shadow=1")
    assert version(admin, 2)["shadow"] == 1
    admin.put("/admin/models/colour/versions/2/trial?shadow=100")
    for colour, outcome in (("red", "differ"), ("green", "agree"), ("blue", "agree")):
        expected = count(outcome) + 1
        answer = admin.post("/predict/colour", content=picture(colour), headers=JPEG).json()
        assert (answer["version"], answer["predictions"][0]["label"]) == (1, colour)
        until(lambda outcome=outcome, expected=expected: count(outcome) == expected)
    files = [("file", picture("red")), ("file", b"broken")]
    assert admin.post("/predict/colour", files=files).status_code == 200
    until(lambda: count("differ") == before["differ"] + 2)
    until(lambda: count("agree") == before["agree"] + 3)  # both refuse the broken one
    assert count("failed") == before["failed"]
    assert answering(admin, version=1) == 1  # a request that names a version is mirrored to nobody
    admin.put("/admin/models/colour/versions/2/trial")
    until(lambda: version(admin, 2) is None)


def test_numbers_have_golden_inputs_too(admin, repository, tmp_path):
    (repository / "largest" / "golden").mkdir()
    (repository / "largest" / "golden" / "inputs.json").write_text('{"instances": [[1, 2, 3], [3, 2, 1]]}')
    publish_numbers(tmp_path / "other" / "largest", 1)
    upload(admin, tar_of(tmp_path / "other" / "largest" / "1"), "largest")
    until(lambda: version(admin, 2, "largest") is not None and version(admin, 2, "largest")["state"] == "READY")
    assert version(admin, 2, "largest")["golden"] is None  # version 1 was asked others
    (repository / "largest" / "golden" / "inputs.json").write_text('{"instances": [[1, 2]]}')
    upload(admin, tar_of(tmp_path / "other" / "largest" / "1"), "largest")
    until(lambda: version(admin, 3, "largest") is not None and version(admin, 3, "largest")["state"] == "UNAVAILABLE")
    assert "no instances of the shape [3]" in version(admin, 3, "largest")["reason"]
    assert admin.get("/models/largest").json()["live"] == 2


# Strangers' bytes.


def tree(directory):
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_every_hostile_archive_is_refused_with_a_cure_and_leaves_nothing(admin, repository, tmp_path):
    before = {path for path in tmp_path.rglob("*") if "cache" not in path.parts}
    wrong = {}
    for name, content in (tars.HOSTILE | tars.HOSTILE_SETTINGS).items():
        started = time.monotonic()
        answer = upload(admin, content, live=False)
        if answer.status_code != 422 or error_of(answer)[1] != "upload_invalid" or time.monotonic() - started > 30:
            wrong[name] = (answer.status_code, answer.text, time.monotonic() - started)
        left = {path for path in tmp_path.rglob("*") if "cache" not in path.parts} - before - {repository / STAGING}
        if left or Path("/tmp/outside").exists():
            wrong[name] = (answer.status_code, "left", sorted(map(str, left)))
    assert wrong == {}
    assert len(tars.HOSTILE) >= 65
    assert admin.get("/models/colour").json()["stored"] == [1]
    assert answering(admin) == 1


@pytest.mark.parametrize("name", ["PAX of digits", "climbing", *tars.HOSTILE_SETTINGS])
def test_a_hostile_archive_is_refused_with_a_cure(admin, repository, name):
    assert error_of(upload(admin, (tars.HOSTILE | tars.HOSTILE_SETTINGS)[name])) == (422, "upload_invalid")
    assert staged(repository) == []


def test_what_honest_tools_write_is_taken(admin, repository):
    for number, name in enumerate(("from a file", "names with ./", "a SavedModel", "macOS"), 2):
        files, content = tars.HARMLESS[name]
        answer = upload(admin, content, live=False)
        assert (name, answer.status_code) == (name, 201), answer.text
        assert (name, tree(repository / "colour" / str(number))) == (name, files)


def test_an_archive_that_takes_too_long_ends_alone(application, repository, monkeypatch):
    monkeypatch.setattr("models.artifact.unpack.MAX_SECONDS", 0.0)
    with application(admin_token=TOKEN) as client:
        client.headers.update(AUTHORIZED)
        answer = upload(client, tars.WHOLE)
        assert error_of(answer) == (422, "upload_invalid")
        assert "time or memory" in answer.json()["error"]["message"]
        assert staged(repository) == []


def test_a_child_that_leaves_something_else_is_not_believed(tmp_path):
    (tmp_path / "version" / "deep" / "deeper").mkdir(parents=True)
    (tmp_path / "version" / "weights").write_bytes(b"x" * 10)
    _check_unpacked(tmp_path / "version", 10)
    for make in (
        lambda path: path.symlink_to("/etc/passwd"),
        lambda path: path.hardlink_to(tmp_path / "version" / "weights"),
        os.mkfifo,
        lambda path: path.write_bytes(b"more than was sent"),
    ):
        odd = tmp_path / "version" / "deep" / "deeper" / "odd"
        make(odd)
        with pytest.raises(UploadInvalid, match="not those of the archive"):
            _check_unpacked(tmp_path / "version", 10)
        odd.unlink()


def nested(directory, depth):
    """Directories deeper than any path reaches."""
    directory.mkdir()
    descriptor = os.open(directory, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=descriptor)
        deeper = os.open("d", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = deeper
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor))
    os.close(descriptor)


def test_what_a_killed_server_left_is_removed_however_deep(application, repository):
    (repository / STAGING).mkdir()
    nested(repository / STAGING / "left", 1500)
    (repository / STAGING / "other").mkdir()
    with application(admin_token=TOKEN):
        assert staged(repository) == []


@pytest.mark.parametrize(
    ("declared", "settings", "expected"),
    [
        (99 * 2**30, {}, (413, "body_too_large")),
        (10**30, {}, (413, "body_too_large")),
        (2**62, {"max_upload_bytes": 2**63}, (507, "insufficient_storage")),
        (1000, {"min_free_disk_bytes": 2**62}, (507, "insufficient_storage")),
    ],
)
def test_an_upload_that_cannot_fit_is_refused_before_a_byte_is_read(
    application, repository, declared, settings, expected
):
    read = []

    def body():
        read.append(1)
        yield b"x"

    with application(admin_token=TOKEN, **settings) as client:
        client.headers.update(AUTHORIZED | {"Content-Length": str(declared)})
        answer = upload(client, body())
        assert error_of(answer) == expected
        assert read == []
        assert staged(repository) == []


def test_an_upload_of_unknown_length_leaves_the_disk_its_room(application, repository):
    disk = os.statvfs(repository)
    room = disk.f_bavail * disk.f_frsize
    with application(admin_token=TOKEN, min_free_disk_bytes=room + 2**40) as client:
        client.headers.update(AUTHORIZED)
        assert error_of(upload(client, iter([b"x" * 1000]))) == (507, "insufficient_storage")
        assert staged(repository) == []
        for kind in ("application/x-tar", "application/octet-stream"):
            assert error_of(upload(client, b"x", kind=kind)) == (507, "insufficient_storage")


HOSTILE_TOML = {
    "a long key": b"a." * 10_000 + b"a = 1",
    "a long key with blanks": b"a . " * 10_000 + b"a = 1",
    "a long table": b"[" + b"a." * 10_000 + b"a]",
    "arrays in arrays": b"a = " + b"[" * 100_000,
    "tables in tables": b"a = " + b"{a=" * 50_000,
    "an integer of 5,000 digits": b"num_classes = " + b"1" * 5000,
    "an integer of hexadecimal digits": b"versions = [0x" + b"f" * 100_000 + b"]",
    "a class for each atom": b"num_classes = 100000000000000000000",
    "a class for each grain of sand": b"num_classes = 1000000000",
    "a normalization that is a list": b"[input]\nnormalization = [1]",
    "a normalization that is a table": b"[input]\nnormalization = {a = 1}",
    "a date": b"architecture = 1979-05-27",
    "no string": b"architecture = ['lenet5']",
    "a version that no route takes": b"versions = [9007199254740992]",
    "UTF-16": 'architecture = "lenet5"'.encode("utf-16"),
    "NUL": b'architecture = "lenet5"\0',
    "half of TOML": b'architecture = """lenet5',
}


@pytest.mark.parametrize("name", HOSTILE_TOML)
def test_a_model_toml_of_any_content_is_refused_with_a_reason(admin, repository, name):
    answer = admin.put("/admin/models/new", content=HOSTILE_TOML[name])
    assert error_of(answer) in {(422, "invalid_input"), (400, "bad_request")}
    assert not (repository / "new").exists()
    assert admin.get("/health/ready").status_code == 200


@pytest.mark.parametrize("file", ["model.toml", "routing.toml"])
def test_such_a_file_in_the_repository_is_one_models_problem(admin, repository, spare, file):
    upload(admin, tar_of(spare()), live=False)
    wrong = {}
    for name, content in HOSTILE_TOML.items():
        (repository / "colour" / file).write_bytes(content)
        for method, action in (
            ("POST", "versions/2/load"),
            ("PUT", "labels/stable?version=2"),
            ("PUT", "versions/2/trial?canary=1"),
            ("POST", "rollback"),
            ("POST", "unpin"),
        ):
            answer = admin.request(method, f"/admin/models/colour/{action}")
            if answer.status_code != 200 and error_of(answer)[0] not in {404, 409, 422}:
                wrong[name, action] = answer.text
        assert admin.get("/models/colour").status_code == 200
        assert answering(admin) == 1
    assert wrong == {}


def test_a_label_with_dots_answers_and_can_be_changed_and_outlives_the_process(application, spare):
    with application(admin_token=TOKEN) as client:
        client.headers.update(AUTHORIZED)
        upload(client, tar_of(spare()), live=False)
        for label, number in (("v1.2", 2), ("a.b.c.d.e.f.g.h.i.", 1), ("stable", 1)):
            assert client.put(f"/admin/models/colour/labels/{label}?version={number}").status_code == 200
        assert answering(client, version="v1.2") == 2
    with application(admin_token=TOKEN) as client:
        client.headers.update(AUTHORIZED)
        assert answering(client) == 1
        assert answering(client, version="v1.2") == 2
        assert answering(client, version="a.b.c.d.e.f.g.h.i.") == 1
        assert client.put("/admin/models/colour/labels/v1.2?version=1").status_code == 200
        answer = client.delete("/admin/models/colour/labels/a.b.c.d.e.f.g.h.i.")
        assert answer.json()["labels"] == {"stable": 1, "v1.2": 1}


def test_a_routing_too_long_to_be_read_again_is_not_written(admin, repository, monkeypatch):
    assert admin.put("/admin/models/colour/labels/stable?version=1").status_code == 200
    before = (repository / "colour" / "routing.toml").read_bytes()
    monkeypatch.setattr("models.artifact.toml_file.MAX_CHARACTERS", 20)
    assert error_of(admin.put("/admin/models/colour/labels/other?version=1")) == (409, "conflict")
    assert (repository / "colour" / "routing.toml").read_bytes() == before


def test_the_highest_number_of_a_version_is_the_last(admin, repository):
    assert upload(admin, tars.WHOLE, live=False, version=MAX_VERSION).status_code == 201
    answer = upload(admin, tars.WHOLE, live=False)
    assert error_of(answer) == (409, "conflict")
    assert "?version=" in answer.json()["error"]["cure"]
    assert upload(admin, tars.WHOLE, live=False, version=7).status_code == 201
    assert admin.get("/models/colour").json()["stored"] == [1, 7, MAX_VERSION]
    assert admin.delete(f"/admin/models/colour/versions/{MAX_VERSION}").status_code == 200
    assert upload(admin, tars.WHOLE, live=False).json()["version"] == 8
    for beyond in (MAX_VERSION + 1, 10**20, "1" * 5000):
        assert error_of(upload(admin, tars.WHOLE, live=False, version=beyond)) == (422, "invalid_input")
        assert error_of(admin.post(f"/admin/models/colour/versions/{beyond}/load")) == (422, "invalid_input")
        assert error_of(admin.put(f"/admin/models/colour/labels/a?version={beyond}")) == (422, "invalid_input")
        answer = admin.post(f"/predict/colour?version={beyond}", content=picture(), headers=JPEG)
        assert error_of(answer) == (422, "invalid_input")


def test_a_directory_beyond_the_highest_number_is_no_version(admin, repository):
    (repository / "colour" / str(MAX_VERSION + 1)).mkdir()
    (repository / "colour" / ("9" * 200)).mkdir()
    assert upload(admin, tars.WHOLE, live=False).json()["version"] == 2
    assert admin.get("/models/colour").json()["stored"] == [1, 2]
