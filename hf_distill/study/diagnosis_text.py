"""A diagnosis for a terminal: examples of every kind, then all of it on one screen."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from hf_distill.data.explain import short
from hf_distill.errors import printable
from hf_distill.study.diagnosis import Diagnosis, Example, Finding

_WIDTH = 100
_ARROW = " -> "


def _wrapped(text: str, indent: str = "", further: str | None = None) -> Iterator[str]:
    """`text` without control characters, in lines that fit."""
    yield from textwrap.wrap(
        printable(text),
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=indent if further is None else further,
        break_on_hyphens=False,
    )


def _example(example: Example) -> Iterator[str]:
    half = (_WIDTH - 6 - len(_ARROW)) // 2
    yield f"    - {short(example.query, half)}{_ARROW}{short(example.document, half)}"
    if example.said:
        yield f"      {short(example.said, _WIDTH - 6)}"


def _share(finding: Finding) -> str:
    known = finding.count is not None and finding.of
    return f"{(finding.count or 0) / finding.of:.1%}" if known else "–"


def examples(diagnosis: Diagnosis) -> Iterator[str]:
    """Lines on everything that there is some of: what it rests on, and examples."""
    for finding in diagnosis.findings:
        if not finding.count:
            continue
        yield ""
        yield from _wrapped(
            f"{finding.kind}: {finding.count:,} of {finding.of:,} {finding.unit} "
            f"({_share(finding)}), {finding.what}"
        )
        if finding.because:
            yield from _wrapped(finding.because, "    ")
        for example in finding.examples:
            yield from _example(example)


def _row(finding: Finding) -> Iterator[str]:
    count = "–" if finding.count is None else f"{finding.count:,}"
    start = f"  {finding.kind:<17}{count:>9} {_share(finding):>7}  "
    if finding.count:
        rule = "" if finding.rule is None else f"{finding.rule}: "
        said = f"{rule}{finding.advice}"
    else:
        said = finding.because or finding.what
        said = said if finding.count is None or finding.kind == "mismatched" else "none"
    yield from _wrapped(said, start, " " * len(start))


def summary(diagnosis: Diagnosis, run_dir: str) -> Iterator[str]:
    """Lines of one screen.

    Args:
        diagnosis: What was found.
        run_dir: Where the teacher's work is kept.
    """
    read_as = f", read as {diagnosis.read_as}" if diagnosis.read_as else ""
    yield from _wrapped(
        f"Looked at {diagnosis.pairs:,} training pairs of {diagnosis.source}{read_as}, with "
        f"{diagnosis.teacher}. {diagnosis.held_out:,} more are held out ({diagnosis.split})."
    )
    if diagnosis.beyond:
        yield from _wrapped(
            f"That is a sample: {diagnosis.beyond:,} of {diagnosis.found:,} pairs were left out, "
            f"whole groups, drawn with seed {diagnosis.seed}; --max_pairs none looks at all."
        )
    yield ""
    for finding in diagnosis.findings:
        yield from _row(finding)
    yield ""
    yield from _wrapped(
        "The rules of the recipe and those that have something to do here leave "
        f"{diagnosis.kept:,} of {diagnosis.pairs:,} pairs, {diagnosis.without_contrast:,} of them "
        "without contrast:"
    )
    yield ""
    yield f"selection: [{', '.join(diagnosis.selection)}]"
    yield ""
    yield from _wrapped(
        "Nothing was trained. hf-distill train recommended with the same data and teacher goes on "
        f"in {run_dir} and embeds none of these texts again; hf-distill study tells whether a "
        "selection helps."
    )
