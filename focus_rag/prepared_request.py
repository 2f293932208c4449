"""A request made ready for the model, and the answer that is made of what the model wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from focus_rag.answer_grammar import AnswerGrammar
from focus_rag.answers import Answer, GenerationSettings, PassageUse, Request, Usage
from focus_rag.attention.formulas import split_weights
from focus_rag.decoding import RowText
from focus_rag.focus_choice import FocusChoice
from focus_rag.passages import Passage
from focus_rag.prompting import BuiltPrompt, TokenSpan

_NOT_KEPT = "it is none of the best that were to be kept"


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A request with its prompt built and its focus chosen.

    Attributes:
        request: The request, with the passages that it is answered from.
        settings: How its text is generated.
        prompt: Its prompt.
        choice: What is done to the model, and why.
        given: All passages that came with it.
        kept: Which of them it is answered from, in the order of the request's own.
        grammar: What its answer follows, if it has a schema; it follows one answer, so a prepared request is answered once.
    """

    request: Request
    settings: GenerationSettings
    prompt: BuiltPrompt
    choice: FocusChoice
    given: Sequence[Passage]
    kept: Sequence[int]
    grammar: AnswerGrammar | None = None

    def favoured_in(self, length: int) -> list[TokenSpan]:
        """Spans of the favoured passages, in a row padded on the left to `length` tokens."""
        spans = self.prompt.spans_in(length)
        return [span for index in self.choice.favoured if (span := spans[index]) is not None]

    def spans_in(self, length: int) -> list[TokenSpan]:
        """Spans of the passages in the prompt, in a row padded on the left to `length` tokens."""
        return [span for span in self.prompt.spans_in(length) if span is not None]

    def answer(self, text: RowText, steps: Sequence[Tensor], index: int) -> Answer:
        """The answer.

        Args:
            text: What the model wrote.
            steps: For every forward pass the mass `(batch, heads, rows, spans)` of the contextual heads on the spans of each row;
                none where nothing was measured.
            index: The request's row of the batch.
        """
        shares = iter(self._shares([step[index] for step in steps[: len(text.ids)]]))
        uses = [PassageUse(passage, None, used=False, dropped_reason=_NOT_KEPT) for passage in self.given]
        for place, (at, span) in enumerate(zip(self.kept, self.prompt.spans, strict=True)):
            passage = self.given[at]
            if span is not None:
                uses[at] = PassageUse(passage, next(shares, None), used=True, favoured=place in self.choice.favoured)
                continue
            if not passage.content.strip():
                reason = "it holds no text"
            elif place in self.prompt.dropped:
                reason = "the prompt would not have fitted the model's window"
            else:
                reason = "not found in the prompt"
            uses[at] = PassageUse(passage, None, used=False, dropped_reason=reason)
        return Answer(
            text=text.text,
            alpha=self.choice.alpha,
            tau=self.choice.tau,
            noise=self.choice.signal.noise,
            reason=self.choice.reason,
            passages=tuple(uses),
            usage=Usage(len(self.prompt.input_ids), len(text.ids)),
            finish_reason=text.finish_reason or "length",
        )

    def _shares(self, steps: Sequence[Tensor]) -> list[float]:
        """Share of the attention on passages that each located passage got, over heads and response rows."""
        located = sum(span is not None for span in self.prompt.spans)
        if not located or not steps:
            return []
        by_head = torch.stack([step[:, 0, :located] for step in steps])
        if self.choice.favoured:  # the meter reads queries and keys, which split softmax leaves as they are
            shown = [index for index, span in enumerate(self.prompt.spans) if span is not None]
            by_head = split_weights(by_head, torch.tensor([index in self.choice.favoured for index in shown]), self.choice.tau)
        mass = by_head.mean(dim=(0, 1))
        total = float(mass.sum())
        return [float(value) / total for value in mass] if total > 0 else []
