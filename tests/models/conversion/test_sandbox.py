"""The filter of system calls as a table: what it says of each call, on machines that are not at hand too."""

import struct

import pytest

from models.conversion import sandbox
from models.conversion.sandbox import (
    ALLOWED_ON_ITSELF,
    CLONE,
    CLONE3,
    ON_ITSELF,
    REFUSED,
    decoder_program,
    filter_program,
)

ALLOWED, NOT_PERMITTED, NO_SUCH_CALL = 0x7FFF0000, 0x00050001, 0x00050026
ARCHES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
PROCESS = 4711


def judge(machine, number, argument=0, arch=None, filter_program=filter_program):
    """The kernel's part: runs the program on one system call."""
    data = struct.pack("=IIQQ", number & 0xFFFFFFFF, arch or ARCHES[machine], 0, argument & 2**64 - 1)
    program, position, value = list(filter_program(machine, PROCESS)), 0, 0
    while True:
        code, if_true, if_false, constant = program[position]
        position += 1
        if code == 0x06:
            return constant
        if code == 0x20:
            (value,) = struct.unpack_from("=I", data, constant)
        else:
            holds = {0x15: value == constant, 0x35: value >= constant, 0x45: bool(value & constant)}[code]
            position += if_true if holds else if_false


@pytest.fixture(params=[("x86_64", 0), ("aarch64", 1)], ids=lambda param: param[0])
def machine(request):
    return request.param


def test_what_is_refused_is_refused_and_the_rest_allowed(machine):
    name, column = machine
    refused = {numbers[column] for numbers in REFUSED.values()} - {None}
    special = {numbers[column] for numbers in (*ON_ITSELF.values(), CLONE)} | {CLONE3}
    for number in set(range(500)) - special:
        assert judge(name, number) == (NOT_PERMITTED if number in refused else ALLOWED), number


def test_threads_are_allowed_and_processes_are_not(machine):
    name, column = machine
    assert judge(name, CLONE[column], 0x3D0F00) == ALLOWED  # as glibc makes a thread
    assert judge(name, CLONE[column], 0x1200011) == NOT_PERMITTED  # as glibc forks
    assert judge(name, CLONE3) == NO_SUCH_CALL


def test_a_process_signals_and_limits_itself_alone(machine):
    name, column = machine
    for numbers in ON_ITSELF.values():
        for target, verdict in {PROCESS: ALLOWED, 0: ALLOWED, 1: NOT_PERMITTED, -1: NOT_PERMITTED}.items():
            assert judge(name, numbers[column], target) == verdict


def test_another_abi_of_the_same_machine_is_refused_whole(machine):
    name, _ = machine
    assert judge(name, 0, arch=0x40000003) == NOT_PERMITTED  # i386
    assert judge(name, 0x40000000) == NOT_PERMITTED  # x32


def test_no_system_call_is_told_twice():
    for column in (0, 1):
        tables = [*REFUSED.values(), *ON_ITSELF.values(), CLONE, (CLONE3, CLONE3)]
        numbers = [each[column] for each in tables if each[column] is not None]
        assert len(numbers) == len(set(numbers))


def test_a_decoder_may_call_what_is_listed_and_nothing_else(machine):
    name, column = machine
    allowed = {numbers[column] for numbers in sandbox.ALLOWED.values()} - {None}
    special = {numbers[column] for numbers in ALLOWED_ON_ITSELF.values()}
    for number in set(range(500)) - special:
        verdict = judge(name, number, filter_program=decoder_program)
        assert verdict == (ALLOWED if number in allowed else NOT_PERMITTED), number
    for number in special:
        for target, verdict in {PROCESS: ALLOWED, 0: ALLOWED, 1: NOT_PERMITTED, -1: NOT_PERMITTED}.items():
            assert judge(name, number, target, filter_program=decoder_program) == verdict


def test_what_a_converter_is_refused_a_decoder_is_not_allowed():
    assert not {*sandbox.ALLOWED, *ALLOWED_ON_ITSELF} & {*REFUSED, "openat", "clone", "clone3", "kill", "prlimit64"}
