"""A search page that needs no server: a folder of static files, in which the browser embeds a
question with the student and compares it with every document of a run.

The page loads what it needs to search at once: the student (int8), its tokenizer, a runtime, and
the index, a byte for each number of an embedding. It loads the texts in parts, those of the
documents that it shows.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import itertools
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ir_measures
import numpy as np
import yaml
from tokenizers import Tokenizer

from hf_distill.errors import InputError
from hf_distill.evaluation.tasks import HeldOutTask, held_out_task
from hf_distill.release.cards import escape_markdown, public_name
from hf_distill.release.onnx import export_onnx
from hf_distill.release.onnx_encoder import FILES, OUTPUT, OnnxEncoder, load_onnx
from hf_distill.release.remote import Release
from hf_distill.report.page import TEMPLATES, environment
from hf_distill.report.results import RunResults
from hf_distill.run.stage import files_of, folder_written_whole, read_json, write_json
from hf_distill.serving.index import Index, index_of_run, load_student
from hf_distill.serving.javascript import (
    LICENCE,
    ONNXRUNTIME,
    TOKENIZERS,
    WASM,
    content_of,
)

RECORD = "page.json"
"""The file that says that a folder is a page, and which files it holds."""

MANY_DOCUMENTS, LARGE = 50_000, 100_000_000
"""Documents and bytes above which a page is warned about. A larger page is not kept for use without
a network.
"""

TOP = 10
"""Answers of the teacher that are stored for each held-out query. The page shows as many."""

_EXAMPLES = 1000
_VECTORS, _TEXTS = 8 << 20, 1 << 18
"""Bytes of a part of the index, and of the texts (before compression)."""

_PROBES = ("how do I read a csv file", "a", "Ünïcödé – 漢字 🙂", "one long text " * 100)
"""Texts with which the page tests itself, besides some held-out queries."""

_READ_BY_TOKENIZERS = {
    "model": {"WordPiece", "Unigram", "BPE"},
    "normalizer": {
        "BertNormalizer", "Precompiled", "Sequence", "Replace", "NFC", "NFD", "NFKC", "NFKD",
        "Strip", "StripAccents", "Lowercase", "Prepend",
    },
    "pre_tokenizer": {
        "BertPreTokenizer", "Sequence", "Whitespace", "WhitespaceSplit", "Metaspace", "ByteLevel",
        "Split", "Punctuation", "Digits", "Replace", "FixedLength",
    },
}  # fmt: skip
"""The parts of a tokenizer that `TOKENIZERS` knows."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PageRecord:
    """`page.json`: what a page holds.

    Attributes:
        key: Sixteen hex digits over the content of its files, part of the name of their folder: a
            browser never mixes files of two pages.
        documents: How many are searched.
        bytes: Of all files that the page itself serves.
        files: Path in the folder -> SHA-256, in hex. `page.json` itself is not among them.
    """

    key: str
    documents: int
    bytes: int
    files: dict[str, str]


def check_output(out: Path) -> None:
    """Refuse a folder that a page must not replace.

    Raises:
        InputError: It is a file, or holds something else than an earlier page.
    """
    if not os.path.exists(out):  # noqa: PTH110  (a name that is too long is refused later)
        return
    if not out.is_dir():
        raise InputError(f"{out} is a file; name a folder")
    names = {str(file.relative_to(out)) for file in out.rglob("*")
             if file.is_symlink() or not file.is_dir()}  # fmt: skip
    record = out / RECORD
    known = {RECORD, *read_json(record, PageRecord).files} if record.is_file() else set()
    if strangers := sorted(names - known):
        raise InputError(
            f"{out} holds {len(strangers)} files that are not of an earlier page (e.g. "
            f"{strangers[0]}), and would be replaced; name a new folder, or remove them"
        )


def _types(part: Any) -> Iterator[str]:
    """The type of a part of a tokenizer, and of the parts in it."""
    if isinstance(part, dict):
        yield str(part.get("type"))
        for inner in (*part.get("normalizers", ()), *part.get("pretokenizers", ())):
            yield from _types(inner)


def check_student(folder: Path) -> None:
    """Refuse a student that cannot answer in a browser, before any work.

    Raises:
        InputError: It has no graph, or a tokenizer that the page's JavaScript cannot read.
    """
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    first = str(modules[0]["type"]).rpartition(".")[2]
    if first != "Transformer":
        raise InputError(
            f"{folder} begins with a {first}, a table of vectors: it has no graph that a browser "
            "could run, so there is no page of it; hf-distill search asks it on this machine"
        )
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    for part, known in _READ_BY_TOKENIZERS.items():
        if unknown := sorted({*_types(tokenizer[part])} - known):
            raise InputError(
                f"{folder / 'tokenizer.json'} has the {part} {', '.join(unknown)}, which the "
                f"page's tokenizer ({TOKENIZERS.package} {TOKENIZERS.version}) cannot read, so a "
                "page would search for other words; hf-distill search asks it on this machine"
            )


def quantised(student: Path, scratch: Path) -> Path:
    """The student as ONNX in `scratch`, exported there so that the run stays as it is.

    Raises:
        InputError: As `export_onnx`.
    """
    folder = scratch / "student"
    shutil.copytree(
        student.resolve(),
        folder,
        copy_function=os.symlink,
        ignore=shutil.ignore_patterns("onnx", "README.md"),
    )
    export_onnx(folder)
    return folder


def int8_rows(embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (N, d) as codes (N, d) int8 and scales (N,) float32: an embedding is about its
    codes times its scale. The largest number of a row has the code 127 or -127.
    """
    least = np.finfo(np.float32).tiny
    scales = np.maximum(np.abs(embeddings).max(axis=1) / 127, least).astype(np.float32)
    return np.rint(embeddings / scales[:, None]).astype(np.int8), scales


@dataclass(frozen=True)
class _Written:
    """The files of a page, as they are written into its folder."""

    folder: Path

    def add(self, name: str, content: bytes, compress: bool = False, **more: Any) -> dict[str, Any]:
        """Write a file. Returns what the page has to know of it. Files are compressed here, because
        not every static host does it.
        """
        content = gzip.compress(content, 6, mtime=0) if compress else content
        (self.folder / name).write_bytes(content)
        return {
            "url": name,
            "bytes": len(content),
            "gzip": compress,
            "integrity": f"sha384-{base64.b64encode(hashlib.sha384(content).digest()).decode()}",
            **more,
        }


def _as_json(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def _order(task: HeldOutTask, documents: int) -> np.ndarray:
    """The numbers of all documents in the order of the page: those that the held-out queries
    search, by id, and then the others.
    """
    others = np.setdiff1d(np.arange(documents), task.document_numbers)
    return np.concatenate([task.document_numbers, others])


def _answers_of_teacher(results: RunResults) -> dict[str, list[tuple[str, float]]]:
    """Query id -> (document id, score) of the teacher's best `TOP` documents, best first, as the
    evaluation stored them. Empty if the teacher did not rank.
    """
    folder = results.folder.retrieval
    if "teacher.run" not in files_of(results.folder.evaluation, folder):
        return {}
    answers: dict[str, list[tuple[str, float]]] = {}
    ranked: Iterable[Any] = ir_measures.read_trec_run(str(folder / "teacher.run"))  # type: ignore[no-untyped-call]
    for scored in ranked:
        best = answers.setdefault(scored.query_id, [])
        if len(best) < TOP:
            best.append((scored.doc_id, scored.score))
    return answers


def _examples(results: RunResults, task: HeldOutTask) -> list[dict[str, Any]]:
    """Held-out queries, spread evenly over all, with the teacher's answers and what was judged
    relevant, by row of the page's order.
    """
    answers, row_of = (
        _answers_of_teacher(results),
        {name: i for i, name in enumerate(task.documents)},
    )
    names = list(task.queries)
    step = max(1, -(-len(names) // _EXAMPLES))
    examples: dict[str, dict[str, Any]] = {}
    for name in names[::step]:
        query = task.queries[name]
        student = task.student_queries[name] if task.student_queries else query
        text = " ".join(student.split())
        best = answers.get(name)
        relevant = [d for d, grade in task.qrels[name].items() if grade > 0 and d in row_of]
        examples.setdefault(
            text,
            {
                "text": text,
                "student": student.strip(),
                "query": None if query == student else query,
                "teacher": best and [[row_of[d], round(score, 4)] for d, score in best],
                "relevant": [row_of[d] for d in relevant],
            },
        )
    return list(examples.values())


def _around(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer puts before and after a text."""
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a").ids
    start = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    return whole[:start], whole[start + len(bare) :]


def _vector_parts(written: _Written, embeddings: np.ndarray) -> list[dict[str, Any]]:
    """Parts of the index: the scales of some rows, float32, and then their codes."""
    codes, scales = int8_rows(embeddings)
    rows = max(1, _VECTORS // (codes.shape[1] + 4))
    return [
        written.add(
            f"vectors-{number:03}.bin",
            scales[start : start + rows].astype("<f4").tobytes()
            + codes[start : start + rows].tobytes(),
            start=start,
            rows=len(scales[start : start + rows]),
        )
        for number, start in enumerate(range(0, len(codes), rows))
    ]


def _text_parts(written: _Written, documents: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Parts of the texts: lists of (id, text)."""
    sizes = np.cumsum([len(text.encode()) + len(name.encode()) for name, text in documents])
    of_row = sizes // _TEXTS
    starts = [0, *(np.flatnonzero(np.diff(of_row)) + 1).tolist(), len(documents)]
    return [
        written.add(
            f"texts-{number:03}.bin",
            _as_json(documents[start:end]),
            compress=True,
            start=start,
            rows=end - start,
        )
        for number, (start, end) in enumerate(itertools.pairwise(starts))
    ]


def _scripts(written: _Written, cdn: str | None) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Where the page finds the JavaScript of others, and the scripts of its HTML.

    Raises:
        InputError: As `content_of`.
    """
    modules = {"onnxruntime": ONNXRUNTIME, "tokenizers": TOKENIZERS}
    if cdn is not None:
        found: dict[str, Any] = {name: file.address(cdn) for name, file in modules.items()}
        scripts = [{"url": f.address(cdn), "integrity": f.integrity} for f in modules.values()]
        wasm = {"url": WASM.address(cdn), "bytes": WASM.size, "integrity": WASM.integrity}
        return found | {"wasm": wasm}, scripts
    *contents, wasm_content, licence = content_of(*modules.values(), WASM, LICENCE)
    scripts = [
        written.add(f"{name}.js", content) for name, content in zip(modules, contents, strict=True)
    ]
    first = f"{ONNXRUNTIME.package} {ONNXRUNTIME.version}: MIT, Copyright (c) Microsoft Corporation"
    rest = f"{TOKENIZERS.package} {TOKENIZERS.version}:\n\n"
    written.add("licences.txt", f"{first}\n\n{rest}".encode() + licence)
    found = {name: script["url"] for name, script in zip(modules, scripts, strict=True)}
    return found | {"wasm": written.add("wasm.bin", wasm_content, compress=True)}, scripts


def _settings(
    results: RunResults, index: Index, onnx: Path, written: _Written
) -> tuple[dict[str, Any], bool]:
    """Write student, index, texts and examples. Returns what the page has to know, and whether the
    teacher's answers stand beside the student's.
    """
    task = held_out_task(results.collection)
    order = _order(task, len(index.corpus.texts))
    examples = _examples(results, task)
    encoder: OnnxEncoder = load_onnx(onnx, "int8")
    prompt = index.model.prompts.get("query") or ""
    prefix, suffix = _around(encoder.tokenizer)
    probes = [*_PROBES, *(example["student"] for example in examples[:20])]
    encoded = encoder.tokenizer.encode_batch([prompt + text for text in probes])
    ids = [[i for i, kept in zip(e.ids, e.attention_mask, strict=True) if kept] for e in encoded]
    documents = [(index.corpus.ids[i], index.corpus.texts[i]) for i in order]
    settings = {
        "student": results.recipe.name,
        "teacher": public_name(results.soft_labels.teacher),
        "documents": len(order),
        "searched": len(task.documents),
        "dimension": index.embeddings.shape[1],
        "prompt": prompt,
        "prefix": prefix,
        "suffix": suffix,
        "length": index.model.max_seq_length,
        "output": OUTPUT,
        "probes": [{"text": t, "ids": i} for t, i in zip(probes, ids, strict=True)],
        "embedding": [round(x, 5) for x in encoder.encode(probes[:1], "query")[0].tolist()],
        "model": written.add("student.bin", (onnx / FILES["int8"]).read_bytes(), compress=True),
        "tokenizer": written.add(
            "tokenizer.bin", (onnx / "tokenizer.json").read_bytes(), compress=True
        ),
        "vectors": _vector_parts(written, index.embeddings[order]),
        "texts": _text_parts(written, documents),
        "examples": written.add("examples.bin", _as_json(examples), compress=True),
    }
    return settings, any(example["teacher"] for example in examples)


def _policy(cdn: Sequence[str]) -> str:
    """What the browser lets the page load: its own files, and those at `cdn`."""
    others = "".join(f" {address}" for address in cdn)
    return (
        f"default-src 'none'; script-src 'self' 'wasm-unsafe-eval'{others}; style-src 'self'; "
        f"connect-src 'self'{others}; worker-src 'self'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


def _digests(folder: Path) -> dict[str, str]:
    """Path -> SHA-256 of every file in `folder`."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
    }


def write_page(results: RunResults, out: Path, cdn: str | None = None) -> PageRecord:
    """Write the page of a run into the folder `out`, whole or not at all.

    Args:
        results: The run whose documents are searched.
        out: A new or empty folder, or one of an earlier page, which is replaced.
        cdn: A server of npm packages from which browsers load the JavaScript of others, with
            integrity hashes (see `hf_distill.serving.javascript.CDN`). None: it is part of the
            page.

    Raises:
        InputError: `out` holds something else; the student cannot answer in a browser; the
            JavaScript cannot be downloaded; or as `export_onnx` and `index_of_run`.
    """
    student = results.folder.student
    check_output(out)
    check_student(student)
    documents = len(results.collection.documents)
    if documents > MANY_DOCUMENTS:
        _log.warning(
            "%s documents: a browser compares a question with each of them, and above %s that is "
            "slow on a phone",
            f"{documents:,}",
            f"{MANY_DOCUMENTS:,}",
        )
    with contextlib.ExitStack() as stack:
        try:
            new = stack.enter_context(folder_written_whole(out))
        except OSError as error:
            raise InputError(f"{out} cannot be written ({error}); name another folder") from error
        scratch = stack.enter_context(tempfile.TemporaryDirectory())
        record = _write(results, new, Path(scratch), cdn)
    if record.bytes > LARGE:
        _log.warning(
            "%s holds %s MB. Every visitor loads most of it, and browsers do not keep it for use "
            "without a network",
            out,
            f"{record.bytes / 1e6:.0f}",
        )
    return record


def release_of(results: RunResults, record: PageRecord, out: Path, space: str) -> Release:
    """The page in the folder `out` as a static Space."""
    title = f"{results.recipe.name}: search"
    student = results.recipe.training.hub_model_id
    card = {
        "title": title,
        "sdk": "static",
        "app_file": "index.html",
        "pinned": False,
        **({"models": [student]} if student else {}),
    }
    front = yaml.safe_dump(card, sort_keys=False, allow_unicode=True)
    head = f"---\n{front}---\n\n# {escape_markdown(title)}"
    readme = f"{head}\n\nhf_distill made this page: hf-distill page\n"
    own = frozenset({RECORD, *record.files})
    return Release(space, "space", out, {"README.md": readme.encode()}, own, sdk="static")


def _write(results: RunResults, new: Path, scratch: Path, cdn: str | None) -> PageRecord:
    """Write a page into the empty folder `new`."""
    inside = new / "page"
    inside.mkdir()
    written = _Written(inside)
    found, scripts = _scripts(written, cdn)  # first: it may need a network
    onnx = quantised(results.folder.student, scratch)
    index = index_of_run(results, load_student(str(results.folder.path)))
    settings, side_by_side = _settings(results, index, onnx, written)
    jinja = environment()
    own = written.add("page.js", (TEMPLATES / "search_page.js").read_bytes())
    written.add("page.css", jinja.get_template("search.css.j2").render().encode())
    size = sum(file.stat().st_size for file in inside.iterdir())
    settings |= found | {"offline": size <= LARGE}
    written.add("settings.json", _as_json(settings))
    key = hashlib.sha256(_as_json(_digests(inside))).hexdigest()[:16]
    inside.rename(new / f"page-{key}")
    elsewhere = (
        [] if cdn is None else [script["url"] for script in scripts] + [found["wasm"]["url"]]
    )
    for script in [own, *(scripts if cdn is None else ())]:
        script["url"] = f"page-{key}/{script['url']}"
    page = jinja.get_template("search.html.j2").render(
        name=results.recipe.name,
        teacher=public_name(results.soft_labels.teacher),
        documents=settings["documents"],
        side_by_side=side_by_side,
        folder=f"page-{key}",
        scripts=[*scripts, own],
        policy=_policy(elsewhere),
    )
    (new / "index.html").write_text(page, encoding="utf-8")
    shutil.copyfile(TEMPLATES / "search_offline.js", new / "offline.js")
    files = _digests(new)
    total = sum((new / name).stat().st_size for name in files)
    record = PageRecord(key, settings["documents"], total, files)
    write_json(new / RECORD, record)
    return record
