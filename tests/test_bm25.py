"""BM25 over texts of any language: what counts as a word, and what is found."""

import json

import bm25s
import numpy as np
import pytest
from conftest import REAL_DATA, ROOT, sentences
from hypothesis import given
from hypothesis import strategies as st

from hf_distill.compute.bm25 import Words
from hf_distill.evaluation.bm25 import bm25_run
from hf_distill.evaluation.retrieval import per_query
from hf_distill.evaluation.tasks import load_task

LATIN = st.text(
    st.characters(max_codepoint=0x24F, exclude_categories=("Cs", "Cc"), exclude_characters="İ")
    | st.sampled_from(" -'"),
    max_size=80,
)


def split(text: str, language: str = "en") -> list[str]:
    return Words.of([text], language).splitter()(text)


@given(LATIN)
def test_english_is_split_as_bm25s_splits_it(text: str) -> None:
    """The figures of earlier versions stay what they are. Left out: İ, whose lower case holds a
    mark, which counts as a letter here.
    """
    expected = bm25s.tokenize([text], stopwords="en", show_progress=False, return_ids=False)
    assert split(text) == expected[0]


def test_english_is_ranked_as_bm25s_ranks_it() -> None:
    queries, documents = sentences(30), sentences(80, 1000)
    tokens = bm25s.tokenize(documents, stopwords="en", show_progress=False)
    index = bm25s.BM25()
    index.index(tokens, show_progress=False)
    words = bm25s.tokenize(queries, stopwords="en", show_progress=False, return_ids=False)
    ids = [f"d{i:02}" for i in range(80)]
    run = bm25_run(dict(zip(queries, queries, strict=True)), dict(zip(ids, documents, strict=True)))
    for query, wanted in zip(queries, words, strict=True):
        scores = index.get_scores(wanted)
        for name, score in run[query].items():
            assert score == pytest.approx(scores[ids.index(name)], rel=1e-5)
        assert len(run[query]) == np.count_nonzero(scores)


def test_chinese_words_are_found_whatever_the_language_says() -> None:
    assert "雨伞" in split("人们平时拿雨伞来做什么呢？")
    assert split("iPhone手机的第3章 hello_world") == [
        "iphone",
        "手机",
        "的",
        "第",
        "章",
        "hello_world",
    ]
    documents = {
        "a": "这件东西叫雨伞，常见的用途是遮挡雨水。",
        "b": "这件东西叫钥匙，常见的用途是打开房门。",
    }
    for language in ("en", "zh", "zh-CN"):
        words = Words.of(documents.values(), language)
        run = bm25_run({"q": "雨伞", "r": "钥匙"}, documents, words=words)
        assert {query: list(found) for query, found in run.items()} == {"q": ["a"], "r": ["b"]}


def test_japanese_is_split_into_characters_and_pairs() -> None:
    """A dictionary of Chinese would split the same characters in other ways beside kana."""
    assert split("東京の人口") == ["東", "京", "の", "人", "口", "東京", "京の", "の人", "人口"]
    assert not Words.of(["人口" * 50, "の"], "en").japanese, "a kana among Chinese"
    documents = {"a": "東京都の人口は多いです", "b": "京都のお寺は古いです"}
    words = Words.of(("人口", *documents.values()), "ja")
    assert list(bm25_run({"q": "人口"}, documents, words=words)["q"]) == ["a"]


@pytest.mark.parametrize(
    ("query", "answer", "other"),
    [
        ("ภาษาไทย", "คนจำนวนมากพูดภาษาไทยทุกวัน", "แมวนอนอยู่บนโต๊ะ"),
        ("ພາສາລາວ", "ຂ້ອຍເວົ້າພາສາລາວໄດ້", "ແມວຢູ່ເທິງໂຕະ"),
        ("ភាសាខ្មែរ", "ខ្ញុំនិយាយភាសាខ្មែរ", "ឆ្មានៅលើតុ"),
        ("မြန်မာစာ", "ကျွန်တော်မြန်မာစာဖတ်တယ်", "ကြောင်လေးအိပ်နေ"),
        ("안녕", "모두 안녕 하세요", "고양이 가 있다"),
        ("हिन्दी", "वह हिन्दी बोलता है", "बिल्ली मेज पर है"),
    ],
)
def test_every_script_finds_a_word_inside_a_sentence(query: str, answer: str, other: str) -> None:
    run = bm25_run({"q": query}, {"a": answer, "b": other})
    assert next(iter(run["q"])) == "a"
    assert run["q"].get("b", 0) < run["q"]["a"]


UNSPACED = "汉字東京ひらカタไทยລາວខ្មែရမြန်မာ"


@given(st.text(st.sampled_from(UNSPACED + " a1.,。"), min_size=1, max_size=40))
def test_no_letter_of_a_script_without_spaces_is_lost(text: str) -> None:
    letters = {letter for letter in text if letter.isalpha() and not letter.isascii()}
    assert letters <= set("".join(split(text)))


def test_a_vowel_sign_does_not_end_a_word() -> None:
    assert split("हिन्दी में") == ["हिन्दी", "में"]


def test_stop_words_and_stems_are_those_of_the_language() -> None:
    assert split("the houses of Paris", "en") == ["houses", "paris"], "English is not stemmed"
    assert split("Die Häuser und das Haus", "de-AT") == ["haus", "haus"]
    assert split("les maisons", "fr") == split("la maison", "fr") == ["maison"]
    assert split("og husene", "nb") == split("og husene", "no") == ["hus"]
    assert split("the houses", "xx") == ["the", "houses"], "nothing is known of the language"
    assert split("the houses", "eng") == ["houses"]
    assert str(Words.of([], "de")) == "language de: its stop words left out, stems"
    assert str(Words.of([], "zh")) == "language zh: no stop words left out, no stems"


def test_no_word_at_all_finds_nothing() -> None:
    assert bm25_run({"q": "word"}, {"d": "?!", "e": ""}) == {"q": {}}
    assert bm25_run({"q": "?"}, {"d": "word"}) == {"q": {}}


XQUAD = {"zh": 0.95, "hi": 0.94, "ar": 0.92, "de": 0.93, "es": 0.95, "en": 0.95}


@pytest.mark.skipif(not (REAL_DATA / "xquad").is_dir(), reason="XQuAD is not here")
@pytest.mark.parametrize("language", XQUAD)
def test_xquad_in_each_language(language: str) -> None:
    task = load_task(str(REAL_DATA / "xquad" / language))
    words = Words.of((*task.queries.values(), *task.documents.values()), language)
    run = bm25_run(task.queries, task.documents, words=words)
    assert per_query(run, task.qrels)["nDCG@10"].mean() > XQUAD[language]


def test_the_chinese_case_of_a_user() -> None:
    path = ROOT.parent / "shared" / "cases" / "04-bm25-chinese" / "zh.jsonl"
    if not path.is_file():
        pytest.skip("the recorded cases are not here")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    documents = {row["document"]: row["document"] for row in rows}
    run = bm25_run({row["query"]: row["query"] for row in rows}, documents)
    qrels = {row["query"]: {row["document"]: 1} for row in rows}
    assert per_query(run, qrels)["nDCG@10"].mean() == pytest.approx(0.80, abs=0.02)
