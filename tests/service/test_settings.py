"""Settings: read once, refused where they make no sense."""

import pytest
from pydantic import ValidationError

from service.settings import DEFAULT_REPOSITORY, Settings


def test_an_empty_variable_is_the_default(monkeypatch):
    for name in ("REPOSITORY", "CACHE", "MODELS", "MAX_BATCH_SIZE", "HOST", "REQUIRE_GPU"):
        monkeypatch.setenv(f"MENAGERIE_{name}", "")
    assert Settings() == Settings(repository=DEFAULT_REPOSITORY)
    assert Settings().host == "127.0.0.1"


def test_variables_are_read_and_home_is_found(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MENAGERIE_CACHE", "~/models")
    monkeypatch.setenv("MENAGERIE_REQUIRE_GPU", "true")
    assert Settings().cache == tmp_path / "models"
    assert Settings().require_gpu


def test_a_misspelt_variable_is_refused_with_the_nearest(monkeypatch):
    monkeypatch.setenv("MENAGERIE_REQIRE_GPU", "true")
    with pytest.raises(ValidationError, match="did you mean MENAGERIE_REQUIRE_GPU"):
        Settings()


def test_what_kubernetes_says_of_a_service_of_that_name_is_no_setting(monkeypatch):
    for name, value in {
        "SERVICE_HOST": "10.0.0.1",
        "SERVICE_PORT_HTTP": "80",
        "PORT": "tcp://10.0.0.1:80",
        "PORT_80_TCP_ADDR": "10.0.0.1",
        "PROMETHEUS_PORT": "tcp://10.0.0.2:9090",
    }.items():
        monkeypatch.setenv(f"MENAGERIE_{name}", value)
    assert Settings().port == 8000
    monkeypatch.setenv("MENAGERIE_PORT", "9000")
    assert Settings().port == 9000


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_queue_delay_seconds": float("inf")},
        {"grace_seconds": float("nan")},
        {"request_timeout_seconds": 0},
        {"max_batch_size": -1},
        {"max_batch_size": 1025},
        {"port": 70_000},
        {"provider": "tpu"},
        {"drain_delay_seconds": 25},
        {"max_queue_images": 63},
        {"max_decode_images": 63},
        {"colour": "red"},
    ],
)
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValidationError):
        Settings(**wrong)


def test_settings_never_change():
    with pytest.raises(ValidationError):
        Settings().port = 1
