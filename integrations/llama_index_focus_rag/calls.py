"""From a LlamaIndex call to a request of the generator, and from its answer back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse, MessageRole
from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore

from focus_rag import Answer, FocusCall, Passage, Request

_REPORTS: ContextVar[list[dict[str, Any]] | None] = ContextVar("focus_rag_reports", default=None)


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a model: what the generator is asked, and who collects reports."""

    focus: FocusCall
    model_name: str
    reports: list[dict[str, Any]] | None

    @property
    def request(self) -> Request:
        """What the generator is asked."""
        return self.focus.request

    def completion(self, answer: Answer, delta: str | None = None) -> CompletionResponse:
        """The response to `complete`, or the last piece of a stream."""
        return CompletionResponse(text=answer.text, delta=delta, **self._about(answer))

    def chat(self, answer: Answer, delta: str | None = None) -> ChatResponse:
        """The response to `chat`, or the last piece of a stream."""
        return ChatResponse(message=assistant(answer.text), delta=delta, **self._about(answer))

    def _about(self, answer: Answer) -> dict[str, Any]:
        report = self.focus.report(answer)
        if self.reports is not None:
            self.reports.append(report)
        usage = {
            "prompt_tokens": answer.usage.prompt_tokens,
            "completion_tokens": answer.usage.completion_tokens,
            "total_tokens": answer.usage.total_tokens,
        }
        raw = {"model": self.model_name, "finish_reason": answer.finish_reason, "usage": usage}
        return {"raw": raw, "additional_kwargs": {"focus_rag": report}}


@contextmanager
def collect_reports() -> Iterator[list[dict[str, Any]]]:
    """Reports of the model calls made inside, in the order they end: engines hand on nothing but the text.

    A report is what `additional_kwargs["focus_rag"]` of the model's response holds. Tasks and threads that LlamaIndex
    starts inside count too; nested, the innermost collects.
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


def from_node(value: Any, score: Any) -> Passage | None:
    """A node, with or without a score, as a passage; for `focus_rag.as_passages`."""
    if isinstance(value, NodeWithScore):
        value, score = value.node, value.score if score is None else score
    if not isinstance(value, BaseNode):
        return None
    return Passage(value.get_content(metadata_mode=MetadataMode.NONE), score, id=value.node_id)
