"""QReCC's own JSON format (Anantha et al., NAACL 2021), with the extraction rule of the paper that
this package implements.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_distill.data.collection import Source, SourcePairs, is_unicode
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import Recipe

MIN_QUERY_CHARACTERS = 6
MIN_DOCUMENT_CHARACTERS = 11


def extract_pair(turn: dict[str, Any]) -> tuple[str, str, str | None]:
    """The paper's rule for one turn: (query, document, why it is not a pair or None).

    The query is `Rewrite`, or `Question` if that is empty; the document is `Answer`; both are
    stripped. A pair needs `len(query) > 5` and `len(document) > 10` characters.
    """
    query = str(turn.get("Rewrite") or "").strip() or str(turn.get("Question") or "").strip()
    document = str(turn.get("Answer") or "").strip()
    if not is_unicode(query + document):
        return query, document, "invalid Unicode"
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
            f"--dataset_path {path}: there is no such file; download QReCC from its own repository "
            "(apple/ml-qrecc) and name its JSON file"
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
                f"{path}: turn {number} is a {type(turn).__name__}, but a turn is an object with "
                "Question, Rewrite, Answer, ..."
            )
        for key in ("Conversation_no", "Turn_no", "Answer"):
            if key not in turn:
                raise InputError(
                    f"{path}: turn {number} has no {key!r}; its keys are "
                    f"{', '.join(sorted(map(str, turn)))}"
                )
    return turns


def read_qrecc(recipe: Recipe) -> SourcePairs:
    """The turns of the QReCC file `dataset_path`. `group` is the conversation, `pair_id` is
    conversation and turn.

    Raises:
        InputError: The file is missing, is not JSON (with the place), or has another shape (with
            the turn).
    """
    if recipe.data.dataset_path is None:
        raise InputError("--dataset qrecc needs --dataset_path, the JSON file of QReCC")
    turns = _read_turns(Path(recipe.data.dataset_path))
    counts = Counter({"turns found": len(turns)})

    def rows() -> Iterator[dict[str, Any]]:
        for turn in turns:
            query, document, reason = extract_pair(turn)
            if reason is not None:
                counts[reason] += 1
                continue
            yield {
                "pair_id": f"{turn['Conversation_no']}_{turn['Turn_no']}",
                "query": query,
                "document": document,
                "group": turn["Conversation_no"],
                "source": turn.get("Conversation_source"),
            }

    about = Source(
        name="QReCC",
        license="cc-by-sa-4.0",
        url="https://github.com/apple/ml-qrecc",
        description="Conversational questions, rewritten to stand alone, with their answers.",
    )
    return SourcePairs(about, rows(), counts=counts)
