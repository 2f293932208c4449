"""Answer quality of the same questions at several alphas: what a policy for alpha is fitted to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from focus_rag.abstention import abstains
from focus_rag.answers import AlphaSetting, Answer, GenerationSettings, Request
from focus_rag.examples import Example, holds_answer
from focus_rag.fitting.grading import Grading, grade
from focus_rag.generator import FocusGenerator
from focus_rag.noise import signal_of
from focus_rag.passages import Passage, RetrievalSignal
from focus_rag.score_split import SplitSetting

Z_95 = 1.96


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95% confidence interval (normal approximation, but where all values are the same).

    Attributes:
        mean: The mean.
        low: Lower limit.
        high: Upper limit.
        n: Number of questions.
    """

    mean: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Mean of independent values; of none, which is 0, and of one the interval is all there is.

        Values that are all the same rule nothing out by their spread. Others may be as many as would still not have
        been met in 95 of 100 such samples (the exact limit for a share, Clopper and Pearson 1934), one off.
        """
        n = len(values)
        mean = sum(values) / max(n, 1)
        if n < 2:
            return cls(mean, -1.0, 1.0, n)
        variance = sum((value - mean) ** 2 for value in values) / (n - 1)
        half = Z_95 * math.sqrt(variance / n) if variance else 1.0 - 0.025 ** (1 / n)
        return cls(mean, mean - half, mean + half, n)

    @property
    def standard_error(self) -> float:
        return (self.mean - self.low) / Z_95

    def to_dict(self) -> dict[str, float]:
        """Plain JSON types."""
        return {"mean": self.mean, "low": self.low, "high": self.high, "n": self.n}


@dataclass(frozen=True, slots=True)
class Sweep:
    """Answer quality at several alphas, in one cell of passage count and noise.

    Attributes:
        count: Passages per question.
        alphas: The grid, 0 first.
        quality: `quality[i][j]`: question i at `alphas[j]`; 1 for a right answer, else 0.
        signals: What the retrieval of each question tells the policy.
        keys: Names of the questions: one that stands in several cells has one name.
        noise: Share of the passages beside the gold that are as retrieved, see `calm_examples.calmed`.
        gold_missing: Whether the gold passages were taken away, so that saying so is the right answer.
    """

    count: int
    alphas: tuple[float, ...]
    quality: tuple[tuple[float, ...], ...]
    signals: tuple[RetrievalSignal, ...]
    keys: tuple[str, ...]
    noise: float = 1.0
    gold_missing: bool = False

    def column(self, alpha: float) -> list[float]:
        """Quality of every question at one alpha of the grid."""
        index = self.alphas.index(alpha)
        return [row[index] for row in self.quality]

    def differences(self, alpha: float, other: float = 0.0) -> list[float]:
        """Quality of every question at one alpha of the grid minus that at another, by default the bare model's."""
        index, against = self.alphas.index(alpha), self.alphas.index(other)
        return [row[index] - row[against] for row in self.quality]

    def gain(self, alpha: float) -> Estimate:
        """Mean paired gain over the bare model."""
        return Estimate.of(self.differences(alpha))

    def regret(self, alpha: float) -> float:
        """How far quality at one alpha lies below that at each question's own best alpha, on average."""
        index = self.alphas.index(alpha)
        return sum(max(row) - row[index] for row in self.quality) / max(len(self.quality), 1)

    def at(self, question: int, alpha: float) -> float:
        """Quality of one question, linear between the alphas of the grid and level beyond them."""
        above = next((index for index, one in enumerate(self.alphas) if one >= alpha), len(self.alphas) - 1)
        row = self.quality[question]
        if above == 0 or alpha >= self.alphas[above]:
            return row[above]
        share = (alpha - self.alphas[above - 1]) / (self.alphas[above] - self.alphas[above - 1])
        return row[above - 1] + share * (row[above] - row[above - 1])


def without_gold(example: Example) -> tuple[Passage, ...]:
    """An example's passages without its gold ones, in order."""
    return tuple(passage for index, passage in enumerate(example.passages) if index not in example.gold)


def is_answered_elsewhere(example: Example) -> bool:
    """Whether its other passages hold the answer too, so that it is stated without the gold ones."""
    return any(holds_answer(passage.content, example.answers) for passage in without_gold(example))


def examples_at(examples: Sequence[Example], count: int) -> list[Example]:
    """The examples that have so many passages, cut to `count`."""
    return [one.at_count(count) for one in examples if len(one.passages) >= count]


def shown_passages(example: Example, gold_missing: bool) -> tuple[Passage, ...]:
    """What stands in the prompt."""
    return without_gold(example) if gold_missing else example.passages


def answers_to(
    generator: FocusGenerator,
    examples: Sequence[Example],
    alpha: AlphaSetting,
    *,
    max_new_tokens: int,
    gold_missing: bool = False,
    split: SplitSetting = "off",
) -> list[Answer]:
    """Answer every example at one alpha.

    Args:
        generator: Model and profile.
        examples: Questions with the passages to show.
        alpha: As for a request.
        max_new_tokens: Longest answer.
        gold_missing: Take the gold passages away; the right answer is then that it is not stated.
        split: As for a request.

    Returns:
        One answer per example, in their order.
    """
    settings = GenerationSettings(max_new_tokens=max_new_tokens)
    requests = [
        Request(
            question=one.question,
            passages=shown_passages(one, gold_missing),
            alpha=alpha,
            split=split,
            score_kind=one.score_kind,
            settings=settings,
        )
        for one in examples
    ]
    # Neighbours in length share a batch: less padding, the same answers.
    order = sorted(range(len(requests)), key=lambda i: sum(len(passage.text) for passage in requests[i].passages))
    answers = generator.answer_batch([requests[i] for i in order])
    by_place = dict(zip(order, answers, strict=True))
    return [by_place[place] for place in range(len(examples))]


def answer_texts(
    generator: FocusGenerator,
    examples: Sequence[Example],
    alpha: AlphaSetting,
    *,
    max_new_tokens: int,
    gold_missing: bool = False,
    split: SplitSetting = "off",
) -> list[str]:
    """The texts of `answers_to`."""
    answers = answers_to(
        generator, examples, alpha, max_new_tokens=max_new_tokens, gold_missing=gold_missing, split=split
    )
    return [answer.text for answer in answers]


def measure_quality(
    generator: FocusGenerator,
    examples: Sequence[Example],
    alpha: AlphaSetting,
    *,
    grading: Grading,
    max_new_tokens: int,
    gold_missing: bool = False,
    split: SplitSetting = "off",
) -> list[float]:
    """Answer every example at one alpha and grade the answers, see `answer_texts` and `grading`.

    Returns:
        One grade per example, 0 or 1.
    """
    texts = answer_texts(
        generator, examples, alpha, max_new_tokens=max_new_tokens, gold_missing=gold_missing, split=split
    )
    if gold_missing:  # said in whatever words stand around it, also by a model that else answers exactly
        return [float(abstains(text)) for text in texts]
    return [grade(text, one.answers, grading) for text, one in zip(texts, examples, strict=True)]


def sweep_of(
    count: int,
    noise: float,
    examples: Sequence[Example],
    columns: dict[float, Sequence[float]],
    *,
    gold_missing: bool = False,
) -> Sweep:
    """The sweep of one cell, from a column of grades per alpha."""
    alphas = tuple(sorted(columns))
    return Sweep(
        count=count,
        alphas=alphas,
        quality=tuple(zip(*(columns[alpha] for alpha in alphas), strict=True)),
        signals=tuple(signal_of(shown_passages(one, gold_missing), score_kind=one.score_kind) for one in examples),
        keys=tuple(one.key for one in examples),
        noise=noise,
        gold_missing=gold_missing,
    )
