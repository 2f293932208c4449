"""Where the contextual heads looked while each token of an answer was chosen."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch

from focus_rag.answer_report import AnswerTrace
from focus_rag.answers import Answer
from focus_rag.attention.measuring import SpanMeter
from focus_rag.attention.shares import split_mass
from focus_rag.attention.splitting import split_softmax
from focus_rag.attention.steering import focus
from focus_rag.generator import FocusGenerator
from focus_rag.passages import Passage
from focus_rag.probing import input_device

_NO_ATTENTION = 1e-6  # probability mass on all passages together


def trace_answer(
    generator: FocusGenerator, question: str, passages: Sequence[Passage] = (), **options: Any
) -> AnswerTrace:
    """Answer a question and keep the attention behind each token.

    The tokens are those that the answer's text is cut into: where the model wrote it in others, as it may a number, the
    shares are those of the text written so.

    Args:
        generator: The generator; without a profile there are no contextual heads, and no token has shares.
        question: The question.
        passages: What was retrieved.
        **options: As for `FocusGenerator.answer`.
    """
    answer = generator.answer(question, passages, **options)
    uses = [use for use in answer.passages if use.used]
    used = [use.passage for use in uses]
    if generator.profile is None or not used or not answer.text:
        return AnswerTrace(answer, (), ())
    prompt = generator.prompts.from_question(question, used, max_tokens=generator.context_window, drop_order=())
    shown = [(span, use.favoured) for span, use in zip(prompt.spans, uses, strict=True) if span is not None]
    spans, favoured = [span for span, _ in shown], [span for span, is_favoured in shown if is_favoured]
    encoded = generator.tokenizer(answer.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    tokens = list(encoded["input_ids"])
    heads = generator.profile.head_pairs
    length = len(prompt.input_ids)
    # One pass over prompt and answer together: the row before a token is the one that chose it.
    rows = list(range(length - 1, length - 1 + len(tokens)))
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        stack.enter_context(focus(generator.model, generator.profile, answer.alpha, passages_at=prompt.passages_at))
        if favoured:
            after = prompt.after_passages_in(length)
            stack.enter_context(
                split_softmax(generator.model, heads, [favoured], length + len(tokens), tau=answer.tau, first_row=after)
            )
        meter = stack.enter_context(SpanMeter(generator.model, heads, [spans], length + len(tokens), rows=rows))
        ids = torch.tensor([[*prompt.input_ids, *tokens]], device=input_device(generator.model))
        generator.model(input_ids=ids, use_cache=False, logits_to_keep=1)
    by_head = split_mass(meter.steps[0][0], [is_favoured for _, is_favoured in shown], answer.tau)
    mass = by_head.mean(dim=0)
    whole = mass.sum(dim=-1, keepdim=True)
    shares = torch.where(whole > _NO_ATTENTION, mass / whole.clamp_min(_NO_ATTENTION), 0.0).tolist()
    # Cut from the answer, not decoded one by one: alone, a token may lose its space or be part of a character.
    starts = [0, *(start for start, _ in encoded["offset_mapping"][1:]), len(answer.text)]
    pieces = [answer.text[start:end] for start, end in itertools.pairwise(starts)]
    return AnswerTrace(answer, tuple(pieces), tuple(_spread(answer, row) for row in shares))


def _spread(answer: Answer, row: Sequence[float]) -> tuple[float | None, ...]:
    values = iter(row)
    return tuple(next(values, None) if use.used else None for use in answer.passages)
