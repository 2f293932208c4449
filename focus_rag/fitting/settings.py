"""How much a fit measures: the only home of its defaults."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from focus_rag.fitting.direction_training import LossKind, TrainingSettings
from focus_rag.fitting.grading import Grading
from focus_rag.fitting.polishing import PolishSettings
from focus_rag.fitting.teacher_forcing import Rows
from focus_rag.model_layout import Site
from focus_rag.prompt_layout import PromptLayout

_Count = Annotated[int, Field(ge=1)]
_Share = Annotated[float, Field(ge=0, le=1)]
_Alpha = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Tau = Annotated[float, Field(gt=0, le=1)]


class FitSettings(BaseModel):
    """What a fit measures and how much of it.

    Attributes:
        seed: Of everything drawn.
        min_examples: Fewer usable examples than this are refused.
        dev_share: Share of the examples kept for choices; the others train.
        layout: How question and passages are laid out, which the profile keeps; None as the profile has it whose
            directions are taken, or the default.
        score_examples: Examples for contextual scoring.
        train_examples: Examples to train directions on, the scored ones among them.
        training_order: Order of the passages in the examples that score heads and train directions. In retrieval order
            the gold passage often stands first, and directions learn to look there; shuffled, they cannot. Dev
            questions keep their order.
        max_rows: Responses are cut after so many tokens.
        rows: Which response tokens count in scoring and training directions.
        sink_tokens: First tokens of the prompt that count as the sink.
        response: Whose answer is taken for the response: the first accepted one, what the bare model answers, or one
            after the other.
        max_tokens: Longest teacher-forced sequence; at most the model's window.
        head_counts: Numbers of contextual heads to compare; those above half of the model's heads are left out.
        sites: Where the shift may enter, in order of preference; the first that the model allows is used.
        losses: Training losses to compare.
        training: How directions are trained; `loss` and `seed` are set from here.
        polish: Polish of the chosen directions on the model itself; kept only if it wins on dev.
        choice_questions: Dev questions for the choice of loss and number of heads.
        choice_counts: Passage counts in that choice. A question's grade is the mean over them, and over the largest
            one once more with the least of `noises`.
        choice_alphas: Alphas tried in that choice.
        oracle_taus: Exponents of the split softmax that shows what the chosen heads could bring; 0.1 is the published
            one.
        dev_questions: Dev questions for alpha and split.
        answerable_among: Take them, out of so many, from those that the model answers from their gold passages alone:
            of a model that answers few, the others cost as much and hardly tell settings apart. What is measured then
            holds for such questions. None takes the first, answered or not.
        counts: Passage counts at which alpha is fitted.
        order_questions: Dev questions asked once more at the largest count with their passages shuffled, see
            `passage_order`.
        order_margin: Loss in random order that is let pass: where more is not ruled out, the profile relies on the
            retriever's order.
        noises: Shares of the distractors that stay as retrieved where alpha is fitted; the others are exchanged for
            passages of other questions. 1, as retrieved, is always among them.
        split_reaches: How far down the scores a split may favour passages, see `ScoreSplit`; the first decides the
            exponent. Empty: no split is fitted.
        split_taus: Exponents to compare.
        alphas: Grid of alphas, rising from above 0; it is left where an alpha is beyond doubt worse than those below
            it.
        missing_share: Share of questions whose gold passage the retriever is taken to miss, in the probability that an
            answer is right; it is fitted on as many with as without.
        max_new_tokens: Longest answer.
        grading: What counts as a right answer, see `grading`; None grades exactly if the model answers exactly.
        exact_share: How many of the answers from the gold passages alone must then be exact, among those that hold the
            value.
        min_answered: Share of dev questions the model must answer from their gold passages alone.
        batch: Questions answered at a time.
        keep_work: Keep intermediate results after the fit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(default=0, ge=0, lt=2**63)
    min_examples: int = Field(default=24, ge=2)
    dev_share: float = Field(default=0.4, gt=0, lt=1)
    layout: PromptLayout | None = None
    score_examples: int = Field(default=96, ge=1)
    train_examples: int = Field(default=192, ge=2)
    training_order: Literal["as given", "shuffled"] = "as given"
    max_rows: int = Field(default=32, ge=1)
    rows: Rows = "found"
    sink_tokens: int = Field(default=4, ge=1)
    response: Literal["gold", "model", "both"] = "gold"
    max_tokens: int = Field(default=4096, ge=64)
    head_counts: tuple[_Count, ...] = Field(default=(2, 4, 8, 16, 32), min_length=1)
    sites: tuple[Site, ...] = Field(default=("post_rope", "normed"), min_length=1)
    losses: tuple[LossKind, ...] = Field(default=("log_mass", "mass"), min_length=1)
    training: TrainingSettings = TrainingSettings()
    polish: PolishSettings = PolishSettings()
    choice_questions: int = Field(default=48, ge=1)
    choice_counts: tuple[_Count, ...] = Field(default=(8, 20), min_length=1)
    choice_alphas: tuple[_Alpha, ...] = Field(default=(0.5, 1.0), min_length=1)
    oracle_taus: tuple[_Tau, ...] = (0.1, 0.03)
    dev_questions: int = Field(default=150, ge=1)
    answerable_among: int | None = Field(default=None, ge=1)
    counts: tuple[_Count, ...] = Field(default=(3, 8, 20), min_length=1)
    order_questions: int = Field(default=150, ge=1)
    order_margin: float = Field(default=0.05, ge=0, le=1)
    noises: tuple[_Share, ...] = Field(default=(1.0, 0.0), min_length=1)
    split_reaches: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = (0.3, 0.15, 0.0)
    split_taus: tuple[_Tau, ...] = Field(default=(0.3, 0.1, 0.05, 0.03), min_length=1)
    alphas: tuple[_Alpha, ...] = Field(default=(0.25, 0.5, 0.75, 1.0, 1.5, 2.0), min_length=1)
    missing_share: float = Field(default=0.3, ge=0, lt=1)
    max_new_tokens: int = Field(default=32, ge=1)
    grading: Grading | None = None
    exact_share: float = Field(default=0.8, gt=0, le=1)
    min_answered: float = Field(default=0.1, ge=0, le=1)
    batch: int = Field(default=8, ge=1)
    keep_work: bool = False

    @field_validator("alphas")
    @classmethod
    def _rising(cls, alphas: tuple[float, ...]) -> tuple[float, ...]:
        if list(alphas) != sorted(set(alphas)):
            raise ValueError(f"alphas must rise, got {alphas}")
        return alphas

    def quick(self) -> FitSettings:
        """A first look: a fraction of the examples, of the questions and of the grid."""
        return self.model_copy(
            update={
                "score_examples": min(self.score_examples, 24),
                "train_examples": min(self.train_examples, 48),
                "losses": self.losses[:1],
                "head_counts": self.head_counts[1::2] or self.head_counts,
                "choice_questions": min(self.choice_questions, 24),
                "choice_alphas": self.choice_alphas[-1:],
                "dev_questions": min(self.dev_questions, 32),
                "order_questions": min(self.order_questions, 24),
                "alphas": tuple(alpha for alpha in self.alphas if alpha in self.choice_alphas) or self.alphas[:2],
                "split_reaches": self.split_reaches[:1],
                "split_taus": self.split_taus[1::2] or self.split_taus,
            }
        )
