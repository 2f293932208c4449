"""What every method answers with: one model, one prompt layout, one decoder, one measurement."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from focus_rag.answers import AlphaSetting, Answer, GenerationSettings, Request
from focus_rag.attention.measuring import SpanMeter
from focus_rag.attention.shares import split_mass
from focus_rag.built_prompt import BuiltPrompt, TokenSpan
from focus_rag.errors import InvalidInputError
from focus_rag.evaluation.cases import Case
from focus_rag.focus_choice import FocusChoice, choose_focus
from focus_rag.generator import FocusGenerator
from focus_rag.model_layout import ModelLayout
from focus_rag.passages import Passage
from focus_rag.probing import input_device
from focus_rag.profile import FocusProfile
from focus_rag.prompt_layout import PromptLayout
from focus_rag.prompting import PromptBuilder
from focus_rag.score_split import SplitSetting
from focus_rag.token_rows import end_tokens, left_padded, pad_token

_PROMPTS_KEPT = 1024  # those of the largest cell: methods that show the same passages follow one another


@dataclass(frozen=True, slots=True)
class Batch:
    """Cases with their prompts, left-padded to one length.

    Attributes:
        cases: The cases.
        prompts: Their prompts.
        length: Length of the longest prompt in tokens, to which the others are padded.
    """

    cases: tuple[Case, ...]
    prompts: tuple[BuiltPrompt, ...]
    length: int

    def start(self, row: int) -> int:
        """Position of a row's first token that is not padding: the attention sink."""
        return self.length - len(self.prompts[row].input_ids)

    def passage_spans(self, row: int) -> list[TokenSpan | None]:
        """Token span of every passage of a row in padded positions, None where it is not in the prompt."""
        return self.prompts[row].spans_in(self.length)

    def spans_of(self, choose: Callable[[Case], Sequence[int]]) -> list[list[TokenSpan]]:
        """For every row the spans of chosen passages, as taps want them.

        Args:
            choose: From a case to indices of its passages.
        """
        found = []
        for row, case in enumerate(self.cases):
            spans = self.passage_spans(row)
            found.append([span for index in choose(case) if (span := spans[index]) is not None])
        return found


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer and what was measured while it was given.

    Attributes:
        case: The case as the method showed it to the model.
        text: The answer.
        alpha: Intervention factor.
        prompt_tokens: Tokens of the prompt.
        answer_tokens: Tokens of the answer.
        shares: Share of the contextual heads' passage attention for each passage; empty where not measured.
        gold_mass: Mass of the contextual heads on gold passages while answering; None where not measured.
        sink_mass: Their mass on the first token.
        confidence: How likely it is right, by the profile; None where that does not tell.
    """

    case: Case
    text: str
    alpha: float
    prompt_tokens: int
    answer_tokens: int
    shares: tuple[float, ...] = ()
    gold_mass: float | None = None
    sink_mass: float | None = None
    confidence: float | None = None


Made = TypeVar("Made")


class Engine:
    """Answers batches of cases; methods differ only in what they ask of it.

    Args:
        generator: Model, tokenizer, profile and layout of prompts.
        max_new_tokens: Longest answer, in tokens.
    """

    def __init__(self, generator: FocusGenerator, *, max_new_tokens: int = 32) -> None:
        self.model: Any = generator.model
        self.tokenizer: Any = generator.tokenizer
        self.profile = generator.profile
        self.settings = GenerationSettings(max_new_tokens=max_new_tokens)
        self._room = generator.context_window - max_new_tokens
        if self._room < 1:
            raise InvalidInputError(
                f"max_new_tokens is {max_new_tokens}, but prompt and answer have {generator.context_window} together."
            )
        self._prompts = _Prompts(self.tokenizer, generator.prompts.layout)
        self._generators: dict[int, FocusGenerator] = {}
        self._made: dict[object, Any] = {}

    def once(self, what: object, make: Callable[[], Made]) -> Made:
        """What is made once for this engine, by methods that hold nothing themselves."""
        if what not in self._made:
            self._made[what] = make()
        return self._made[what]  # type: ignore[no-any-return]

    @property
    def heads(self) -> list[tuple[int, int]]:
        """The contextual heads as `(layer, head)` pairs.

        Raises:
            InvalidInputError: There is no profile.
        """
        if self.profile is None:
            raise InvalidInputError("This method works on the contextual heads and needs a profile.")
        return self.profile.head_pairs

    @property
    def every_head(self) -> list[tuple[int, int]]:
        """All heads of the model as `(layer, head)` pairs."""
        layout = ModelLayout.of(self.model)
        return [(layer.index, head) for layer in layout.layers for head in range(layout.query_heads)]

    def batch(self, cases: Sequence[Case]) -> Batch:
        """Build the prompts of some cases."""
        prompts = tuple(self._prompt(case) for case in cases)
        return Batch(tuple(cases), prompts, max(len(prompt.input_ids) for prompt in prompts))

    def _prompt(self, case: Case) -> BuiltPrompt:
        example = case.example
        return self._prompts.from_question(
            example.question, example.passages, max_tokens=self._room, drop_order=example.by_relevance()[::-1]
        )

    def fits(self, case: Case) -> bool:
        """Whether the question by itself fits the window."""
        return self._prompts.has_room_for(case.example.question, max_tokens=self._room)

    def dropped(self, case: Case) -> tuple[int, ...]:
        """Indices of the passages that the prompt has no room for."""
        return self._prompt(case).dropped

    def choice(self, case: Case, *, alpha: AlphaSetting = "auto", split: SplitSetting = "auto") -> FocusChoice:
        """What a request with these settings does to the model."""
        return choose_focus(_request(case, alpha, split), self._prompt(case).placed, self.profile)

    def answer(
        self,
        cases: Sequence[Case],
        *,
        alpha: AlphaSetting = 0.0,
        split: SplitSetting = "off",
        intervene: Callable[[Batch], AbstractContextManager[Any]] | None = None,
        profile: FocusProfile | None = None,
        edits_weights: bool = False,
    ) -> list[Answered]:
        """Answer one batch through `FocusGenerator`, with something attached around it.

        Args:
            cases: The cases.
            alpha: As for a request; 0 is the bare model.
            split: As for a request.
            intervene: From the batch to a context that is open while answering.
            profile: Another profile than the engine's.
            edits_weights: Whether the intervention works on attention weights, which the meter, reading queries and
                keys, would not see; masses are then not reported.
        """
        batch = self.batch(cases)
        requests = [_request(case, alpha, split) for case in cases]
        meter = None if self.profile is None or edits_weights else self._meter(batch)
        with ExitStack() as stack:
            if intervene is not None:
                stack.enter_context(intervene(batch))
            if meter is not None:
                stack.enter_context(meter)
            answers = self._generator(profile or self.profile).answer_batch(requests)
        steps = [] if meter is None else meter.steps
        is_split_here = profile is None or profile is self.profile
        return [_answered(batch, row, answer, steps, is_split_here=is_split_here) for row, answer in enumerate(answers)]

    def decode(self, batch: Batch, processors: Sequence[LogitsProcessor]) -> list[Answered]:
        """Answer one batch greedily with logits processors, for methods that mix in a second model's opinion."""
        end = sorted(end_tokens(self.model, self.tokenizer))
        config = GenerationConfig(
            max_new_tokens=self.settings.max_new_tokens,
            do_sample=False,
            eos_token_id=end or None,
            pad_token_id=pad_token(self.model, self.tokenizer),
        )
        ids, mask = self.padded([prompt.input_ids for prompt in batch.prompts])
        with torch.inference_mode():
            output = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=config,
                logits_processor=LogitsProcessorList(processors),
            )
        found = []
        for row, tokens in enumerate(output[:, ids.shape[1] :].tolist()):
            length = next((place for place, token in enumerate(tokens) if token in end), len(tokens))
            text = self.tokenizer.decode(tokens[:length], skip_special_tokens=True)
            case, prompt_tokens = batch.cases[row], len(batch.prompts[row].input_ids)
            found.append(Answered(case, text, 0.0, prompt_tokens, min(length + 1, len(tokens))))
        return found

    def rank_by_attention(self, cases: Sequence[Case]) -> list[list[int]]:
        """Passages by the attention of the contextual heads at the end of the prompt, most attended first.

        Passages that are not in the prompt come last, in their order.
        """
        batch = self.batch(cases)
        ids, mask = self.padded([prompt.input_ids for prompt in batch.prompts])
        meter = self._meter(batch)
        with torch.inference_mode(), meter:
            self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=(mask.cumsum(-1) - 1).clamp_min(0),
                use_cache=False,
                logits_to_keep=1,
            )
        mass = meter.steps[0].mean(dim=(1, 2))[:, 1:]
        orders = []
        for row, case in enumerate(cases):
            spans = batch.passage_spans(row)
            values = [float(mass[row, index]) if span is not None else -1.0 for index, span in enumerate(spans)]
            orders.append(sorted(range(len(case.example.passages)), key=lambda index: -values[index]))
        return orders

    def padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Token ids and mask, both `(batch, tokens)`, left-padded, on the model's device."""
        device = input_device(self.model)
        return left_padded(rows, pad_token(self.model, self.tokenizer), device)

    def _generator(self, profile: FocusProfile | None) -> FocusGenerator:
        # Measuring is done here, for all methods alike, and not twice; but confidence is told as a user's generator
        # tells it.
        if id(profile) not in self._generators:
            measure = profile is not None and profile.confidence is not None
            made = FocusGenerator(
                self.model, self.tokenizer, profile, settings=self.settings, measure=measure, max_batch=1024
            )
            made.prompts = self._prompts
            self._generators[id(profile)] = made
        return self._generators[id(profile)]

    def _meter(self, batch: Batch) -> SpanMeter:
        """Meter of the sink (span 0) and of every passage (spans 1 and on; empty where it is not in the prompt)."""
        spans = []
        for row in range(len(batch.cases)):
            start = batch.start(row)
            spans.append([(start, start + 1), *((span or (0, 0)) for span in batch.passage_spans(row))])
        return SpanMeter(self.model, self.heads, spans, batch.length)


class _Prompts(PromptBuilder):
    """Builds each prompt once: some thirty methods ask the same question over the same passages."""

    def __init__(self, tokenizer: Any, layout: PromptLayout) -> None:
        super().__init__(tokenizer, layout)
        self._kept = lru_cache(_PROMPTS_KEPT)(self._made)

    def from_question(
        self, question: str, passages: Sequence[Passage], *, max_tokens: int, drop_order: Iterable[int]
    ) -> BuiltPrompt:
        return self._kept(question, tuple(passages), max_tokens, tuple(drop_order))

    def _made(
        self, question: str, passages: tuple[Passage, ...], max_tokens: int, drop_order: tuple[int, ...]
    ) -> BuiltPrompt:
        return super().from_question(question, passages, max_tokens=max_tokens, drop_order=drop_order)


def _request(case: Case, alpha: AlphaSetting, split: SplitSetting) -> Request:
    example = case.example
    return Request(
        question=example.question, passages=example.passages, alpha=alpha, split=split, score_kind=example.score_kind
    )


def _answered(batch: Batch, row: int, answer: Answer, steps: Sequence[Tensor], *, is_split_here: bool) -> Answered:
    """An answer with what was measured.

    Args:
        batch: The batch it was given in.
        row: Its row.
        answer: The answer.
        steps: For every forward pass the mass `(batch, heads, rows, spans)` of the contextual heads on the sink and the
            passages.
        is_split_here: Whether a split acted on these heads, and not on those of another profile.
    """
    case, prompt_tokens, answer_tokens = (
        batch.cases[row],
        len(batch.prompts[row].input_ids),
        answer.usage.completion_tokens,
    )
    if not steps or answer_tokens == 0:
        return Answered(case, answer.text, answer.alpha, prompt_tokens, answer_tokens, confidence=answer.confidence)
    n = len(case.example.passages)
    by_head = torch.stack(
        [step[row, :, 0, : n + 1] for step in steps[:answer_tokens]]
    )  # other rows may have more passages
    if is_split_here:
        by_head = split_mass(by_head, [False, *(use.favoured for use in answer.passages)], answer.tau)
    mass = by_head.mean(dim=(0, 1))
    on_passages = [float(value) for value in mass[1:]]
    total = sum(on_passages)
    return Answered(
        case,
        answer.text,
        answer.alpha,
        prompt_tokens,
        answer_tokens,
        tuple(value / total for value in on_passages) if total > 0 else (),
        sum(on_passages[index] for index in case.example.gold) if case.example.gold else None,
        float(mass[0]),
        answer.confidence,
    )
