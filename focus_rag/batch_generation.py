"""One batch of prepared requests through the model, with everything attached that acts on it and measures it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from transformers import LogitsProcessorList, StoppingCriteriaList

from focus_rag.answers import Answer
from focus_rag.attention.measuring import SpanMeter
from focus_rag.attention.splitting import SplitSoftmaxTap
from focus_rag.attention.steering import focus
from focus_rag.decoding import RowLimits, RowLogprobs, RowSampler, RowStopping, RowText
from focus_rag.prepared_request import PreparedRequest
from focus_rag.probing import input_device
from focus_rag.profile import FocusProfile
from focus_rag.token_rows import end_tokens, left_padded, pad_token


def batches_of(prepared: Mapping[int, PreparedRequest], most: int, window: int) -> Iterator[dict[int, PreparedRequest]]:
    """Requests in batches, in their order, by their places.

    A row that has ended runs on beside longer ones, so the longest prompt and the longest answer of a batch fit the
    window together: a model with learned positions has none beyond it.

    Args:
        prepared: The requests.
        most: Most of them in a batch.
        window: Tokens that prompt and answer may have together.
    """
    batch: dict[int, PreparedRequest] = {}
    length = new = 0
    for place, row in prepared.items():
        length, new = max(length, len(row.prompt.input_ids)), max(new, row.settings.max_new_tokens)
        if batch and (len(batch) == most or length + new > window):
            yield batch
            batch, length, new = {}, len(row.prompt.input_ids), row.settings.max_new_tokens
        batch[place] = row
    if batch:
        yield batch


class Batch:
    """Requests in the rows of one left-padded batch.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        profile: What their choices of alpha and split are about; None leaves the model bare.
        rows: The requests, at least one.
        measure: Whether to measure which passages the contextual heads attend to.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        profile: FocusProfile | None,
        rows: Sequence[PreparedRequest],
        *,
        measure: bool,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._profile = profile
        self._rows = rows
        self._measure = measure
        self._pad, self._ends = pad_token(model, tokenizer), end_tokens(model, tokenizer)
        self._input_ids, self._mask = left_padded(
            [row.prompt.input_ids for row in rows], self._pad, input_device(model)
        )
        self._length = self._input_ids.shape[1]

    def run(
        self,
        on_answer: Callable[[int, Answer], None],
        on_text: Callable[[str], None] | None,
        is_cancelled: Callable[[], bool],
    ) -> None:
        """Generate; the model must be free.

        Args:
            on_answer: Told the index of each row and its answer, once, as soon as it is there.
            on_text: Told every piece of text that is final.
            is_cancelled: Asked before the model runs and after every token.
        """
        texts = [
            RowText(
                self._tokenizer,
                row.settings,
                self._ends,
                on_text,
                row.grammar,
                () if row.request.prompt is None else row.prompt.input_ids,
            )
            for row in self._rows
        ]
        logprobs = RowLogprobs()
        choosing = [
            one for one in (RowLimits(texts), RowSampler([row.settings for row in self._rows])) if one.is_needed
        ]
        meter = self._meter()
        answered: set[int] = set()

        def finish(index: int) -> None:
            answered.add(index)
            on_answer(index, self._rows[index].answer(texts[index], [] if meter is None else meter.steps, index))

        if not is_cancelled():
            with torch.inference_mode(), ExitStack() as stack:
                if self._profile is not None:
                    alphas = [row.choice.alpha for row in self._rows]
                    stack.enter_context(focus(self._model, self._profile, alphas, passages_at=self._passages_at()))
                for tap in (self._split(), meter):
                    if tap is not None:
                        stack.enter_context(tap)
                self._model.generate(
                    input_ids=self._input_ids,
                    attention_mask=self._mask,
                    **self._generation_options(max(row.settings.max_new_tokens for row in self._rows)),
                    logits_processor=LogitsProcessorList([logprobs, *choosing]),
                    stopping_criteria=StoppingCriteriaList([RowStopping(texts, logprobs, is_cancelled, finish)]),
                )
        for index, text in enumerate(texts):
            text.finish("cancelled" if is_cancelled() else "length")
            if index not in answered:
                finish(index)

    def _passages_at(self) -> list[int] | None:
        """Where each row's passages stand; a row without any is steered as it stands."""
        known = self._profile.passages_at if self._profile is not None else None
        if known is None:
            return None
        found = [row.prompt.passages_at for row in self._rows]
        return [known if at is None else at for at in found]

    def _split(self) -> SplitSoftmaxTap | None:
        if self._profile is None or not any(row.choice.favoured for row in self._rows):
            return None
        spans = [row.favoured_in(self._length) for row in self._rows]
        # From where the passages end: so it costs the few rows that ask and answer, and brings what more rows would.
        first_rows = [
            row.prompt.after_passages_in(self._length) if row.choice.favoured else self._length for row in self._rows
        ]
        taus = [row.choice.tau for row in self._rows]
        return SplitSoftmaxTap(
            self._model, self._profile.head_pairs, spans, self._length, tau=taus, first_row=first_rows
        )

    def _meter(self) -> SpanMeter | None:
        if not self._measure or self._profile is None:
            return None
        spans = [row.measured_in(self._length) for row in self._rows]
        return SpanMeter(self._model, self._profile.head_pairs, spans, self._length) if any(spans) else None

    def _generation_options(self, max_new_tokens: int) -> dict[str, Any]:
        """What a request decides, over the model's own configuration; sampling is ours (`RowSampler`).

        Keyword arguments, because in a configuration object None means: as the model has it.
        """
        return dict(
            max_new_tokens=max_new_tokens, max_length=None, min_length=0, do_sample=False, num_beams=1,
            num_return_sequences=1,
            temperature=None, top_p=None, top_k=None, min_p=None, typical_p=None, use_cache=True,
            pad_token_id=self._pad,
            eos_token_id=sorted(self._ends) or None,
            return_dict_in_generate=False, output_scores=False, output_attentions=False, output_hidden_states=False,
            # In one pass, because what the first pass attends to is what the first token was chosen by.
            prefill_chunk_size=None,
            # Rows are read token by token and end by the request's own stop strings.
            stop_strings=None, guidance_scale=None, prompt_lookup_num_tokens=None, assistant_early_exit=None,
        )  # fmt: skip
