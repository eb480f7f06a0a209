"""`accelerate launch -m hf_distill [RECIPE] [--key value ...]`: the same as `train.py`."""

from __future__ import annotations

import sys

from hf_distill.commands.train import main

if __name__ == "__main__":
    sys.exit(main(program="hf_distill"))
