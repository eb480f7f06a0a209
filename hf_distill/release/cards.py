"""What both cards share: rendering, escaping, and names that may be published."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

from huggingface_hub import DatasetCardData, ModelCardData

from hf_distill.recipe.arguments import TeacherArguments
from hf_distill.report.page import environment
from hf_distill.report.results import RunResults
from hf_distill.teachers.ensemble import parse_member

PLACEHOLDER = "path/to/this/folder"
"""The name in a card whose repository has none yet."""


def escape_markdown(text: str) -> str:
    """`text` on one line, with no character that Markdown or HTML would interpret."""
    flat = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*_{}\[\]()#+!|~$-])", r"\\\1", flat)


def code(text: str) -> str:
    """`text` as a Markdown code span, whatever backticks it holds. Line ends become spaces, and so
    does `|`, which would split a table's cell.
    """
    flat = re.sub(r"[\r\n|]", " ", text)
    longest = max(map(len, re.findall("`+", flat)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {flat} {fence}" if longest or not flat.strip() else f"{fence}{flat}{fence}"


def link(url: str) -> str:
    """`url` as a Markdown autolink."""
    return f"<{quote(url, safe=':/?#[]@!$&()*+,;=%~')}>"


def render(template: str, **values: Any) -> str:
    """The card from `template`, filled with `values`."""
    jinja = environment()
    jinja.filters |= {"escape_markdown": escape_markdown, "code": code, "link": link}
    return jinja.get_template(template).render(placeholder=PLACEHOLDER, **values)


def front_matter(data: DatasetCardData | ModelCardData) -> str:
    """A card's metadata, as YAML between its two lines."""
    return f"---\n{data.to_yaml()}\n---\n"


def hub_id(name: str) -> str | None:
    """`name` if it can be a Hub id and is not a folder here, else None: cards never name local
    paths.
    """
    return name if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists() else None


def public_name(name: str) -> str:
    """The name of a model in a card: its Hub id, or the last part of a local path."""
    return hub_id(name) or Path(name).name


def public_teacher(arguments: TeacherArguments) -> str:
    """The name of the teacher in a card, in Markdown: its public name, or for an ensemble that of
    each member with its weight.
    """
    if not arguments.ensemble:
        return code(public_name(arguments.teacher))
    members = []
    for member in arguments.ensemble:
        kind, name, weight = parse_member(member)
        members.append(f"{code(public_name(name))} ({kind}, weight {weight:g})")
    return "an ensemble of " + ", ".join(members)


def licence_of_texts(results: RunResults) -> str | None:
    """The licence of the texts: the recipe's, else the source's."""
    return results.recipe.data.dataset_license or results.collection.source.license
