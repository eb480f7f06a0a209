"""A vocabulary of some eighty words, sentences of it, and its tokenizer: for models with random
weights, in the benchmarks and the tests.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = """
a an the of in on and or to from with for is are was by at red green blue cat dog bird fish sun
moon star tree leaf stone river lake sea hill road house door window table chair book page word line
point circle square north south east west who what where when why how many first last best small
large old new open close read write run walk swim fly
""".split()  # noqa: SIM905  (a list of seventy strings reads worse)

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def sentences(count: int, offset: int = 0) -> list[str]:
    """`count` random sentences of ten words, the same each time."""
    return [" ".join(random.Random(i).choices(WORDS, k=10)) for i in range(offset, offset + count)]


def word_pieces(tokens: Sequence[str]) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer with these tokens, five of which are `SPECIAL`."""
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose vocabulary is `SPECIAL` and `WORDS`."""
    return word_pieces([*SPECIAL, *WORDS])
