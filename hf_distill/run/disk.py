"""Whether a run can write what it will write: folders are probed before any work, and the space is
estimated before the scoring.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers.trainer_utils import SaveStrategy

from hf_distill.errors import InputError
from hf_distill.recipe.arguments import STAGES, Recipe

_PAIR, _RANK, _HIT, _REPORT, _DATASET = 115, 64, 60, 350_000, 60_000
"""Bytes, as runs were measured: of a pair beside its texts, as JSON and in both tables of the data
set; of its ranks; of a line of a TREC run; of a report; of the data set's card and plots.
"""
_SYSTEMS, _READINGS, DEPTH, _SETTINGS = 4, 2, 100, 40_000
"""TREC runs of a run, further ones where the student reads another text than the teacher, their
depth, and bytes of a checkpoint beside its tensors and tokenizer.
"""
KEY, _SCORE, _LISTED = 8, 4, 9
"""Bytes of an item's key and of its score in a shard, and of a candidate of a list: its document's
number, and whether it was drawn.
"""

MOST_INDEXED = 50_000
"""A run embeds its documents for the first search if there are at most so many: some minutes on two
cores.
"""


def _existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that exists."""
    path = path.absolute()
    for folder in (path, *path.parents):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            folder.lstat()
            return folder
    return path


def written_folders(recipe: Recipe) -> dict[str, Path]:
    """The folders that a run writes into: flag -> path."""
    folders: dict[str, Path] = {"run_dir": recipe.run_dir}
    if recipe.teacher.teacher_cache is not None:
        folders["teacher_cache"] = Path(recipe.teacher.teacher_cache)
    if "output_dir" in recipe.given:
        folders["output_dir"] = Path(str(recipe.training.output_dir))
    return folders


def check_folders(recipe: Recipe) -> None:
    """Check that a run may write into its folders. Nothing is left there.

    Raises:
        InputError: A folder cannot be made or written to, with the flag that names it.
    """
    for flag, path in written_folders(recipe).items():
        try:
            there = _existing(path)
            if not there.is_dir():
                raise InputError(f"--{flag} {path}: {there} is a file; name a folder")
            with tempfile.TemporaryFile(dir=there):
                pass
        except OSError as error:
            raise InputError(
                f"--{flag} {path}: it cannot be written to ({error.strerror or error}); name "
                "another folder, or change its permissions"
            ) from error


def check_files(recipe: Recipe) -> None:
    """Check that what a run reads is no pipe and no device: one is read once, or without end, and a
    run looks at a file several times.

    Raises:
        InputError: A flag names one.
    """
    data = recipe.data
    read: dict[str, Sequence[object]] = {
        "dataset_path": [data.dataset_path], "test_path": [data.test_path],
        "pool_path": [data.pool_path],
        "sources": [*data.source_paths.values()], "eval_tasks": data.eval_tasks,
        "teacher": [recipe.teacher.teacher], "student_backbone": [recipe.student.student_backbone],
    }  # fmt: skip
    for flag, paths in read.items():
        for path in paths:
            try:
                mode = Path(str(path)).stat().st_mode
            except (OSError, ValueError):
                continue  # a name on the Hub, or its reader says what is missing
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise InputError(
                    f"--{flag} {path}: it is a pipe or a device, neither a file nor a folder; "
                    "write what it holds into a file"
                )


@dataclass(frozen=True)
class Sizes:
    """How much a run works on. What is not known yet is 0.

    Attributes:
        student: Bytes of the student's parameters.
        tokenizer: Bytes of its tokenizer's files.
        pairs: Pairs.
        train: Training pairs.
        texts: Unique queries and documents.
        text_bytes: Bytes of these texts.
        documents: Unique documents.
        document_bytes: Bytes of these.
        dimension: Of the teacher's embeddings; 0 if it does not embed.
        pool: Texts that are aligned beside the pairs.
        tested: Test queries times the documents that they search, at most `DEPTH` each.
        listed: Queries that a list is mined for.
        listed_pairs: Pairs of these.
        mined: Bytes of a text's embeddings by the bi-encoders that mine, beside the teacher.
    """

    student: int = 0
    tokenizer: int = 0
    pairs: int = 0
    train: int = 0
    texts: int = 0
    text_bytes: int = 0
    documents: int = 0
    document_bytes: int = 0
    dimension: int = 0
    pool: int = 0
    tested: int = 0
    listed: int = 0
    listed_pairs: int = 0
    mined: int = 0


@dataclass(frozen=True)
class Part:
    """Some files that a run writes.

    Attributes:
        what: What they are.
        stage: The stage that writes them.
        folder: Where.
        size: Bytes, all together.
        largest: Bytes of the largest file.
    """

    what: str
    stage: str
    folder: Path
    size: int
    largest: int


def _checkpoints(recipe: Recipe, train: int) -> int:
    """How many checkpoints there are at the same time."""
    config = recipe.training
    strategy = SaveStrategy(config.save_strategy).value
    if strategy == "no":
        return 0
    step = config.train_batch_size * config.world_size * config.gradient_accumulation_steps
    an_epoch = max(1, math.ceil(train / step))
    steps = (
        config.max_steps if config.max_steps > 0 else math.ceil(config.num_train_epochs * an_epoch)
    )
    every: float = an_epoch
    if strategy == "steps":
        every = config.save_steps if config.save_steps >= 1 else config.save_steps * steps
    elif strategy == "best":
        every = steps  # one better student, and the one before it
    count = max(1, math.ceil(steps / max(1, every)))
    if config.save_total_limit is None:
        return count
    return min(count, config.save_total_limit + 1)  # the oldest goes when the new one is written


def plan(recipe: Recipe, sizes: Sizes) -> list[Part]:
    """What the run of `recipe` writes, stage by stage, after the reading.

    Args:
        recipe: The recipe.
        sizes: How much it works on.
    """
    run, config = recipe.run_dir, recipe.training
    shared = recipe.teacher.teacher_cache
    vector = 2 * sizes.dimension + KEY
    text = sizes.text_bytes / max(1, sizes.texts)
    labels = round(sizes.pairs * (2 * text + _PAIR))
    vectors = sizes.texts * vector if sizes.dimension else 12 * sizes.pairs
    pool = sizes.pool * vector
    pool_texts = round(sizes.pool * (text + 8))
    tensors = sizes.student if config.save_only_model else 3 * sizes.student
    checkpoints = sum(_checkpoints(stage, sizes.train) for stage in recipe.of_each_stage())
    hits = sizes.tested * _HIT
    indexed = sizes.pairs and config.student_space == "own" and sizes.documents <= MOST_INDEXED
    vectors_kept = sizes.documents * 2 * recipe.student.student_dim
    index = vectors_kept + sizes.document_bytes if indexed else 0
    systems = _SYSTEMS + (_READINGS if recipe.data.student_query else 0)
    soft, shards = run / "soft_labels", Path(shared) if shared else None
    candidates = sizes.listed * recipe.lists.candidates_per_query
    reranked = min(recipe.lists.rerank_queries * DEPTH, sizes.tested) if candidates else 0
    ranks = recipe.lists.ranker is not None or not sizes.dimension  # else embeddings say the scores
    ranked = ranks * (KEY + _SCORE)
    in_run = _SCORE * sizes.listed_pairs + (_SCORE + _LISTED) * candidates
    again = sum(stage.mine_again for stage in recipe.further) if candidates else 0
    by_student = sizes.texts * (2 * recipe.student.student_dim + KEY)
    parts = [
        Part("soft labels", "score", shards or soft, vectors, vectors),
        Part("soft labels", "score", run, labels + sizes.train * _RANK, labels),
        Part(
            "lists", "select", shards or soft,
            sizes.texts * sizes.mined + ranked * (candidates + sizes.listed_pairs),
            max(sizes.texts * sizes.mined, ranked * candidates),
        ),
        Part("lists", "select", run, in_run, _LISTED * candidates),
        Part("lists", "evaluate", shards or soft, 2 * ranked * reranked, ranked * reranked),
        Part("pool", "train", shards or run / "pool", pool, pool),
        Part("pool", "train", run / "pool", pool_texts, pool_texts),
        Part(
            "checkpoints",
            "train",
            Path(str(config.output_dir)),
            checkpoints * (tensors + sizes.tokenizer + _SETTINGS) if checkpoints else 0,
            max(tensors - sizes.student, sizes.student) if checkpoints else 0,
        ),
        Part(
            "students between stages", "train", Path(str(config.output_dir)),
            (len(recipe.further) + again) * sizes.student, sizes.student if recipe.further else 0,
        ),
        Part(
            "lists", "train", Path(str(config.output_dir)),
            again * (by_student + in_run + ranked * candidates), by_student if again else 0,
        ),
        Part("student", "train", run, sizes.student + sizes.tokenizer, sizes.student),
        Part("evaluation", "evaluate", run, systems * hits + _REPORT, hits),
        Part("index", "evaluate", run, index, index),
        Part("data set", "release", run, labels + _DATASET if sizes.pairs else 0, labels // 2),
    ]  # fmt: skip
    last = STAGES.index(recipe.run.until)
    return [part for part in parts if part.size and STAGES.index(part.stage) <= last]


def size_text(size: float) -> str:
    """Bytes for people: 1.2 GB."""
    for unit, step in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= step:
            return f"{size / step:.{0 if size >= 10 * step else 1}f} {unit}"
    return f"{size:.0f} bytes"


def _listed(sizes: Mapping[str, float]) -> str:
    return ", ".join(f"{what} {size_text(size)}" for what, size in sizes.items())


def _summed(parts: Sequence[Part]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for part in parts:
        sums[part.what] = sums.get(part.what, 0) + part.size
    return sums


def _size_of(folder: Path) -> int:
    """Bytes of all files below `folder`. Another call may be at work there: files come and go."""
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                size += Path(place, name).stat().st_size
    return size


def largest_file() -> float:
    """Bytes that a file of this process may have (`ulimit -f`)."""
    if sys.platform == "win32":  # it has no such limits
        return math.inf
    import resource  # noqa: PLC0415  (not on Windows)

    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return math.inf if limit == resource.RLIM_INFINITY else limit


def check_space(recipe: Recipe, parts: Sequence[Part]) -> str:
    """Check that the parts fit. What an earlier call of the run has written makes room for itself.

    Returns:
        What is needed and what is free, for a terminal.

    Raises:
        InputError: A disk has too little free space, or a file would be larger than this process
            may write.
    """
    limit = largest_file()
    for part in parts:
        if part.largest > limit:
            raise InputError(
                f"--run_dir {recipe.run_dir}: this process may write files of at most "
                f"{size_text(limit)} (ulimit -f), and one file of the {part.what} in "
                f"{part.folder} needs about {size_text(part.largest)}; raise the limit, or train a "
                "smaller student"
            )
    disks: dict[int, list[Part]] = {}
    for part in parts:
        disks.setdefault(_existing(part.folder).stat().st_dev, []).append(part)
    lines = []
    for own in disks.values():
        where = recipe.run_dir if len(disks) == 1 else own[0].folder
        free = shutil.disk_usage(_existing(where)).free
        needed = sum(part.size for part in own)
        says = f"about {size_text(needed)} in {where}: {_listed(_summed(own))}"
        if needed - _size_of(where) > free:
            raise InputError(
                f"--run_dir {recipe.run_dir}: the run needs {says}; only {size_text(free)} are "
                "free there. Free some, name another --run_dir, --output_dir or --teacher_cache, "
                "or keep fewer checkpoints (--save_total_limit 1, --save_only_model true)"
            )
        lines.append(f"needs {says}; {size_text(free)} free")
    return "Disk     " + "\n         ".join(lines)
