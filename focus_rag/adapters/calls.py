"""What the framework adapters share: settings of a model, and the way from one of its calls to a request and back."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal
from weakref import WeakSet

from pydantic import BaseModel, ConfigDict, Field, field_validator

from focus_rag.adapters.retrieval_records import CapturedPassages
from focus_rag.alpha import AlphaPolicy
from focus_rag.answers import Answer, GenerationSettings, Request
from focus_rag.errors import InvalidInputError
from focus_rag.noise import signal_of
from focus_rag.passages import Passage
from focus_rag.score_split import SplitSetting

logger = logging.getLogger("focus_rag")

Conversation = str | Sequence[Mapping[str, str]]
"""A raw prompt, or messages with role and content."""

_SIGNAL: Final = ("alpha", "split", "noise", "score_kind", "higher_is_better")
_GENERATION: Final = {
    "max_tokens": "max_new_tokens",
    "max_new_tokens": "max_new_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "seed": "seed",
    "stop": "stop",
    "json_schema": "json_schema",
}
"""Options of a call, and the generation settings that they are."""
_WARNED_OF: Final[WeakSet[Any]] = WeakSet()
"""Generators. Frameworks make a model anew for each call where its fields are configurable."""


@dataclass(frozen=True, slots=True)
class FocusCall:
    """One call of a model.

    Attributes:
        request: What the generator is asked.
        found: How the passages were found: said by the caller, see `CapturedPassages.how`, or not at all.
        note: The same for people.
    """

    request: Request
    found: Literal["given", "lineage", "registry", "none"]
    note: str

    def report(self, answer: Answer) -> dict[str, Any]:
        """What a framework's response carries of the answer, in plain JSON types."""
        return {
            **answer.report(),
            "finish_reason": answer.finish_reason,
            "found": self.found,
            "note": self.note,
        }


class FocusSettings(BaseModel):
    """Fields that all adapters' models have. What is None is left to the generator.

    Attributes:
        generator: A loaded `FocusGenerator`; without one, the model below is loaded.
        model: Hub id or folder of the model to load; None for the one that comes with focus_rag. It is loaded once and
            then belongs to `generator`, so that this is None again and copies with other settings load nothing.
        focus_profile: Its profile, folder or Hub id; handed over like `model`.
        model_kwargs: More arguments of `FocusGenerator.from_pretrained`; handed over like `model`.
        alpha: A number, `"auto"`, or a policy.
        split: A `ScoreSplit`, `"auto"` or `"off"`.
        noise: Expected share of irrelevant passages, if it is known.
        score_kind: What the retriever's scores are, if it is known (see `focus_rag.estimate_noise`).
        higher_is_better: Orientation of the scores; by default their order at retrieval tells it.
        passages: Passages of every call, instead of the captured ones. Empty: none, and nothing is focused unless alpha
            is a number.
        temperature: 0 decodes greedily.
        top_p: Sample from the smallest set of tokens with this probability mass.
        top_k: Sample from this many tokens; 0 for all.
        seed: Makes sampling repeatable.
        stop: Strings before which generation ends; a call's own replace them.

    Raises:
        InvalidInputError: A setting cannot be used, or the model cannot be loaded.
        ValidationError: Of pydantic, where a setting is of no kind that its field takes.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, protected_namespaces=())

    generator: Any = Field(default=None, exclude=True, repr=False)
    model: str | None = None
    focus_profile: Any = Field(default=None, exclude=True)
    model_kwargs: dict[str, Any] = Field(default_factory=dict, exclude=True)
    alpha: float | Literal["auto"] | AlphaPolicy | None = None
    split: SplitSetting | None = None
    noise: float | None = None
    score_kind: str | None = None
    higher_is_better: bool | None = None
    passages: Sequence[Any] | None = Field(default=None, exclude=True)
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: str | Sequence[str] | None = None

    def __init__(self, generator: Any = None, **settings: Any) -> None:
        if isinstance(generator, (str, Path)):
            raise InvalidInputError(
                f"generator is a loaded FocusGenerator; got {str(generator)!r}. To load a model, say "
                f"model={str(generator)!r}."
            )
        super().__init__(generator=generator, **settings)
        if self.generator is None:
            from focus_rag.generator import FocusGenerator

            self.generator = FocusGenerator.from_pretrained(self.model, self.focus_profile, **self.model_kwargs)
            self.model, self.focus_profile, self.model_kwargs = None, None, {}
        elif self.model is not None or self.focus_profile is not None or self.model_kwargs:
            raise InvalidInputError(
                "Give either generator, or model, focus_profile and model_kwargs to load one; not both."
            )
        # Wrong settings are told now, not by the first call.
        self.generation_settings({})
        signal_of((), score_kind=self.score_kind, noise=self.noise)  # type: ignore[arg-type]
        self.passages_of(self.passages or ())

    @field_validator("alpha", mode="before")
    @classmethod
    def _no_truth_value(cls, value: Any) -> Any:
        if isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value)):
            raise ValueError(f"alpha must be a finite number, 'auto' or an alpha policy; got {value!r}")
        return value

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise InvalidInputError(
            "A model of focus_rag holds a loaded generator and cannot be pickled: make it anew in the other process, "
            "from the same model and profile."
        )

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Any:
        """A copy with the same generator."""
        shared = {id(self.generator): self.generator}
        return super().__deepcopy__(shared if memo is None else {**memo, **shared})

    @classmethod
    def passages_of(cls, values: Sequence[Any]) -> tuple[Passage, ...]:
        """Passages from what a caller of this framework may give.

        Raises:
            InvalidInputError: Something else was given.
        """
        raise NotImplementedError

    @property
    def model_name(self) -> str:
        """The model's id or the last part of its folder."""
        return str(self.generator.model_name)

    def token_ids(self, text: str) -> list[int]:
        """Tokens of a text by the model's own tokenizer, special ones not added."""
        return list(self.generator.tokenizer.encode(text, add_special_tokens=False, verbose=False))

    def generation_settings(self, options: Mapping[str, Any]) -> GenerationSettings:
        """Generation settings of a call: its options, else the fields, else those of the generator.

        Raises:
            InvalidInputError: An option is unknown or cannot be used.
        """
        unknown = set(options) - {*_GENERATION, *_SIGNAL, "passages", "query"}
        if unknown:
            raise InvalidInputError(
                f"Unknown option {', '.join(map(repr, sorted(unknown)))}: a call takes passages, query, "
                f"{', '.join((*_SIGNAL, *_GENERATION))}."
            )
        changes = {setting: getattr(self, name) for name, setting in _GENERATION.items() if hasattr(self, name)}
        changes.update(
            {_GENERATION[name]: value for name, value in options.items() if name in _GENERATION and value is not None}
        )
        settings: GenerationSettings = self.generator.settings.changed(changes)
        return settings

    def focus_call(
        self, what: Conversation, options: Mapping[str, Any], captured: Callable[[str], CapturedPassages]
    ) -> FocusCall:
        """Build the request of one call: passages given by hand, else the captured ones.

        Args:
            what: What the model is shown.
            options: The call's keyword arguments.
            captured: Finds the passages in a text. What the model itself said earlier is not searched: it quotes
                passages of earlier questions.

        Raises:
            InvalidInputError: An option is unknown or cannot be used.
        """
        settings = self.generation_settings(options)
        signal: dict[str, Any] = {
            name: options[name] if options.get(name) is not None else getattr(self, name) for name in _SIGNAL
        }
        given = options.get("passages", self.passages)
        if given is not None:
            found = CapturedPassages(self.passages_of(given), note="passages given by the caller")
        else:
            found = captured(_read_by_the_model(what))
            self._warn_if_missed(found)
            if signal["higher_is_better"] is None and signal["score_kind"] in (None, "unknown"):
                found = found.comparable()
                signal["higher_is_better"] = found.higher_is_better
        request = Request(
            prompt=what if isinstance(what, str) else None,
            messages=None if isinstance(what, str) else what,
            passages=found.passages,
            query=options.get("query") or found.query,
            in_order=found.in_order,
            settings=settings,
            **signal,
        )
        return FocusCall(request, found.how if given is None else "given", found.note)

    def _warn_if_missed(self, found: CapturedPassages) -> None:
        if found.how == "none" and found.retrieved and self.generator not in _WARNED_OF:
            _WARNED_OF.add(self.generator)
            logger.warning(
                "%d passages were retrieved, but none of them stands in the prompt: alpha is 0 for such calls "
                "(rewriting a question and merging summaries are some). If the prompt does hold passages, say so: "
                "passages=[...] as an option of the call or a field of the model. This is said once for each "
                "generator.",
                found.retrieved,
            )


def _read_by_the_model(what: Conversation) -> str:
    if isinstance(what, str):
        return what
    return "\n\n".join(message["content"] for message in what if message["role"] != "assistant")
