"""transformers, by the snippet in the student's card, which is executed as it is printed there."""

from __future__ import annotations

import json
import re
from typing import Any

EXAMPLES = {
    "queries": "how do I read a csv file",
    "documents": "Parse a file of comma-separated values.",
}
"""What the card's snippet embeds. The prompt is what stands before it."""

_BATCH = 32


def embed(student: dict[str, Any], queries: list[str], documents: list[str]) -> tuple[Any, Any]:
    """Embeddings of queries and of documents, a row a text.

    Raises:
        ValueError: The card has no such snippet, or one of another form.
    """
    blocks = re.findall(r"```python\n(.*?)```", student["card"], re.DOTALL)
    code = next((block for block in blocks if "AutoModel" in block), None)
    if code is None:
        raise ValueError("the card has no snippet with AutoModel")
    place = f"folder = {json.dumps(student['folder'])}"
    code, places = re.subn(r"^folder = .*$", lambda _: place, code, flags=re.MULTILINE)
    prompts = {}
    for kind, example in EXAMPLES.items():
        said = re.search(rf'^{kind} = embed\(\[(".*")\]\)$', code, re.MULTILINE)
        text = json.loads(said[1]) if said else ""
        if not (places and text.endswith(example)):
            raise ValueError("the card's snippet has another form than hf_distill writes")
        prompts[kind] = text.removesuffix(example)
    names: dict[str, Any] = {}
    exec(code, names)

    def rows(kind: str, texts: list[str]) -> list[Any]:
        return [
            row
            for start in range(0, len(texts), _BATCH)
            for row in names["embed"](
                [prompts[kind] + text for text in texts[start : start + _BATCH]]
            ).numpy()
        ]

    return rows("queries", queries), rows("documents", documents)
