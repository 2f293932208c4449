"""Remember what LangChain runs retrieve, so that a model call can be told its own passages."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Final, TypeVar, cast
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.messages import BaseMessage
from langchain_core.prompt_values import PromptValue
from langchain_core.tracers.context import register_configure_hook
from pydantic import BaseModel

from focus_rag import CapturedPassages, PassageRegistry, RetrievedText

Handle = TypeVar("Handle", bound=Callable[..., None])

SCORE_KEYS: Final = (
    "relevance_score",
    "score",
    "_score",
    "@search.score",
    "similarity_score",
    "query_similarity_score",
)
"""Metadata under which retrievers and rerankers keep scores, the later stage of a pipeline first."""

HIGHER_IS_BETTER_KEY: Final = "higher_is_better"

_DEEPEST: Final = 4
_LONGEST: Final = 2000
_MOST_OPEN_RETRIEVERS: Final = 4096

_STARTED: ContextVar[list[tuple[str, UUID]] | None] = ContextVar("focus_rag_started", default=None)


class _Event:
    """A callback that is a plain method where no event loop runs, and a coroutine function where one does.

    Asynchronous callback managers send plain methods to a thread pool, which costs more than these callbacks do. `run_inline` is no
    way round it: one inline handler makes `AsyncCallbackManager.on_llm_start` pass over all handlers that are not inline. Both kinds of
    manager accept both kinds of callback, so the choice is one of speed only.
    """

    def __init__(self, handle: Callable[..., None]) -> None:
        async def handle_in_loop(*args: Any, **kwargs: Any) -> None:
            handle(*args, **kwargs)

        self._plain: Any = handle
        self._in_loop: Any = functools.wraps(handle)(handle_in_loop)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return self._plain.__get__(instance, owner)
        return self._in_loop.__get__(instance, owner)


def _event(handle: Handle) -> Handle:
    return cast(Handle, _Event(handle))


class PassageCapture(BaseCallbackHandler):
    """Callback handler that files retrieved documents under the runs that hold them.

    Documents are picked up from retrievers, from the inputs and outputs of chains, graph nodes and tools, and from the artifacts
    of tool messages. Scores come from `(Document, score)` pairs and from the metadata in `SCORE_KEYS`.

    Args:
        registry: Where the passages go.
    """

    def __init__(self, registry: PassageRegistry | None = None) -> None:
        self.registry = registry or PassageRegistry()
        self._open: OrderedDict[UUID, tuple[str, str]] = OrderedDict()
        self._lock = threading.Lock()

    def passages(self, run_id: UUID | None, prompt: str) -> CapturedPassages:
        """The passages of one model call.

        Args:
            run_id: The run of the call, None if unknown.
            prompt: All text that the model gets.
        """
        return self.registry.lookup(run_id, prompt)

    @_event
    def on_chain_start(
        self, serialized: Any, inputs: Any, *, run_id: UUID, parent_run_id: UUID | None = None, **_: Any
    ) -> None:
        self.registry.record(run_id, parent_run_id)
        self._put(run_id, inputs)

    @_event
    def on_chain_end(self, outputs: Any, *, run_id: UUID, **_: Any) -> None:
        self._put(run_id, outputs)

    @_event
    def on_tool_start(
        self, serialized: Any, input_str: str, *, run_id: UUID, parent_run_id: UUID | None = None, **_: Any
    ) -> None:
        self.registry.record(run_id, parent_run_id)

    @_event
    def on_tool_end(self, output: Any, *, run_id: UUID, **_: Any) -> None:
        self._put(run_id, output)

    @_event
    def on_retriever_start(
        self,
        serialized: Any,
        query: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.registry.record(run_id, parent_run_id, gate=True)
        known = metadata or {}
        names = (
            known.get("ls_retriever_name") or kwargs.get("name") or "retriever",
            known.get("ls_vector_store_provider"),
            known.get("ls_embedding_provider"),
        )
        with self._lock:
            self._open[run_id] = (query, "/".join(str(name) for name in names if name))
            if len(self._open) > _MOST_OPEN_RETRIEVERS:
                self._open.popitem(last=False)

    @_event
    def on_retriever_end(self, documents: Sequence[Document], *, run_id: UUID, **_: Any) -> None:
        with self._lock:
            query, source = self._open.pop(run_id, (None, None))
        self._put(run_id, documents, query=query, source=source)

    @_event
    def on_retriever_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        with self._lock:
            self._open.pop(run_id, None)

    @_event
    def on_chat_model_start(
        self,
        serialized: Any,
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **_: Any,
    ) -> None:
        self.registry.record(run_id, parent_run_id)
        self._put(run_id, messages)
        _note_start(run_id, [text_of(batch) for batch in messages])

    @_event
    def on_llm_start(
        self, serialized: Any, prompts: list[str], *, run_id: UUID, parent_run_id: UUID | None = None, **_: Any
    ) -> None:
        self.registry.record(run_id, parent_run_id)
        _note_start(run_id, prompts)

    def _put(self, run_id: UUID, value: Any, *, query: str | None = None, source: str | None = None) -> None:
        found = _Found()
        found.collect(value, _DEEPEST)
        if found.rows:
            self.registry.put(run_id, found.rows, query=query, source=source, higher_is_better=found.higher_is_better)


class StartedRuns:
    """Which run belongs to which prompt of one model call.

    LangChain tells a model its run only sometimes: a `BaseLLM` learns the first run of a batch, streams learn none. The handler above
    sees every start, possibly in a thread or task of its own, whose copied context still holds the same list.
    """

    def __enter__(self) -> StartedRuns:
        self._before = _STARTED.get()
        _STARTED.set([])
        return self

    def __exit__(self, *_: object) -> None:
        # Not by token: a stream may be closed in another context than the one it was opened in.
        _STARTED.set(self._before)

    @staticmethod
    def of(prompts: Sequence[str], first: UUID | None = None) -> list[UUID | None]:
        """Runs of these prompts; a prompt that comes twice takes its runs in the order they were started.

        Args:
            prompts: The prompts.
            first: The run of a prompt that was not seen to start.
        """
        started = list(_STARTED.get() or ())
        runs: list[UUID | None] = []
        for prompt in prompts:
            place = next((i for i, (text, _) in enumerate(started) if text == prompt), None)
            runs.append(first if place is None else started.pop(place)[1])
        return runs


def text_of(messages: Sequence[BaseMessage]) -> str:
    """All text of a conversation."""
    return "\n\n".join(
        message.content if isinstance(message.content, str) else str(message.text) for message in messages
    )


def _note_start(run_id: UUID, prompts: Sequence[str]) -> None:
    started = _STARTED.get()
    if started is not None:
        started.extend((prompt, run_id) for prompt in prompts)


class _Found:
    """Documents on their way out of some value, in order."""

    def __init__(self) -> None:
        self.rows: list[RetrievedText] = []
        self.higher_is_better: bool | None = None

    def collect(self, value: Any, depth: int) -> None:
        if isinstance(value, Document):
            self._add(value, score_of(value))
        elif value is None or isinstance(value, (str, int, float)) or depth == 0:
            return
        elif isinstance(value, BaseMessage):
            self.collect(getattr(value, "artifact", None), depth - 1)
        elif isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], Document):
            if isinstance(value[1], Document):
                self._each(value, depth)
            else:
                self._add(value[0], value[1])
        elif isinstance(value, Mapping):
            self._each(value.values(), depth)
        elif isinstance(value, (list, tuple)):
            self._each(value[:_LONGEST], depth)
        elif (isinstance(value, BaseModel) and not isinstance(value, PromptValue)) or dataclasses.is_dataclass(value):
            self._each(list(getattr(value, "__dict__", {}).values()), depth)

    def _each(self, values: Iterable[Any], depth: int) -> None:
        for value in values:
            self.collect(value, depth - 1)

    def _add(self, document: Document, score: object) -> None:
        self.rows.append((document.page_content, score, document.id))
        known = document.metadata.get(HIGHER_IS_BETTER_KEY)
        if isinstance(known, bool):
            self.higher_is_better = known


def score_of(document: Document) -> Any:
    """The score in a document's metadata, None if there is none."""
    metadata = document.metadata
    for key in SCORE_KEYS:
        if key in metadata:
            return metadata[key]
    return None


CAPTURE: Final = PassageCapture()
"""The capture of this process, attached to every run by LangChain itself."""

register_configure_hook(ContextVar("focus_rag_capture", default=CAPTURE), inheritable=True)
