"""The progress bar of a teacher's work."""

from __future__ import annotations

import time

from accelerate import PartialState
from tqdm.auto import tqdm

from hf_distill.compute.encode import Advance


class Progress:
    """A bar with items/s, tokens/s and the time left.

    It counts characters: the longest items come first, so their number would say little about the
    time left.
    """

    def __init__(self, item: str, items: int, characters: int) -> None:
        self._item, self._done, self._tokens = item, 0, 0
        self._characters, self._start = characters, time.perf_counter()
        self._bar = tqdm(
            total=characters,
            desc=f"Teacher, {items:,} {item}s",
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
            disable=not PartialState().is_local_main_process or not items,
        )

    def shard(self, items: int, characters: int) -> Advance:
        """A function to call with the progress in a shard of `items` with `characters` in all."""
        per_item = characters / items

        def advance(done: int, tokens: int) -> None:
            self._done += done
            self._tokens += tokens
            seconds = time.perf_counter() - self._start
            rates = f"{self._done:,} done, {self._done / seconds:,.0f} {self._item}s/s"
            if self._tokens:
                rates += f", {self._tokens / seconds:,.0f} tokens/s"
            self._bar.set_postfix_str(rates, refresh=False)
            # Averages add up to a little more than the whole, and tqdm would warn about it.
            self._bar.update(max(0.0, min(done * per_item, self._characters - self._bar.n)))

        return advance

    def close(self) -> None:
        """End the bar."""
        self._bar.close()
