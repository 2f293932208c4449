"""What chat model and plain model share: settings, and from a LangChain call to a request and back."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal
from uuid import UUID

from langchain_core.documents import Document
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, model_validator

from focus_rag import (
    AlphaPolicy,
    Answer,
    CapturedPassages,
    FocusGenerator,
    GenerationSettings,
    InvalidInputError,
    Passage,
    Request,
    as_passages,
    estimate_noise,
)
from langchain_focus_rag.capture import CAPTURE, score_of

logger = logging.getLogger("langchain_focus_rag")

_SIGNAL_OPTIONS: Final = ("alpha", "noise", "score_kind", "higher_is_better")
_SETTINGS: Final = {
    "temperature": "temperature",
    "max_tokens": "max_new_tokens",
    "max_new_tokens": "max_new_tokens",
    "top_p": "top_p",
    "top_k": "top_k",
    "seed": "seed",
}
# Handed to every model by LangChain itself or by tracing; nothing in them concerns a local model.
_NOT_OURS: Final = frozenset({"model", "stream", "stream_usage", "streaming", "ls_structured_output_format"})

How = Literal["given", "lineage", "registry", "none"]


@dataclass(frozen=True, slots=True)
class Call:
    """One model call: the request, and how its passages were found."""

    request: Request
    how: How
    note: str

    def report(self, answer: Answer) -> dict[str, Any]:
        """What `response_metadata["focus_rag"]` holds; plain JSON types."""
        return answer.report(self.how, self.note)


class FocusSettings(BaseModel):
    """Fields that `ChatFocus` and `FocusLLM` share. What is None is left to the generator.

    Attributes:
        generator: A loaded `FocusGenerator`; without one the model below is loaded.
        model: Hub id or folder; None for the model that comes with focus_rag.
        focus_profile: Profile, folder or Hub id.
        model_kwargs: More arguments of `FocusGenerator.from_pretrained`.
        alpha: A number, `"auto"`, or a policy.
        noise: Expected share of irrelevant passages, if it is known.
        score_kind: What the retriever's scores are, if it is known (see `focus_rag.estimate_noise`).
        higher_is_better: Orientation of the scores; by default their order at retrieval tells it.
        passages: Passages of every call, instead of the captured ones. Empty: never focus.
        temperature: 0 decodes greedily.
        max_tokens: Most tokens of an answer.
        top_p: Sample from the smallest set of tokens with this probability mass.
        top_k: Sample from this many tokens; 0 for all.
        seed: Makes sampling repeatable.
        stop: Strings before which generation ends; a call's own replace them.
        timeout: Accepted for compatibility; a local model has no connection to time out.
        max_retries: Accepted for compatibility; nothing here fails by chance.
        api_key: Accepted for compatibility and not kept.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, protected_namespaces=())

    generator: Any = Field(default=None, exclude=True, repr=False)
    model: str | None = None
    focus_profile: Any = None
    model_kwargs: dict[str, Any] = Field(default_factory=dict, exclude=True)
    alpha: float | Literal["auto"] | AlphaPolicy | None = None
    noise: float | None = None
    score_kind: str | None = None
    higher_is_better: bool | None = None
    passages: Sequence[Any] | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: list[str] | None = None
    timeout: float | None = None
    max_retries: int | None = None
    api_key: SecretStr | None = Field(default=None, exclude=True)

    _warned: bool = PrivateAttr(default=False)

    @model_validator(mode="after")
    def _load(self) -> FocusSettings:
        self.api_key = None
        if self.generator is None:
            self.generator = FocusGenerator.from_pretrained(self.model, self.focus_profile, **self.model_kwargs)
        elif self.model is not None or self.focus_profile is not None or self.model_kwargs:
            raise InvalidInputError(
                "Give either generator, or model, focus_profile and model_kwargs to load one; not both."
            )
        # Wrong settings are told now, not by the first call.
        self._generation_settings(None, {})
        estimate_noise([], score_kind=self.score_kind)  # type: ignore[arg-type]
        passages_of(self.passages or ())
        return self

    @property
    def model_name(self) -> str:
        """The model's id or the last part of its folder."""
        return str(self.generator.model_name)

    def call(
        self,
        what: Sequence[Mapping[str, str]] | str,
        *,
        run_id: UUID | None,
        stop: Sequence[str] | None,
        options: Mapping[str, Any],
    ) -> Call:
        """Build the request of one call: passages given by hand, else the captured ones.

        Args:
            what: Messages, or a raw prompt.
            run_id: The run of the call.
            stop: The call's own stop strings.
            options: The call's keyword arguments.

        Raises:
            InvalidInputError: An option is unknown or cannot be used.
        """
        given = options.get("passages", self.passages)
        if given is not None:
            found, how = CapturedPassages(passages_of(given), note="passages given by the caller"), "given"
        else:
            text = what if isinstance(what, str) else "\n\n".join(message["content"] for message in what)
            found = CAPTURE.passages(run_id, text)
            how = found.how
            self._warn_if_missed(found)
        signal: dict[str, Any] = {
            name: options[name] if options.get(name) is not None else getattr(self, name) for name in _SIGNAL_OPTIONS
        }
        if signal["higher_is_better"] is None:
            signal["higher_is_better"] = found.higher_is_better
        request = Request(
            prompt=what if isinstance(what, str) else None,
            messages=None if isinstance(what, str) else what,
            passages=found.passages,
            settings=self._generation_settings(stop, options),
            **signal,
        )
        return Call(request, how, found.note)  # type: ignore[arg-type]

    def token_ids(self, text: str) -> list[int]:
        """Tokens of a text by the model's own tokenizer."""
        return list(self.generator.tokenizer.encode(text, add_special_tokens=False))

    def identity(self) -> dict[str, Any]:
        """Everything that decides what a prompt is answered with; a cache keys on it."""
        generator = self.generator
        alpha = generator.alpha if self.alpha is None else self.alpha
        profile = generator.profile
        return {
            "model_name": self.model_name,
            "alpha": alpha if isinstance(alpha, (str, int, float)) else alpha.model_dump_json(),
            "profile": None if profile is None else _profile_identity(profile),
            **{name: getattr(self, name) for name in _SIGNAL_OPTIONS[1:]},
            "passages": None if self.passages is None else [(p.text, p.score) for p in passages_of(self.passages)],
            **self._generation_settings(None, {}).model_dump(),
        }

    def langsmith(
        self, kind: Literal["chat", "llm"], stop: Sequence[str] | None, options: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Parameters of LangSmith traces."""
        settings = self._generation_settings(
            stop, {name: value for name, value in options.items() if name in _SETTINGS}
        )
        model = options.get("model")
        named = {
            "ls_provider": "focus_rag",
            "ls_model_type": kind,
            "ls_model_name": model if isinstance(model, str) else self.model_name,
            "ls_temperature": settings.temperature,
            "ls_max_tokens": settings.max_new_tokens,
        }
        return {**named, "ls_stop": list(settings.stop)} if settings.stop else named

    def _generation_settings(self, stop: Sequence[str] | None, options: Mapping[str, Any]) -> GenerationSettings:
        unknown = set(options) - {*_SETTINGS, *_SIGNAL_OPTIONS, *_NOT_OURS, "passages"}
        if unknown:
            raise InvalidInputError(
                f"Unknown option {', '.join(map(repr, sorted(unknown)))}: a call takes passages, "
                f"{', '.join(_SIGNAL_OPTIONS)}, stop, {', '.join(_SETTINGS)}."
            )
        changes = {_SETTINGS[name]: getattr(self, name) for name in _SETTINGS if name != "max_new_tokens"}
        changes.update({_SETTINGS[name]: options[name] for name in _SETTINGS if options.get(name) is not None})
        stops = self.stop if stop is None else stop
        changes["stop"] = None if stops is None else tuple(stops)
        settings: GenerationSettings = self.generator.settings.changed(changes)
        return settings

    def _warn_if_missed(self, found: CapturedPassages) -> None:
        if found.how == "none" and found.retrieved and not self._warned:
            self._warned = True
            logger.warning(
                "%d passages were retrieved, but none of them stands in the prompt: alpha is 0 for such calls (condensing a question is one). "
                "If the prompt does hold passages, pass them: model.bind(passages=...). This is said once.",
                found.retrieved,
            )


def passages_of(values: Sequence[Any]) -> tuple[Passage, ...]:
    """Passages from documents and all that `focus_rag.as_passages` takes.

    Raises:
        InvalidInputError: Something else was given.
    """
    return as_passages(values, _from_document)


def _from_document(value: Any, score: Any) -> Passage | None:
    if not isinstance(value, Document):
        return None
    return Passage(value.page_content, score_of(value) if score is None else score, id=value.id)


def _profile_identity(profile: Any) -> str:
    heads = ",".join(f"{head.layer}.{head.head}" for head in profile.heads)
    return f"{profile.site}:{heads}:{profile.policy.model_dump_json()}:{sorted(map(str, profile.provenance.items()))}"
