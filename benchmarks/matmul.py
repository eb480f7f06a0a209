"""What the hardware's matrix products reach: the limit that the benchmarks hold their figures
against.
"""

from __future__ import annotations

import time

import torch


def matmul_peak(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of the best of some shapes of a transformer's matrix products."""
    best = 0.0
    for rows, inner, columns in (
        (256, 384, 1536),
        (1024, 384, 1536),
        (4096, 384, 1536),
        (4096, 1536, 384),
        (2048, 2048, 2048),
    ):
        left, right = (
            torch.randn(rows, inner, device=device, dtype=dtype),
            torch.randn(columns, inner, device=device, dtype=dtype),
        )
        for _ in range(10):
            start = time.perf_counter()
            torch.nn.functional.linear(left, right)
            if device == "cuda":
                torch.cuda.synchronize()
            best = max(best, 2 * rows * inner * columns / (time.perf_counter() - start))
    return best
