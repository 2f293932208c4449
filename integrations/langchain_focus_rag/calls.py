"""What chat model and plain model share: fields, cache key, tracing parameters, from a LangChain call to a request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal
from uuid import UUID

from langchain_core.documents import Document
from pydantic import BaseModel, Field, SecretStr

from focus_rag import FocusCall, FocusSettings, Passage, as_passages
from langchain_focus_rag.capture import CAPTURE, HIGHER_IS_BETTER_KEY, SCORE_KEY, score_of

# Handed to every model by LangChain itself or by tracing; nothing in them concerns a local model.
_NOT_OURS: Final = frozenset({"model", "stream", "stream_usage", "streaming", "ls_structured_output_format"})


class LangChainSettings(FocusSettings):
    """Fields of `ChatFocus` and `FocusLLM`; the others are those of `focus_rag.FocusSettings`.

    Attributes:
        max_tokens: Most tokens of an answer.
        timeout: Accepted for compatibility; a local model has no connection to time out.
        max_retries: Accepted for compatibility; nothing here fails by chance.
        api_key: Accepted for compatibility and not kept.
    """

    max_tokens: int | None = None
    timeout: float | None = None
    max_retries: int | None = None
    api_key: SecretStr | None = Field(default=None, exclude=True)

    def __init__(self, generator: Any = None, **settings: Any) -> None:
        super().__init__(generator, **settings)
        self.api_key = None

    @classmethod
    def passages_of(cls, values: Sequence[Any]) -> tuple[Passage, ...]:
        """Passages from documents and all that `focus_rag.as_passages` takes."""
        return as_passages(values, _from_document)

    def chain_call(
        self,
        what: Sequence[Mapping[str, str]] | str,
        *,
        run_id: UUID | None,
        stop: Sequence[str] | None,
        options: Mapping[str, Any],
    ) -> FocusCall:
        """Build the request of one call.

        Args:
            what: Messages, or a raw prompt.
            run_id: The run of the call.
            stop: The call's own stop strings.
            options: The call's keyword arguments.

        Raises:
            InvalidInputError: An option is unknown or cannot be used.
        """
        ours = {name: value for name, value in options.items() if name not in _NOT_OURS}
        given = ours.get("passages", self.passages)
        known = (ours.get("higher_is_better"), self.higher_is_better, ours.get("score_kind"), self.score_kind)
        if given is not None and known == (None,) * 4:
            ours["higher_is_better"] = _said_by(given)
        return self.focus_call(what, {**ours, "stop": stop}, lambda text: CAPTURE.passages(run_id, text))

    def identity(self) -> dict[str, Any]:
        """Everything that decides what a prompt is answered with; a cache keys on it."""
        alpha = self.generator.alpha if self.alpha is None else self.alpha
        split = self.generator.split if self.split is None else self.split
        return {
            "model_name": self.model_name,
            "identity": self.generator.identity,
            "alpha": alpha.model_dump_json() if isinstance(alpha, BaseModel) else repr(alpha),
            "layout": repr(self.generator.prompts.layout),
            "split": split if isinstance(split, str) else split.model_dump_json(),
            "noise": self.noise,
            "score_kind": self.score_kind,
            "higher_is_better": self.higher_is_better,
            "passages": None if self.passages is None else [(p.text, p.score) for p in self.passages_of(self.passages)],
            **self.generation_settings({}).model_dump(),
        }

    def langsmith(
        self, kind: Literal["chat", "llm"], stop: Sequence[str] | None, options: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Parameters of LangSmith traces."""
        asked = {name: options[name] for name in ("temperature", "max_tokens", "max_new_tokens") if name in options}
        settings = self.generation_settings({**asked, "stop": stop})
        model = options.get("model")
        named = {
            "ls_provider": "focus_rag",
            "ls_model_type": kind,
            "ls_model_name": model if isinstance(model, str) else self.model_name,
            "ls_temperature": settings.temperature,
            "ls_max_tokens": settings.max_new_tokens,
        }
        return {**named, "ls_stop": list(settings.stop)} if settings.stop else named


def _from_document(value: Any, score: Any) -> Passage | None:
    if not isinstance(value, Document):
        return None
    return Passage(value.page_content, score_of(value) if score is None else score, id=value.id)


def _said_by(given: Any) -> bool | None:
    """Orientation of the scores that documents carry, where those that do all say the same."""
    documents = (
        [one for one in given if isinstance(one, Document) and SCORE_KEY in one.metadata]
        if isinstance(given, Iterable)
        else []
    )
    ways = {document.metadata.get(HIGHER_IS_BETTER_KEY) for document in documents}
    return ways.pop() if ways in ({True}, {False}) else None
