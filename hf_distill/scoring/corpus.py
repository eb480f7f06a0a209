"""The teacher's pass over a corpus on a cluster that another tool runs, e.g. Ray Data.

Each worker of the cluster holds a `CorpusTeacher` and gives it one batch after another. What it
embeds is kept in the recipe's `teacher_cache`, in the shards of a run. So a run with this cache
finds them, and a pass that was killed goes on where it was. docs/machines.md has the script.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_distill.errors import InputError
from hf_distill.recipe.read import read_recipe
from hf_distill.run.shards import Shards
from hf_distill.run.stage import fingerprint
from hf_distill.scoring.embeddings import embed_batch
from hf_distill.teachers.base import EmbeddingTeacher
from hf_distill.teachers.load import load_teacher

_KINDS = ("query", "document")


class CorpusTeacher:
    """The teacher that a recipe names, for batches of texts.

    Args:
        line: A recipe and its keys, as on the command line of `train.py`. `teacher_cache` is one of
            them: a folder that all workers and the run see.

    Raises:
        InputError: As the kind of teacher does; it embeds no texts; or there is no `teacher_cache`.
    """

    def __init__(self, line: Sequence[str]) -> None:
        recipe = read_recipe(list(line))
        cache, teacher = recipe.teacher.teacher_cache, load_teacher(recipe)
        if cache is None:
            raise InputError(
                "--teacher_cache is none, so a run would not find what is embedded here; name a "
                "folder that all workers and the run see"
            )
        if not isinstance(teacher, EmbeddingTeacher):
            raise InputError(
                f"--teacher {teacher.name}: it embeds no texts, so there is nothing to do in a "
                "pass over a corpus; name a teacher that does"
            )
        self.teacher = teacher
        self.shards = Shards(Path(cache), fingerprint(teacher.identity))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Embed a batch.

        Args:
            batch: `text` (n,) str; `kind` (n,), `query` or `document`, whose prompt the text gets.
                Without `kind`, all are documents.

        Returns:
            `text` (n,) without space at its ends, as a run reads it, and `embedding`
            (n, dimension) float16: the columns of a `precomputed` teacher.

        Raises:
            InputError: A text is none, a kind is another word, or embeddings that float16 cannot
                hold.
        """
        texts = list(batch["text"])
        kinds = list(batch["kind"]) if "kind" in batch else ["document"] * len(texts)
        for text, kind in zip(texts, kinds, strict=True):
            if not isinstance(text, str) or kind not in _KINDS:
                raise InputError(
                    f"a row has text {str(text)[:70]!r} and kind {kind!r}; a text is a string, and "
                    f"its kind {' or '.join(_KINDS)}"
                )
        texts = [text.strip() for text in texts]
        vectors = embed_batch(list(zip(kinds, texts, strict=True)), self.teacher, self.shards)
        return {"text": np.array(texts, dtype=object), "embedding": vectors}
