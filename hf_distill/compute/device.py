"""What the machine offers: its device, cores and fast precision, and how to use them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch

Precision = Literal["bf16", "fp16", "fp32"]

_CUDA = "cuda"

_MOST_WORKERS = 4
"""Tokenising a batch of the recommended recipe (288 texts) takes one core 32 ms, and a GPU some
5 ms to train on it.
"""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Of glibc's <malloc.h>."""


def device_type() -> str:
    """`cuda`, `mps` or `cpu`: where models are put."""
    if torch.cuda.is_available():
        return _CUDA
    return "mps" if torch.backends.mps.is_available() else "cpu"


def ranking_device() -> str:
    """`cuda` or `cpu`: where matrices of scores are ranked."""
    return _CUDA if torch.cuda.is_available() else "cpu"


def _cpu_features() -> set[str]:
    """The instruction sets that Linux lists in /proc/cpuinfo; empty on other systems."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    listed = [line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))]
    return set(" ".join(listed).split())


def fast_precision(device: str) -> Precision:
    """The fastest precision that `device` (`cuda`, `mps` or `cpu`) supports in hardware. Nothing is
    timed, so the same hardware always gives the same answer.

    On CUDA it depends on the compute capability: bfloat16 from 8.0, float16 from 7.0. A CPU uses
    bfloat16 if it has matrix or dot products in it: AMX or AVX-512 on x86 (`amx_bf16`,
    `avx512_bf16`), `bf16` on ARM.
    """
    if device == _CUDA:
        major, _ = torch.cuda.get_device_capability()
        return "bf16" if major >= 8 else "fp16" if major == 7 else "fp32"
    if device == "cpu" and _cpu_features() & {"amx_bf16", "avx512_bf16", "bf16"}:
        return "bf16"
    return "fp32"


def encoding_batch_tokens(device: str) -> int:
    """How many tokens to put into a forward pass without gradients. A CPU gets few: each core runs
    batches of its own and keeps them in its caches.

    Measured once, on two cores with MiniLM-L6 in float32 and bfloat16: from 512 to 4,096 tokens the
    speed is the same.
    """
    return 2048 if device == "cpu" else 32768


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """Within the context, float32 products are float32 products: no TF32 on a GPU and no bfloat16
    on a CPU, whatever the training or the user has set.
    """
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # torch before 2.9
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
        return
    backends: Any = torch.backends  # whose types lack some of them
    places = (backends.cuda.matmul, backends.mkldnn.matmul)
    settings = [place.fp32_precision for place in places]
    for place in places:
        place.fp32_precision = "ieee"
    try:
        yield
    finally:
        for place, setting in zip(places, settings, strict=True):
            place.fp32_precision = setting


def loader_workers(device: str, local_processes: int) -> int:
    """How many processes tokenise beside each one that trains. A CPU has none to spare; a GPU would
    wait.
    """
    return 0 if device == "cpu" else min(_MOST_WORKERS, (cpu_cores() - 1) // local_processes)


def peak_bytes(device: torch.device, act: Callable[[], object]) -> int | None:
    """The most bytes that tensors take on `device` while `act` runs, beyond those that are there.
    None if the device does not count them; then `act` is not run.
    """
    if device.type != _CUDA:
        return None
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    act()
    return torch.cuda.max_memory_allocated(device) - before


def cpu_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_all_cores(local_processes: int) -> None:
    """Share the cores among this machine's processes.

    `accelerate launch` and `torchrun` give each process one thread (`OMP_NUM_THREADS=1`), so a
    single process on a CPU would leave all other cores idle. Any other value is the user's own and
    stays.
    """
    if os.environ.get("OMP_NUM_THREADS", "1") == "1" and device_type() == "cpu":
        torch.set_num_threads(max(1, cpu_cores() // local_processes))


def keep_freed_memory() -> None:
    """Let this process keep the memory of freed tensors, in large pages, for the next ones.

    On a CPU, every training step allocates and frees hundreds of megabytes. The C library returns
    large blocks to the system, which hands them out again page by page, zeroed. That takes a fifth
    of a step. Works with glibc (`mallopt`; PyTorch reads its own variable at the first tensor) and
    does nothing elsewhere.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def give_back_freed_memory() -> None:
    """Give the memory of freed tensors back to the system, after `keep_freed_memory`.

    The C library keeps it for each thread, and no other thread uses it. So it is lost once the
    threads that a stage worked with have ended: 1.2 GB after the scoring of the quickstart.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
