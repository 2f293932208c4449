"""Choosing tokens and turning them into text, one row at a time, inside transformers' own `generate`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from focus_rag.answer_grammar import AnswerGrammar
from focus_rag.answers import FinishReason, GenerationSettings

# Of a token that the model's configuration rules out, and a schema needs; and where the model computes no number.
_LEAST_LOGPROB = -100.0
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_BYTE = re.compile("<0x[0-9A-F]{2}>")
_LONGEST_CHARACTER = 4  # bytes
_BEFORE = 4  # tokens of a prompt that show how what follows them reads


class RowLogprobs(LogitsProcessor):
    """Keeps the logits of a step, as the model's configuration leaves them, until it is known what was taken."""

    def __init__(self) -> None:
        self._logits: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        self._logits = scores
        return scores

    def of(self, tokens: Tensor) -> list[float]:
        """Log-probability, natural logarithm, of the token `(batch,)` that each row took in this step."""
        if self._logits is None:
            raise RuntimeError("no logits were seen")
        logits = self._logits.float()
        found = logits.gather(1, tokens[:, None].to(logits.device))[:, 0] - logits.logsumexp(dim=-1)
        return found.nan_to_num(nan=_LEAST_LOGPROB).clamp_min(_LEAST_LOGPROB).tolist()


class RowSampler(LogitsProcessor):
    """Samples each row by its own settings and seed, and leaves only the sampled token for greedy search to take.

    So a row draws the same tokens alone and in any batch, and no random state outside is touched.
    """

    def __init__(self, settings: Sequence[GenerationSettings]) -> None:
        self._rows = [(_warpers(row), _generator(row.seed)) if row.temperature > 0 else None for row in settings]

    @property
    def is_needed(self) -> bool:
        """Whether any row samples."""
        return any(row is not None for row in self._rows)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        chosen = scores.clone()
        for index, row in enumerate(self._rows):
            if row is None:
                continue
            warpers, generator = row
            logits = scores[index : index + 1].float()
            # Measured from the best one, so that no temperature, however low, makes them overflow.
            logits = warpers(input_ids[index : index + 1], logits - logits.max())
            token = int(torch.multinomial(logits.softmax(dim=-1)[0].cpu(), 1, generator=generator))
            chosen[index] = -float("inf")
            chosen[index, token] = 0.0
        return chosen


def _warpers(settings: GenerationSettings) -> LogitsProcessorList:
    # In float32 a lower temperature is 0, and the best logit 0 / 0.
    temperature = max(settings.temperature, torch.finfo(torch.float32).tiny)
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if settings.top_k:
        warpers.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1.0:
        warpers.append(TopPLogitsWarper(settings.top_p))
    return warpers


def _generator(seed: int | None) -> torch.Generator:
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator


class RowLimits(LogitsProcessor):
    """Leaves each row the tokens by which its text goes on following its schema, if it has one."""

    def __init__(self, rows: Sequence[RowText]) -> None:
        self._held = [(index, row) for index, row in enumerate(rows) if row.is_held]

    @property
    def is_needed(self) -> bool:
        """Whether any row has a schema."""
        return bool(self._held)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        limited = scores.clone()
        for index, row in self._held:
            allowed = row.allowed(scores[index])
            if allowed is None:  # whatever comes now is not read
                continue
            allowed = allowed.to(scores.device)
            row_scores = scores[index].masked_fill(~allowed, -float("inf"))
            if (
                not row_scores.isfinite().any()
            ):  # ruled out by the model's own configuration, which does not know the schema
                row_scores = torch.zeros_like(row_scores).masked_fill(~allowed, -float("inf"))
            limited[index] = row_scores
        return limited


class RowText:
    """The text of one row as its tokens arrive, ended by an end-of-sequence token, a stop string, the length, or
    because it follows its schema to the end.

    Args:
        tokenizer: The model's tokenizer.
        settings: Length, and stop strings where there is no schema.
        end_tokens: Ids that end a sequence.
        on_text: Called with every piece of text that is final; a piece that may yet become a stop string waits.
        grammar: What follows its schema; None where there is none.
        continues: Tokens that the text continues, of raw text to be completed: white space that a tokenizer takes away
            at a beginning then stays. Empty where an answer begins.
    """

    def __init__(
        self,
        tokenizer: Any,
        settings: GenerationSettings,
        end_tokens: frozenset[int],
        on_text: Callable[[str], None] | None = None,
        grammar: AnswerGrammar | None = None,
        continues: Sequence[int] = (),
    ) -> None:
        self._tokenizer = tokenizer
        self._before = list(continues[-_BEFORE:])
        self._text_before = tokenizer.decode(self._before, skip_special_tokens=True) if self._before else ""
        self._most = settings.max_new_tokens
        self._stop = () if grammar is not None else settings.stop
        self._grammar = grammar
        self._end_tokens = end_tokens | _special(tokenizer, self._stop)
        self._on_text = on_text
        self._emitted = ""
        self._settled_tokens = 0
        self._settled_text = ""
        self._text = ""
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.finish_reason: FinishReason | None = None

    def push(self, token: int, logprob: float) -> bool:
        """Take a token and its log-probability; True once the row is finished."""
        if self.finish_reason is not None:
            return True
        if self._grammar is not None and self._grammar.is_lost:
            self.finish("length")
            return True
        self.ids.append(token)
        if token in self._end_tokens:
            self.finish("stop")
            return True
        self.logprobs.append(logprob)
        if self._stop or self._on_text is not None:
            self._decode()
            if self._cut_at_stop():
                self.finish("stop")
                return True
            self._emit(self._safe_length())
        if self._grammar is not None:
            self._grammar.take(token)
            if self._grammar.is_complete:
                self.finish("stop")
                return True
        if len(self.ids) >= self._most:
            self.finish("length")
            return True
        return False

    def finish(self, reason: FinishReason) -> None:
        """End the row for a reason; what was held back is text after all."""
        if self.finish_reason is None:
            self.finish_reason = reason
            self._decode()
            self._cut_at_stop()
            self._emit(len(self._text))

    @property
    def is_held(self) -> bool:
        """Whether there is a schema."""
        return self._grammar is not None

    def allowed(self, scores: Tensor) -> Tensor | None:
        """Which tokens may come next, `(vocabulary,)` of bool, by the schema; None where the row is finished or its
        schema lost. Where the model's first choice is to end before the answer is whole, only tokens that close an open
        string, list or object are left: small models would write on without end.

        Args:
            scores: The model's own logits `(vocabulary,)`.
        """
        if self._grammar is None or self.finish_reason is not None:
            return None
        allowed = self._grammar.allowed(len(scores), self._end_tokens)
        if self._grammar.is_lost:
            return None
        first = int(scores.argmax())
        return self._grammar.closing(allowed) if first in self._end_tokens and not allowed[first] else allowed

    @property
    def text(self) -> str:
        """The finished text."""
        return self._text

    def _decode(self) -> None:
        """Decode what is new. It restarts a few tokens back, since how a token reads depends on its neighbours."""
        ids = [token for token in self.ids if token not in self._end_tokens]
        fresh = self._after_prompt(ids) if self._settled_tokens == 0 else self._decoded(ids[self._settled_tokens :])
        self._text = self._settled_text + fresh
        if len(ids) - self._settled_tokens > 48 and not fresh.endswith(_REPLACEMENT):
            keep = len(ids) - 16
            tail = self._decoded(ids[keep:])
            # Only where both halves read as they do together is it safe to forget the first one's tokens.
            if fresh.endswith(tail) and not tail.startswith(_REPLACEMENT):
                self._settled_text = self._text[: len(self._text) - len(tail)]
                self._settled_tokens = keep

    def _after_prompt(self, ids: list[int]) -> str:
        """The text from its beginning, as it goes on from what it continues."""
        if self._before:
            both = self._decoded([*self._before, *ids])
            if both.startswith(self._text_before):  # else the first token ends what the prompt began
                return both[len(self._text_before) :]
        return self._decoded(ids)

    def _decoded(self, ids: list[int]) -> str:
        """Text of some tokens. A character of which there are only the first bytes spoils no more than itself:
        tokenizers that fall back to bytes would give up all those beside it.
        """
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        for unfinished in range(1, min(_LONGEST_CHARACTER, len(ids) + 1) if text.endswith(_REPLACEMENT) else 0):
            if not _BYTE.fullmatch(str(self._tokenizer.convert_ids_to_tokens(ids[-unfinished]))):
                break
            shorter: str = self._tokenizer.decode(ids[:-unfinished], skip_special_tokens=True)
            if not shorter.endswith(_REPLACEMENT):
                return shorter + _REPLACEMENT
        return text

    def _cut_at_stop(self) -> bool:
        found = [start for stop in self._stop if (start := self._text.find(stop)) >= 0]
        if not found:
            return False
        self._text = self._text[: min(found)]
        return True

    def _safe_length(self) -> int:
        """How much of the text no later token can change."""
        settled = self._text.rstrip(_REPLACEMENT)
        beginnings = (stop[:size] for stop in self._stop for size in range(1, min(len(stop), len(settled) + 1)))
        # Every stop string that may be under way counts, not only the one that began last.
        return len(settled) - max((len(begun) for begun in beginnings if settled.endswith(begun)), default=0)

    def _emit(self, length: int) -> None:
        if self._on_text is None:
            return
        if not self._text.startswith(self._emitted):  # bytes that are no text at all; what was said stays said
            self._text = self._emitted + self._text[len(self._emitted) :]
        if length > len(self._emitted):
            self._on_text(self._text[len(self._emitted) : length])
            self._emitted = self._text[:length]


def _special(tokenizer: Any, stops: Sequence[str]) -> frozenset[int]:
    """Stop strings that are special tokens: they never become text, and end an answer as ids."""
    added = tokenizer.added_tokens_decoder if stops else {}
    return frozenset(token for token, known in added.items() if known.special and known.content in stops)


class RowStopping(StoppingCriteria):
    """Feeds new tokens to the rows' texts and ends the rows that are finished, or all of them when cancelled.

    Args:
        rows: The texts.
        logprobs: Sees the logits of every step.
        is_cancelled: Asked after every token.
        on_finished: Called with the index of each row that its own text has ended, once.
    """

    def __init__(
        self,
        rows: Sequence[RowText],
        logprobs: RowLogprobs,
        is_cancelled: Callable[[], bool],
        on_finished: Callable[[int], None],
    ) -> None:
        self._rows = rows
        self._logprobs = logprobs
        self._is_cancelled = is_cancelled
        self._on_finished = on_finished

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:  # type: ignore[override]
        open_rows = [index for index, row in enumerate(self._rows) if row.finish_reason is None]
        tokens = input_ids[:, -1]
        done = [
            row.push(*taken) for row, *taken in zip(self._rows, tokens.tolist(), self._logprobs.of(tokens), strict=True)
        ]
        for index in open_rows:
            if done[index]:
                self._on_finished(index)
        if self._is_cancelled():
            for row in self._rows:
                row.finish("cancelled")
            done = [True] * len(done)
        return torch.tensor(done, device=input_ids.device)
