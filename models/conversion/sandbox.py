"""Confines processes that read untrusted files.

A process that reads weights may compute, and write into one directory:

    python -P -m models.conversion.sandbox DIRECTORY FILE_BYTES MODULE

enters the sandbox and runs the module in it, as `python -m` would. Restrictions that the system does not support are
left out, and listed in a line of JSON on standard output: `{"unconfined": TEXT}`.

A process that decodes images (`confine_decoder`) may compute, and use the descriptors that it has. It cannot open any.

Neither restriction can be lifted again. No privilege is needed: both work as root, and as an ordinary user in a
container without any capability.
"""

import ctypes
import errno
import json
import os
import platform
import resource
import runpy
import signal
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType

# System calls that fail with "operation not permitted": the number on x86-64, then on aarch64; None if it has none.
REFUSED: dict[str, tuple[int | None, int | None]] = {
    # No network, and no daemon behind a Unix socket. io_uring makes system calls past this filter.
    "socket": (41, 198),
    "io_uring_setup": (425, 425),
    # No other process or program (clone is below), so that the parent measures and ends everything with this process.
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    # No access to the server, which runs as the same user (signals and limits are below).
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    # No memory outside of the process: it would not be counted.
    "memfd_create": (319, 279),
    "shmget": (29, 194),
    "mq_open": (240, 180),
    # No namespace in which it would be root, and no rarely used part of the kernel, where exploits are found.
    "unshare": (272, 97),
    "setns": (308, 268),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),
    "keyctl": (250, 219),
}
# Allowed if the first argument is this process, or 0, which means this process too.
ON_ITSELF: dict[str, tuple[int, int]] = {
    "kill": (62, 129),
    "tgkill": (234, 131),
    "rt_tgsigqueueinfo": (297, 240),
    "prlimit64": (302, 261),
}
# The only system calls of a decoder: memory, time, and reading and writing open descriptors.
ALLOWED: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63),
    "write": (1, 64),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "close": (3, 57),
    "brk": (12, 214),
    "mmap": (9, 222),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "mprotect": (10, 226),
    "madvise": (28, 233),
    "futex": (202, 98),
    "sched_yield": (24, 124),
    "getrandom": (318, 278),
    "clock_gettime": (228, 113),
    "gettimeofday": (96, 169),
    "getpid": (39, 172),
    "gettid": (186, 178),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    "exit": (60, 93),
    "exit_group": (231, 94),
}
# Allowed if the first argument is the decoder itself: abort() uses it.
ALLOWED_ON_ITSELF: dict[str, tuple[int, int]] = {"tgkill": (234, 131)}
CLONE = (56, 220)  # only with CLONE_THREAD
CLONE3 = (
    435  # a filter cannot see its flags, which are in memory: answered as by an older kernel, so that glibc uses clone
)
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH of audit.h
_X32 = 0x40000000  # set in the numbers of x86-64's other ABI, which the tables do not contain

# Of capability.h, prctl.h, seccomp.h, filter.h, sched.h and landlock.h.
_CAPABILITY_VERSION, _CAP_DAC_READ_SEARCH = 0x20080522, 1 << 2
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_SECCOMP_MODE_FILTER = 2
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _IF_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NUMBER, _ARCH, _FIRST_ARGUMENT = 0, 4, 16  # offsets in seccomp_data
_CLONE_THREAD = 0x10000
_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446
_RULE_PATH_BENEATH = 1
_WRITE_FILE, _TRUNCATE = 1 << 1, 1 << 14
_WRITES = (0, 0x1FF2, 0x3FF2, 0x7FF2)  # by Landlock's version: write, remove, make; from 2 rename; from 3 truncate
_READS = 1 << 0 | 1 << 2 | 1 << 3  # run, read a file, list a directory


class Unavailable(Exception):
    """The system does not support a restriction. The text says why."""


def enter(directory: Path, file_bytes: int) -> list[str]:
    """Confines this process for good, while it has one thread. Returns the restrictions that are not supported."""
    die_with_parent()
    os.nice(10)  # requests come first
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, file_bytes)
    signal.signal(
        signal.SIGXFSZ, signal.SIG_DFL
    )  # Python ignores the signal, and the failure would look like a full disk
    return _missing(
        {
            "memory: the kernel may end the server first": _first_to_go,
            "privileges": lambda: _drop_capabilities(_CAP_DAC_READ_SEARCH),  # another user may own the weights
            "files": lambda: _write_only_into(directory),
            "network and processes": lambda: _filter_system_calls(filter_program(platform.machine(), os.getpid())),
        }
    )


def confine_fork_server() -> list[str]:
    """Confines the parent of decoders before it forks. Returns the restrictions that are not supported."""
    die_with_parent()
    _limit(resource.RLIMIT_CORE, 0)
    return _missing(
        {
            "memory: the kernel may end the server first": _first_to_go,
            "privileges": _drop_capabilities,
            "files": lambda: _landlock(_writes()),
        }
    )


def confine_decoder(memory_bytes: int, file_bytes: int) -> list[str]:
    """Confines a decoder for good, while it has one thread. Returns the restrictions that are not supported.

    Its address space may grow by `memory_bytes`, and a file that it writes may have `file_bytes`.
    """
    die_with_parent()
    _limit(resource.RLIMIT_FSIZE, file_bytes)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    return _missing(
        {
            "memory": lambda: limit_memory(memory_bytes),
            "files": lambda: _landlock(_writes() | _READS),
            "system calls": lambda: _filter_system_calls(decoder_program(platform.machine(), os.getpid())),
        }
    )


def _missing(steps: Mapping[str, Callable[[], None]]) -> list[str]:
    """Takes each step. Returns those that the system does not support, each with the reason."""
    missing = []
    for name, confine in steps.items():
        try:
            confine()
        except (Unavailable, OSError) as error:
            missing.append(f"{name} ({error})")
    return missing


def limit_memory(more_bytes: int) -> None:
    """Lets the address space grow by that much. Raises OSError if there is no /proc.

    psutil has the figure too, but every decoder would load it.
    """
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    _limit(resource.RLIMIT_AS, pages * resource.getpagesize() + more_bytes)


def _limit(kind: int, most: int) -> None:
    """Sets the limit of a resource, unless a lower one is set already."""
    hard = resource.getrlimit(kind)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (most, most))


def die_with_parent() -> None:
    """Makes Linux kill this process when its parent ends, so that no conversion outlives its server."""
    if sys.platform == "linux":
        _call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL)


def _first_to_go() -> None:
    """Makes the kernel end this process before the server if memory runs out."""
    Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _drop_capabilities(kept: int = 0) -> None:
    """Drops the capabilities of root, except for `kept` among the first 32."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    held = ctypes.create_string_buffer(24)  # effective, permitted and inheritable: bits 0 to 31, then the others
    _call("capget", header, held)
    kept &= struct.unpack("=6I", held.raw)[1]
    _call("capset", header, struct.pack("=6I", kept, kept, 0, 0, 0, 0))


def _write_only_into(directory: Path) -> None:
    """Allows creating, changing and removing files only below the directory. Closes other processes' memory too."""
    writes = _writes()
    _landlock(writes, {directory: writes, Path(os.devnull): writes & (_WRITE_FILE | _TRUNCATE)})


def _writes() -> int:
    """The rights to change files that this system's version of Landlock knows."""
    version = _call("syscall", _LANDLOCK_CREATE_RULESET, None, 0, 1)  # 1 asks for the version
    return _WRITES[min(version, len(_WRITES) - 1)]


def _landlock(refused: int, allowed: Mapping[Path, int] = MappingProxyType({})) -> None:
    """Refuses these rights on files, except for those allowed below a path. Open files stay open."""
    handled = struct.pack("=Q", refused)
    ruleset = _call("syscall", _LANDLOCK_CREATE_RULESET, handled, len(handled), 0)
    try:
        for path, rights in allowed.items():
            beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
            try:
                rule = struct.pack("=Qi", rights, beneath)
                _call("syscall", _LANDLOCK_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0)
            finally:
                os.close(beneath)
        _no_new_privileges()
        _call("syscall", _LANDLOCK_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _filter_system_calls(judge: "Iterator[Instruction]") -> None:
    """Installs a seccomp filter: the program judges every later system call of every thread."""
    if sys.platform != "linux" or platform.machine() not in _MACHINES:
        raise Unavailable(f"not known for {sys.platform} on {platform.machine()}")
    program = b"".join(struct.pack("=HBBI", *each) for each in judge)
    instructions = ctypes.create_string_buffer(program, len(program))
    described = struct.pack("@HP", len(program) // 8, ctypes.addressof(instructions))  # struct sock_fprog
    _no_new_privileges()
    _call("prctl", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, described)


Instruction = tuple[int, int, int, int]
"""An instruction of classic BPF: code, instructions to skip if true, instructions to skip if false, value."""


_REFUSE = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
_PERMIT = (_RETURN, 0, 0, _ALLOW)
_LOAD_ARGUMENT = (_LOAD, 0, 0, _FIRST_ARGUMENT)


def filter_program(machine: str, process: int) -> Iterator[Instruction]:
    """The filter of a converter, from the tables REFUSED, ON_ITSELF and CLONE. Other system calls are permitted."""
    column = _MACHINES[machine][0]
    yield from _only_this_abi(machine)
    for numbers in REFUSED.values():
        if (number := numbers[column]) is not None:
            yield from ((_IF_EQUAL, 0, 1, number), _REFUSE)
    yield from ((_IF_EQUAL, 0, 1, CLONE3), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS))
    yield from ((_IF_EQUAL, 0, 4, CLONE[column]), _LOAD_ARGUMENT, (_IF_BITS, 1, 0, _CLONE_THREAD), _REFUSE, _PERMIT)
    for numbers in ON_ITSELF.values():
        yield from _if_on_itself(numbers[column], process)
    yield _PERMIT


def decoder_program(machine: str, process: int) -> Iterator[Instruction]:
    """The filter of a decoder, from the tables ALLOWED and ALLOWED_ON_ITSELF. Other system calls are refused."""
    column = _MACHINES[machine][0]
    yield from _only_this_abi(machine)
    for numbers in ALLOWED.values():
        if (number := numbers[column]) is not None:
            yield from ((_IF_EQUAL, 0, 1, number), _PERMIT)
    for numbers in ALLOWED_ON_ITSELF.values():
        yield from _if_on_itself(numbers[column], process)
    yield _REFUSE


def _only_this_abi(machine: str) -> Iterator[Instruction]:
    yield from ((_LOAD, 0, 0, _ARCH), (_IF_EQUAL, 1, 0, _MACHINES[machine][1]), _REFUSE)
    yield from ((_LOAD, 0, 0, _NUMBER), (_IF_AT_LEAST, 0, 1, _X32), _REFUSE)


def _if_on_itself(number: int, process: int) -> Iterator[Instruction]:
    """Allows the call if its first argument is this process, or 0, which means this process too."""
    yield from ((_IF_EQUAL, 0, 5, number), _LOAD_ARGUMENT)
    yield from ((_IF_EQUAL, 2, 0, 0), (_IF_EQUAL, 1, 0, process), _REFUSE, _PERMIT)


def _no_new_privileges() -> None:
    """Gives up gaining rights from a program. The kernel requires it before an ordinary user may confine itself."""
    _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _call(function: str, *arguments: bytes | int | ctypes.Array[ctypes.c_char] | None) -> int:
    """Calls a function of the C library that sets errno. Raises Unavailable."""
    passed = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    try:
        result: int = getattr(_libc(), function)(*passed)
    except AttributeError:
        raise Unavailable(f"{sys.platform} has no {function}") from None
    if result < 0:
        raise Unavailable(os.strerror(ctypes.get_errno()))
    return result


def main(directory: str, file_bytes: str, module: str) -> None:
    """Runs the module in the sandbox."""
    if missing := enter(Path(directory), int(file_bytes)):
        sys.stdout.write(json.dumps({"unconfined": "; ".join(missing)}) + "\n")
        sys.stdout.flush()
    sys.argv = [module]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
