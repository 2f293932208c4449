"""Answers under split softmax on the known gold passages: what perfect knowledge at the same heads would bring."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

from focus_rag.answers import GenerationSettings, Request
from focus_rag.attention.splitting import split_softmax
from focus_rag.examples import Example
from focus_rag.fitting.grading import Grading, grade
from focus_rag.fitting.head_scoring import Head
from focus_rag.generator import FocusGenerator


def oracle_quality(
    generator: FocusGenerator,
    heads: Sequence[Head],
    examples: Sequence[Example],
    *,
    grading: Grading,
    max_new_tokens: int,
    tau: float = 0.1,
) -> list[float]:
    """Answer every example with the softmax of some heads split in favour of its gold passages, and grade the answers.

    Args:
        generator: The model, bare.
        heads: `(layer, head)` pairs.
        examples: Questions with the passages to show.
        grading: What counts as right.
        max_new_tokens: Longest answer.
        tau: See `split_softmax`.

    Returns:
        One grade per example, 0 or 1.
    """
    settings = GenerationSettings(max_new_tokens=max_new_tokens)
    prompts = [
        generator.prompts.from_question(
            one.question,
            one.passages,
            max_tokens=generator.context_window - max_new_tokens,
            drop_order=one.by_relevance()[::-1],
        )
        for one in examples
    ]
    order = sorted(range(len(examples)), key=lambda index: len(prompts[index].input_ids))
    grades = [0.0] * len(examples)
    for start in range(0, len(order), generator.max_batch):
        batch = order[start : start + generator.max_batch]
        length = max(len(prompts[index].input_ids) for index in batch)
        placed = {index: prompts[index].spans_in(length) for index in batch}
        spans = [
            [span for place in sorted(examples[index].gold) if (span := placed[index][place]) is not None]
            for index in batch
        ]
        requests = [
            Request(
                question=examples[index].question,
                passages=examples[index].passages,
                alpha=0.0,
                score_kind=examples[index].score_kind,  # by which passages are dropped, as above
                settings=settings,
            )
            for index in batch
        ]
        with split_softmax(generator.model, heads, spans, length, tau=tau) if any(spans) else nullcontext():
            answers = generator.answer_batch(requests)
        for index, answer in zip(batch, answers, strict=True):
            grades[index] = grade(answer.text, examples[index].answers, grading)
    return grades
