"""What all cards share: rendering, escaping, and names that may be published.

A card's template writes Markdown; whatever it fills in is text. A value is Markdown only if it is
a `Markup`, which the filters here return. Any other string is escaped when it is written.
"""

from __future__ import annotations

import html
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from huggingface_hub import DatasetCardData, ModelCardData
from markupsafe import Markup

from hf_distill.candidates.mine import NAMED
from hf_distill.data.collection import Source
from hf_distill.errors import printable
from hf_distill.recipe.arguments import TeacherArguments
from hf_distill.report.page import environment
from hf_distill.report.results import CommonResults
from hf_distill.teachers.ensemble import parse_member
from hf_distill.teachers.load import kind_and_name

PLACEHOLDER = "path/to/this/folder"
"""The name in a card whose repository has none yet."""


_LICENCES = frozenset(
    """
    afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m
    bigscience-bloom-rail-1.0 bigscience-openrail-m bsd bsd-2-clause bsd-3-clause
    bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0
    cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0
    cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0
    epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 fair-noncommercial-research-license gemma gfdl
    gpl gpl-2.0 gpl-3.0 grok2-community h-research intel-research isc lgpl lgpl-2.1 lgpl-3.0
    lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa
    odbl odc-by ofl-1.1 openmdw-1.0 openrail openrail++ osl-3.0 other pddl postgresql unknown
    unlicense wtfpl zlib
    """.split()  # noqa: SIM905  (a list of eighty strings reads worse)
)
"""The licences that the metadata of a card may name. Any other is `other`, with a name."""

_HARMLESS = re.compile(
    r"(?!\s{4}|\s*(?:[-+=](?:\s|$)|[-=]+\s*$|\d+[.)](?:\s|$)))"
    r"(?:(?!www\.|://|@[\w-]+\.\w)(?:[^\W_]|[ .,:;%/()'+@–−-]))*",
    re.IGNORECASE,
)
"""Text that is the same in Markdown: no mark, no start of a list or a heading, no address."""


def escape_markdown(text: str) -> Markup:
    """`text` on one line, with nothing that Markdown or HTML would interpret: no mark, no tag, no
    start of a list or a heading, no address that becomes a link. Control characters are shown.
    """
    flat = html.escape(printable(" ".join(text.split())), quote=False)
    flat = re.sub(r"([\\`*_{}\[\]()#+!|~$-])", r"\\\1", flat)
    flat = re.sub(r"^(\d+)\.(?=\s|$)", r"\1\\.", re.sub("^=", r"\=", flat))
    flat = re.sub(r"\bwww\.", "www&#46;", flat.replace("://", "&#58;//"), flags=re.IGNORECASE)
    return Markup(re.sub(r"@(?=[\w-]+\.\w)", "&#64;", flat))


def _filled_in(value: object) -> object:
    """What a template writes for a value: text is escaped, Markdown and numbers are not."""
    if isinstance(value, (Markup, int, float)):
        return value
    text = str(value)
    return Markup(text) if _HARMLESS.fullmatch(text) else escape_markdown(text)


def code(text: str) -> Markup:
    """`text` as a Markdown code span, whatever backticks it holds. Line ends become spaces, and so
    does `|`, which would split a table's cell. Control characters are shown.
    """
    flat = printable(re.sub(r"[\r\n|]", " ", text))
    longest = max(map(len, re.findall("`+", flat)), default=0)
    fence = "`" * (longest + 1)
    return Markup(
        f"{fence} {flat} {fence}" if longest or not flat.strip() else f"{fence}{flat}{fence}"
    )


def link(url: str) -> Markup:
    """`url` as a Markdown autolink if a browser would open a page; as code otherwise."""
    if not re.match("https?://", url, re.IGNORECASE):
        return code(url)
    return Markup(f"<{quote(url, safe=':/?#@!$&()*+,;=%~')}>")


def hub_link(repo: str, kind: str = "") -> Markup:
    """A link to a repository; `kind` is what its address begins with, e.g. `datasets/`."""
    return Markup(f"[{code(repo)}](https://huggingface.co/{kind}{quote(repo)})")


def shell(text: str) -> Markup:
    """`text` as one word of a shell's command, on one line."""
    return Markup(shlex.quote(printable(" ".join(text.split()))))


def sql(text: str) -> Markup:
    """`text` as a string of SQL, on one line."""
    flat = printable(" ".join(text.split()))
    return Markup("'" + flat.replace("'", "''").replace("`", "") + "'")


@cache
def _jinja() -> jinja2.Environment:
    """Jinja with the escaping of this module."""
    jinja = environment().overlay(autoescape=True, finalize=_filled_in)
    own = {of_text.__name__: of_text for of_text in (code, link, hub_link, shell, sql)}
    jinja.filters = {**jinja.filters, **own}
    return jinja


def render(template: str, **values: Any) -> str:
    """The card from `template`, filled with `values`."""
    return _jinja().get_template(template).render(placeholder=PLACEHOLDER, **values)


def front_matter(data: DatasetCardData | ModelCardData) -> Markup:
    """A card's metadata, as YAML between its two lines."""
    return Markup(f"---\n{printable(data.to_yaml())}\n---\n")


def licence_metadata(licence: str | None) -> dict[str, str]:
    """What the metadata says about a licence. The Hub refuses ids that it does not know."""
    if licence is None or licence in _LICENCES:
        return {} if licence is None else {"license": licence}
    name = re.sub(r"[^a-z0-9.]+", "-", licence.lower()).strip("-.")
    return {"license": "other", "license_name": name or "other"}


def language_metadata(language: str) -> dict[str, str]:
    """What the metadata says about a language: the Hub refuses what is no ISO code."""
    known = re.fullmatch("[a-z]{2,3}|multilingual|code", language)
    return {"language": language} if known else {}


def hub_id(name: str) -> str | None:
    """`name` if it can be a Hub id and is not a folder here, else None: cards never name local
    paths.
    """
    return name if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists() else None


def public_name(name: str) -> str:
    """The name of a model in a card: its Hub id, or the last part of a local path."""
    return hub_id(name) or Path(name).name


def public_miner(name: str) -> str:
    """A miner of candidates in a card: one that has a name, or the public name of a bi-encoder."""
    return name if name in NAMED else public_name(name)


def public_ranker(text: str) -> str:
    """A ranker, KIND:MODEL, in a card."""
    kind, name = kind_and_name(text) or ("", text)
    return f"{kind}:{public_name(name)}"


def public_teacher(arguments: TeacherArguments) -> Markup:
    """The name of the teacher in a card, in Markdown: its public name, or for an ensemble that of
    each member with its weight.
    """
    if not arguments.ensemble:
        return code(public_name(arguments.teacher))
    members = []
    for member in arguments.ensemble:
        kind, name, weight = parse_member(member)
        members.append(f"{code(public_name(name))} ({kind}, weight {weight:g})")
    return Markup("an ensemble of " + ", ".join(members))


def writer_of_queries(source: Source) -> Markup | None:
    """The public name of the language model that wrote the queries, in Markdown; None: they are the
    data's own.
    """
    return None if source.queries_by is None else code(public_name(source.queries_by))


def licence_of_texts(results: CommonResults) -> str | None:
    """The licence of the texts: the recipe's, else the source's."""
    return results.recipe.data.dataset_license or results.collection.source.license
