"""Split softmax on what the retriever scored best: the paper's oracle with scores in the place of the gold flags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from focus_rag.noise import EQUAL, ScoreKind, orientation, worst_first
from focus_rag.passages import Passage
from focus_rag.shared_words import shared_word_scores


class ScoreSplit(BaseModel):
    """How far the contextual heads lean on the best scored passages; the others stay in the prompt and in sight.

    Whatever mass p a contextual head gives to those passages together becomes p ** tau (split softmax, Zhu et al., arXiv 2503.23306,
    who give it to the relevant passages), in the rows after the last passage. It trusts the retriever: where the best scores are not those of the
    relevant passages, it misleads.

    Attributes:
        reach: Share of the distance from the best score to the worst within which a passage counts as one of the best; 0 favours the best one
            alone. Shares of a retrieval's own range need no scale: scores that stand out favour few passages, close ones more.
        tau: Exponent; the smaller, the more mass. 1 changes nothing, 0.1 is the published one for relevant passages.
        fewest: Fewest passages in a prompt for it to act: among few there is less to be distracted by than to be misled to.
        words: Whether passages whose scores tell nothing (there are none, all are equal, or it is not known which end of them is the better one)
            are scored by the words they share with the question instead, see `shared_words`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    reach: float = Field(default=0.3, ge=0.0, lt=1.0)
    tau: float = Field(default=0.1, gt=0.0, le=1.0)
    fewest: int = Field(default=2, ge=2)
    words: bool = False

    @property
    def in_words(self) -> str:
        """For people."""
        by_words = ", by shared words where there are no scores" if self.words else ""
        return f"reach {self.reach:g}, tau {self.tau:g}, from {self.fewest} passages on{by_words}"

    def favoured(
        self,
        passages: Sequence[Passage],
        shown: Sequence[int],
        *,
        higher_is_better: bool | None = None,
        score_kind: ScoreKind | None = None,
    ) -> tuple[int, ...]:
        """Indices of the best scored passages in the prompt, the best first.

        Args:
            passages: What was retrieved, in retrieval order; its best and worst score span the range.
            shown: Indices of those that stand in the prompt.
            higher_is_better: Orientation of the scores, where known.
            score_kind: What the scores are, where known.

        Returns:
            None of them where too few are shown, where scores do not tell them apart, or where nothing tells which end of them is the better one: neither
            the arguments nor, where passages stand in some other order, their order.
        """
        in_prompt = set(shown)
        rises = orientation(passages, higher_is_better=higher_is_better, score_kind=score_kind)
        order = [] if rises is None else worst_first(passages, higher_is_better=rises)
        scores = {index: score for index in reversed(order) if (score := passages[index].score) is not None}
        if not scores or len(in_prompt) < self.fewest:
            return ()
        halves = [score / 2 for score in scores.values()]  # the range of all floats would be infinite
        spread = halves[0] - halves[-1]
        if self.tau == 1.0 or abs(spread) <= EQUAL * max(map(abs, halves)):
            return ()
        near = [index for index, half in zip(scores, halves, strict=True) if (halves[0] - half) / spread <= self.reach]
        found = tuple(index for index in near if index in in_prompt)
        return found if len(found) < len(in_prompt) else ()

    def favoured_by_words(
        self,
        question: str | None,
        passages: Sequence[Passage],
        shown: Sequence[int],
        *,
        higher_is_better: bool | None = None,
        score_kind: ScoreKind | None = None,
    ) -> tuple[int, ...]:
        """Indices of the passages in the prompt that share most with the question, where scores tell nothing and this split goes by words then.

        Args:
            question: What the passages were retrieved for; None where that is not known.
            passages: As for `favoured`.
            shown: As for `favoured`.
            higher_is_better: As for `favoured`.
            score_kind: As for `favoured`.
        """
        if not self.words or not question:
            return ()
        known = {passage.score for passage in passages} - {None}
        if len(known) > 1 and orientation(passages, higher_is_better=higher_is_better, score_kind=score_kind) is not None:
            return ()
        scores = shared_word_scores(question, passages)
        scored = [replace(passage, score=score) for passage, score in zip(passages, scores, strict=True)]
        return self.favoured(scored, shown, higher_is_better=True)


SplitSetting = ScoreSplit | Literal["auto", "off"]
"""`"auto"` leans as the profile's fit found to be worth it, and only where alpha is left to the policy as well."""
