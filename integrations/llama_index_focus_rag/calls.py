"""From a LlamaIndex call to a request of the generator, and from its answer back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, Literal

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse, MessageRole
from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore

from focus_rag import Answer, InvalidInputError, Passage, Request

SIGNAL_OPTIONS: Final = ("alpha", "noise", "score_kind", "higher_is_better")
SETTINGS: Final = {
    "max_new_tokens": "max_new_tokens",
    "max_tokens": "max_new_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "seed": "seed",
    "stop": "stop",
}
"""Options of a call and the generation settings that they are."""

_EXCERPT: Final = 80  # characters of a passage in a report
_REPORTS: ContextVar[list[dict[str, Any]] | None] = ContextVar("focus_rag_reports", default=None)


@dataclass(frozen=True, slots=True)
class Call:
    """One model call: the request, how its passages were found, and who collects reports."""

    request: Request
    how: Literal["given", "lineage", "registry", "none"]
    note: str
    model_name: str
    reports: list[dict[str, Any]] | None

    def completion(self, answer: Answer, delta: str | None = None) -> CompletionResponse:
        """The response to `complete`, or the last piece of a stream."""
        return CompletionResponse(text=answer.text, delta=delta, **self._about(answer))

    def chat(self, answer: Answer, delta: str | None = None) -> ChatResponse:
        """The response to `chat`, or the last piece of a stream."""
        return ChatResponse(message=assistant(answer.text), delta=delta, **self._about(answer))

    def _about(self, answer: Answer) -> dict[str, Any]:
        report = self._report(answer)
        if self.reports is not None:
            self.reports.append(report)
        usage = {
            "prompt_tokens": answer.usage.prompt_tokens,
            "completion_tokens": answer.usage.completion_tokens,
            "total_tokens": answer.usage.total_tokens,
        }
        raw = {"model": self.model_name, "finish_reason": answer.finish_reason, "usage": usage}
        return {"raw": raw, "additional_kwargs": {"focus_rag": report}}

    def _report(self, answer: Answer) -> dict[str, Any]:
        return {
            "alpha": answer.alpha,
            "noise": answer.noise,
            "reason": answer.reason,
            "found": self.how,
            "note": self.note,
            "passages": [
                {
                    "id": use.passage.id,
                    "excerpt": use.passage.text[:_EXCERPT],
                    "score": use.passage.score,
                    "attention": use.attention,
                    "used": use.used,
                    "dropped_reason": use.dropped_reason,
                }
                for use in answer.passages
            ],
        }


@contextmanager
def collect_reports() -> Iterator[list[dict[str, Any]]]:
    """Reports of the model calls made inside, in the order they end: engines hand on nothing but the text.

    A report is what `additional_kwargs["focus_rag"]` of the model's response holds. Tasks and threads that LlamaIndex starts
    inside count too; nested, the innermost collects.
    """
    reports: list[dict[str, Any]] = []
    before = _REPORTS.get()
    _REPORTS.set(reports)
    try:
        yield reports
    finally:
        _REPORTS.set(before)


def collector() -> list[dict[str, Any]] | None:
    """Where reports of a call that begins now are collected, if anywhere."""
    return _REPORTS.get()


def assistant(text: str) -> ChatMessage:
    """What the model says."""
    return ChatMessage(role=MessageRole.ASSISTANT, content=text)


def prompt_of(request: Request) -> str | Sequence[Mapping[str, str]]:
    """The request's messages, or its raw prompt."""
    return str(request.prompt) if request.messages is None else request.messages


def stream_options(request: Request) -> dict[str, Any]:
    """A request's options as keyword arguments of the generator's streams."""
    signal = {name: getattr(request, name) for name in SIGNAL_OPTIONS}
    settings = {} if request.settings is None else request.settings.model_dump()
    return {"passages": request.passages, **signal, **settings}


def as_passages(values: Sequence[Any]) -> tuple[Passage, ...]:
    """Passages from passages, nodes with or without scores, texts, or pairs of one of these and a score.

    Raises:
        InvalidInputError: Something else was given.
    """
    if isinstance(values, str):
        raise InvalidInputError("passages must be a list of passages; got one str. Wrap it: [text].")
    passages = []
    for value in values:
        score: Any = None
        if isinstance(value, tuple) and len(value) == 2:
            value, score = value
        if isinstance(value, NodeWithScore):
            score = value.score if score is None else score
            value = value.node
        if isinstance(value, BaseNode):
            value = Passage(value.get_content(metadata_mode=MetadataMode.NONE), score, id=value.node_id)
        elif isinstance(value, str):
            value = Passage(value, score)
        elif isinstance(value, Passage) and score is not None:
            value = Passage(value.text, score, value.title, value.id)
        if not isinstance(value, Passage):
            raise InvalidInputError(
                f"passages must hold nodes, Passage, str, or pairs of one of them and a score; got {type(value).__name__}."
            )
        passages.append(value)
    return tuple(passages)
