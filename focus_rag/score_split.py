"""Split softmax on what the retriever scored best: the paper's oracle with scores in the place of the gold flags."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from focus_rag.noise import ScoreKind, orientation, worst_first
from focus_rag.passages import Passage


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
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    reach: float = Field(default=0.3, ge=0.0, lt=1.0)
    tau: float = Field(default=0.1, gt=0.0, le=1.0)
    fewest: int = Field(default=2, ge=2)

    @property
    def in_words(self) -> str:
        """For people."""
        return f"reach {self.reach:g}, tau {self.tau:g}, from {self.fewest} passages on"

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
        if self.tau == 1.0 or spread == 0:
            return ()
        near = [index for index, half in zip(scores, halves, strict=True) if (halves[0] - half) / spread <= self.reach]
        found = tuple(index for index in near if index in in_prompt)
        return found if len(found) < len(in_prompt) else ()


SplitSetting = ScoreSplit | Literal["auto", "off"]
"""`"auto"` leans as the profile's fit found to be worth it, and only where alpha is left to the policy as well."""
