"""Settings of glibc's malloc, and no effect without glibc."""

import ctypes
import sys

import pytest

from service.host.memory import trim_malloc, tune_malloc


class FakeLibc:
    """glibc's mallopt, which takes no mmap threshold above `largest`."""

    def __init__(self, largest: int) -> None:
        self.largest = largest
        self.options: dict[int, int] = {}

    def mallopt(self, option: int, value: int) -> int:
        if option == -3 and value > self.largest:
            return 0
        self.options[option] = value
        return 1


@pytest.mark.parametrize("largest", [64, 32])
def test_malloc_is_given_the_largest_threshold_it_takes(monkeypatch, largest):
    libc = FakeLibc(largest << 20)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: libc)
    tune_malloc()
    assert libc.options == {-1: 256 << 20, -3: largest << 20}


def test_malloc_is_left_alone_without_glibc(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    tune_malloc()
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", None)
    tune_malloc()


def test_freed_memory_is_handed_back(monkeypatch):
    calls = []
    libc = type("Libc", (), {"malloc_trim": staticmethod(calls.append)})
    monkeypatch.setattr(ctypes, "CDLL", lambda _: libc)
    trim_malloc()
    assert calls == [0]
