"""The README says what the code does: its lists are complete, and its commands run."""

import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.metrics import MetricWrapperBase
from starlette.routing import Route

from models import catalog
from models.artifact import artifact
from models.inputs import NORMALIZATIONS, ImageInput
from service import errors, metrics
from service.__main__ import app
from service.api import admin, predict
from service.api.routes import router
from service.repository.routing import Part, Routing
from service.settings import DEFAULT_REPOSITORY, Settings

ROOT = Path(__file__).parent.parent
SUFFIXES = (".pth", ".pt", ".bin", ".safetensors", ".pt2", ".keras", ".h5", ".weights.h5", ".index", ".onnx")
README = (ROOT / "README.md").read_text()


def table(heading):
    """The rows of the first table below a heading, each a list of cells."""
    section = README.split(f"\n{heading}\n", 1)[1].split("\n#", 1)[0]
    rows = re.findall(r"^\| (.*) \|$", section, re.MULTILINE)
    return [row.split(" | ") for row in rows[2:]]


def setting_rows():
    defaults = {"repository": "models/repository", "cache": "~/.cache/menagerie"}
    rows = []
    for name, field in Settings.model_fields.items():
        default = defaults.get(name, field.default)
        default = "" if default is None else default
        shown = str(default).lower() if isinstance(default, bool) else ",".join(default) if default == () else default
        rows.append([f"`MENAGERIE_{name.upper()}`", f"`{shown}`" if shown != "" else "", field.description])
    return rows


def metric_rows():
    rows = []
    for each in vars(metrics).values():
        if isinstance(each, MetricWrapperBase):
            suffix = "_total" if each._type == "counter" else ""
            rows.append([f"`{each._name}{suffix}`", ", ".join(each._labelnames), each._documentation])
    return rows


def error_rows():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ServiceError)]
    return [
        [f"`{kind.code}`", str(kind.status), kind.__doc__.splitlines()[0].rstrip(".")]
        for kind in kinds
        if kind not in {errors.RepositoryError, errors.ConversionError, errors.EngineError}  # the operator's
    ]


def architecture_rows():
    return [[f"`{name}`", *rest] for name, *rest in catalog.rows()]


def test_every_setting_is_listed_with_its_default():
    assert table("## Settings") == setting_rows()


def test_every_metric_is_listed():
    assert table("## Metrics") == metric_rows()


def test_every_error_is_listed():
    assert table("## Errors") == error_rows()


def test_every_architecture_is_listed():
    assert table("## Architectures") == architecture_rows()


def routes_of(routes):
    return [f"`{method} {route.path}`" for route in routes if isinstance(route, Route) for method in route.methods]


def test_every_route_is_listed():
    assert [row[0] for row in table("## Routes")] == [*routes_of([predict.route, *router.routes]), "`GET /docs`"]


def test_every_route_of_the_admin_api_is_listed():
    short = [
        route.replace(" /admin/models/{model}", " ").replace(" `", "`") for route in routes_of(admin.router.routes)
    ]
    assert [row[0] for row in table("## Admin API")] == short


def test_every_key_of_a_routing_toml_is_told():
    section = README.split("## New versions", 1)[1].split("\n## ", 1)[0]
    for key in (*Routing.model_fields, *Part.model_fields):
        assert re.search(rf"^\[?{key}\b|`{key}[` ]", section, re.MULTILINE), key


def test_every_command_is_told():
    section = README.split("## Commands", 1)[1].split("\n## ", 1)[0]
    for command in app.registered_commands:
        assert f"`menagerie {command.callback.__name__}" in section


def test_every_key_of_a_model_toml_is_told():
    rows = table("## Your own weights")
    keys = {row[0].strip("`[]") for row in rows}
    assert keys == set(artifact.ModelConfig.model_fields) - {"architecture"}
    section = README.split("## Your own weights", 1)[1].split("\n## ", 1)[0]
    for word in (*NORMALIZATIONS, *SUFFIXES, *artifact.Batching.model_fields):
        assert word in section
    assert set(ImageInput.model_fields) - {"kind"} <= set(re.findall(r"`(\w+)`", section))


def test_every_file_that_is_named_exists():
    for name in re.findall(r"`((?:service|models|deploy)/[\w./]+)`", README):
        assert (ROOT / name).exists(), name


def console():
    """Each command of the README with what it prints."""
    for block in re.findall(r"^```console\n(.*?)^```", README, re.MULTILINE | re.DOTALL):
        for part in block.removeprefix("$ ").split("\n$ "):
            command, _, output = part.partition("\n")
            yield command, output.strip()


COMMANDS = dict(console())


def test_the_make_targets_exist():
    targets = subprocess.run(["make", "-pn"], cwd=ROOT, check=False, capture_output=True, text=True).stdout
    for command in COMMANDS:
        if command.startswith("make "):
            assert f"\n{command.removeprefix('make ')}:" in targets
    assert {"make serve", "make test"} <= set(COMMANDS)


@pytest.mark.slow
def test_the_curl_commands_answer_as_shown(serve):
    curls = {
        command: output for command, output in COMMANDS.items() if command.startswith("curl ") and "$" not in command
    }
    assert len(curls) >= 4
    server = serve(cache=Settings().cache).wait_ready()
    for command, output in curls.items():
        words = [word.replace("http://127.0.0.1:8000", server.url) for word in shlex.split(command)]
        answer = subprocess.run([*words, "--silent"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
        assert rounded(answer) == rounded(output)


def rounded(answer):
    """Probabilities to three places: processors differ in the last ones."""
    return re.sub(r"0\.\d{3,}", lambda number: f"{float(number[0]):.3f}", answer)


@pytest.mark.slow
def test_your_own_weights_are_five_lines(serve, tmp_path):
    from tests.models.make_weights import make_weights

    make_weights("torch", "efficientnet_lite0", tmp_path / "weights.pth", num_classes=3)
    lines = [
        command for command in COMMANDS if "my_models" in command and not {"convert", "curl"} & set(command.split())
    ]
    assert len(lines) == 5
    *prepare, command = lines
    for line in prepare:
        subprocess.run(line, shell=True, cwd=tmp_path, check=True)
    assert command.endswith("menagerie serve --repository my_models")
    server = serve(repository=tmp_path / "my_models").wait_ready()
    assert server.get("/models/flowers/labels").json()["labels"] == ["daisy", "rose", "tulip"]


@pytest.mark.slow
def test_the_training_goes_as_shown(tmp_path):
    """But for its figures: they are this processor's."""
    ((command, output),) = [each for each in COMMANDS.items() if "menagerie train" in each[0]]
    words = [sys.executable, "-m", "service", *shlex.split(command)[1:]]
    words[-1] = str(tmp_path / "handwriting")
    shown = output.replace("trained/handwriting", words[-1])
    told = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    assert figureless(told) == figureless(shown)


def figureless(text):
    return re.sub(r"\d+\.\d+|(?<=best epoch )\d", "0", text)


def test_the_default_models_are_named():
    for model in DEFAULT_REPOSITORY.iterdir():
        assert f"`{model.name}`" in README
    assert inspect.getdoc(app.registered_commands[0].callback)


if __name__ == "__main__":  # python -m tests.test_readme prints the tables, to paste
    for rows in (architecture_rows(), error_rows(), setting_rows(), metric_rows()):
        print(*("| " + " | ".join(map(str, row)) + " |" for row in rows), "", sep="\n")
