"""Split softmax on the best passages of a retrieval: the paper's oracle with scores and shared words in the place of
the gold flags.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from focus_rag.passage_ranking import Signal, rank_passages
from focus_rag.passages import Passage
from focus_rag.score_order import ScoreKind

SMALLEST_TAU = 1e-6  # far below what is of use; as a single-precision number, a much smaller one is 0


@dataclass(frozen=True, slots=True)
class Favoured:
    """Passages that a split favours.

    Attributes:
        passages: Their indices, the best first; none where nothing tells passages apart.
        by: What told them apart.
    """

    passages: tuple[int, ...] = ()
    by: Signal = "scores"

    @property
    def in_words(self) -> str:
        """For people."""
        one, many = _IN_WORDS[self.by]
        return f"the {one}" if len(self.passages) == 1 else f"the {len(self.passages)} {many}"


_IN_WORDS = {
    "scores": ("best scored passage", "best scored passages"),
    "words": ("passage that shares most words with the question", "passages that share most words with the question"),
    "both": ("passage best by score and shared words", "passages best by score and shared words"),
}


class ScoreSplit(BaseModel):
    """How far the contextual heads lean on the best passages of a retrieval; the others stay in the prompt and in
    sight.

    Whatever mass p a contextual head gives to those passages together becomes p ** tau (split softmax, Zhu et al.,
    arXiv 2503.23306, who give it to the relevant passages), in the rows after the last passage. It trusts what it goes
    by: where the best passages by that are not the relevant ones, it misleads.

    Attributes:
        reach: Share of the distance from the best score to the worst within which a passage counts as one of the best;
            0 favours the best one alone. Shares of a retrieval's own range need no scale: scores that stand out favour
            few passages, close ones more.
        tau: Exponent; the smaller, the more mass. 1 changes nothing, 0.1 is the published one for relevant passages.
        fewest: Fewest passages in a prompt for it to act: among few there is less to be distracted by than to be misled
            to.
        by: What the best passages are told by. `both` adds up how far a passage lies below the best one by score and by
            shared words (see `shared_words`), each in shares of its own range: a retriever that embeds is blind to rare
            words and names, which these are not. Each counts by how far the passages lie below the best one on average,
            so that the one by which something stands out says more than one that spreads them evenly.
        without_scores: Whether shared words stand in where scores tell nothing: there are none, all are equal, or it is
            not known which end of them is the better one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    reach: float = Field(default=0.3, ge=0.0, lt=1.0)
    tau: float = Field(default=0.1, ge=SMALLEST_TAU, le=1.0)
    fewest: int = Field(default=2, ge=2)
    by: Signal = "scores"
    without_scores: bool = False

    @property
    def in_words(self) -> str:
        """For people."""
        by = {"scores": "", "words": ", by shared words", "both": ", by scores and shared words"}[self.by]
        alone = ", by shared words where there are no scores" if self.without_scores and self.by != "words" else ""
        return f"reach {self.reach:g}, tau {self.tau:g}, from {self.fewest} passages on{by}{alone}"

    def favoured(
        self,
        passages: Sequence[Passage],
        shown: Sequence[int],
        question: str | None = None,
        *,
        higher_is_better: bool | None = None,
        score_kind: ScoreKind | None = None,
    ) -> Favoured:
        """The best passages in the prompt.

        Args:
            passages: What was retrieved, in retrieval order; the best and the worst of it span the range.
            shown: Indices of those that stand in the prompt.
            question: What they were retrieved for; None where that is not known, and words do not count then.
            higher_is_better: Orientation of the scores, where known.
            score_kind: What the scores are, where known.

        Returns:
            None of them where too few are shown, or where nothing tells them apart. Scores are left out where neither
            an argument nor their order says which end of them is the better one.
        """
        in_prompt = set(shown)
        if self.tau == 1.0 or len(in_prompt) < self.fewest:
            return Favoured()
        ranking = rank_passages(
            passages,
            question,
            by=self.by,
            without_scores=self.without_scores,
            higher_is_better=higher_is_better,
            score_kind=score_kind,
        )
        if ranking is None:
            return Favoured()
        behind = ranking.behind
        near = sorted(
            (index for index in in_prompt if behind[index] <= self.reach), key=lambda index: (behind[index], index)
        )
        # Where all that stand in the prompt are near, there is nothing to lean away from.
        return Favoured(tuple(near) if len(near) < len(in_prompt) else (), ranking.by)


SplitSetting = ScoreSplit | Literal["auto", "off"]
"""`"auto"` leans as the profile's fit found to be worth it, and only where alpha is left to the policy as well."""
