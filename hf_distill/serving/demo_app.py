"""Teacher and student side by side, as a Gradio app: of `hf-distill demo`, and, run as a script, a
Space.

A Space reads `demo.json` in its own folder: the title, and for each model its name, where to load
it from, its prompt for queries and the file of its document embeddings; and `documents.parquet`,
the texts. Imports nothing of the project it comes from.
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


def cosines(asked: np.ndarray, embeddings: np.ndarray) -> np.ndarray:
    """Cosines (N,) of a question's embedding (d,) and `embeddings` (N, d) of unit length."""
    found: np.ndarray = embeddings @ (asked / max(float(np.linalg.norm(asked)), 1e-12))
    return found


@dataclass(frozen=True)
class Side:
    """One model: `embed` maps a question to (d,), `score` that and the documents' `embeddings` (N,
    d) to (N,), higher is nearer.
    """

    name: str
    embed: Callable[[str], np.ndarray]
    embeddings: np.ndarray
    score: Callable[[np.ndarray, np.ndarray], np.ndarray] = cosines


def answer_html(side: Side, question: str, ids: list[str], texts: list[str]) -> str:
    """What `side` finds, as HTML in which every text is escaped, with the time that embedding and
    search took.
    """
    if not question.strip():
        return ""
    start = time.perf_counter()
    asked = side.embed(question)
    embedded = time.perf_counter()
    scores = side.score(asked, side.embeddings)
    best = np.argsort(-scores, kind="stable")[:TOP]
    end = time.perf_counter()
    rows = "".join(
        f"<li><b>{scores[i]:.3f}</b> <code>{html.escape(ids[i])}</code><br>{html.escape(texts[i])}</li>"
        for i in map(int, best)
    )
    return (
        f"<h3>{html.escape(side.name)}</h3><p>question embedded in {1000 * (embedded - start):.1f} ms, {len(texts):,} documents searched "
        f"in {1000 * (end - embedded):.1f} ms</p><ol>{rows}</ol>"
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

        sides.append(
            Side(entry["name"], embed, np.load(folder / entry["embeddings"]).astype(np.float32))
        )
    return (
        settings["title"],
        sides,
        table.column("id").to_pylist(),
        table.column("text").to_pylist(),
    )


def build(title: str, sides: list[Side], ids: list[str], texts: list[str]) -> Any:
    """The app over what `load` gives, not yet served."""
    import gradio  # noqa: PLC0415  (an extra)

    for side in sides:
        side.embed("warm up")  # the first call pays for set-up
    with gradio.Blocks(title=title) as app:
        gradio.Markdown(f"# {html.escape(title)}")
        question = gradio.Textbox(label="Question", placeholder="how do I read a csv file")
        with gradio.Row():
            boxes = [gradio.HTML() for _ in sides]
        question.submit(
            lambda asked: [answer_html(side, asked, ids, texts) for side in sides], question, boxes
        )
    return app


if __name__ == "__main__":
    build(*load(Path(__file__).parent)).launch()
