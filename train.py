"""From pairs to a released student: `accelerate launch train.py [RECIPE] [--key value ...]`.

The story, stage by stage. Each stage is a function of the results before it, keeps its own result
in the run's folder, and reuses it as long as its inputs are the same (`hf_distill/pipeline.py`):

    read      a source becomes queries, documents and judgements, split by group without leaks
    score     the teacher embeds every text, or scores every pair, once: soft labels
    select    rules drop the pairs on which the teacher is not reliable, or lower their weight
    train     a student is cut from the teacher and trained on the hybrid objective
    evaluate  every figure on held-out data, with its interval; the report
    release   a data set of scored pairs, both cards, and, if asked, one commit to the Hub

`hf-distill train` and `accelerate launch -m hf_distill` do the same where only the package is
installed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from accelerate import PartialState

from hf_distill.commands.libraries import set_up
from hf_distill.commands.terminal import exit_code
from hf_distill.pipeline import Run
from hf_distill.recipe.read import read_recipe


def story(argv: Sequence[str]) -> None:
    """Read the recipe, open its run, and go through the stages: a line for each."""
    recipe = read_recipe(argv)  # recipes/quickstart.yaml, unless the command line names another
    run = Run.open(recipe)  # bad input is refused here, before any work
    for line in run.stages():  # read, score, select, train, evaluate, release
        PartialState().print(line, flush=True)


if __name__ == "__main__":
    set_up()
    sys.exit(exit_code("train.py", lambda: story(sys.argv[1:])))
