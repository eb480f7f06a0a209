"""What was tried of a student in other runtimes: the content of `parity.json`, for the report and
the card. `hf_distill.release.parity` tries them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from hf_distill.report.results import CommonResults
from hf_distill.run.stage import read_result, sha256_of, write_result


@dataclass(frozen=True)
class Compared:
    """A runtime that was tried.

    Attributes:
        runtime: Its name.
        versions: Package -> version.
        precision: `float32` or `int8`.
        texts: How many texts were compared, those of the run included.
        refused, refusal: How many more it refused, and its words for the first.
        difference: Largest absolute difference in any dimension. None: it has other dimensions, or
            failed.
        cosine: The smallest cosine to the embedding of sentence-transformers.
        recall: How many of its first ten documents are among those of sentence-transformers.
        agrees: Whether it can be used in place of sentence-transformers.
        reason: Why not, if not.
    """

    runtime: str
    versions: dict[str, str]
    precision: str
    texts: int = 0
    refused: int = 0
    refusal: str | None = None
    difference: float | None = None
    cosine: float | None = None
    recall: float | None = None
    agrees: bool = False
    reason: str | None = None


@dataclass(frozen=True)
class NotTried:
    """A runtime that was not tried, why, and the line that makes it possible."""

    runtime: str
    why: str
    line: str | None


@dataclass(frozen=True)
class Parity:
    """The content of `parity.json`.

    Attributes:
        key: The fingerprint of what it depends on.
        training: The key of the training that made the student; None: it is of no run.
        reference: The version of sentence-transformers that all are compared with.
        probes: How many fixed texts were embedded, as queries and as documents.
        of: What recall@10 is measured on.
        tried: The runtimes that were tried.
        not_tried: Those that were not.
        files: File in the student's folder -> SHA-256, of those that were read.
    """

    key: str
    training: str | None
    reference: str
    probes: int
    of: str
    tried: tuple[Compared, ...]
    not_tried: tuple[NotTried, ...]
    files: dict[str, str] = field(default_factory=dict)


def write_parity(path: Path, parity: Parity) -> None:
    """Write it to `path`, whole or not at all."""
    write_result(path, parity, [])


def measured_parity(results: CommonResults) -> Parity | None:
    """What was tried with this run's student as it is; None if nothing was, or only an earlier
    student or an earlier export.
    """
    folder = results.folder
    if not folder.parity.is_file():
        return None
    parity = read_result(folder.parity, Parity)
    files = {name: folder.student / name for name in parity.files}
    current = all(path.is_file() and sha256_of(path) == parity.files[name]
                  for name, path in files.items())  # fmt: skip
    return parity if current and parity.training == results.training.key else None
