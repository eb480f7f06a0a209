"""What a program sets up of the libraries that it has loaded: torch, transformers and datasets."""

from __future__ import annotations

import warnings

import datasets
import transformers

from hf_distill.commands.terminal import set_up_log
from hf_distill.compute.device import keep_freed_memory


def set_up() -> None:
    """Show only our own lines and bars on the terminal, and keep freed memory for the next step."""
    set_up_log()
    keep_freed_memory()
    # torch warns once in each run if there is no accelerator.
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    # accelerate passes it to torch, which has renamed it.
    warnings.filterwarnings("ignore", message=".*broadcast_buffers.*")
    datasets.utils.logging.disable_progress_bar()  # each stage has a bar of its own
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # untyped
