"""What /openapi.json promises is what the routes do: methods, statuses, types of content, HEAD."""

import pytest

from tests.client import AUTHORIZED, JPEG, TOKEN, error_of, picture
from tests.tars import WHOLE

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
TOML = b'architecture = "lenet5"'
ADMIN = "/admin/models/{model}"


@pytest.fixture
def client(application):
    with application(admin_token=TOKEN, max_body_bytes=2**21) as client:
        client.headers.update(AUTHORIZED)
        yield client


@pytest.fixture
def document(client):
    return client.get("/openapi.json").json()


def url_of(template, **parts):
    return template.format(**({"model": "colour", "version": 1, "label": "stable"} | parts))


def gets(document):
    return ["/docs", "/openapi.json", *(path for path, item in document["paths"].items() if "get" in item)]


def test_head_answers_as_get_without_a_body(client, document):
    assert len(gets(document)) >= 10
    for url in [
        *(url_of(path) for path in gets(document)),
        "/models/nothing",
        "/nowhere",
        "/models/colour/labels?version=9",
    ]:
        got, headed = client.get(url), client.head(url)
        assert (url, headed.status_code, headed.content) == (url, got.status_code, b"")
        of_the_moment = {"x-request-id", *(["content-length"] if url == "/metrics" else [])}
        assert {k: v for k, v in headed.headers.items() if k not in of_the_moment} == {
            k: v for k, v in got.headers.items() if k not in of_the_moment
        }


def test_head_is_listed_nowhere_twice(document):
    assert not any("head" in item for item in document["paths"].values())


def test_head_of_what_takes_a_post_is_refused(client):
    answer = client.head("/predict/colour")
    assert (answer.status_code, answer.content, answer.headers["Allow"]) == (405, b"", "POST")


def test_a_wrong_method_is_told_with_all_right_ones(client, document):
    for path, item in document["paths"].items():
        right = {method.upper() for method in item} | ({"HEAD"} if "get" in item else set())
        for method in {*METHODS, "OPTIONS", "TRACE", "BREW"} - right:
            answer = client.request(method, url_of(path))
            assert (path, method, answer.status_code) == (path, method, 405)
            assert set(answer.headers["Allow"].split(", ")) == right
            if method != "HEAD":
                assert error_of(answer) == (405, "method_not_allowed")


# A method, a route, what is sent, and the status that it gets.
CALLS = [
    ("GET", "/models", {}, 200),
    ("GET", "/models/{model}", {}, 200),
    ("GET", "/models/{model}", {"model": "nothing"}, 404),
    ("GET", "/models/{model}/labels", {}, 200),
    ("GET", "/models/{model}/labels", {"model": "nothing"}, 404),
    ("GET", "/models/{model}/labels", {"params": {"version": "9"}}, 404),
    ("GET", "/models/{model}/labels", {"params": {"version": "-"}}, 422),
    ("GET", "/models/{model}/labels", {"model": "empty"}, 503),
    ("GET", "/models/{model}/ready", {}, 200),
    ("GET", "/models/{model}/ready", {"model": "nothing"}, 404),
    ("GET", "/models/{model}/ready", {"model": "empty"}, 503),
    ("GET", "/health/live", {}, 200),
    ("GET", "/health/ready", {}, None),
    ("GET", "/metrics", {}, 200),
    ("POST", "/predict/{model}", {"content": picture(), "headers": JPEG}, 200),
    ("POST", "/predict/{model}", {"files": [("file", picture())]}, 200),
    ("POST", "/predict/{model}", {"content": b""}, 400),
    ("POST", "/predict/{model}", {"content": picture(), "headers": JPEG, "model": "nothing"}, 404),
    ("POST", "/predict/{model}", {"content": b"x" * 2**22, "headers": JPEG}, 413),
    ("POST", "/predict/{model}", {"content": b"x", "headers": {"Content-Type": "text/plain"}}, 415),
    ("POST", "/predict/{model}", {"content": b"x", "params": {"top_k": 0}}, 422),
    ("POST", "/predict/{model}", {"content": picture(), "headers": JPEG, "model": "empty"}, 503),
    ("PUT", ADMIN, {"content": TOML, "model": "empty"}, 200),
    ("PUT", ADMIN, {"content": b"\xff"}, 400),
    ("PUT", ADMIN, {"content": TOML, "headers": {"Authorization": "Bearer wrong"}}, 401),
    ("PUT", ADMIN, {"content": b" " * (2**20 + 1)}, 413),
    ("PUT", ADMIN, {"content": b"x = "}, 422),
    ("POST", f"{ADMIN}/versions", {"content": WHOLE, "headers": {"Content-Type": "application/x-tar"}}, 201),
    ("POST", f"{ADMIN}/versions", {"content": b""}, 400),
    ("POST", f"{ADMIN}/versions", {"content": b"x", "model": "nothing"}, 404),
    ("POST", f"{ADMIN}/versions", {"content": b"x", "headers": {"Content-Length": str(10**15)}}, 413),
    ("POST", f"{ADMIN}/versions", {"content": b"x"}, 422),
    ("DELETE", ADMIN + "/versions/{version}", {}, 409),
    ("DELETE", ADMIN + "/versions/{version}", {"version": 9}, 404),
    ("DELETE", ADMIN + "/versions/{version}", {"version": 0}, 422),
    ("POST", ADMIN + "/versions/{version}/load", {}, 200),
    ("POST", ADMIN + "/versions/{version}/load", {"version": 9}, 404),
    ("POST", ADMIN + "/versions/{version}/cancel", {}, 409),
    ("POST", ADMIN + "/versions/{version}/cancel", {"version": 9}, 404),
    ("POST", ADMIN + "/versions/{version}/unload", {}, 409),
    ("POST", ADMIN + "/versions/{version}/activate", {}, 200),
    ("GET", ADMIN + "/versions/{version}/progress", {}, 200),
    ("GET", ADMIN + "/versions/{version}/progress", {"version": 9}, 404),
    ("PUT", ADMIN + "/versions/{version}/trial", {"params": {"canary": 5}}, 409),
    ("PUT", ADMIN + "/versions/{version}/trial", {"params": {"canary": 101}}, 422),
    ("POST", f"{ADMIN}/rollback", {"model": "largest"}, 409),
    ("POST", f"{ADMIN}/rollback", {"model": "nothing"}, 404),
    ("POST", f"{ADMIN}/unpin", {}, 200),
    ("PUT", ADMIN + "/labels/{label}", {"params": {"version": 1}}, 200),
    ("PUT", ADMIN + "/labels/{label}", {"params": {"version": 9}}, 404),
    ("PUT", ADMIN + "/labels/{label}", {}, 422),
    ("DELETE", ADMIN + "/labels/{label}", {}, 200),
    ("DELETE", ADMIN + "/labels/{label}", {"model": "nothing"}, 404),
]


def test_every_answer_is_one_that_is_documented(client, document, repository):
    client.put("/admin/models/empty", content=TOML)
    for method, path, sent, status in CALLS:
        parts = {key: value for key, value in sent.items() if key in {"model", "version"}}
        answer = client.request(
            method, url_of(path, **parts), **{key: value for key, value in sent.items() if key not in parts}
        )
        assert status is None or (method, path, answer.status_code) == (method, path, status), answer.text
        told = document["paths"][path][method.lower()]["responses"]
        assert str(answer.status_code) in told, (method, path, answer.status_code)
        kinds = {kind.replace(" ", "") for kind in told[str(answer.status_code)]["content"]}
        assert answer.headers["Content-Type"].replace(" ", "") in kinds, (method, path, answer.status_code)
    operations = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    assert {(method, path) for method, path, *_ in CALLS} == operations


def test_every_error_that_is_documented_has_the_one_shape(document):
    for path, item in document["paths"].items():
        for method, operation in item.items():
            for status, told in operation["responses"].items():
                if status >= "4" and not (status == "503" and path.endswith(("ready", "live"))):
                    schema = told["content"]["application/json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/ErrorAnswer"}, (method, path, status)
    assert "HTTPValidationError" not in document["components"]["schemas"]
