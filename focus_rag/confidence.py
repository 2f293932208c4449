"""How likely an answer is right: a logistic model of what was seen while it was given, fitted on questions with and
without their gold passage.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass, fields

from pydantic import BaseModel, ConfigDict

_LARGEST = 50.0  # logits beyond which a probability is 0 or 1 in any case


@dataclass(frozen=True, slots=True)
class Support:
    """What speaks for an answer.

    Attributes:
        logprob: Mean natural logarithm of the probability of its tokens, by the focused model and its own generation
            configuration, before temperature, top-k, top-p and schema. Tokens of a stop string count, the end of the
            sequence does not.
        least_logprob: That of its least likely token.
        answer_words: Share of its words that stand in the first sentence of its evidence, or in the title of that
            sentence's passage.
        question_words: Share of the question's words that stand there; None where the question is not known.
    """

    logprob: float
    least_logprob: float
    answer_words: float
    question_words: float | None


class Confidence(BaseModel):
    """From the support of an answer to the probability that it is right.

    Attributes:
        intercept: Logit of an answer whose support is 0 in every respect.
        weights: What one more of each is worth, in logits, in the order of the fields of `Support`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    intercept: float
    weights: tuple[float, float, float, float]

    @property
    def named(self) -> dict[str, float]:
        """Intercept and weights by name."""
        return {
            "intercept": self.intercept,
            **dict(zip((field.name for field in fields(Support)), self.weights, strict=True)),
        }

    def of(self, support: Support) -> float | None:
        """Probability that an answer is right; None where the question is not known."""
        if support.question_words is None:
            return None
        logit = self.intercept + sum(
            weight * value for weight, value in zip(self.weights, astuple(support), strict=True)
        )
        return 1 / (1 + math.exp(-max(-_LARGEST, min(logit, _LARGEST))))
