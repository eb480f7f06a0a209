"""Run in a fresh process (see `hf_distill.release.router`): load a router as anyone would, and
embed.

Reads {folder: path, probes: [text, ...]} from standard input. Prints {query: embeddings, document:
embeddings} as a line of JSON. Imports nothing of this project.
"""

from __future__ import annotations

import json
import sys

from sentence_transformers import SentenceTransformer


def main() -> None:
    """Load, embed, and print."""
    wanted = json.load(sys.stdin)
    model = SentenceTransformer(wanted["folder"], device="cpu")
    queries, documents = (
        encode(wanted["probes"], show_progress_bar=False).tolist()
        for encode in (model.encode_query, model.encode_document)
    )
    print(json.dumps({"query": queries, "document": documents}), flush=True)


if __name__ == "__main__":
    main()
