"""Rankers as teachers, at equal seconds: `python benchmarks/rankers.py --ranker KIND:MODEL
--domain NAME=PATH ... [--tasks FOLDER ...] [--minutes 5] [--seeds 3]`.

The same student, from the same start, is trained on the same pairs for the same time: without
lists; with lists that this project mines and the ranker scores, in several ways; and with lists
that sentence-transformers mines (`mine_hard_negatives`) and the same ranker scores, through its own
losses and trainer. Every arm pays for what it asks of teacher and ranker. quality.py says how they
are timed, measured and compared.

Every timing, training and measurement is kept in `--out`. A second call goes on, and does only what
is missing. Writes quality.json, quality.md, quality.svg and quality.png there. The last line is
JSON.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quality import compare, options
from quality_arms import (
    ARMS,
    FAST,
    ONE_STAGE,
    PLAIN,
    SLOW,
    TEMPERATURE,
    Arm,
    divergence,
    margin,
)
from quality_lists import PeerMiner

from hf_distill.errors import InputError
from hf_distill.pipeline import Run
from hf_distill.training.rows import Examples

LISTS = (
    *ONE_STAGE, "--candidates", "teacher", "bm25", "--candidates_per_query", "8",
    "--hard_negatives_per_pair", "4",
)  # fmt: skip
"""What the recipe `rerank` does, with shorter lists: there is little time."""
KL = ("--list_kl_weight", "12")
WITHOUT = ("MultipleNegativesRankingLoss", "recommended, first stage alone")
MINED = ("mined, DistillKLDivLoss", "mined, MarginMSELoss")
EMBEDDER = ("lists of the embedder",)
NAMES = (
    *WITHOUT, "lists, KL", *MINED, "lists, contrast alone", "lists, KL alone", "lists, MarginMSE",
    *EMBEDDER, "lists, KL, random", "lists, KL, top",
)  # fmt: skip
"""Of the arms, the most telling ones first: without lists, with all there is, the peers, then each
part alone, and other choices.
"""


def list_arms(ranker: str, out: Path) -> dict[str, Arm]:
    """The arms, by name.

    Args:
        ranker: What scores the lists, KIND:MODEL.
        out: Where the lists that sentence-transformers mines are kept.
    """
    miner = PeerMiner(ranker, out)

    def peer_rows(pairs: Examples, run: Run) -> tuple[dict[str, Any], list[list[float]]]:
        lists = miner.lists(run)
        collection = run.collection
        columns = {
            "query": [pairs.queries[row] for row in lists.pairs],
            "document": [pairs.documents[row] for row in lists.pairs],
        }
        for number, documents in enumerate(zip(*lists.negatives, strict=True)):
            columns[f"negative_{number}"] = list(collection.document_texts(documents))
        # As far apart as the student's cosines should be, at its temperature.
        return columns, [[TEMPERATURE * score for score in row] for row in lists.scores]

    def scored(pairs: Examples, run: Run) -> dict[str, Any]:
        columns, scores = peer_rows(pairs, run)
        return {**columns, "label": scores}

    def margins(pairs: Examples, run: Run) -> dict[str, Any]:
        columns, scores = peer_rows(pairs, run)
        return {**columns, "label": [[own - score for score in rest] for own, *rest in scores]}

    ranked = (*LISTS, "--ranker", ranker)
    arms = (
        *(ARMS[name] for name in WITHOUT),
        Arm("lists, KL", (*ranked, *KL), own=True),
        Arm("mined, DistillKLDivLoss", (*PLAIN, *SLOW), divergence, scored, "nothing", miner=miner),
        Arm("mined, MarginMSELoss", (*PLAIN, *FAST), margin, margins, "nothing", miner=miner),
        Arm("lists, MarginMSE", (*ranked, "--list_margin_weight", "108"), own=True),
        Arm("lists, contrast alone", ranked, own=True),
        Arm("lists of the embedder", (*LISTS, *KL, "--ranker_temperature", "0.05"), own=True),
        Arm("lists, KL alone", (*ranked, *KL, "--contrastive_weight", "0"), own=True),
        Arm("lists, KL, random", (*ranked, *KL, "--choose_candidates", "random"), own=True),
        Arm("lists, KL, top", (*ranked, *KL, "--choose_candidates", "top"), own=True),
    )
    by_name = {arm.name: arm for arm in arms}
    return {name: by_name[name] for name in NAMES}


def main() -> None:
    """Train and measure what is missing, compare, and print the tables."""
    parser = options(__doc__, NAMES)
    parser.add_argument(
        "--ranker", required=True, metavar="KIND:MODEL",
        help="What scores the lists, e.g. cross-encoder:FOLDER.",
    )  # fmt: skip
    line = parser.parse_args()
    compare(line, list_arms(line.ranker, line.out.resolve() / "peer-lists"))


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        raise SystemExit(f"rankers.py: error: {error}") from error
