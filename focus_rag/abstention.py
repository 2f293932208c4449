"""How an answer says that the passages do not hold it, and what a model is asked to say then."""

from __future__ import annotations

import re
from typing import Final

NOT_STATED: Final = "not stated"
"""What the default instruction asks a model to say where the passages do not hold the answer."""

# What instructed models say in its place, apostrophes straight.
_ABSTENTIONS: Final = re.compile(
    r"""
    (?:\bnot|n't)\ (?:explicitly\ |directly\ |clearly\ )?(?:stated|mentioned|provided|given|specified|contained)\b
    | \b(?:passage|text|document|context|source|article|excerpt|information)s?\b[^.!?]*?
      \b(?:do|does|did)(?:\ not|n't)\ (?:explicitly\ |directly\ |clearly\ )?
      (?:mention|state|provide|contain|say|specify|include|give|indicate|answer|tell|discuss)\b
    | \b(?:do|does|did)(?:\ not|n't)\ (?:mention|specify|state)\b
    | \bnot\ contain | \bno\ (?:answer|information|mention)\b | \bunanswerable\b
    | \bunable\ to\ (?:find|answer|determine)\b
    | \b(?:cannot|can\ not|can't|could\ not|couldn't)\ (?:be\ )?(?:find|found|answer|answered|determine|determined)\b
    | \b(?:do\ not|don't)\ know\b
    | (?:^|\b(?:is|are|was|were|remains?)\ )unknown\.?$
    """,
    re.VERBOSE,
)


def abstains(answer: str) -> bool:
    """Whether an answer says that it has none, in one of the usual phrases or by saying nothing at all."""
    given = " ".join(answer.lower().replace("\u2019", "'").split())
    return not given or NOT_STATED in given or _ABSTENTIONS.search(given) is not None
