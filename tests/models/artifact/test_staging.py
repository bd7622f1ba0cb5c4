"""Files appear whole or not at all: with other processes at work, with errors, and with kill -9 at any moment."""

import errno
import os
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from models.artifact import staging
from models.artifact.manifest import read_converted
from models.artifact.versions import MAX_VERSION, add_version
from models.errors import ArtifactError
from tests.models.published import publish_softmax


def write(directory, content):
    directory.mkdir(parents=True)
    for name in ("a", "b", "c"):
        (directory / name).write_text(content)
    return directory


def content_of(directory):
    """What its files hold, which is the same in each of them if it is whole."""
    found = {(directory / name).read_text() for name in ("a", "b", "c")}
    assert len(found) == 1, found
    return found.pop()


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_a_lock_keeps_others_out_until_it_is_released(tmp_path):
    file = tmp_path / "lock"
    file.touch()
    for path in (file, tmp_path):
        with (
            staging.locked(path),
            pytest.raises(BlockingIOError),
            staging.locked(path, wait=False),
        ):
            pass
        with staging.locked(path, wait=False):
            pass
    with pytest.raises(FileNotFoundError), staging.locked(tmp_path / "missing"):
        pass
    assert names(tmp_path) == ["lock"]


def test_a_staging_directory_goes_with_what_is_in_it(tmp_path):
    def interrupted():
        with staging.staged(tmp_path / "new" / "parent", "name") as directory:
            write(directory / "deep" / "deeper", "half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names(tmp_path / "new" / "parent") == []


def test_leftovers_of_the_same_name_are_removed_unless_they_are_in_use(tmp_path):
    write(tmp_path / "name.left" / "version", "half")
    write(tmp_path / "other", "precious")
    (tmp_path / "name.link").symlink_to(tmp_path / "other")
    (tmp_path / "name.lock").touch()
    with staging.staged(tmp_path, "name") as first, staging.staged(tmp_path, "name") as second:
        assert names(tmp_path) == sorted([first.name, second.name, "name.link", "name.lock", "other"])
    assert names(tmp_path) == ["name.link", "name.lock", "other"]
    assert content_of(tmp_path / "other") == "precious"


def test_no_staging_directory_in_use_is_taken_for_a_leftover(tmp_path):
    def work(_):
        for _ in range(30):
            with staging.staged(tmp_path, "name") as directory:
                (directory / "file").write_text("mine")
                assert names(directory) == ["file"]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert names(tmp_path) == []


def test_a_rename_never_writes_over_a_directory(tmp_path):
    write(tmp_path / "1", "old")
    with staging.staged(tmp_path, ".x") as directory:
        with pytest.raises(OSError, match="not empty"):
            staging.rename(write(directory / "new", "new"), tmp_path / "1")
        assert staging.rename(directory / "new", tmp_path / "2") == tmp_path / "2"
    assert [content_of(tmp_path / number) for number in "12"] == ["old", "new"]


def test_several_that_add_versions_get_a_number_each(tmp_path):
    def work(number):
        return add_version(write(tmp_path / f"fresh-{number}", str(number)), tmp_path / "model")

    write(tmp_path / "model" / "7", "old")
    with ThreadPoolExecutor(8) as pool:
        added = list(pool.map(work, range(20)))
    assert sorted(int(path.name) for path in added) == list(range(8, 28))
    assert [content_of(path) for path in added] == [str(number) for number in range(20)]
    (tmp_path / "model" / str(MAX_VERSION)).mkdir()
    with pytest.raises(ArtifactError, match="no number is higher"):
        work(20)


def test_a_file_is_replaced_in_one_step(tmp_path, monkeypatch):
    path = tmp_path / "settings"
    staging.write_file(path, b"old")
    assert path.read_bytes() == b"old"
    write(tmp_path / ".settings.staging.left", "half")
    staging.write_file(path, b"new", tmp_path / "elsewhere")
    assert path.read_bytes() == b"new"
    monkeypatch.setattr(type(path), "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match="full"):
        staging.write_file(path, b"newer")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["elsewhere", "settings"]
    assert names(tmp_path / "elsewhere") == []


@pytest.fixture(params=["exchange", "aside"])
def way(request, monkeypatch):
    """How a directory is replaced: in one step, or on a file system that cannot do that."""
    if request.param == "aside":
        monkeypatch.setattr(staging, "_exchange", lambda *_: False)
    return request.param


def test_a_directory_is_replaced_and_the_old_one_goes(tmp_path, way):
    for content in ("first", "second"):
        with staging.staged(tmp_path, ".1.staging") as directory:
            staging.replace(write(directory / "1", content), tmp_path / "1")
        assert content_of(tmp_path / "1") == content
        assert names(tmp_path) == ["1"]


def test_an_error_leaves_the_old_directory(tmp_path, monkeypatch, way):
    write(tmp_path / "1", "old")
    if way == "exchange":
        with pytest.raises(OSError, match="No such file"):
            staging._exchange(tmp_path / "missing", tmp_path / "1")
        with pytest.raises(OSError, match="No such file"):
            staging.replace(tmp_path / "missing", tmp_path / "1")
    else:
        rename, fresh = Path.rename, write(tmp_path / "fresh", "new")

        def refuse(path, target):
            if path == fresh:
                raise OSError(errno.EIO, "broken")
            return rename(path, target)

        monkeypatch.setattr(Path, "rename", refuse)
        with pytest.raises(OSError, match="broken"):
            staging.replace(fresh, tmp_path / "1")
    assert content_of(tmp_path / "1") == "old"
    assert not list(tmp_path.glob(".*"))


REPLACING = """
import itertools, sys
from pathlib import Path
from models.artifact import staging

root = Path(sys.argv[1])
if sys.argv[2] == "aside":
    staging._exchange = lambda *_: False
for number in itertools.count():
    with staging.staged(root, ".1.staging") as directory:
        (directory / "1").mkdir()
        for name in ("a", "b", "c"):
            (directory / "1" / name).write_text(f"{sys.argv[3]} {number}")
        staging.replace(directory / "1", root / "1")
    if number == 1:
        print("replacing", flush=True)
"""


@pytest.mark.slow
def test_kill_9_at_any_moment_leaves_the_old_or_the_new_one_whole(tmp_path, way, record_property):
    seed, aside = random.Random(0), 0
    write(tmp_path / "1", "before")
    for attempt in range(40):
        command = [sys.executable, "-c", REPLACING, tmp_path, way, str(attempt)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout.readline() == b"replacing\n"
            time.sleep(seed.uniform(0, 0.02))
            process.kill()
        if way == "aside" and not (tmp_path / "1").exists():
            aside += 1
            assert content_of(tmp_path / ".1.replaced").startswith(f"{attempt} ")
            staging.restore(tmp_path / "1")
        assert content_of(tmp_path / "1").startswith(f"{attempt} ")
    record_property("row", f"40 times SIGKILL ({way}): always whole; {aside} times the old one was put back")
    with staging.staged(tmp_path, ".1.staging") as directory:
        staging.replace(write(directory / "1", "after"), tmp_path / "1")
    assert content_of(tmp_path / "1") == "after"
    assert names(tmp_path) == ["1"]


def test_what_was_put_aside_comes_back_or_goes(tmp_path):
    write(tmp_path / ".1.replaced", "old")
    staging.restore(tmp_path / "1")
    assert content_of(tmp_path / "1") == "old"
    write(tmp_path / ".1.replaced", "older")
    staging.restore(tmp_path / "1")
    assert content_of(tmp_path / "1") == "old"
    assert names(tmp_path) == ["1"]


def copy_of(source, target):
    target.mkdir()
    for path in source.iterdir():
        os.link(path, target / path.name)


def test_a_reader_gets_one_version_or_the_other_while_they_are_exchanged(tmp_path):
    for labels in (("a", "b", "c"), ("d", "e", "f")):
        publish_softmax(tmp_path / labels[0], 1, size=8 if labels[0] == "a" else 16, labels=labels)
    target, done, seen = tmp_path / "model" / "1", threading.Event(), set()
    target.parent.mkdir()

    def replace():
        for number in range(300):
            with staging.staged(target.parent, ".1.staging") as directory:
                copy_of(tmp_path / "ad"[number % 2] / "1", directory / "1")
                staging.replace(directory / "1", target)
        done.set()

    thread = threading.Thread(target=replace)
    thread.start()
    while not target.exists():
        time.sleep(0.001)
    while not done.is_set():
        manifest, _ = read_converted(target)
        seen.add(manifest.spec.labels)
    thread.join()
    assert len(seen) == 2
