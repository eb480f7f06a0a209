"""The query of a student that reads conversations.

The teacher reads a question that stands alone. A student that reads the turns before it, and is
aligned to the teacher's embedding of that question, needs no rewriter at query time (ConvDR: Yu et
al. 2021, arXiv:2105.04166).
"""

from __future__ import annotations

from collections.abc import Sequence

_NEXT = "\n| "


def conversation_query(history: Sequence[str], utterance: str) -> str:
    """The text that a student of conversations embeds as its query: the utterance, then the turns
    before it, the newest first, each on a line of its own that begins with `| `.

        >>> conversation_query(["What is throat cancer?", "Is it treatable?"], "And lung cancer?")
        'And lung cancer?\\n| Is it treatable?\\n| What is throat cancer?'

    A model cuts a long text at its end, so the utterance is always read, and the oldest turns are
    the first to go. White space inside a turn becomes one space.

    Args:
        history: The turns before, the oldest first: questions, and answers where there are any.
        utterance: What is asked now.
    """
    return _NEXT.join(" ".join(turn.split()) for turn in (utterance, *reversed(history)))


def utterance_of(query: str) -> str:
    """The bare utterance of a `conversation_query`."""
    return query.partition("\n")[0]
