"""Calmer retrievals of the same questions: distractors exchanged for passages retrieved for other questions."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace

from focus_rag.examples import Example, holds_answer
from focus_rag.passages import Passage


def calmed(example: Example, count: int, noise: float, pool: Sequence[Passage]) -> Example | None:
    """The same question with `count` passages, of which fewer mislead.

    Args:
        example: As retrieved.
        count: Passages to show.
        noise: Share of the passages beside the gold that are this question's own, the best scored ones; 1 only cuts the
            example.
        pool: Passages retrieved for other questions. What is drawn depends on the question alone.

    Returns:
        None where the pool has too few passages for it, see `easy_passages`. Those taken stand last.
    """
    shown = example.at_count(count)
    others = [index for index in shown.best_first() if index not in shown.gold]
    kept = others[: round(noise * len(others))]
    wanted = len(others) - len(kept)
    if not wanted:
        return shown
    rng = random.Random(f"{example.key} {noise:g}")
    easy = easy_passages(example, rng.sample(pool, len(pool)), wanted)
    return None if easy is None else shown.with_passages(sorted([*shown.gold, *kept]), easy)


def easy_passages(example: Example, candidates: Iterable[Passage], wanted: int) -> list[Passage] | None:
    """The first candidates that were not retrieved for a question and do not hold its answer, with its worst score: the
    nearest true word on a passage that was not retrieved. None where they are too few.
    """
    worst = example.passages[example.best_first()[-1]].score if example.passages else None
    texts = {passage.text for passage in example.passages}
    easy: list[Passage] = []
    for candidate in candidates:
        if len(easy) == wanted:
            break
        if candidate.text not in texts and not holds_answer(candidate.content, example.answers):
            easy.append(replace(candidate, score=worst))
            texts.add(candidate.text)
    return easy if len(easy) == wanted else None


def pool_of(examples: Sequence[Example]) -> list[Passage]:
    """Every passage of these examples once, in a fixed order."""
    found = {passage.content: passage for example in examples for passage in example.passages}
    return [found[content] for content in sorted(found)]
