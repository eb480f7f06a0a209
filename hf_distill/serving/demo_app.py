"""Teacher and student side by side, as a Gradio app: for `hf-distill demo` and, run as a script,
for a Space.

A Space reads two files in its own folder. `demo.json` holds the title, and for each model its name,
where to load it from, the prompt of its queries, the file of its document embeddings, and whether
it reads conversations. `documents.parquet` holds the texts. This script imports nothing of
hf_distill.

Where a model reads conversations, a line of the box is a turn, and the last one the question. Other
models read the question alone.
"""

from __future__ import annotations

import html
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from sentence_transformers import SentenceTransformer

TOP = 5
"""Documents that each model shows."""


def asked(box: str, conversation: bool) -> str:
    """What a model reads of the lines in the box: the last one, and if it reads conversations those
    before it, the newest first (as `hf_distill.conversation_query`).
    """
    turns = [" ".join(line.split()) for line in box.splitlines() if line.strip()]
    return "\n| ".join(reversed(turns)) if conversation else turns[-1]


def cosines(query: np.ndarray, embeddings: np.ndarray) -> np.ndarray:
    """Cosines (N,) of a question's embedding (d,) and `embeddings` (N, d) of unit length."""
    scores: np.ndarray = embeddings @ (query / max(float(np.linalg.norm(query)), 1e-12))
    return scores


@dataclass(frozen=True)
class Side:
    """One model.

    Attributes:
        name: Its name on the page.
        embed: Maps a question to its embedding (d,).
        embeddings: (N, d), those of the documents.
        score: Maps a question's embedding and `embeddings` to scores (N,); higher is nearer.
        conversation: Whether the question holds the turns before it.
    """

    name: str
    embed: Callable[[str], np.ndarray]
    embeddings: np.ndarray
    score: Callable[[np.ndarray, np.ndarray], np.ndarray] = cosines
    conversation: bool = False


STYLE = """<style>
.answers h2 { font-size: 1rem; margin: .4rem 0 0; }
.answers ol { list-style: none; margin: .6rem 0 0; padding: 0; counter-reset: rank; }
.answers li {
  border: 1px solid color-mix(in srgb, currentColor 20%, transparent); border-radius: .5rem;
  padding: .6rem .9rem; margin: 0 0 .6rem; counter-increment: rank;
}
.answers .head { margin: 0; opacity: .75; font-size: .85rem; }
.answers li .head::before { content: counter(rank) ". "; }
.answers code { overflow-wrap: anywhere; }
.answers .text { margin: .2rem 0 0; overflow-wrap: anywhere; white-space: pre-line; }
</style>"""
"""The look of the search page (`hf-distill page`), in the colours of Gradio's theme."""


def answer_html(side: Side, question: str, ids: list[str], texts: list[str]) -> str:
    """The documents that `side` ranks first, as HTML in which every text is escaped, and how long
    embedding and search took.
    """
    if not question.strip():
        return ""
    start = time.perf_counter()
    query = side.embed(asked(question, side.conversation))
    embedded = time.perf_counter()
    scores = side.score(query, side.embeddings)
    best = np.argsort(-scores, kind="stable")[:TOP]
    end = time.perf_counter()
    rows = "".join(
        f'<li><p class="head"><b>{scores[i]:.3f}</b> <code>{html.escape(ids[i])}</code></p>'
        f'<p class="text">{html.escape(texts[i])}</p></li>'
        for i in map(int, best)
    )
    return (
        f'{STYLE}<section class="answers"><h2>{html.escape(side.name)}</h2>'
        f'<p class="head">question embedded in {1000 * (embedded - start):.1f} ms, '
        f"{len(texts):,} documents searched in {1000 * (end - embedded):.1f} ms</p>"
        f"<ol>{rows}</ol></section>"
    )


def load(folder: Path) -> tuple[str, list[Side], list[str], list[str]]:
    """Title, models, ids and texts of the demo in `folder`."""
    settings = json.loads((folder / "demo.json").read_text(encoding="utf-8"))
    table = pq.read_table(folder / "documents.parquet")
    sides = []
    for entry in settings["models"]:
        model = SentenceTransformer(entry["model"], device="cpu")

        def embed(question: str, model: Any = model, prompt: str = entry["prompt"]) -> np.ndarray:
            embedding: np.ndarray = model.encode(question, prompt=prompt, show_progress_bar=False)
            return embedding

        embeddings = np.load(folder / entry["embeddings"]).astype(np.float32)
        conversation = entry.get("conversation", False)
        sides.append(Side(entry["name"], embed, embeddings, conversation=conversation))
    ids, texts = (table.column(name).to_pylist() for name in ("id", "text"))
    return settings["title"], sides, ids, texts


def build(title: str, sides: list[Side], ids: list[str], texts: list[str]) -> Any:
    """The app for what `load` returns. It is not served yet."""
    import gradio  # noqa: PLC0415  # an extra

    for side in sides:
        side.embed("warm up")  # the first call is slow
    with gradio.Blocks(title=title) as app:
        gradio.Markdown(f"# {html.escape(title)}")
        if any(side.conversation for side in sides):
            box = gradio.Textbox(label="Conversation, a turn a line; Shift+Enter asks", lines=4)
        else:
            box = gradio.Textbox(label="Question", placeholder="how do I read a csv file")
        with gradio.Row():
            answers = [gradio.HTML() for _ in sides]
        box.submit(
            lambda question: [answer_html(side, question, ids, texts) for side in sides],
            box,
            answers,
        )
    return app


if __name__ == "__main__":
    build(*load(Path(__file__).parent)).launch()
