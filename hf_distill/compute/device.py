"""What this machine is, and which precision is fast on it."""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "hf_distill", "torch", "transformers", "sentence-transformers", "datasets", "accelerate", "evaluate",
    "huggingface-hub", "scipy", "ir-measures", "bm25s",
)  # fmt: skip


_ENOUGH_SECONDS = 0.5
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Of glibc's <malloc.h>."""


def _seconds_of_matmul(device: torch.device, dtype: torch.dtype) -> float:
    """Best of ten of a product with the shapes of a small transformer's feed-forward layer: (256,
    384) x (384, 1536).

    On a CPU by one thread: several wait for each other, and where other work has the cores, that is
        all that would be measured. What is
    decided by this is part of what scores are known by, so it must not change from one call to the
    next.
    """
    left = torch.ones(256, 384, device=device, dtype=dtype)
    right = torch.ones(384, 1536, device=device, dtype=dtype)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times = []
    for _ in range(11):  # the first one pays for set-up
        start = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
        if sum(times) > _ENOUGH_SECONDS:
            break  # emulated: what is to be known is known
    torch.set_num_threads(threads)
    return min(times[1:] or times)


@functools.cache
def bfloat16_speedup(device_type: str) -> float:
    """How many times faster a bfloat16 matrix product is than a float32 one here (0 if
    unsupported), measured once.

    Takes milliseconds where bfloat16 has hardware, and about a second where it is emulated.
    """
    device = torch.device(device_type)
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        return 0.0
    if device.type not in ("cpu", "cuda"):
        return 0.0
    return _seconds_of_matmul(device, torch.float32) / _seconds_of_matmul(device, torch.bfloat16)


def bfloat16_is_faster(device_type: str) -> bool:
    """Whether bfloat16 pays: half again as fast, so that conversions and the rest of a layer do not
    eat the gain.
    """
    return bfloat16_speedup(device_type) > 1.5


def cpu_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_all_cores(local_processes: int) -> None:
    """Share the cores out among this machine's processes.

    `accelerate launch` and `torchrun` give each process one thread (`OMP_NUM_THREADS=1`) unless
    told otherwise: on a CPU, a single process would leave every core but one idle. Another value is
        somebody's wish and stays.
    """
    if os.environ.get("OMP_NUM_THREADS", "1") == "1" and device_type() == "cpu":
        torch.set_num_threads(max(1, cpu_cores() // local_processes))


def keep_freed_memory() -> None:
    """Let this process keep the memory that tensors give back, in large pages, for the tensors of
    the next step.

    On a CPU, every step of a training takes and gives back hundreds of megabytes. The C library
    returns large blocks to the system, which hands them out again page by page, zeroed: a fifth of
        a step. (glibc's `mallopt`; PyTorch reads its variable at the first tensor. On
    other systems, or with another allocator preloaded, it does nothing.)
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def device_type() -> str:
    """`cuda`, `mps` or `cpu`: what models are put on."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def encoding_batch_tokens(device_type: str) -> int:
    """Tokens in a forward pass without gradients: few on a CPU, where each core runs batches of its
    own and keeps them in its caches.

    Measured on two cores with MiniLM-L6, in float32 and bfloat16, once: level between 512 and
    4,096, within the machine's noise.
    """
    return 2048 if device_type == "cpu" else 32768


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:  # not Linux: the platform's own name is all there is
        pass
    return platform.processor() or platform.machine()


def _git_commit() -> str | None:
    """The commit of this project's own checkout, or None where it is not one."""
    root = Path(__file__).resolve().parent.parent.parent
    if not (root / ".git").exists():
        return None
    found = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def describe_environment() -> dict[str, Any]:
    """Versions, git commit and hardware: what a saved recipe says about where it ran. Holds no host
    or user name.
    """
    return {
        "python": platform.python_version(),
        "packages": {package: _version(package) for package in PACKAGES},
        "git_commit": _git_commit(),
        "hardware": {
            "system": f"{platform.system()} {platform.machine()}",
            "processor": _processor(),
            "cpu_cores": cpu_cores(),
            "accelerators": [
                torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())
            ],
            "bfloat16_speedup": round(bfloat16_speedup(device_type()), 2),
        },
    }
