"""Texts from outside stay texts: in both cards, in their metadata, and in the report."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from hub_server import card_errors
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from run_results import run_results, training, usual_evaluation

from hf_distill.data.collection import Source
from hf_distill.errors import InputError, printable
from hf_distill.evaluation.results import SourceResults, TaskResults
from hf_distill.recipe.read import read_recipe
from hf_distill.release.cards import escape_markdown, hub_link, licence_metadata, link
from hf_distill.release.dataset_repo import write_dataset
from hf_distill.release.hub import releases_of
from hf_distill.release.model_card import write_model_card
from hf_distill.report.page import write_report
from hf_distill.report.results import RunResults
from hf_distill.run.folder import RunFolder, save_recipe
from hf_distill.run.stage import write_result

PAYLOADS = (
    "<img src=x onerror=\"document.title='owned'\">",
    "<script>document.title='owned'</script>",
    "[read this](https://evil.example/x) **now** ",
    "![pixel](https://evil.example/p.png)",
    "` ``` `<b>`",
    "a\n\n# heading\n\n<b>x</b>",
    "---\nlicense: mit\n---\n",
    "a | b | <i>c</i>",
    "![x][y]\n\n[y]: javascript:alert(1)",
    "https://evil.example/x www.evil.example me@evil.example",
    '"\n```\n<u>out</u>\n```',
    "{{ 7 * 7 }} {% raw %} $x^$ ~~gone~~ &lt; \\",
    "<!-- <![CDATA[ --> <svg/onload=alert(1)>",
    "- item\n1. first\n===\n> quoted",
    "\x1b[31mred\x1b[0m \x07 \u202egnp.exe",
)
"""What would be something else than text in HTML, Markdown, YAML, Jinja, a plot or a terminal."""

OWN_TAGS = frozenset((
    "h1", "h2", "h3", "p", "code", "pre", "table", "thead", "tbody", "tr", "th", "td", "ul", "li",
    "strong", "details", "summary",
))  # fmt: skip


class Tags(HTMLParser):
    """The elements of a page: (tag, attributes)."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def rendered(card: str) -> list[tuple[str, dict[str, str | None]]]:
    """The elements that a card becomes, without its metadata. As on the Hub, HTML is let through,
    and addresses become links.
    """
    body = re.sub(r"\A---\n.*?\n---\n", "", card, flags=re.DOTALL)
    markdown = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    return Tags(markdown.render(body)).found


LINKS = ("https://huggingface.co/", "https://duckdb.org")


def check(card: str) -> None:
    """Nothing but what the template itself writes."""
    for tag, attributes in rendered(card):
        if tag == "a":
            of_source = "https://evil.example/x%20"  # the address of the source is a link
            assert str(attributes["href"]).startswith((*LINKS, of_source))
        elif tag == "img":
            assert attributes["src"] == "scores.png"
        else:
            assert tag in OWN_TAGS, (tag, attributes)
        assert set(attributes) <= {"class", "style", "href", "src", "alt"}, attributes
    outside_code = re.sub(r"^```.*?^```$", "", card.split("\n---\n", 1)[1], flags=re.M | re.S)
    addresses = r"^    .*$|^Source: <http.*>$|\]\(https://(?:huggingface.co/|duckdb.org)[^)]*\)"
    outside_code = re.sub(addresses, "", outside_code, flags=re.M)
    assert not re.search(r"(://|www\.|@)evil", re.sub(r"(`+).*?\1", "", outside_code))
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", card)


def hostile(folder: RunFolder, payload: str) -> RunResults:
    """A run whose every name and setting is `payload`, with both cards written."""
    usual = usual_evaluation()
    retrieval = dataclasses.replace(usual.retrieval, notes=(payload,))
    task = TaskResults(payload, retrieval, usual.significance, usual.per_query)
    figures = {
        name: {measure: next(iter(means.values())) for measure in ("nDCG@10", "R@10")}
        for name, means in usual.retrieval.systems.items()
    }
    of_source = SourceResults(3, 4, figures, usual.fidelity.pearson, usual.fidelity.mae)
    evaluation = dataclasses.replace(
        usual, retrieval=retrieval, tasks={payload: task}, by_source={payload: of_source}
    )
    source = Source(payload, license=payload, description=payload, url=payload)
    keys = (
        "teacher", "student_license", "language", "query_prompt", "document_prompt",
        "group_column", "hub_model_id", "hub_dataset_id",
    )  # fmt: skip
    line = ["--push_to_hub", "true", *(f"--{key}={payload}" for key in keys)]
    results, scores, *rest = run_results(folder, *line, rules=("percentile=50",), source=source)
    soft_labels = dataclasses.replace(
        results.soft_labels, teacher=payload, query_prompt=payload, document_prompt=payload,
        teacher_kind=payload,
    )  # fmt: skip
    record = dataclasses.replace(
        results.collection.record, read_as=payload, unused={payload: 3}, held_out=payload,
        read={payload: 200}, leaks_removed={payload: 4},
    )  # fmt: skip
    queries = results.collection.queries.map(lambda row: {"text": f"{payload} {row['text']}"})
    collection = dataclasses.replace(results.collection, record=record, queries=queries)
    results = dataclasses.replace(
        results, soft_labels=soft_labels, collection=collection,
        training=training(sources={payload: 4}), evaluation=evaluation,
    )  # fmt: skip
    save_recipe(results.recipe, folder)
    (folder.student / "2_Dense").mkdir(parents=True)
    prompts = {"prompts": {"query": payload, "document": payload}}
    (folder.student / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    (folder.student / "2_Dense" / "config.json").write_text(json.dumps({"bias": False}))
    write_result(folder.training, results.training, [folder.student])
    write_dataset(results, scores, *rest)
    write_model_card(results)
    return results


@pytest.mark.parametrize("payload", PAYLOADS)
def test_cards_show_texts_from_outside_as_texts(folder: RunFolder, payload: str) -> None:
    results = hostile(folder, payload)
    dataset, _ = releases_of(results)
    cards = {
        "model": (folder.student / "README.md").read_text(encoding="utf-8"),
        "dataset": (folder.dataset / "README.md").read_text(encoding="utf-8"),
        "linked": dataset.instead["README.md"].decode(),
    }
    for kind, card in cards.items():
        check(card)
        text = card.split("\n---\n", 1)[0].removeprefix("---\n")
        front = yaml.safe_load(text)
        assert front["license"] == "other", kind
        assert re.fullmatch("[a-z0-9.-]+", front["license_name"])
        assert not [
            error
            for error in card_errors(card, kind.replace("linked", "dataset"))
            if "id" not in error  # a payload is no id of a repository, which is refused elsewhere
        ]


def test_the_report_shows_texts_from_outside_as_texts(folder: RunFolder) -> None:
    write_report(hostile(folder, " ".join(PAYLOADS)))
    page = folder.report.read_text(encoding="utf-8")
    assert not {"script", "u", "i", "s"} & {tag for tag, _ in Tags(page).found}
    assert all(str(a["src"]).startswith("data:") for tag, a in Tags(page).found if tag == "img")


def test_a_browser_runs_nothing_of_a_report(folder: RunFolder, tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium here")
    write_report(hostile(folder, " ".join(PAYLOADS)))
    command = [
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
        f"--user-data-dir={tmp_path / 'profile'}", folder.report.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    tags = Tags(done.stdout).found
    assert "<title>owned" not in done.stdout
    assert "&lt;script&gt;" in done.stdout, "the page was there, and showed it as text"
    assert not {"script", "iframe", "object", "embed", "a"} & {tag for tag, _ in tags}
    assert not [a for _, a in tags for name in a if name.startswith("on")]


@given(st.text(alphabet=st.sampled_from("a1 .-+=#>|<&*_`~[]()!\\\n\t:/@$w")))
def test_an_escaped_text_renders_to_itself(text: str) -> None:
    markdown = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    html = markdown.render(str(escape_markdown(text)))
    assert {tag for tag, _ in Tags(html).found} <= {"p"}
    shown = "".join(itertools.chain(*_texts(html))).strip()
    assert shown == " ".join(text.split())


def _texts(html: str) -> Iterator[str]:
    parts: list[str] = []
    reader = HTMLParser()
    reader.handle_data = parts.append
    reader.feed(html)
    reader.close()
    yield from parts


def test_what_is_no_address_of_a_page_is_no_link() -> None:
    assert link("javascript:alert(1)") == "`javascript:alert(1)`"
    assert link("https://a.b/c d>") == "<https://a.b/c%20d%3E>"
    assert hub_link("a/b](x)").endswith("(https://huggingface.co/a/b%5D%28x%29)")


def test_a_licence_that_the_hub_does_not_know_has_a_name() -> None:
    assert licence_metadata("cc-by-4.0") == {"license": "cc-by-4.0"}
    assert licence_metadata("My Licence: v2\n---") == {
        "license": "other", "license_name": "my-licence-v2",
    }  # fmt: skip
    assert licence_metadata("許可") == {"license": "other", "license_name": "other"}
    assert licence_metadata(None) == {}


def test_a_name_that_is_no_unicode_is_refused() -> None:
    with pytest.raises(InputError, match=r"--teacher a\\udcff"):
        read_recipe(["--teacher", "a\udcff"])


def test_control_characters_are_shown_and_not_sent() -> None:
    assert printable("a\x1b[31m\r\x9b\u202e\udcff\n\tü😀") == (
        "a\\x1b[31m\\r\\x9b\\u202e\\udcff\n\tü😀"
    )
