"""Write the collection of a run in the format of another tool: `export_collection`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hf_distill.data.collection import Collection, Split
from hf_distill.data.load import open_collection
from hf_distill.errors import InputError
from hf_distill.release.cards import public_name, render, writer_of_queries
from hf_distill.release.formats import (
    beir,
    flagembedding,
    sentence_transformers,
    tevatron,
    trec,
)
from hf_distill.release.formats.contents import Contents, ExportFormat
from hf_distill.run.environment import describe_environment
from hf_distill.run.folder import RunFolder, read_saved_recipe
from hf_distill.run.stage import folder_written_whole, read_result
from hf_distill.scoring.lists import open_lists, with_lists
from hf_distill.scoring.scores import SoftLabels

EXPORT_FORMATS: Mapping[str, ExportFormat] = {
    "flagembedding": flagembedding.FORMAT,
    "tevatron": tevatron.FORMAT,
    "sentence-transformers": sentence_transformers.FORMAT,
    "beir": beir.FORMAT,
    "trec": trec.FORMAT,
}
EXPORTED: tuple[Split, ...] = ("train", "validation", "test")

_MARK = "<!-- Written by hf-distill dataset. -->"
_README = "README.md"
_LACKED = {
    "graded": "positives of grade 2 or more",
    "not_relevant": "documents judged not relevant",
    "not_judged": "documents that nobody judged",
}
"""Figures of a `Survey` that a format may have no place for, as its notes name them."""


@dataclass(frozen=True)
class _Scores:
    """The teacher's scores of a run.

    Attributes:
        values: (judgements,) float32; None: the run has none of its pairs.
        teacher: Its name, for people elsewhere.
        outdated: How many scores there are of other pairs than the run's.
    """

    values: np.ndarray | None = None
    teacher: str = ""
    outdated: int = 0


def _scores(folder: RunFolder, collection: Collection) -> _Scores:
    manifest = folder.soft_labels / "manifest.json"
    if not manifest.is_file():
        return _Scores()
    record = read_result(manifest, SoftLabels)
    if record.collection != collection.key:
        return _Scores(outdated=record.pairs)
    return _Scores(np.load(folder.soft_labels / "scores.npy"), public_name(record.teacher))


def check_output(path: Path) -> None:
    """Refuse a folder that an export must not replace.

    Raises:
        InputError: It is a file, or holds something that no export has written.
    """
    try:
        path.stat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"--output {path} cannot be written: {error.strerror}") from error
    if not path.is_dir():
        raise InputError(f"--output {path} is a file; name a folder")
    names = {str(file.relative_to(path)) for file in path.rglob("*") if not file.is_dir()}
    if not names:
        return
    readme = path / _README
    ours = readme.is_file() and readme.read_bytes().startswith(_MARK.encode())
    known = {_README, *(name for kind in EXPORT_FORMATS.values() for name in kind.files)}
    if strangers := sorted(names - known if ours else names):
        raise InputError(
            f"--output {path} holds {len(strangers)} files that no export wrote (e.g. "
            f"{strangers[0]}), and would be replaced; name a new folder, or remove them"
        )


def export_collection(
    folder: RunFolder, name: str, splits: Sequence[Split] | None, output: Path
) -> list[str]:
    """Write the collection of a run in a format, whole or not at all.

    Args:
        folder: The run's. Its pairs must have been read.
        name: One of `EXPORT_FORMATS`.
        splits: Which splits. None: all that have pairs.
        output: The new folder, or one of an earlier export, which is replaced.

    Returns:
        What was written, what was changed and what was left out, in lines for a terminal.

    Raises:
        InputError: The run has no pairs, or none in one of `splits`; `output` holds something
            else, or cannot be written.
    """
    check_output(output)
    licence = read_saved_recipe(folder).get("dataset_license")
    collection = open_collection(folder, licence)
    lists = open_lists(folder.candidates, collection)
    if lists is not None:
        collection = with_lists(collection, lists)
    pairs = {split: collection.pairs(split) for split in EXPORTED if split in (splits or EXPORTED)}
    for split in splits or ():
        if not len(pairs[split]):
            raise InputError(f"--split {split}: {folder.path} has no pairs in this split")
    pairs = {split: some for split, some in pairs.items() if len(some)}
    if not pairs:
        raise InputError(f"{folder.path} has no pairs to train or test with")
    kind, scores = EXPORT_FORMATS[name], _scores(folder, collection)
    given = "given with the data" if lists is None else f"by {public_name(lists.record.ranker)}"
    contents = Contents(collection, pairs, scores.values, kind.forbidden)
    try:
        with folder_written_whole(output) as new:
            notes = {**kind.write(contents, new), **_notes(contents, kind, scores)}
            said = {what: number for what, number in notes.items() if number}
            rows = _rows(contents, kind, {"given": given, "teacher": f"by {scores.teacher}"})
            (new / _README).write_text(_readme(contents, name, rows, said), encoding="utf-8")
    except OSError as error:
        raise InputError(f"--output {output} cannot be written: {error}") from error
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return [*lines, *(f"{number:,} {what}" for what, number in said.items())]


_HEAD = ("split", "queries", "positives", "not relevant", "not judged", "scores")


def _rows(contents: Contents, kind: ExportFormat, said: Mapping[str, str]) -> list[tuple[str, ...]]:
    """A table of what the splits hold: a row a split, below `_HEAD`. `said` is whose scores are
    written.
    """
    return [
        _HEAD,
        *(
            (
                split,
                f"{survey.queries:,}",
                f"{survey.positives:,}",
                f"{survey.not_relevant:,}",
                f"{survey.not_judged:,}",
                said[survey.scores or ""] if survey.has_scores(kind.scores) else "none",
            )
            for split, survey in contents.surveys.items()
        ),
    ]


def _notes(contents: Contents, kind: ExportFormat, scores: _Scores) -> dict[str, int]:
    """What any format leaves out or changes -> how many. The sentence follows the number."""
    collection, surveys = contents.collection, list(contents.surveys.values())
    pairs = sum(map(len, contents.pairs.values()))
    leaked = len(collection.pairs("leaked"))
    groups, sources = contents.groups_and_sources()
    beside = contents.documents(lambda survey: survey.documents)
    documents = beside if "corpus" in kind.lacks else beside | contents.searched()
    own = contents.with_id(np.flatnonzero(documents))
    notes = {
        "pairs are left out, because they share something with a held-out pair": leaked,
        "pairs are left out: they are in other splits": (
            len(collection.judgements) - leaked - pairs
        ),
        "pairs repeat a query and a document, which are written once": contents.total(
            lambda survey: survey.repeated
        ),
        "groups of pairs are left out": groups,
        "sources of pairs are left out": sources,
        "scores by the teacher are left out: they are of pairs that were read before; "
        "--until score makes new ones": scores.outdated,
    }
    for figure, subject in _LACKED.items():
        if figure in kind.lacks:
            count = sum(getattr(survey, figure) for survey in surveys)
            notes[f"{subject} {kind.lacks[figure]}"] = count
    if "student_texts" in kind.lacks and collection.num_student_queries:
        what = f"texts that the student reads in place of queries {kind.lacks['student_texts']}"
        notes[what] = len(contents.query_numbers())
    if "corpus" in kind.lacks:
        more = int((contents.searched() & ~beside).sum())
        notes[f"further documents that held-out queries search {kind.lacks['corpus']}"] = more
    written = [of.scores if of.has_scores(kind.scores) else None for of in surveys]
    whole = " of a split: the format takes a score for every text, or none"
    for whose, name, other in (
        ("given", "given scores", "the teacher's are written"),
        ("teacher", "scores by the teacher", "it did not score the other documents of the lists"),
    ):
        lost = {"": 0, whole: 0, f": {other}": 0}
        for survey, taken in zip(surveys, written, strict=True):
            reason = (
                "" if kind.scores == "none" else f": {other}" if survey.scores != whose else whole
            )
            lost[reason] += 0 if taken == whose else getattr(survey, whose)
        notes |= {f"{name} are left out{reason}": number for reason, number in lost.items()}
    if "ids" in kind.lacks:
        notes[f"ids {kind.lacks['ids']}"] = sum(map(len, own))
    else:
        kept = contents.query_names.own[own[0]].sum() + contents.document_names.own[own[1]].sum()
        count = len(contents.query_numbers()) + int(documents.sum())
        replaced = sum(map(len, own)) - int(kept)
        notes["texts have no id: 16 digits of the text's SHA-256 name them"] = count - sum(
            map(len, own)
        )
        notes[
            "ids are replaced in the same way: several texts have them, or the format cannot "
            "hold their characters"
        ] = replaced
    return notes


def _readme(
    contents: Contents, name: str, rows: list[tuple[str, ...]], notes: Mapping[str, int]
) -> str:
    kind, split = EXPORT_FORMATS[name], next(iter(contents.pairs))
    split_name = kind.validation if split == "validation" else split
    return render(
        "export_readme.md.j2",
        mark=_MARK,
        format=name,
        source=contents.collection.source,
        queries_by=writer_of_queries(contents.collection.source),
        rows=rows,
        notes=notes,
        read=kind.read.replace("SPLIT", split_name),
        version=describe_environment()["packages"]["hf_distill"],
    )
