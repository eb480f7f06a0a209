"""What is asked of the machine."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is told to keep memory")
def test_freed_memory_is_kept_for_the_next_tensor() -> None:
    """Page faults of a tensor of 40 MB (9,766 small pages), after five others of its size."""
    faults = {
        mode: int(subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=True, timeout=120).stdout)
        for mode in ("keep", "give back")
    }
    assert faults["keep"] < 10, "in large pages, 20 faults would bring it anew"
    assert faults["give back"] > faults["keep"]
