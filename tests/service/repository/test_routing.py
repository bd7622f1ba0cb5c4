"""routing.toml: which version answers what."""

import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from models.artifact import toml_file
from models.artifact.artifact import MAX_VERSION
from service.repository.routing import LABEL, Routing

EXAMPLE = """
live = 2
previous = 1
[labels]
stable = 1
[versions.3]
canary = 5
shadow = true
[versions.4]
load = false
"""


def routing(text=EXAMPLE):
    return Routing.model_validate(tomllib.loads(text))


def test_what_is_written_reads_the_same():
    assert routing(routing().to_toml()) == routing()
    assert Routing().to_toml().strip() == ""
    assert routing().part(3).shadow == 10


NUMBERS = st.integers(1, MAX_VERSION)
PARTS = st.fixed_dictionaries(
    {},
    optional={"load": st.booleans(), "canary": st.floats(0, 100 / 8), "shadow": st.floats(0, 100) | st.booleans()},
)


@settings(deadline=None)
@given(
    live=st.none() | NUMBERS,
    previous=st.none() | NUMBERS,
    labels=st.dictionaries(st.from_regex(LABEL, fullmatch=True), NUMBERS),
    versions=st.dictionaries(NUMBERS, PARTS, max_size=8),
)
def test_every_routing_reads_as_it_was_written(live, previous, labels, versions):
    written = Routing(live=live, previous=previous, labels=labels, versions=versions)
    assert Routing.model_validate(toml_file.parse(written.to_toml().encode(), "routing.toml")) == written


@pytest.mark.parametrize("label", ["v1.2", "a.b.c.d.e.f.g.h.i.j", "v1..2", "a.", "a-", "true", "inf", "x" * 64])
def test_every_label_that_is_legal_can_be_written_beside_others(label):
    written = routing().with_label(label, 3)
    assert routing(written.to_toml()) == written
    assert routing(written.with_label("other", 2).to_toml()).labels == {"stable": 1, label: 3, "other": 2}


@pytest.mark.parametrize("label", ["", "1", "V1", "v 1", "v1\n", "x" * 65, "é", ".v"])
def test_other_labels_are_refused(label):
    with pytest.raises(ValidationError):
        Routing().with_label(label, 1)


@pytest.mark.parametrize(
    ("text", "versions", "wanted"),
    [
        ("", "latest", {4}),
        ("", "all", {1, 2, 3, 4}),
        ("", (1, 3), {1, 3}),
        ("live = 2", "latest", {2}),
        ("live = 2", (1, 3), {1, 2, 3}),
        ("live = 9", "latest", {4}),  # it was deleted
        ("[versions.4]\ncanary = 5", "latest", {3, 4}),
        ("[versions.4]\nshadow = true", "latest", {3, 4}),
        ("[versions.4]\nload = false", "latest", {3}),
        ("[versions.4]\nload = false", "all", {1, 2, 3}),
        ("[versions.1]\nload = true", "latest", {1, 4}),
        ("[labels]\nstable = 2", "latest", {2, 4}),
        ("[labels]\nstable = 9", "latest", {4}),
        ("live = 4\n[versions.4]\nload = false", "latest", {4}),  # who is live is loaded, whatever else is said
        (EXAMPLE, "latest", {1, 2, 3}),
    ],
)
def test_which_versions_are_loaded(text, versions, wanted):
    assert routing(text).wanted([1, 2, 3, 4], versions) == wanted


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("live = 0", "greater than"),
        ("live = true", "live"),
        ("lives = 1", "lives"),
        ("[versions.1]\ncanary = 101", "canary"),
        ("[versions.1]\nshadow = -1", "shadow"),
        ("[versions.1]\ncanary = 60\n[versions.2]\ncanary = 60", "120 per cent"),
        ("[labels]\n2 = 1", "labels"),
        ("[labels]\nstable = 'two'", "stable"),
    ],
)
def test_nonsense_is_refused_by_name(text, complaint):
    with pytest.raises(ValidationError, match=complaint):
        routing(text)


def test_changes():
    assert routing().with_live(3, 2) == routing(
        "live = 3\nprevious = 2\n[labels]\nstable = 1\n[versions.4]\nload = false"
    )
    assert routing().with_live(2, 2).previous == 1
    assert routing().with_live(None, None).live is None
    assert routing("").with_part(2, canary=5.0).with_part(2, canary=0.0) == Routing()
    assert routing().with_label("stable", 2).with_label("new", 3).labels == {"stable": 2, "new": 3}
    assert routing().with_label("stable", None).labels == {}
    assert routing().without(1).without(2).without(3) == routing("[versions.4]\nload = false")
