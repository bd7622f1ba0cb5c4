"""Detection of a GPU and of a processor's 8-bit instructions."""

import pytest

from models.hardware import has_gpu, int8_saturates


@pytest.mark.parametrize(
    ("flags", "processor", "saturates"),
    [
        ("fpu avx2 avx512f avx512_vnni", "x86_64", False),
        ("fpu avx2 avx_vnni", "AMD64", False),
        ("fpu avx2 avx512f avx512bw", "x86_64", True),
        ("", "x86_64", True),
        ("fp asimd", "aarch64", False),
    ],
)
def test_int8_saturates_on_x86_without_vnni(tmp_path, flags, processor, saturates):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    assert int8_saturates(tmp_path / "cpuinfo", processor) is saturates


def test_a_processor_that_says_nothing_may_saturate(tmp_path):
    assert int8_saturates(tmp_path / "none", "x86_64")


def test_a_gpu_is_there_where_its_device_is(tmp_path):
    devices = (tmp_path / "nvidiactl", tmp_path / "dxg")
    assert not has_gpu(devices)
    devices[1].touch()
    assert has_gpu(devices)
