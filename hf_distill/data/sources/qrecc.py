"""QReCC's own JSON format (Anantha et al., NAACL 2021), with the extraction rule of the paper that
is implemented here.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_distill.data.collection import (
    PAIR_FEATURES,
    Source,
    SourcePairs,
    dataset_of,
    is_unicode,
)
from hf_distill.errors import InputError

MIN_QUERY_CHARACTERS = 6
MIN_DOCUMENT_CHARACTERS = 11


def extract_pair(turn: dict[str, Any]) -> tuple[str, str, str | None]:
    """The paper's rule for one turn: (query, document, why it is not a pair or None).

    The query is `Rewrite`, or `Question` where there is none; the document is `Answer`; both are
    stripped. A pair needs `len(query) > 5` and `len(document) > 10` characters.
    """
    query = str(turn.get("Rewrite") or "").strip() or str(turn.get("Question") or "").strip()
    document = str(turn.get("Answer") or "").strip()
    if not is_unicode(query + document):
        return query, document, "text that is no valid Unicode"
    if not document:
        return query, document, "no answer"
    if len(document) < MIN_DOCUMENT_CHARACTERS:
        return query, document, f"answer shorter than {MIN_DOCUMENT_CHARACTERS} characters"
    if len(query) < MIN_QUERY_CHARACTERS:
        return query, document, f"query shorter than {MIN_QUERY_CHARACTERS} characters"
    return query, document, None


def _read_turns(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise InputError(
            f"no QReCC file at {path}; download it from its own repository (apple/ml-qrecc) and name it with --dataset_path"
        )
    try:
        turns = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path} is not JSON: line {error.lineno}, column {error.colno}: {error.msg}"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: byte {error.start}: {error.reason}") from error
    if not isinstance(turns, list):
        raise InputError(
            f"{path} holds a JSON {type(turns).__name__}, but QReCC is a list of turns"
        )
    for number, turn in enumerate(turns):
        if not isinstance(turn, dict):
            raise InputError(
                f"{path}: turn {number} is a {type(turn).__name__}, but a turn is an object with Question, Rewrite, Answer, ..."
            )
        for key in ("Conversation_no", "Turn_no", "Answer"):
            if key not in turn:
                raise InputError(
                    f"{path}: turn {number} has no {key!r}; its keys are {', '.join(sorted(map(str, turn)))}"
                )
    return turns


def read_qrecc(path: Path, cache: Path) -> SourcePairs:
    """Read a QReCC JSON file. `group` is the conversation; `pair_id` is conversation and turn.

    Raises:
        InputError: The file is missing, is not JSON (with the place), or has another shape (with
            the turn).
    """
    turns = _read_turns(path)
    counts = Counter({"turns found": len(turns)})
    seen: Counter[str] = Counter()

    def rows() -> Iterator[dict[str, str | None]]:
        for turn in turns:
            query, document, reason = extract_pair(turn)
            counts[reason or "kept"] += 1
            if reason is None:
                name = f"{turn['Conversation_no']}_{turn['Turn_no']}"
                seen[name] += 1
                pair_id = name if seen[name] == 1 else f"{name}.{seen[name]}"
                yield {
                    "pair_id": pair_id,
                    "query": query,
                    "document": document,
                    "group": str(turn["Conversation_no"]),
                    "source": turn.get("Conversation_source"),
                }

    pairs = dataset_of(rows(), PAIR_FEATURES, cache, "qrecc")
    return SourcePairs(
        pairs=pairs,
        counts=dict(counts),
        source=Source(
            name="QReCC",
            license="cc-by-sa-4.0",
            url="https://github.com/apple/ml-qrecc",
            description="Conversational questions, rewritten to stand alone, with their answers.",
        ),
    )
