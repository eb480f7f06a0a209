"""What the machine offers, and how it is used."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from hf_distill.compute import device

FAULTS = """
import resource
import sys
import torch
from hf_distill.compute.device import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(10_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only glibc's allocator can be told to keep memory"
)
def test_freed_memory_is_kept_for_the_next_tensor() -> None:
    """Page faults of a tensor of 40 MB (9,766 small pages), after five others of its size."""

    def faults(mode: str) -> int:
        command = [sys.executable, "-c", FAULTS, mode]
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        return int(answer.stdout)

    kept = faults("keep")
    assert kept < 10, "in large pages, 20 faults would fetch all of it again"
    assert faults("give back") > kept


@pytest.mark.parametrize(
    ("capability", "precision"),
    [((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp16"), ((7, 0), "fp16"), ((6, 1), "fp32")],
)
def test_the_fast_precision_of_cuda_follows_from_its_compute_capability(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], precision: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert device.fast_precision("cuda") == precision


@pytest.mark.parametrize(
    ("cpuinfo", "precision"),
    [
        ("model name : X\nflags\t\t: fpu sse2 avx512f amx_bf16 amx_tile\n", "bf16"),
        ("flags\t\t: fpu avx512_bf16\n", "bf16"),
        ("flags\t\t: fpu sse2 avx512f\n", "fp32"),
        ("Features\t: fp asimd i8mm bf16 dgh\n", "bf16"),
        ("Features\t: fp asimd\n", "fp32"),
        ("model name : amx_bf16\n", "fp32"),
        ("", "fp32"),
    ],
    ids=["amx", "avx512", "old x86", "arm", "old arm", "a name", "nothing"],
)
def test_the_fast_precision_of_a_cpu_follows_from_its_instructions(
    monkeypatch: pytest.MonkeyPatch, cpuinfo: str, precision: str
) -> None:
    monkeypatch.setattr(device.Path, "is_file", lambda _: True)
    monkeypatch.setattr(device.Path, "read_text", lambda _, encoding: cpuinfo)
    assert device.fast_precision("cpu") == precision
    assert device.fast_precision("mps") == "fp32"


@pytest.mark.parametrize(("threads", "expected"), [("1", 4), ("3", None)])
def test_cores_are_shared_among_processes_unless_the_user_says_how_many_threads(
    monkeypatch: pytest.MonkeyPatch, threads: str, expected: int | None
) -> None:
    calls: list[int] = []
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    monkeypatch.setattr(device, "device_type", lambda: "cpu")
    monkeypatch.setattr(device, "cpu_cores", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", calls.append)
    device.use_all_cores(2)
    assert calls == ([expected] if expected else [])
