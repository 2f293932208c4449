"""A request made ready for the model, and the answer that is made of what the model wrote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

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
        left_out: The passages that were given besides, by their places among all that were.
    """

    request: Request
    settings: GenerationSettings
    prompt: BuiltPrompt
    choice: FocusChoice
    left_out: Mapping[int, Passage] = field(default_factory=dict)

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
        remaining = iter(self._shares([step[index] for step in steps[: len(text.ids)]]))
        uses = []
        for place, (passage, span) in enumerate(zip(self.request.passages, self.prompt.spans, strict=True)):
            if span is not None:
                uses.append(PassageUse(passage, next(remaining, None), used=True, favoured=place in self.choice.favoured))
                continue
            if not passage.content.strip():
                reason = "it holds no text"
            elif place in self.prompt.dropped:
                reason = "the prompt would not have fitted the model's window"
            else:
                reason = "not found in the prompt"
            uses.append(PassageUse(passage, None, used=False, dropped_reason=reason))
        return Answer(
            text=text.text,
            alpha=self.choice.alpha,
            tau=self.choice.tau,
            noise=self.choice.signal.noise,
            reason=self.choice.reason,
            passages=tuple(self._with_left_out(uses)),
            usage=Usage(len(self.prompt.input_ids), len(text.ids)),
            finish_reason=text.finish_reason or "length",
        )

    def _with_left_out(self, uses: Sequence[PassageUse]) -> Iterator[PassageUse]:
        """What became of the passages that were given, in their order."""
        kept = iter(uses)
        for place in range(len(uses) + len(self.left_out)):
            passage = self.left_out.get(place)
            yield next(kept) if passage is None else PassageUse(passage, None, used=False, dropped_reason=_NOT_KEPT)

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
