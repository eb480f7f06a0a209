"""BM25 over texts of any language: what counts as a word, and the search.

The scripts of the texts decide how they are split, so that Chinese is split into words under the
default language, too. The language decides about stop words and stems. nDCG@10 on the XQuAD of each
language (240 passages, 1,190 questions), which chose what is here:

| texts | split | nDCG@10 |
|---|---|---|
| Chinese | at punctuation, as text with spaces is | .107 |
| | single characters and pairs of them (Lucene's CJKAnalyzer takes the pairs: .896) | .901 |
| | by `budoux`, which splits into phrases | .835 |
| | by `rjieba`: a dictionary, and whole words together with the words inside them | .960 |
| | the same, with Chinese stop words | .955 |
| Hindi | by `re`, for which a vowel sign ends a word | .751 |
| | with vowel signs, and with stems | .945, .954 |
| | as if it had no spaces: pairs and triples of letters | .947 |
| Arabic | words, with stems | .884, .932 |
| | as if it had no spaces: pairs and triples of letters | .943 |
| German, Spanish | words, with stems | .913, .938; .946, .960 |
| English | words, with stems | .958, .964 |

There is a dictionary for each of the other languages without spaces, but none of their splitters is
small, is kept up and installs without a compiler. Groups of letters need none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import bm25s
import numpy as np
import regex
import rjieba
import Stemmer
from bm25s import stopwords

STOP_WORDS: Mapping[str, Iterable[str]] = {
    "da": stopwords.STOPWORDS_DANISH,
    "de": stopwords.STOPWORDS_GERMAN,
    "en": stopwords.STOPWORDS_EN,
    "es": stopwords.STOPWORDS_SPANISH,
    "fr": stopwords.STOPWORDS_FRENCH,
    "it": stopwords.STOPWORDS_ITALIAN,
    "ko": stopwords.STOPWORDS_KOREAN,
    "nl": stopwords.STOPWORDS_DUTCH,
    "no": stopwords.STOPWORDS_NORWEGIAN,
    "pt": stopwords.STOPWORDS_PORTUGUESE,
    "ru": stopwords.STOPWORDS_RUSSIAN,
    "sv": stopwords.STOPWORDS_SWEDISH,
    "tr": stopwords.STOPWORDS_TURKISH,
}
"""Those of `bm25s`, without the Chinese ones, which lower the figure."""
JAPANESE = 0.1
"""From this share of kana among Chinese characters and kana, texts are taken for Japanese, whose
characters a Chinese dictionary would split. Half of the characters of Japanese texts are kana.
"""

_ALIASES = {"eng": "en", "nb": "no", "nn": "no"}
_HAN, _KANA = r"\p{Han}", r"\p{Hiragana}\p{Katakana}ー"
_SOUTH_EAST = r"\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_RUNS = regex.compile(
    rf"(?V1)(?P<han>[{_HAN}{_KANA}]+)|(?P<letters>[{_SOUTH_EAST}]+)"
    # As bm25s: two letters or more. `re`, which it uses, does not count marks among the letters.
    rf"|(?P<word>[[\p{{L}}\p{{N}}_]--[{_HAN}{_KANA}{_SOUTH_EAST}]]"
    rf"[[\p{{L}}\p{{N}}\p{{M}}_]--[{_HAN}{_KANA}{_SOUTH_EAST}]]+)"
)
_OF_HAN, _OF_KANA = regex.compile(f"[{_HAN}]"), regex.compile(f"[{_KANA}]")
_LETTER = regex.compile(r"\X")  # with its vowel signs


def _groups(run: str, sizes: tuple[int, int]) -> list[str]:
    """All groups of neighbouring letters of `run` of these sizes; `run` itself if it is too
    short.
    """
    letters = _LETTER.findall(run)
    groups = ("".join(letters[i : i + n]) for n in sizes for i in range(len(letters) - n + 1))
    return list(groups) or [run]


@dataclass(frozen=True)
class Words:
    """How texts are split into words.

    Attributes:
        language: ISO code, for stop words and stems.
        japanese: Chinese characters are split as in Japanese.
    """

    language: str
    japanese: bool

    @classmethod
    def of(cls, texts: Iterable[str], language: str) -> Words:
        """For `texts`, queries and documents together, in `language` (ISO code, as in `pt-BR`)."""
        han = kana = 0
        for text in texts:
            if not text.isascii():
                han += len(_OF_HAN.findall(text))
                kana += len(_OF_KANA.findall(text))
        code = language.lower().replace("_", "-").split("-")[0]
        return cls(_ALIASES.get(code, code), kana > JAPANESE * (han + kana))

    def __str__(self) -> str:
        left_out = "its stop words" if self.language in STOP_WORDS else "no stop words"
        stems = "stems" if self.stems() else "no stems"
        return f"language {self.language}: {left_out} left out, {stems}"

    def stems(self) -> Callable[[list[str]], list[str]] | None:
        """Snowball's stemmer of the language; None if there is none. English words stay as they
        are, so that figures can be compared with those of earlier versions.
        """
        if self.language == "en":
            return None
        try:
            stem: Callable[[list[str]], list[str]] = Stemmer.Stemmer(self.language).stemWords
        except KeyError:
            return None
        return stem

    def splitter(self) -> Callable[[str], list[str]]:
        """The function that splits a text."""
        left_out, stems = frozenset(STOP_WORDS.get(self.language, ())), self.stems()

        def split(text: str) -> list[str]:
            words: list[str] = []
            for run in _RUNS.finditer(text.lower()):
                if run.lastgroup == "letters":
                    words += _groups(run[0], (2, 3))
                elif run.lastgroup == "han":
                    words += (
                        _groups(run[0], (1, 2)) if self.japanese else rjieba.cut_for_search(run[0])
                    )
                elif run[0] not in left_out:
                    words.append(run[0])
            return stems(words) if stems else words

        return split


class BM25:
    """An index of documents (`bm25s`, its defaults: Lucene's variant, k1 = 1.5, b = .75).

    Args:
        documents: N texts.
        words: How to split them.
    """

    def __init__(self, documents: Sequence[str], words: Words) -> None:
        self._split = words.splitter()
        vocabulary: dict[str, int] = {}
        ids = [
            [vocabulary.setdefault(word, len(vocabulary)) for word in self._split(text)]
            for text in documents
        ]
        self._count = len(documents)
        self._index = None
        if vocabulary:
            self._index = bm25s.BM25()
            self._index.index(bm25s.tokenization.Tokenized(ids, vocabulary), show_progress=False)

    def search(self, query: str, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """The `depth` best documents for a query: scores (k,) float32, descending, and their places
        (k,) int64; equal scores by ascending place. A document that shares no word with the query
        is not among them.
        """
        wanted = self._split(query)
        scores = np.zeros(self._count, dtype=np.float32)
        if wanted and self._index is not None:
            scores = np.asarray(self._index.get_scores(wanted), dtype=np.float32)
        hits = np.flatnonzero(scores > 0)
        if len(hits) > depth:  # keep all that tie at the cut; the sort keeps the first of them
            hits = hits[scores[hits] >= np.partition(scores[hits], -depth)[-depth]]
        best = hits[np.argsort(-scores[hits], kind="stable")[:depth]]
        return scores[best], best
