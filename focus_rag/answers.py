"""What goes into a generator and what comes out of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from focus_rag.alpha import AlphaPolicy
from focus_rag.confidence import Support
from focus_rag.errors import InvalidInputError, first_problem
from focus_rag.evidence import Evidence
from focus_rag.passage_ranking import require_count
from focus_rag.passages import Passage, as_passages
from focus_rag.score_order import ScoreKind
from focus_rag.score_split import SplitSetting

AlphaSetting = float | Literal["auto"] | AlphaPolicy
FinishReason = Literal["stop", "length", "cancelled"]
_EXCERPT = 80  # characters of a passage in a report


class GenerationSettings(BaseModel):
    """How text is generated.

    Attributes:
        max_new_tokens: Upper limit of the answer, in tokens.
        temperature: 0 decodes greedily; above 0 samples.
        top_p: Sample from the smallest set of tokens that holds this probability mass.
        top_k: Sample from the k most probable tokens; 0 for all.
        seed: Makes sampling repeatable. A row of a batch draws from its own seed, whatever stands beside it.
        stop: Generation ends before the first of these strings, which is not part of the answer.
        json_schema: The answer is JSON that follows this JSON Schema, or that of a pydantic class; cut off where
            `max_new_tokens` are too few (`finish_reason` is `length`); stop strings do not count then. The model is not
            told of it: say in the question what is wanted. Needs the extra `[structured]`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    max_new_tokens: int = Field(default=256, ge=1)
    temperature: float = Field(default=0.0, ge=0.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    top_k: int = Field(default=0, ge=0)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    stop: tuple[str, ...] = ()
    json_schema: dict[str, Any] | None = None

    @field_validator("json_schema", mode="before")
    @classmethod
    def _schema_of_a_class(cls, value: Any) -> Any:
        if not (isinstance(value, type) and issubclass(value, BaseModel)):
            return value
        try:
            return value.model_json_schema()
        except Exception as error:  # pydantic's own, of many kinds
            raise ValueError(f"{value.__name__} has no JSON Schema: {error!s:.200}") from error

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        if value is None:
            return ()
        if isinstance(value, str):
            return (value,) if value else ()
        return tuple(text for text in value if text) if isinstance(value, Iterable) else value

    def changed(self, changes: Mapping[str, Any]) -> GenerationSettings:
        """A validated copy; changes of None are ignored.

        Raises:
            InvalidInputError: A setting is unknown or out of range.
        """
        given = {name: value for name, value in changes.items() if value is not None}
        if not given:
            return self
        unknown = sorted(set(given) - set(GenerationSettings.model_fields))
        if unknown:
            raise InvalidInputError(
                f"Unknown option {', '.join(map(repr, unknown))}: generation settings are "
                f"{', '.join(GenerationSettings.model_fields)}."
            )
        try:
            return GenerationSettings(**{**self.model_dump(), **given})
        except ValidationError as error:
            raise InvalidInputError(f"Generation setting {first_problem(error.errors())}.") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One thing to generate. Exactly one of `question`, `messages` and `prompt` is given.

    Attributes:
        question: Laid out together with the passages by this library.
        messages: A conversation, rendered by the chat template; its passages are located in it.
        prompt: Raw text, tokenised as it is; its passages are located in it.
        query: What the passages were retrieved for, where that is not the `question` itself: a split by shared words
            needs one or the other.
        passages: What was retrieved, in retrieval order.
        alpha: A number, `"auto"` (by the profile), a policy, or None for the generator's own setting.
        split: A `ScoreSplit`, `"auto"` (the profile's, where alpha is `"auto"` too), `"off"`, or None for the
            generator's own setting.
        higher_is_better: Orientation of the scores, where known.
        score_kind: What the scores are, where known.
        noise: Expected share of irrelevant passages, where known; it wins over the scores.
        in_order: Whether the passages stand best first, where that is known though no scores say it.
        keep_best: How many passages to answer a `question` from, the best by scores and shared words together (see
            `best_passages`), as if no others had been retrieved; None for the generator's own setting. Prompts that the
            caller laid out stay as they are.
        settings: Generation settings, or None for the generator's own.
    """

    question: str | None = None
    messages: Sequence[Mapping[str, str]] | None = None
    prompt: str | None = None
    query: str | None = None
    passages: Sequence[Passage] = ()
    alpha: AlphaSetting | None = None
    split: SplitSetting | None = None
    higher_is_better: bool | None = None
    score_kind: ScoreKind | None = None
    noise: float | None = None
    in_order: bool | None = None
    keep_best: int | None = None
    settings: GenerationSettings | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("question", "messages", "prompt") if getattr(self, name) is not None]
        if len(given) != 1:
            raise InvalidInputError(
                f"A request needs exactly one of question, messages and prompt; got {' and '.join(given) or 'none'}."
            )
        for name in ("question", "prompt"):
            text = getattr(self, name)
            if text is not None and (not isinstance(text, str) or not text.strip()):
                raise InvalidInputError(f"{name} must be a string that is not empty; got {text!r:.80}.")
        if self.higher_is_better is not None and not isinstance(self.higher_is_better, bool):
            # What a comparison of numpy's or torch's numbers gives; other things, a string among them, would count as
            # True.
            if "bool" not in str(getattr(self.higher_is_better, "dtype", "")) or getattr(
                self.higher_is_better, "shape", ()
            ):
                raise InvalidInputError(f"higher_is_better must be True, False or None; got {self.higher_is_better!r}.")
            object.__setattr__(self, "higher_is_better", bool(self.higher_is_better))
        if self.keep_best is not None:
            require_count(self.keep_best)
            if self.question is None:
                raise InvalidInputError(
                    "keep_best chooses the passages that a question is laid out with; messages and prompts hold "
                    "theirs already."
                )
        if self.settings is not None and not isinstance(self.settings, GenerationSettings):
            raise InvalidInputError(f"settings must be GenerationSettings; got {type(self.settings).__name__}.")
        if self.query is not None and not isinstance(self.query, str):
            raise InvalidInputError(f"query must be a string; got {type(self.query).__name__}.")
        if not isinstance(self.passages, Iterable) or isinstance(self.passages, (str, Mapping)):
            raise InvalidInputError(f"passages must be a list of Passage objects; got {type(self.passages).__name__}.")
        object.__setattr__(self, "passages", as_passages(self.passages))

    @property
    def retrieved_for(self) -> str | None:
        """What the passages were retrieved for, as far as is known."""
        return self.query or self.question


@dataclass(frozen=True, slots=True)
class PassageUse:
    """What became of one passage.

    Attributes:
        passage: The passage as it was given.
        attention: Its share of the attention that the contextual heads paid to passages while answering; shares add up
            to 1 over the passages in the prompt. None where nothing was measured.
        used: Whether it was in the prompt.
        dropped_reason: Why not, if it was not.
        favoured: Whether split softmax leaned on it, see `ScoreSplit`.
    """

    passage: Passage
    attention: float | None
    used: bool
    dropped_reason: str | None = None
    favoured: bool = False

    def report(self) -> dict[str, Any]:
        """What became of it, in plain JSON types, without the passage's own words."""
        return {
            "id": self.passage.id,
            "score": self.passage.score,
            "attention": self.attention,
            "used": self.used,
            "dropped_reason": self.dropped_reason,
            "favoured": self.favoured,
        }


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of the prompt and of the answer (its end-of-sequence token included)."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Answer:
    """A generated answer and how it came about.

    Attributes:
        text: The answer.
        alpha: Intervention factor in force.
        tau: Exponent of the split softmax in force on the favoured passages; 1 where there are none.
        noise: Expected share of irrelevant passages, as the retrieval tells it.
        reason: Why this alpha, or why these passages, for people.
        passages: What became of every passage, in the order given.
        usage: Token counts.
        finish_reason: `stop` (end of sequence or stop string), `length` or `cancelled`.
        evidence: The sentences of the passages that the answer stands on, by attention and shared words, the best first
            and at most three. Of an answer that says nothing is stated, too, the closest ones.
        support: What speaks for the answer; None where that says nothing.
        confidence: Probability that the answer is right, by the profile, which was fitted with the gold passage missing
            in some questions; None where the profile does not say. Of an answer that says nothing is stated it tells
            nothing.
    """

    text: str
    alpha: float
    noise: float
    reason: str
    passages: tuple[PassageUse, ...]
    usage: Usage
    finish_reason: FinishReason
    tau: float = 1.0
    evidence: tuple[Evidence, ...] = ()
    support: Support | None = None
    confidence: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        plain = asdict(self)
        plain["passages"], plain["evidence"] = list(plain["passages"]), list(plain["evidence"])
        return plain

    def report(self) -> dict[str, Any]:
        """How it came about, in plain JSON types, for what carries the text already: alpha and why, what became of
        every passage (of which there is the beginning), the sentences that it stands on, and how likely it is right.
        """
        return {
            "alpha": self.alpha,
            "tau": self.tau,
            "noise": self.noise,
            "reason": self.reason,
            "passages": [{**use.report(), "excerpt": use.passage.text[:_EXCERPT]} for use in self.passages],
            "evidence": [asdict(sentence) for sentence in self.evidence],
            "support": None if self.support is None else asdict(self.support),
            "confidence": self.confidence,
        }

    def to_html(self, question: str | None = None) -> str:
        """One HTML page that loads nothing: the answer, its passages shaded by attention, alpha and noise in words."""
        from focus_rag.answer_report import answer_to_html

        return answer_to_html(self, question=question)
