"""Remember what LangChain runs retrieve, so that a model call can be told its own passages."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Final, TypeVar, cast
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.prompt_values import PromptValue
from langchain_core.tracers.context import register_configure_hook
from pydantic import BaseModel

from focus_rag import CapturedPassages, PassageRegistry, RetrievedText

Handle = TypeVar("Handle", bound=Callable[..., None])

SCORE_KEY: Final = "score"
HIGHER_IS_BETTER_KEY: Final = "higher_is_better"

SCORE_KEYS: Final = (
    "relevance_score",
    SCORE_KEY,
    "_score",
    "@search.score",
    "similarity_score",
    "query_similarity_score",
)
"""Metadata under which retrievers and rerankers keep scores, the later stage of a pipeline first."""

_ASKED_KEYS: Final = ("question", "query", "input")
_FEWEST_WORDS: Final = 3
"""Of a question under another name: "en" is none."""
_DEEPEST: Final = 4
_LONGEST: Final = 2000

_STARTED: ContextVar[list[tuple[str, UUID]] | None] = ContextVar("focus_rag_started", default=None)


class _Event:
    """A callback that is a plain method where no event loop runs, and a coroutine function where one does.

    Asynchronous callback managers send plain methods to a thread pool, which costs more than these callbacks do.
    `run_inline` is no way round it: one inline handler makes `AsyncCallbackManager.on_llm_start` pass over all handlers
    that are not inline. Both kinds of manager accept both kinds of callback, so the choice is one of speed only.
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

    Documents are picked up from retrievers, from the inputs and outputs of chains, graph nodes and tools, and from the
    artifacts of tool messages; each list of documents by itself, in its order. Where no retriever was asked, what a
    tool or node was given counts as the question, in prompts where it stands. Scores come from `(Document, score)`
    pairs and from the metadata in `SCORE_KEYS`; a list that mixes several kinds of score has none. They are compared
    with scores of the same retriever, tool or chain only.

    Args:
        registry: Where the passages go.
    """

    def __init__(self, registry: PassageRegistry | None = None) -> None:
        self.registry = registry or PassageRegistry()

    def passages(self, run_id: UUID | None, prompt: str) -> CapturedPassages:
        """The passages of one model call.

        Args:
            run_id: The run of the call, None if unknown.
            prompt: All text that the model gets.
        """
        return self.registry.lookup(run_id, prompt)

    @_event
    def on_chain_start(
        self,
        serialized: Any,
        inputs: Any,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        name: str | None = None,
        **_: Any,
    ) -> None:
        self.registry.record(run_id, parent_run_id, source=name, asked=_asked_in(inputs))
        self._put(run_id, inputs)

    @_event
    def on_chain_end(self, outputs: Any, *, run_id: UUID, **_: Any) -> None:
        self._put(run_id, outputs)

    @_event
    def on_tool_start(
        self,
        serialized: Any,
        input_str: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        inputs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        asked = _asked_in(inputs or input_str)
        self.registry.record(run_id, parent_run_id, source=(serialized or {}).get("name"), asked=asked)

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
        known = metadata or {}
        names = (
            kwargs.get("name") or known.get("ls_retriever_name") or "retriever",
            known.get("ls_vector_store_provider"),
            known.get("ls_embedding_provider"),
        )
        source = "/".join(str(name) for name in names if name)
        self.registry.record(run_id, parent_run_id, gate=True, query=query, source=source)

    @_event
    def on_retriever_end(self, documents: Sequence[Document], *, run_id: UUID, **_: Any) -> None:
        self._put(run_id, documents)

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

    def _put(self, run_id: UUID, value: Any) -> None:
        for found in _found_in(value, _DEEPEST):
            self.registry.put(run_id, found.rows, source=found.source, higher_is_better=found.higher_is_better)


class StartedRuns:
    """Which run belongs to which prompt of one model call.

    LangChain tells a model its run only sometimes: a `BaseLLM` learns the first run of a batch, streams learn none. The
    handler above sees every start, possibly in a thread or task of its own, whose copied context still holds the same
    list.
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


def _asked_in(inputs: Any) -> str | None:
    """What may be the question among the inputs of a run."""
    if isinstance(inputs, BaseModel) or dataclasses.is_dataclass(inputs):
        inputs = getattr(inputs, "__dict__", {})
    if isinstance(inputs, Mapping):
        texts = [value for key, value in inputs.items() if isinstance(value, str) and key != "context"]
        named = next((inputs[key] for key in _ASKED_KEYS if isinstance(inputs.get(key), str)), None)
        if named is None and len(texts) == 1 and len(texts[0].split()) >= _FEWEST_WORDS:
            named = texts[0]
        inputs = named or inputs.get("messages")
    if isinstance(inputs, Sequence) and not isinstance(inputs, str):
        said = [one for one in inputs[-_LONGEST:] if isinstance(one, HumanMessage)]
        inputs = text_of(said[-1:])
    return inputs if isinstance(inputs, str) and 0 < len(inputs.strip()) <= _LONGEST else None


@dataclasses.dataclass(slots=True)
class Found:
    """Documents that some value holds side by side, in order.

    Attributes:
        rows: Text, score and id of each; without any score, if the scores are of several kinds.
        source: Name of the tool that gave them, if a tool message holds them.
        higher_is_better: Orientation of the scores, if the documents say it.
    """

    rows: list[RetrievedText]
    source: str | None
    higher_is_better: bool | None


def _found_in(value: Any, depth: int, source: str | None = None) -> Iterator[Found]:
    if value is None or isinstance(value, (str, int, float)):
        return
    if isinstance(value, Document) or _is_pair(value):
        held: Sequence[Any] = [value]
    elif isinstance(value, (list, tuple)):
        held = value[:_LONGEST]
    elif isinstance(value, BaseMessage):
        held, source = [getattr(value, "artifact", None)], value.name or source
    elif isinstance(value, Mapping):
        held = list(value.values())
    elif (isinstance(value, BaseModel) and not isinstance(value, PromptValue)) or dataclasses.is_dataclass(value):
        held = list(getattr(value, "__dict__", {}).values())
    else:
        return
    pairs = [
        (one, None) if isinstance(one, Document) else one for one in held if isinstance(one, Document) or _is_pair(one)
    ]
    if pairs:
        yield side_by_side(pairs, source)
    if depth > 0 and len(pairs) < len(held):
        for one in held:
            if not isinstance(one, Document) and not _is_pair(one):
                yield from _found_in(one, depth - 1, source)


def _is_pair(value: Any) -> bool:
    """Whether this is a document and its score."""
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and isinstance(value[0], Document)
        and not isinstance(value[1], Document)
    )


def side_by_side(pairs: Iterable[tuple[Document, Any]], source: str | None = None) -> Found:
    """Documents and the scores given with them, if any, else those in their metadata."""
    rows: list[RetrievedText] = []
    kinds: set[str] = set()
    ways: set[bool] = set()
    for document, score in pairs:
        kind = "pair" if score is not None else _score_key(document)
        if kind is not None:
            kinds.add(kind)
            score = document.metadata[kind] if score is None else score
        # Whoever adds a score of their own, as rerankers do, leaves the orientation of the earlier one behind.
        if kind == SCORE_KEY and isinstance(known := document.metadata.get(HIGHER_IS_BETTER_KEY), bool):
            ways.add(known)
        rows.append((document.page_content, score, document.id))
    if len(kinds) > 1 or len(ways) > 1:
        rows = [(text, None, id_) for text, _, id_ in rows]
    return Found(rows, source, ways.pop() if len(ways) == 1 else None)


def _score_key(document: Document) -> str | None:
    metadata = document.metadata
    return next((key for key in SCORE_KEYS if key in metadata), None) if metadata else None


def score_of(document: Document) -> Any:
    """The score in a document's metadata, None if there is none."""
    key = _score_key(document)
    return None if key is None else document.metadata[key]


CAPTURE: Final = PassageCapture()
"""The capture of this process, attached to every run by LangChain itself."""

register_configure_hook(ContextVar("focus_rag_capture", default=CAPTURE), inheritable=True)
