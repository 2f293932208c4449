"""A request made ready for the model, and the answer that is made of what the model wrote."""

from __future__ import annotations

import re
from collections.abc import Sequence, Set
from dataclasses import dataclass

from torch import Tensor

from focus_rag.answer_grammar import AnswerGrammar
from focus_rag.answers import Answer, GenerationSettings, PassageUse, Request, Usage
from focus_rag.attention.shares import attention_shares
from focus_rag.built_prompt import BuiltPrompt, ShownSentence, TokenSpan
from focus_rag.confidence import Confidence, Support
from focus_rag.decoding import RowText
from focus_rag.evidence import Evidence, best_supported, values_of
from focus_rag.focus_choice import FocusChoice
from focus_rag.passages import Passage
from focus_rag.sentences import sentence_spans
from focus_rag.shared_words import word_share

_MOST_MEASURED = 2**21  # sentences times tokens: 250 in 8,000
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
        confidence: From what speaks for its answer to how likely that is right; None where the profile does not say.
        grammar: What its answer follows, if it has a schema; it follows one answer, so a prepared request is answered
            once.
    """

    request: Request
    settings: GenerationSettings
    prompt: BuiltPrompt
    choice: FocusChoice
    given: Sequence[Passage]
    kept: Sequence[int]
    confidence: Confidence | None
    grammar: AnswerGrammar | None = None

    def favoured_in(self, length: int) -> list[TokenSpan]:
        """Spans of the favoured passages, in a row padded on the left to `length` tokens."""
        spans = self.prompt.spans_in(length)
        return [span for index in self.choice.favoured if (span := spans[index]) is not None]

    @property
    def measured_sentences(self) -> Sequence[ShownSentence]:
        """Sentences whose attention is measured: all, or none where so many in so long a prompt would take memory."""
        sentences = self.prompt.sentences
        return sentences if len(sentences) * len(self.prompt.input_ids) <= _MOST_MEASURED else ()

    def measured_in(self, length: int) -> list[TokenSpan]:
        """Spans of the passages in the prompt, and behind them of the measured sentences, in a row padded on the left
        to `length` tokens.
        """
        padding = length - len(self.prompt.input_ids)
        sentences = [
            (sentence.tokens[0] + padding, sentence.tokens[1] + padding) for sentence in self.measured_sentences
        ]
        return [span for span in self.prompt.spans_in(length) if span is not None] + sentences

    def answer(self, text: RowText, steps: Sequence[Tensor], index: int) -> Answer:
        """The answer.

        Args:
            text: What the model wrote.
            steps: For every forward pass the mass `(batch, heads, rows, spans)` of the contextual heads on what is
                measured in each row (`measured_in`); none where nothing was.
            index: The request's row of the batch.
        """
        on_passages, on_sentences = self._shares([step[index] for step in steps[: len(text.ids)]])
        shares = iter(on_passages)
        said = text.text if self.grammar is None else values_of(text.text)
        evidence = self._evidence(said, on_sentences)
        support = self._support(said, text.logprobs, evidence)
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
            evidence=evidence,
            support=support,
            confidence=None if self.confidence is None or support is None else self.confidence.of(support),
        )

    def _support(self, said: str, logprobs: Sequence[float], evidence: Sequence[Evidence]) -> Support | None:
        if not logprobs or not said.strip():
            return None
        best = Passage(evidence[0].text, title=self.given[evidence[0].passage].title) if evidence else None
        asked = self.request.question or self.request.query or None
        return Support(
            sum(logprobs) / len(logprobs),
            min(logprobs),
            word_share(said, best),
            None if asked is None else word_share(asked, best),
        )

    def _evidence(self, said: str, shares: Sequence[float]) -> tuple[Evidence, ...]:
        shown = self.prompt.sentences
        sentences = [Passage(one.text, title=self.request.passages[one.passage].title) for one in shown]
        best = best_supported(said, sentences, [one.passage for one in shown], shares)
        spans = self._spans_of_sentences({shown[place].passage for place in best})
        found = []
        for place in best:
            start, end = spans.get(place, (None, None))
            found.append(
                Evidence(
                    self.kept[shown[place].passage], shown[place].text, start, end, shares[place] if shares else None
                )
            )
        return tuple(found)

    def _spans_of_sentences(self, passages: Set[int]) -> dict[int, tuple[int, int]]:
        """Where the sentences of some passages stand in their texts, white space apart, by their place in the prompt:
        one by one where the text has as many, of the same ones each in its own. One that was made safe stands nowhere.
        """
        found: dict[int, tuple[int, int]] = {}
        for passage in passages:
            text = self.request.passages[passage].text
            shown = [place for place, sentence in enumerate(self.prompt.sentences) if sentence.passage == passage]
            own = sentence_spans(text)
            searched = 0
            for number, place in enumerate(shown):
                words = re.compile(r"\s+".join(map(re.escape, self.prompt.sentences[place].text.split())))
                if len(own) == len(shown):
                    if words.fullmatch(text, *own[number]):
                        found[place] = own[number]
                elif match := words.search(text, searched):
                    found[place] = match.span()
                    searched = match.end()
        return found

    def _shares(self, steps: Sequence[Tensor]) -> tuple[list[float], list[float]]:
        shown = [index for index, span in enumerate(self.prompt.spans) if span is not None]
        places = {index: place for place, index in enumerate(shown)}
        of_passage = [places[sentence.passage] for sentence in self.measured_sentences]
        return attention_shares(steps, of_passage, [index in self.choice.favoured for index in shown], self.choice.tau)
