"""A scoring run in a process of its own, to be killed."""

import time
from pathlib import Path

import datasets

from hf_distill.data.load import load_pair_data
from hf_distill.recipe.arguments import (
    DataArguments,
    TeacherArguments,
)
from hf_distill.run.folder import RunFolder
from hf_distill.scoring.scores import score_pairs
from hf_distill.teachers.load import load_teacher


def score(
    run: Path, pairs: Path, teacher_dir: Path, cache: Path | None, seconds_per_shard: float
) -> None:
    """Score `pairs` with the tiny teacher in 25 shards, each made slow enough to be killed in."""
    datasets.utils.logging.disable_progress_bar()
    folder = RunFolder(run)
    arguments = TeacherArguments(
        teacher=str(teacher_dir),
        teacher_dtype="float32",
        shard_size=16,
        teacher_cache=str(cache) if cache else None,
    )
    data_arguments = DataArguments(dataset="files", dataset_path=str(pairs), group_column="topic")
    data = load_pair_data(data_arguments, 0, folder)
    teacher = load_teacher(arguments, data_arguments, folder.cache)
    embed = type(teacher).embed

    def slow(self, texts, advance=None):
        time.sleep(seconds_per_shard)
        return embed(self, texts, advance)

    type(teacher).embed = slow
    score_pairs(data, teacher, folder, arguments)
