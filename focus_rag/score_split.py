"""Split softmax on what the retriever scored best: the paper's oracle with scores in the place of the gold flags."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from focus_rag.noise import ScoreKind, worst_first
from focus_rag.passages import Passage


class ScoreSplit(BaseModel):
    """How far the contextual heads lean on the best scored passages; the others stay in the prompt and in sight.

    Whatever mass p a contextual head gives to those passages together becomes p ** tau (split softmax, Zhu et al., arXiv 2503.23306,
    who give it to the relevant passages), in the rows after the last passage. It trusts the retriever: where the best score is not the relevant passage, it misleads.

    Attributes:
        passages: How many of the best scored passages.
        tau: Exponent; the smaller, the more mass. 1 changes nothing, 0.1 is the published one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    passages: int = Field(default=1, ge=1)
    tau: float = Field(default=0.1, gt=0.0, le=1.0)

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
            passages: What was retrieved, in retrieval order.
            shown: Indices of those that stand in the prompt.
            higher_is_better: Orientation of the scores, where known.
            score_kind: What the scores are, where known.

        Returns:
            None of them where scores do not tell passages apart or where no other passage is shown.
        """
        known = {index for index in shown if passages[index].score is not None}
        if len({passages[index].score for index in known}) < 2 or len(shown) <= self.passages:
            return ()
        order = worst_first(passages, higher_is_better=higher_is_better, score_kind=score_kind)
        return tuple([index for index in reversed(order) if index in known][: self.passages])
