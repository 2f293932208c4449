"""Questions of a fit, asked and graded: with their passages as retrieved, or without the gold ones."""

from __future__ import annotations

from collections.abc import Sequence

from focus_rag.abstention import abstains
from focus_rag.answers import AlphaSetting, Answer, GenerationSettings, Request
from focus_rag.examples import Example, holds_answer
from focus_rag.fitting.grading import Grading, grade
from focus_rag.generator import FocusGenerator
from focus_rag.passages import Passage
from focus_rag.score_split import SplitSetting


def without_gold(example: Example) -> tuple[Passage, ...]:
    """An example's passages without its gold ones, in order."""
    return tuple(passage for index, passage in enumerate(example.passages) if index not in example.gold)


def is_answered_elsewhere(example: Example) -> bool:
    """Whether its other passages hold the answer too, so that it is stated without the gold ones."""
    return any(holds_answer(passage.content, example.answers) for passage in without_gold(example))


def examples_at(examples: Sequence[Example], count: int) -> list[Example]:
    """The examples that have so many passages, cut to `count`."""
    return [one.at_count(count) for one in examples if len(one.passages) >= count]


def shown_passages(example: Example, gold_missing: bool) -> tuple[Passage, ...]:
    """What stands in the prompt."""
    return without_gold(example) if gold_missing else example.passages


def answers_to(
    generator: FocusGenerator,
    examples: Sequence[Example],
    alpha: AlphaSetting,
    *,
    max_new_tokens: int,
    gold_missing: bool = False,
    split: SplitSetting = "off",
) -> list[Answer]:
    """Answer every example at one alpha.

    Args:
        generator: Model and profile.
        examples: Questions with the passages to show.
        alpha: As for a request.
        max_new_tokens: Longest answer.
        gold_missing: Take the gold passages away; the right answer is then that it is not stated.
        split: As for a request.

    Returns:
        One answer per example, in their order.
    """
    settings = GenerationSettings(max_new_tokens=max_new_tokens)
    requests = [
        Request(
            question=one.question,
            passages=shown_passages(one, gold_missing),
            alpha=alpha,
            split=split,
            score_kind=one.score_kind,
            settings=settings,
        )
        for one in examples
    ]
    # Neighbours in length share a batch: less padding, the same answers.
    order = sorted(range(len(requests)), key=lambda i: sum(len(passage.text) for passage in requests[i].passages))
    answers = generator.answer_batch([requests[i] for i in order])
    by_place = dict(zip(order, answers, strict=True))
    return [by_place[place] for place in range(len(examples))]


def answer_texts(
    generator: FocusGenerator,
    examples: Sequence[Example],
    alpha: AlphaSetting,
    *,
    max_new_tokens: int,
    gold_missing: bool = False,
    split: SplitSetting = "off",
) -> list[str]:
    """The texts of `answers_to`."""
    answers = answers_to(
        generator, examples, alpha, max_new_tokens=max_new_tokens, gold_missing=gold_missing, split=split
    )
    return [answer.text for answer in answers]


def measure_quality(
    generator: FocusGenerator,
    examples: Sequence[Example],
    alpha: AlphaSetting,
    *,
    grading: Grading,
    max_new_tokens: int,
    gold_missing: bool = False,
    split: SplitSetting = "off",
) -> list[float]:
    """Answer every example at one alpha and grade the answers, see `answer_texts` and `grading`.

    Returns:
        One grade per example, 0 or 1.
    """
    texts = answer_texts(
        generator, examples, alpha, max_new_tokens=max_new_tokens, gold_missing=gold_missing, split=split
    )
    if gold_missing:  # said in whatever words stand around it, also by a model that else answers exactly
        return [float(abstains(text)) for text in texts]
    return [grade(text, one.answers, grading) for text, one in zip(texts, examples, strict=True)]
