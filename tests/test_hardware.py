"""What is asked of the machine."""

from __future__ import annotations

import platform
import subprocess
import sys
import time

import pytest
import torch

from hf_distill.compute import device as hardware

FAULTS = """
import resource
import sys
import torch
from hf_distill.hardware import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(10_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is told to keep memory"
)
def test_freed_memory_is_kept_for_the_next_tensor() -> None:
    """Page faults of a tensor of 40 MB (9,766 small pages), after five others of its size."""
    faults = {
        mode: int(
            subprocess.run(
                [sys.executable, "-c", FAULTS, mode],
                capture_output=True,
                text=True,
                check=True,
                timeout=120,
            ).stdout
        )
        for mode in ("keep", "give back")
    }
    assert faults["keep"] < 10, "in large pages, 20 faults would bring it anew"
    assert faults["give back"] > faults["keep"]


def test_precisions_are_compared_by_one_thread_whatever_else_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads, seen, clock = torch.get_num_threads(), [], time.perf_counter

    def watched() -> float:
        seen.append(torch.get_num_threads())
        return clock()

    monkeypatch.setattr(time, "perf_counter", watched)
    torch.set_num_threads(2)
    try:
        assert 0 < hardware._seconds_of_matmul(torch.device("cpu"), torch.float32) < 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert set(seen) == {1}
