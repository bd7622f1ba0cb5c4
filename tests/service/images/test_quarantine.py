"""Images that ended a decoder are remembered, and for how long."""

import hashlib

from service.images.quarantine import MAX_IMAGES, Quarantine


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_the_same_bytes_are_known_and_others_are_not():
    quarantine = Quarantine()
    assert quarantine.add(b"abc", "SIGSEGV", 60) == hashlib.sha256(b"abc").hexdigest()
    assert quarantine.cause(memoryview(b"abc")) == "SIGSEGV"
    assert quarantine.cause(b"abd") is None
    assert quarantine.cause(b"ab") is None


def test_an_image_is_forgotten_after_its_time():
    clock = Clock()
    quarantine = Quarantine(clock)
    quarantine.add(b"abc", "SIGSEGV", 60)
    clock.now = 59.0
    assert quarantine.cause(b"abc") == "SIGSEGV"
    quarantine.add(b"abc", "SIGABRT", 60)  # again
    clock.now = 118.0
    assert quarantine.cause(b"abc") == "SIGABRT"
    clock.now = 120.0
    assert quarantine.cause(b"abc") is None


def test_the_oldest_go_when_there_are_too_many():
    quarantine = Quarantine()
    for number in range(MAX_IMAGES + 5):
        quarantine.add(number.to_bytes(4, "big"), "SIGSEGV", 60)
    known = [quarantine.cause(number.to_bytes(4, "big")) is not None for number in range(MAX_IMAGES + 5)]
    assert known == [False] * 5 + [True] * MAX_IMAGES
