"""A student in every runtime that is installed: are its embeddings those of sentence-transformers?

Each runtime embeds the same texts in a process of its own, by this or another Python, by Node, or
behind an HTTP server.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer, __version__
from sentence_transformers.base.modules import Transformer

from hf_distill.errors import InputError, printable
from hf_distill.release.mistakes import Sent, likely_reason, unit
from hf_distill.release.probes import PROBES
from hf_distill.release.runtimes.table import RUNTIMES, Runtime
from hf_distill.release.served import Server, name_of
from hf_distill.report.parity import Compared, NotTried, Parity
from hf_distill.run.stage import key_of, sha256_of

TOLERANCE = 1e-4
"""Largest difference, in any dimension, of float32 embeddings that agree."""

INT8_RECALL = 0.9
"""Least recall@10 of int8 embeddings that agree."""

DEPTH = 10
QUERIES, DOCUMENTS = 100, 500
"""At most so many of the run's held-out texts are embedded, besides the probes."""

NOT_ASKED_FOR = "not asked for"

_TIE = 1e-5
"""Documents whose cosine is less below the tenth are as good."""

_SCRIPTS = Path(__file__).with_name("runtimes")
_EXPLAINED = 24


@dataclass(frozen=True)
class Student:
    """The student, as a runtime needs to know it.

    Attributes:
        folder: Where it is saved.
        model: The same, in sentence-transformers and float32.
        card: The text of its card, or None: no code of it is executed.
    """

    folder: Path
    model: SentenceTransformer
    card: str | None

    @property
    def prompts(self) -> dict[str, str]:
        return {kind: self.model.prompts.get(kind) or "" for kind in ("query", "document")}


@dataclass(frozen=True)
class Texts:
    """What is embedded. Queries and documents begin with `PROBES`.

    Attributes:
        of: What recall is measured on, for tables.
        searching, searched: The places in `queries` and `documents` that recall is measured on.
    """

    queries: list[str]
    documents: list[str]
    of: str
    searching: slice
    searched: slice


def texts_of(held_out: tuple[Sequence[str], Sequence[str]] | None, seed: int = 0) -> Texts:
    """The probes and, of a run, some of its held-out queries and documents, chosen at random."""
    if held_out is None:
        every = slice(0, len(PROBES))
        return Texts(list(PROBES), list(PROBES), "these texts", every, every)
    rng = np.random.default_rng(seed)

    def some(texts: Sequence[str], most: int) -> list[str]:
        chosen = np.sort(rng.permutation(len(texts))[:most])
        return [texts[i] for i in chosen.tolist()]

    queries, documents = (some(*p) for p in zip(held_out, (QUERIES, DOCUMENTS), strict=True))
    own = slice(len(PROBES), None)
    of = f"{len(queries)} held-out queries over {len(documents)} documents"
    return Texts([*PROBES, *queries], [*PROBES, *documents], of, own, own)


@dataclass(frozen=True)
class Attempt:
    """A runtime to try. `place` is the Python that has it, or for Node the folder whose
    `node_modules` hold it; None: this Python, or the folder that NODE_PATH names.
    """

    name: str
    runtime: Runtime
    place: str | None = None
    asked_for: bool = True


class _FailedError(Exception):
    """A runtime does not embed. The message is what it says."""


def _run(attempt: Attempt, request: dict[str, Any]) -> dict[str, Any]:
    """The answer of a runtime's process.

    Raises:
        _FailedError: It fails, or there is no such Python or no Node.
    """
    runtime, place = attempt.runtime, attempt.place
    script = str(_SCRIPTS / runtime.script)
    if runtime.in_node:
        command = ["node", str(_SCRIPTS / "harness.mjs")]
    else:
        # -P, and for another Python -I: names beside the script must not hide the libraries.
        harness = str(_SCRIPTS / "harness.py")
        command = [place, "-I", harness] if place else [sys.executable, "-P", harness]
    wanted = {"runtime": script, "packages": runtime.packages, "place": place, **request}
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    try:
        done = subprocess.run(
            command, input=json.dumps(wanted), capture_output=True, text=True, check=False,
            encoding="utf-8", env={**os.environ, **offline},
        )  # fmt: skip
    except OSError as error:
        raise _FailedError(f"{command[0]}: {error.strerror}") from error
    answers = [line for line in done.stdout.splitlines() if line.startswith('{"versions"')]
    if done.returncode or not answers:
        lines = [line.strip() for line in done.stderr.splitlines() if "Error" in line]
        last = lines or done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise _FailedError(printable(last[-1])[:200])
    answer: dict[str, Any] = json.loads(answers[-1])
    return answer


_NODE = "NODE_PATH"


def attempts_of(wanted: Sequence[str] | None) -> list[Attempt]:
    """The runtimes that `--with` names, NAME or NAME@PLACE; None: all.

    Raises:
        InputError: There is no such runtime.
    """
    if wanted is None:
        return [Attempt(name, runtime, asked_for=False) for name, runtime in RUNTIMES.items()]
    attempts = []
    for text in wanted:
        name, _, place = text.partition("@")
        if name not in RUNTIMES:
            raise InputError(f"--with {name}: there is no such runtime; use {', '.join(RUNTIMES)}")
        attempts.append(Attempt(name, RUNTIMES[name], place or None))
    return attempts


def _placed(attempt: Attempt) -> Attempt:
    """With the folder of its `node_modules`, which NODE_PATH may name."""
    if not attempt.runtime.in_node or attempt.place:
        return attempt
    modules = os.environ.get(_NODE, "").split(os.pathsep)[0]
    place = str(Path(modules).parent) if modules else ""
    return Attempt(attempt.name, attempt.runtime, place, attempt.asked_for)


def _obstacle(attempt: Attempt, student: Student) -> NotTried | None:
    """Why a runtime cannot be tried; None if it can."""
    name, runtime = attempt.name, attempt.runtime
    if runtime.file and not (student.folder / runtime.file).is_file():
        static = not isinstance(student.model[0], Transformer)
        if static != (runtime.form == "model2vec"):
            why = "a static student has no graph" if static else "it reads static students only"
            return NotTried(name, why, None)
        line = f"hf-distill export STUDENT --format {runtime.form}"
        return NotTried(name, f"the student has no {runtime.file}", line)
    if name == "transformers" and "AutoModel" not in (student.card or ""):
        why = "only a run's own card is executed, and none has a snippet with AutoModel"
        return NotTried(name, why, None)
    if runtime.in_node and not attempt.place:
        return NotTried(name, f"neither @FOLDER nor {_NODE} names its folder", runtime.install)
    try:
        missing = ", ".join(_run(attempt, {"out": ""})["missing"])
    except _FailedError as error:
        return NotTried(name, f"it cannot be started: {error}", runtime.install)
    return NotTried(name, f"{missing} not installed", runtime.install) if missing else None


def recall_at_10(got: np.ndarray, expected: np.ndarray, texts: Texts, usable: np.ndarray) -> float:
    """How many of the first ten documents by `got` are among the first ten by `expected`, the mean
    over queries.

    Args:
        got, expected: (N, d) and (N, e) float32: all queries, then all documents.
        texts: Which of them search, and are searched.
        usable: (N,) bool. Other rows neither search nor are searched.
    """
    n = len(texts.queries)

    def cosines(rows: np.ndarray) -> np.ndarray:
        rows = unit(rows)
        asked = rows[:n][texts.searching][usable[:n][texts.searching]]
        return np.asarray(asked @ rows[n:][texts.searched][usable[n:][texts.searched]].T)

    own, right = cosines(got), cosines(expected)
    depth = min(DEPTH, right.shape[1])
    found = np.take_along_axis(right, np.argsort(-own, axis=1, kind="stable")[:, :depth], axis=1)
    tenth = np.sort(right, axis=1)[:, -depth]
    return float((found >= tenth[:, None] - _TIE).mean())


def compare(
    student: Student, texts: Texts, expected: np.ndarray, got: np.ndarray, about: Compared
) -> Compared:
    """`about`, filled in. Rows of `got` that are NaN in a whole were refused."""
    refused = np.isnan(got).all(axis=1) if about.refusal else np.zeros(len(got), dtype=bool)
    usable = ~refused
    values: dict[str, Any] = {"texts": int(usable.sum()), "refused": int(refused.sum())}
    if not np.isfinite(got[usable]).all():
        return _replaced(about, **values, reason="some of its embeddings are not numbers")
    n = len(texts.queries)
    if not (usable[:n][texts.searching].any() and usable[n:][texts.searched].any()):
        return _replaced(about, **values, reason="it refuses all texts that would be searched")
    values["recall"] = recall_at_10(np.where(usable[:, None], got, 0), expected, texts, usable)
    if got.shape == expected.shape:
        off = np.abs(got - expected).max(axis=1)
        values["difference"] = float(off[usable].max())
        cosines = (unit(got) * unit(expected)).sum(axis=1)
        cosines[~(got.any(axis=1) | expected.any(axis=1))] = 1  # no token was read: zeros
        values["cosine"] = float(cosines[usable].min())
    else:
        off = np.ones(len(got))
    same = values.get("difference", np.inf) <= TOLERANCE
    if same or (
        about.precision == "int8"
        and got.shape == expected.shape
        and values["recall"] >= INT8_RECALL
    ):
        return _replaced(about, **values, agrees=True)
    parts = []
    for of, start in ((texts.queries, 0), (texts.documents, n)):
        places = start + np.flatnonzero(usable[start : start + len(of)])
        worst = places[np.argsort(-off[places], kind="stable")[:_EXPLAINED]]
        chosen = {*worst.tolist(), *places[:: max(1, len(places) // _EXPLAINED)].tolist()}
        parts.append(sorted(chosen))
    rows = [*parts[0], *parts[1]]
    sent = Sent(
        [texts.queries[i] for i in parts[0]], [texts.documents[i - n] for i in parts[1]], got[rows]
    )
    reason = likely_reason(student.model, sent, expected[rows], TOLERANCE)
    return _replaced(about, **values, reason=reason)


def _replaced(about: Compared, **values: Any) -> Compared:
    return Compared(**{**vars(about), **values})


def reference(student: Student, texts: Texts) -> np.ndarray:
    """What sentence-transformers answers here: (N, d) float32, queries and then documents."""
    model = student.model
    return np.concatenate(
        [
            model.encode_query(texts.queries, show_progress_bar=False),
            model.encode_document(texts.documents, show_progress_bar=False),
        ]
    )


def _try(attempt: Attempt, student: Student, texts: Texts, expected: np.ndarray) -> Compared:
    request = {
        "student": {
            "folder": str(student.folder.resolve()),
            "file": attempt.runtime.file,
            "prompts": student.prompts,
            "max_length": student.model.max_seq_length,
            "dimension": expected.shape[1],
            "card": student.card if attempt.name == "transformers" else None,
        },
        "queries": texts.queries,
        "documents": texts.documents,
    }
    about = Compared(attempt.name, {}, attempt.runtime.precision)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "embeddings.npy"
        try:
            answer = _run(attempt, {**request, "out": str(out)})
        except _FailedError as error:
            versions = _run(attempt, {"out": ""})["versions"]
            return _replaced(about, versions=versions, reason=f"it fails: {error}")
        got = np.load(out)
    about = _replaced(about, versions=answer["versions"])
    if got.ndim != 2 or len(got) != len(expected):
        return _replaced(about, reason=f"it answers an array {got.shape} to {len(expected)} texts")
    return compare(student, texts, expected, got, about)


def verify(
    student: Student,
    texts: Texts,
    attempts: Sequence[Attempt],
    servers: Sequence[Server] = (),
    training: str | None = None,
    show: Callable[[Compared], object] = lambda _: None,
) -> Parity:
    """Try the runtimes, and the servers.

    Args:
        student: The student.
        texts: What is embedded.
        attempts: What to try. One that is asked for by name and cannot be tried is an error.
        servers: Servers of the student.
        training: The key of the training that made it.
        show: Gets each result when it is there: some take minutes.

    Raises:
        InputError: A runtime that is asked for cannot be tried; before anything is embedded. Or a
            server cannot be asked.
    """
    attempts = [_placed(attempt) for attempt in attempts]
    obstacles = [_obstacle(attempt, student) for attempt in attempts]
    for attempt, obstacle in zip(attempts, obstacles, strict=True):
        if obstacle and attempt.asked_for:
            line = f"; {obstacle.line}" if obstacle.line else ""
            raise InputError(f"--with {attempt.name}: {obstacle.why}{line}")
    usable = [a for a, obstacle in zip(attempts, obstacles, strict=True) if obstacle is None]
    expected = reference(student, texts)
    tried = []
    for attempt in usable:
        tried.append(_try(attempt, student, texts, expected))
        show(tried[-1])
    for server in servers:
        answered = server.embed(texts.queries, texts.documents, student.prompts)
        about = Compared(
            name_of(server.route), server.versions, "float32", refusal=answered.refusal
        )
        tried.append(compare(student, texts, expected, answered.embeddings, about))
        show(tried[-1])
    names = {attempt.name for attempt in attempts}
    others = [NotTried(name, NOT_ASKED_FOR, None) for name in RUNTIMES if name not in names]
    read = {a.runtime.file for a in usable if a.runtime.file}
    read |= {path.relative_to(student.folder).as_posix()
             for pattern in ("modules.json", "*.safetensors", "openvino/*.bin")
             for path in student.folder.rglob(pattern)}  # fmt: skip
    files = {name: sha256_of(student.folder / name) for name in sorted(read)}
    return Parity(
        key=key_of(Parity, [files, texts.queries, texts.documents]),
        training=training,
        reference=__version__,
        probes=len(PROBES),
        of=texts.of,
        tried=tuple(tried),
        not_tried=(*(o for o in obstacles if o), *others),
        files=files,
    )
