"""The routes, as a client sees them."""

import base64
import json
import resource
import time

import numpy as np
import pytest
import structlog

from models.artifact.manifest import Choice, Manifest, Parity, Trial
from service import errors, metrics
from service.api.schemas import PredictAnswer
from tests.client import JPEG, error_of, picture, total
from tests.models.saved import torch_bytes
from tests.servers import until

FORM = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n--x--\r\n'


@pytest.mark.parametrize("content_type", ["image/png", "image/jpeg", "application/octet-stream", "", "IMAGE/PNG; x=y"])
def test_a_raw_image_is_answered(client, content_type):
    answer = client.post("/predict/colour", content=picture("green"), headers={"Content-Type": content_type})
    assert answer.status_code == 200
    body = answer.json()
    assert set(body) == {"model", "version", "predictions"}
    assert (body["model"], body["version"]) == ("colour", 1)
    assert [each["label"] for each in body["predictions"]] == ["green", "red", "blue"]
    assert sum(each["probability"] for each in body["predictions"]) == pytest.approx(1, abs=1e-5)
    assert body["predictions"][0].keys() == {"label", "index", "probability"}


def test_the_answer_tells_its_times_and_keeps_a_given_id(client):
    answer = client.post("/predict/colour", content=picture(), headers={"X-Request-ID": "abc-1.2_3"} | JPEG)
    assert answer.headers["X-Request-ID"] == "abc-1.2_3"
    parts = dict(part.split(";dur=") for part in answer.headers["Server-Timing"].split(", "))
    assert list(parts) == ["decode", "queue", "inference"]
    assert all(float(milliseconds) >= 0 for milliseconds in parts.values())


@pytest.mark.parametrize("strange", ["", "with space", "a" * 129, "line\\nbreak", "käse".encode()])
def test_an_id_that_could_forge_a_log_line_is_replaced(client, strange):
    given = client.get("/models", headers={"X-Request-ID": strange}).headers["X-Request-ID"]
    assert given != strange
    assert len(given) == 32


def test_top_k_limits_the_answer_and_may_exceed_the_classes(client):
    for top_k, expected in ((1, 1), (2, 2), (500, 3)):
        answer = client.post(f"/predict/colour?top_k={top_k}", content=picture(), headers=JPEG)
        assert len(answer.json()["predictions"]) == expected
    for top_k in ("0", "-1", "many", "1001"):
        answer = client.post(f"/predict/colour?top_k={top_k}", content=picture(), headers=JPEG)
        assert error_of(answer) == (422, "invalid_input")
        assert "top_k" in answer.json()["error"]["message"]


def test_a_version_can_be_named(client):
    assert client.post("/predict/colour?version=1", content=picture(), headers=JPEG).json()["version"] == 1
    answer = client.post("/predict/colour?version=2", content=picture(), headers=JPEG)
    assert error_of(answer) == (404, "model_not_found")
    assert "loaded versions: 1" in answer.json()["error"]["cure"]


@pytest.mark.parametrize(
    ("model", "body", "content_type"),
    [
        ("colour", picture("blue"), "image/png"),
        ("colour", b"", "image/png"),
        ("colour", b"text", "image/png"),
        ("colour", b"text", "text/plain"),
        ("color", picture(), "image/png"),
        ("caf\u00e9", picture(), "image/png"),
        ("largest", b'{"instances": [[1, 2, 3]]}', "application/json"),
        ("largest", b'{"instances": [[1, 2, 3], [1]]}', "application/json"),
        ("largest", b"{}", "application/json"),
    ],
)
def test_a_query_takes_another_way_to_the_same_answer(client, model, body, content_type):
    headers = {"Content-Type": content_type, "X-Request-ID": "mine"}
    plain, queried = (client.post(f"/predict/{model}{q}", content=body, headers=headers) for q in ("", "?top_k=5"))
    assert plain.status_code == queried.status_code
    assert plain.json() == queried.json()
    assert plain.headers.keys() == queried.headers.keys()
    assert plain.headers["X-Request-ID"] == queried.headers["X-Request-ID"] == "mine"
    if plain.is_success:
        PredictAnswer.model_validate_json(plain.content, strict=True, extra="forbid")


@pytest.mark.parametrize("path", ["/predict/", "/predict/a/b"])
def test_what_is_nearly_a_prediction_has_no_route(client, path):
    assert error_of(client.post(path, content=picture(), headers=JPEG, follow_redirects=False))[0] in {404, 405}


@pytest.mark.parametrize(("wanted", "expected"), [("all", [200, 404]), ("failed", [404]), ("none", [])])
def test_requests_are_logged_as_the_settings_say(application, wanted, expected):
    with application(log_requests=wanted) as client, structlog.testing.capture_logs() as events:
        client.post("/predict/colour", content=picture(), headers=JPEG)
        client.post("/predict/color", content=picture(), headers=JPEG)
    assert [event["status"] for event in events if event["event"] == "request"] == expected


def test_one_file_of_a_form_is_answered_like_a_raw_image(client):
    answer = client.post("/predict/colour?top_k=1", files={"file": picture("red")})
    assert answer.json()["predictions"][0]["label"] == "red"


def test_several_files_are_answered_in_order_each_with_its_own_error(client):
    files = [("file", picture("red")), ("file", b"no image"), ("other", picture("blue")), ("file", b"")]
    answer = client.post("/predict/colour?top_k=1", files=files)
    assert answer.status_code == 200
    results = answer.json()["results"]
    assert [result["predictions"][0]["label"] for result in results if "predictions" in result] == ["red", "blue"]
    assert [result["error"]["code"] for result in results if "error" in result] == ["unsupported_image", "empty_body"]
    assert [list(result) for result in results] == [["predictions"], ["error"], ["predictions"], ["error"]]


def test_images_in_json_are_answered(client):
    instances = [{"b64": base64.b64encode(picture(colour)).decode()} for colour in ("blue", "red")]
    assert client.post("/predict/colour?top_k=1", json={"instances": instances}).json()["results"] == [
        {"predictions": [{"label": label, "index": index, "probability": pytest.approx(0.9, abs=0.1)}]}
        for label, index in (("blue", 2), ("red", 0))
    ]
    one = client.post("/predict/colour?top_k=1", json={"instances": instances[:1]})
    assert one.json()["predictions"][0]["label"] == "blue"


def test_numbers_in_json_are_answered(client):
    answer = client.post("/predict/largest", json={"instances": [[1, 2.5, 0]]})
    powers = np.exp([1, 2.5, 0])
    expected = np.sort(powers / powers.sum())[::-1]
    assert [each["label"] for each in answer.json()["predictions"]] == ["second", "first", "third"]
    assert [each["probability"] for each in answer.json()["predictions"]] == pytest.approx(expected, abs=1e-5)


def test_rows_of_numbers_are_answered_in_order_each_with_its_own_error(client):
    instances = [[3, 2, 1], [1, 2], [0, 0, 9], ["1", "2", "3"], [[1], [2, 3]], [1e39, 0, 0], {"x": 1}, None]
    results = client.post("/predict/largest?top_k=1", json={"instances": instances}).json()["results"]
    assert [result["predictions"][0]["label"] for result in results if "predictions" in result] == ["first", "third"]
    assert [result["error"]["code"] for result in results if "error" in result] == ["invalid_input"] * 6


@pytest.mark.parametrize(
    "body",
    [b"{", b"[]", b"{}", b'{"instances": []}', b'{"instances": 3}', b"[" * 100_000, b'{"instances": [NaN]}', b"\xff"],
)
def test_json_that_is_none_is_told(client, body):
    answer = client.post("/predict/largest", content=body, headers={"Content-Type": "application/json"})
    assert error_of(answer) in {(400, "bad_request"), (422, "invalid_input")}
    assert "instances" in answer.json()["error"]["cure"]


@pytest.mark.parametrize("unit", [b"[],", b"0,", b"{},", b"[", b'"x",'])
def test_json_of_very_many_values_is_refused_before_it_holds_up_others(client, unit):
    body = b'{"instances": [' + unit * (2**22 // len(unit)) + b"0]}"
    started = time.process_time()  # the server's too: it is in this process, and others are not
    answer = client.post("/predict/largest", content=body, headers={"Content-Type": "application/json"})
    assert error_of(answer) == (422, "invalid_input")
    assert time.process_time() - started < 5  # it took 5 to 18 seconds


def test_a_model_is_not_given_what_it_does_not_take(client):
    assert error_of(client.post("/predict/largest", content=picture(), headers=JPEG)) == (422, "invalid_input")
    assert error_of(client.post("/predict/colour", json={"instances": [[1, 2, 3]]})) == (422, "invalid_input")
    assert error_of(client.post("/predict/colour", json={"instances": [{"b64": "!"}]})) == (422, "invalid_input")


@pytest.mark.parametrize(
    ("body", "content_type", "expected"),
    [
        (b"", "image/jpeg", (400, "empty_body")),
        (b"just text", "text/plain", (415, "unsupported_media_type")),
        (b"just text", "image/jpeg", (415, "unsupported_image")),
        (b"a=b", "application/x-www-form-urlencoded", (415, "unsupported_media_type")),
        (picture(kind="JPEG")[:400], "image/jpeg", (422, "undecodable_image")),
        (picture(size=(4000, 2)), "image/png", (422, "unsupported_aspect_ratio")),
        (b"no form", "multipart/form-data", (400, "bad_request")),
        (b"no form", "multipart/form-data; boundary=x", (400, "bad_request")),
        (FORM, "multipart/form-data; boundary=x; charset=undefined", (400, "bad_request")),
        (b"--x--\r\n", "multipart/form-data; boundary=x", (400, "empty_body")),
    ],
)
def test_bad_input_gets_its_own_error_and_good_input_goes_on(client, body, content_type, expected):
    assert error_of(client.post("/predict/colour", content=body, headers={"Content-Type": content_type})) == expected
    assert client.post("/predict/colour", content=picture(), headers=JPEG).status_code == 200


def test_an_image_of_too_many_pixels_is_refused_by_its_header(application):
    with application(max_image_pixels=1000) as client:
        answer = client.post("/predict/colour", content=picture(size=(40, 30)), headers=JPEG)
        assert error_of(answer) == (413, "image_too_large")
        assert client.post("/predict/colour", content=picture(size=(40, 25)), headers=JPEG).status_code == 200


def test_a_body_of_too_many_bytes_is_refused_declared_or_not(application):
    with application(max_body_bytes=1000) as client:
        too_many = b"x" * 1001
        assert error_of(client.post("/predict/colour", content=too_many, headers=JPEG)) == (413, "body_too_large")
        chunked = (part for part in [too_many[:500], too_many[500:]])
        assert error_of(client.post("/predict/colour", content=chunked, headers=JPEG)) == (413, "body_too_large")
        assert client.post("/predict/colour", content=picture(), headers=JPEG).status_code == 200


def test_all_bodies_together_are_bounded_and_counted_back(application):
    with application(max_inflight_body_bytes=1000) as client:
        for _ in range(3):
            assert error_of(client.post("/predict/colour", content=b"x" * 1001, headers=JPEG)) == (429, "queue_full")
            assert client.post("/predict/colour", content=picture(), headers=JPEG).status_code == 200


def test_the_pixels_that_wait_are_bounded(application):
    with application() as client:
        takes = client.get("/models/colour").json()["versions"][0]["input"]
    picture_bytes = takes["height"] * takes["width"] * takes["channels"]
    with application(max_queue_bytes=2 * picture_bytes) as client:
        for count, status in ((3, 429), (2, 200), (2, 200), (3, 429)):
            assert client.post("/predict/colour", files=[("file", picture())] * count).status_code == status


def test_a_request_of_too_many_images_is_refused(application):
    with application(max_images_per_request=2) as client:
        files = [("file", picture())] * 3
        for many in (3, 4, 40):
            answer = client.post("/predict/colour", files=[("file", picture())] * many)
            assert error_of(answer) == (422, "invalid_input")
        assert error_of(client.post("/predict/largest", json={"instances": [[1, 2, 3]] * 3})) == (422, "invalid_input")
        assert client.post("/predict/colour", files=files[:2]).status_code == 200


def test_a_request_that_takes_too_long_is_told(application):
    with application(request_timeout_seconds=1e-6) as client:
        assert error_of(client.post("/predict/colour", content=picture(), headers=JPEG)) == (504, "deadline_passed")


HOSTILE_JSON = {
    "one long text among many": b'{"instances": [["' + b"x" * 200_000 + b'"' + b', "y"' * 5_000 + b"]]}",
    "long texts in a row each": b'{"instances": [[["' + b"x" * 200_000 + b'"]' + b', ["y"]' * 5_000 + b"]]}",
    "a text among numbers": b'{"instances": [[1, 2, "' + b"x" * 200_000 + b'"]]}',
    "brackets": b'{"instances": ' + b"[" * 100_000,
    "brackets that end": b'{"instances": ' + b"[" * 150 + b"]" * 150 + b"}",
    "numbers in brackets": b'{"instances": [' + b"[" * 100 + b"1" + b"]" * 100 + b"]}",
    "a number of a million digits": b'{"instances": [[' + b"1" * 1_000_000 + b"]]}",
    "a number of 4,000 digits": b'{"instances": [[' + b"1" * 4000 + b", 1.5, 2]]}",
    "an exponent": b'{"instances": [[1e999, 1, 2]]}',
    "nothing": b'{"instances": [[null, 1, 2]]}',
    "truth": b'{"instances": [[true, 1, 2]]}',
    "half a surrogate": b'{"instances": [{"b64": "\\ud800"}]}',
    "many keys": b"{" + b",".join(b'"%d":1' % number for number in range(200_000)) + b"}",
    "texts for pictures": b'{"instances": [{"b64": ' + b"[" * 100 + b"]" * 100 + b"}]}",
}


@pytest.mark.parametrize("name", HOSTILE_JSON)
def test_no_json_costs_much_memory_or_time(client, name):
    before = resource.getrusage(resource.RUSAGE_SELF)
    answer = client.post("/predict/largest", content=HOSTILE_JSON[name], headers={"Content-Type": "application/json"})
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert error_of(answer)[0] in {400, 422}
    assert after.ru_utime - before.ru_utime < 5  # seconds
    assert after.ru_maxrss - before.ru_maxrss < 500_000  # KiB; one text among many took 4 GB
    assert client.post("/predict/largest", json={"instances": [[1, 2, 3]]}).status_code == 200


PART = b'--x\r\nContent-Disposition: form-data; name="a"; filename="b"\r\n'
HOSTILE_FORMS = {
    "header lines without end": PART + b"A: b\r\n" * 100_000 + b"\r\nx\r\n--x--\r\n",
    "a header of megabytes": PART + b"A: " + b"b" * 10_000_000 + b"\r\n\r\nx\r\n--x--\r\n",
    "lines before the first part": b"\r\n" * 5_000_000,
    "parts without end": (PART + b"\r\n\r\n") * 100_000,
    "fields without end": b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n' * 100_000,
    "parts without a header": b"--x\r\n\r\n" * 1_000_000,
    "nearly a boundary": PART + b"\r\n" + b"\r\n--" * 2_000_000 + b"\r\n--x--\r\n",
}


CHARSETS = ("utf-8", "zip", "idna", "punycode", "unicode_escape", "utf-7", "undefined", "x" * 10_000)


def test_no_form_costs_much_time(client):
    wrong = {}
    for name, body in HOSTILE_FORMS.items():
        for charset in CHARSETS:
            kind = f"multipart/form-data; boundary=x; charset={charset}"
            started = time.process_time()
            answer = client.post("/predict/colour", content=body, headers={"Content-Type": kind})
            seconds = time.process_time() - started
            if error_of(answer)[0] not in {400, 415, 422} or seconds > 5:
                wrong[name, charset] = (answer.status_code, seconds)
    assert wrong == {}


def test_a_long_boundary_is_no_harder(client):
    boundary = "x" * 50_000
    body = (b"\r\n--" + b"x" * 49_999) * 100
    answer = client.post(
        "/predict/colour", content=body, headers={"Content-Type": f"multipart/form-data; boundary={boundary}"}
    )
    assert error_of(answer)[0] == 400


def test_an_unknown_model_is_told_the_nearest(client):
    answer = client.post("/predict/color", content=picture(), headers=JPEG)
    assert error_of(answer) == (404, "model_not_found")
    assert "did you mean 'colour'" in answer.json()["error"]["cure"]
    assert error_of(client.get("/models/nothing-like-it")) == (404, "model_not_found")


@pytest.mark.parametrize("path", ["/", "/nope", "/predict", "/predict/a/b", "/predict/..%2F..%2Fetc%2Fpasswd", "/v2"])
def test_an_unknown_route_is_an_error_like_any_other(client, path):
    assert error_of(client.get(path))[0] in {404, 405}


def test_a_wrong_method_is_told(client):
    answer = client.get("/predict/colour")
    assert error_of(answer) == (405, "method_not_allowed")
    assert answer.headers["Allow"] == "POST"


def test_models_show_their_versions_states_and_figures(client):
    names = [model["name"] for model in client.get("/models").json()["models"]]
    assert names == ["colour", "largest"]
    model = client.get("/models/colour").json()
    assert (model["ready"], model["live"], model["problem"]) == (True, 1, "")
    (version,) = model["versions"]
    assert (version["version"], version["state"], version["reason"]) == (1, "READY", "")
    assert (version["provider"], version["precision"]) == ("CPUExecutionProvider", "fp32")
    assert version["parity"]["relative_error"] == 0
    assert (version["input"]["kind"], version["input"]["height"]) == ("image", 8)
    assert client.get("/models/colour/labels").json()["labels"] == ["red", "green", "blue"]
    assert client.get("/models/colour/ready").json() == {"ready": True, "reasons": {}}


def test_models_show_how_a_precision_was_chosen(application, repository):
    assert publish_choice(repository / "colour" / "1" / "manifest.json")
    with application() as client:
        (version,) = client.get("/models/colour").json()["versions"]
    assert version["precision"] == "int8"
    (trial,) = version["choice"]["trials"]
    assert (trial["chosen"], trial["speed"], trial["parity"]["items"]) == (True, 3.1, 200)
    assert version["parity"] == trial["parity"]
    assert version["choice"]["fp32"]["items"] == 6


def publish_choice(path):
    """Writes into a manifest that int8 was asked for and chosen."""
    manifest = Manifest.model_validate_json(path.read_bytes())
    parity = Parity(relative_error=0.01, probability_error=0.02, top1_agreement=0.99, batches=(8,), items=200)
    trial = Trial(
        precision="int8", chosen=True, reason="it agrees", calibrated_on=40, judged_on=20, parity=parity, speed=3.1
    )
    choice = Choice(trials=(trial,), fp32=manifest.parity)
    found = manifest.model_copy(update={"precision": "int8", "choice": choice, "parity": parity})
    return path.write_text(found.model_dump_json())


def test_health_says_whether_the_process_lives_and_is_ready(client):
    assert client.get("/health/live").json() == {"live": True}
    assert client.get("/health/ready").json() == {"ready": True, "reasons": {}}


def test_a_stuck_engine_call_is_no_life(client, monkeypatch):
    monkeypatch.setattr("service.inference.batcher.Batcher.stuck_seconds", lambda _: 1000.0)
    answer = client.get("/health/live")
    assert (answer.status_code, answer.json()) == (503, {"live": False})


@pytest.mark.parametrize("models", ["", "broken,colour,largest,nameless"])
def test_a_broken_model_says_why_and_harms_no_other_unless_the_settings_name_it(application, repository, models):
    (repository / "broken").mkdir()
    (repository / "broken" / "model.toml").write_text('architecture = "lenet6"')
    (repository / "broken" / "1").mkdir()
    (repository / "broken" / "1" / "weights.pth").write_bytes(torch_bytes())
    (repository / "nameless").mkdir()
    with application(wait=not models, models=models) as client:
        for model in ("colour", "largest"):
            until(lambda model=model: client.get(f"/models/{model}/ready").status_code == 200)
        until(lambda: "UNAVAILABLE" in client.get("/models/broken/ready").text)
        ready = client.get("/health/ready")
        assert (
            (ready.status_code, set(ready.json()["reasons"])) == (503, {"broken", "nameless"})
            if models
            else (200, set())
        )
        assert "model.toml" in client.get("/models/nameless/ready").text
        assert "did you mean 'lenet5'" in client.get("/models/broken/ready").text
        assert client.get("/models/broken/ready").status_code == 503
        answer = client.post("/predict/broken", content=picture(), headers=JPEG)
        assert error_of(answer) == (503, "model_not_ready")
        assert answer.headers["Retry-After"]
        assert "lenet6" in answer.json()["error"]["message"]
        assert client.post("/predict/colour", content=picture(), headers=JPEG).status_code == 200
        assert client.get("/health/live").status_code == 200


@pytest.mark.parametrize("models", ["colour", " colour , "])
def test_the_settings_can_name_the_models(application, models):
    with application(models=models) as client:
        assert [model["name"] for model in client.get("/models").json()["models"]] == ["colour"]


def test_a_model_that_the_settings_name_wrongly_is_told(application):
    with application(models="color", wait=False) as client:
        until(lambda: "has not been read" not in client.get("/health/ready").text)
        assert "colour, largest" in client.get("/health/ready").json()["reasons"]["repository"]


def test_requests_are_counted_by_model_version_and_outcome(client):
    labels = {"model": "colour", "version": "1"}
    before = [total(client, "serving_requests_total", **labels, outcome=code) for code in ("ok", "unsupported_image")]
    client.post("/predict/colour", content=picture(), headers=JPEG)
    client.post("/predict/colour", files=[("file", picture())] * 3)
    client.post("/predict/colour", content=b"text", headers=JPEG)
    client.post("/predict/colour", files=[("file", b"text")] * 3)
    after = [total(client, "serving_requests_total", **labels, outcome=code) for code in ("ok", "unsupported_image")]
    assert [new - old for new, old in zip(after, before, strict=True)] == [2, 2]
    assert total(client, "serving_model_state", **labels, state="READY") == 1
    assert total(client, "serving_model_state", **labels, state="LOADING") == 0
    assert total(client, "serving_queue_depth", **labels) == total(client, "serving_inflight_images", **labels) == 0
    assert total(client, "serving_model_info", **labels, precision="fp32", provider="CPUExecutionProvider") == 1
    assert total(client, "serving_loads_total", model="colour", outcome="ok") >= 1


def test_stages_are_timed(client):
    names = ("request_seconds", "decode_seconds", "queue_seconds", "inference_seconds", "batch_size")
    before = {name: total(client, f"serving_{name}_count", model="colour", version="1") for name in names}
    client.post("/predict/colour", files=[("file", picture())] * 3)
    after = {name: total(client, f"serving_{name}_count", model="colour", version="1") for name in names}
    assert {name: after[name] - before[name] for name in names if name not in {"inference_seconds", "batch_size"}} == {
        "request_seconds": 1,
        "decode_seconds": 3,
        "queue_seconds": 3,
    }
    assert 1 <= after["batch_size"] - before["batch_size"] <= 3


def test_no_label_value_ever_comes_from_a_client(client):
    secret = "made-up-by-a-client"
    client.post(f"/predict/{secret}?version=77&top_k=9", content=picture(), headers={"Content-Type": secret})
    client.post(f"/predict/colour?version=7777&x={secret}", content=picture(), headers={"X-Request-ID": secret})
    client.get(f"/{secret}")
    text = client.get("/metrics").text
    assert secret not in text
    assert "77" not in {part for line in text.splitlines() for part in line.split('"')[1::2]}


def test_every_error_of_the_service_has_a_code_of_its_own_and_a_cure():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ServiceError)]
    codes = [kind.code for kind in kinds]
    assert len(codes) == len(set(codes)) > 20
    assert all(kind.cure and 400 <= kind.status < 600 for kind in kinds)


def test_an_error_of_the_servers_own_keeps_its_shape_and_its_secrets(client, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("/secret/path")

    monkeypatch.setattr("service.inference.servable.top_classes", broken)
    answer = client.post("/predict/colour", content=picture(), headers=JPEG)
    assert error_of(answer) == (500, "internal_error")
    assert "secret" not in answer.text
    assert total(client, "serving_requests_total", model="colour", outcome="internal_error", version="1") >= 1


def test_the_documentation_shows_every_route_and_body(client):
    document = client.get("/openapi.json").json()
    assert client.get("/docs").status_code == 200
    assert set(document["paths"]) == {
        "/predict/{model}",
        "/models",
        "/models/{model}",
        "/models/{model}/labels",
        "/models/{model}/ready",
        "/health/live",
        "/health/ready",
        "/metrics",
    }
    content = document["paths"]["/predict/{model}"]["post"]["requestBody"]["content"]
    assert {"image/jpeg", "multipart/form-data", "application/json"} <= set(content)
    assert json.dumps(document).count("ErrorAnswer") > 5


def test_metrics_are_prometheus_text(client):
    answer = client.get("/metrics")
    assert answer.headers["Content-Type"] == metrics.CONTENT_TYPE_LATEST
    assert "process_resident_memory_bytes" in answer.text
