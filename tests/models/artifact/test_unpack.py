"""An archive is refused whole, or its files are written and nothing else."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from models.artifact import unpack
from models.artifact.artifact import CONFIG_FILE
from models.errors import ArtifactError
from service.repository.routing import ROUTING_FILE
from tests import tars


@pytest.fixture
def place(tmp_path):
    (tmp_path / "version").mkdir()

    def make(content):
        (tmp_path / "archive.tar").write_bytes(content)
        return tmp_path / "archive.tar", tmp_path / "version"

    return make


@pytest.mark.parametrize("name", tars.HOSTILE)
def test_a_hostile_archive_is_refused_before_anything_is_written(place, tmp_path, name):
    archive, directory = place(tars.HOSTILE[name])
    with pytest.raises((ArtifactError, ValueError, RecursionError, unpack.tarfile.TarError)):
        unpack.unpack(archive, directory)
    late = {"a file, then a directory", "a directory, then a file", "directories alone", "the directory itself"}
    assert name in late or list(directory.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archive.tar", "version"]
    assert not Path("/tmp/outside").exists()


@pytest.mark.parametrize("name", tars.HARMLESS)
def test_what_honest_tools_write_is_unpacked(place, name):
    files, content = tars.HARMLESS[name]
    archive, directory = place(content)
    unpack.unpack(archive, directory)
    found = {str(path.relative_to(directory)): path for path in directory.rglob("*") if path.is_file()}
    assert {path: file.read_bytes() for path, file in found.items()} == files
    assert all(file.stat().st_mode & 0o7111 == 0 for file in found.values())  # whatever the archive says


def told(archive, directory):
    """What the module says on standard output when it runs as the server runs it."""
    sandbox = [sys.executable, "-P", "-m", "models.conversion.sandbox"]
    command = [*sandbox, str(directory.parent), str(2**30), "models.artifact.unpack"]
    job = json.dumps({"archive": str(archive), "directory": str(directory)})
    ended = subprocess.run(command, input=job, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    return [json.loads(line) for line in ended.stdout.splitlines() if "unconfined" not in line]


@pytest.mark.parametrize("name", ["PAX sparse", "PAX after PAX", "PAX length of digits", "cut in a PAX header"])
def test_whatever_tarfile_raises_is_told(place, name):
    (event,) = told(*place(tars.HOSTILE[name]))
    assert event["failed"] == "unpack"
    assert event["reason"]
    assert event["cure"]


def test_an_archive_is_unpacked_in_the_sandbox(place):
    archive, directory = place(tars.WHOLE)
    assert told(archive, directory) == []
    assert (directory / "weights.pth").stat().st_size == 1000


def test_the_names_of_a_models_own_settings_are_reserved():
    assert {CONFIG_FILE, ROUTING_FILE} == unpack._RESERVED
