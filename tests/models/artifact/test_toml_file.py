"""TOML of any content is read, or refused with a reason, in a bounded time."""

import os
import time
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.artifact import toml_file
from models.artifact.artifact import MAX_CLASSES, MAX_VERSION, ModelConfig
from models.errors import ArtifactError
from models.inputs import ImageInput, NumbersInput

SIZE = toml_file.MAX_CHARACTERS - 10

REFUSED = {
    "a key of many parts": (b"a." * 10_000 + b"a = 1", "more than 128 characters"),
    "with blanks": (b"a . " * 10_000 + b"a = 1", "more than 128 characters"),
    "in quotes": (b'"a".' * 10_000 + b"a = 1", "more than 128 characters"),
    "of ten parts": (b"a.b.c.d.e.f.g.h.i.j = 1", "a key of more than 8 parts"),
    "a table of many parts": (b"[" + b"a." * 10_000 + b"a]", "more than 128 characters"),
    "arrays in arrays": (b"a = " + b"[" * 1000, "more than 16 deep"),
    "tables in tables": (b"a = " + b"{a=" * 1000, "more than 16 deep"),
    "behind a text with a quote at its end": (b'a = ["""x"""" , ' + b"[" * 1000, "more than 16 deep"),
    "behind a text with two": (b'a = ["""x""""" , ' + b"[" * 1000, "more than 16 deep"),
    "behind a literal text with a quote": (b"a = ['''x'''' , " + b"[" * 1000, "more than 16 deep"),
    "behind a backslash": (b'a = ["x\\\\",' + b"[" * 1000, "more than 16 deep"),
    "behind a literal backslash": (b"a = ['x\\'," + b"[" * 1000, "more than 16 deep"),
    "behind a comment": (b"a = [ # '\n" + b"[" * 1000, "more than 16 deep"),
    "5,000 digits": (b"a = " + b"1" * 5000, "more than 128 characters"),
    "hexadecimal digits": (b"a = 0x" + b"f" * 100_000, "more than 128 characters"),
    "many values": (b"a = [" + b"1," * SIZE + b"]", "outside of strings"),
    "many bytes": (b"#" * (2**20 + 1), "more than 1048576 bytes"),
    "no UTF-8": (b"a = '\xff'", "not UTF-8"),
    "UTF-16": ("a = 1".encode("utf-16"), "not UTF-8"),
    "NUL": (b"a = 1\0", "cannot be read"),
    "no TOML": (b"architecture = ", "cannot be read"),
    "a day that is none": (b"a = 2025-02-30", "cannot be read"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_settings_have_is_refused(name):
    content, reason = REFUSED[name]
    with pytest.raises(ArtifactError, match=reason) as caught:
        toml_file.parse(content, "model.toml")
    assert str(caught.value).startswith("model.toml ")
    assert caught.value.cure
    assert len(str(caught.value)) < 300


SLOWEST = {
    "numbers": b"a=[" + b"1," * (SIZE // 2 - 5) + b"]",
    "empty tables": b"a=[" + b"{}," * (SIZE // 3 - 3) + b"]",
    "tables": b"".join(b"[a.b.c.d.e.f.k%d]\n" % number for number in range(SIZE // 24)),
    "arrays of tables": b"[[a]]\n[[a.b]]\n[[a.b.c]]\n" * (SIZE // 26),
    "keys": b"[a.b.c]\n" + b"".join(b"a.b.c.d.k%d=1\n" % number for number in range(SIZE // 24)),
    "escapes": b'a = """' + b"\\n" * 500_000 + b'"""',
    "quotes in a text": b'a = """' + b'""\\"' * 250_000 + b'"""',
    "a text without an end": b'a = """' + b'""\\"' * 250_000,
    "comments": b"#" + b"x" * 1_000_000,
    "lines": b"\n" * SIZE,
    "blanks": b" " * 2**20,
}


@pytest.mark.no_cover  # coverage makes the parser thirty times slower
@pytest.mark.parametrize("name", SLOWEST)
def test_the_worst_that_is_parsed_takes_no_time(name):
    started = time.process_time()
    try:
        toml_file.parse(SLOWEST[name], "model.toml")
    except ArtifactError as error:
        assert "cannot be read" in str(error)  # noqa: PT017 - most of them are sound
    assert time.process_time() - started < 5  # seconds


TOKENS = ['"', '"""', "'", "'''", "\\", "\n", "[", "]", "{", "}", "a", ".", "=", ",", "#", " ", "1", "\\u00e9", "é"]


@given(st.lists(st.sampled_from(TOKENS), max_size=20).map("".join), st.sampled_from(["", "a = [", "a = '''", "[a]\n"]))
def test_what_tomllib_reads_is_read(text, before):
    try:
        expected = tomllib.loads(before + text)
    except ValueError:
        with pytest.raises(ArtifactError):
            toml_file.parse((before + text).encode(), "model.toml")
    else:
        assert toml_file.parse((before + text).encode(), "model.toml") == expected


TEXTS = st.text(max_size=20)
CLASSES = st.integers(1, MAX_CLASSES)
SIDES = st.integers(1, 500)
SCALES = st.floats(0, exclude_min=True, allow_infinity=False)
INPUTS = st.builds(
    ImageInput,
    height=SIDES,
    width=SIDES,
    resize=st.sampled_from(["crop", "stretch"]),
    scale=SCALES,
    mean=st.tuples(*[st.floats(allow_nan=False, allow_infinity=False)] * 3),
    std=st.tuples(SCALES),
) | st.builds(NumbersInput, shape=st.lists(st.integers(1, 20), min_size=1, max_size=4).map(tuple))
SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "architecture": TEXTS,
        "framework": st.sampled_from(["torch", "keras"]),
        "weights": TEXTS,
        "num_classes": CLASSES,
        "labels": TEXTS | st.lists(TEXTS, max_size=5).map(tuple),
        "output": st.sampled_from(["logits", "probabilities", "logit", "probability"]),
        "input": INPUTS.map(lambda item: item.model_dump(mode="json", exclude_none=True))
        | st.dictionaries(TEXTS, TEXTS | st.integers() | st.booleans(), max_size=3),
        "precision": st.sampled_from(["fp32", "fp16", "int8", "auto"]),
        "precision_agreement": st.floats(0, 1, exclude_min=True),
        "batching": st.fixed_dictionaries(
            {},
            optional={"max_batch_size": st.integers(1, 1024), "max_queue_delay_seconds": st.floats(0, 60)},
        ),
        "versions": st.sampled_from(["latest", "all"]) | st.lists(st.integers(1, MAX_VERSION)).map(tuple),
        "min_agreement": st.floats(0, 1),
        "tune": st.booleans(),
        "unload_first": st.booleans(),
    },
)


@settings(deadline=None)
@given(SETTINGS.filter(lambda values: "normalization" not in values.get("input", {})))
def test_every_model_toml_reads_as_it_was_written(values):
    content = toml_file.dumps(values).encode()
    assert ModelConfig.model_validate(toml_file.parse(content, "model.toml")) == ModelConfig.model_validate(values)
    written = values | {key: list(value) for key, value in values.items() if isinstance(value, tuple)}
    assert toml_file.parse(content, "model.toml") == written


def test_the_largest_labels_are_written_so_that_they_are_read_again():
    labels = [f"a synset, with many; words [{number}]" for number in range(21_841)]
    assert toml_file.parse(toml_file.dumps({"labels": labels}).encode(), "artifact.toml") == {"labels": labels}


def test_the_largest_honest_settings_are_read():
    labels = b",\n".join(b'    "a synset, with many; words [%d]"' % number for number in range(21_841))
    assert len(toml_file.parse(b"labels = [\n" + labels + b",\n]\n", "model.toml")["labels"]) == 21_841


def test_a_file_is_read_as_it_is_or_not_at_all(tmp_path):
    path = tmp_path / "model.toml"
    assert toml_file.read(path) == {}
    path.write_text("a = 1")
    assert toml_file.read(path) == {"a": 1}
    (tmp_path / "link.toml").symlink_to(path)  # as Kubernetes mounts a ConfigMap
    assert toml_file.read(tmp_path / "link.toml") == {"a": 1}
    os.mkfifo(tmp_path / "pipe.toml")  # which nobody writes to
    for odd in ("pipe.toml", "."):
        with pytest.raises((ArtifactError, OSError)):
            toml_file.read(tmp_path / odd)
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ArtifactError, match="bytes, and 1048576 are allowed"):
        toml_file.read(path)
