"""Remember what LlamaIndex retrieves, and in which spans, so that a model call can be told its own passages."""

from __future__ import annotations

import inspect
import itertools
import threading
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.retrieval import RetrievalEndEvent
from llama_index.core.instrumentation.span import active_span_id
from llama_index.core.instrumentation.span_handlers import BaseSpanHandler
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle
from llama_index_instrumentation import get_dispatcher
from pydantic import PrivateAttr

from focus_rag import CapturedPassages, PassageRegistry, RetrievedText

_QUERY_ARGUMENTS: Final = ("query", "query_bundle", "query_str", "str_or_query_bundle")
_SHORT: Final = 16  # characters; shorter texts stand in a prompt by chance
_INSTALLING: Final = threading.Lock()


class PassageCapture:
    """Files retrieved nodes under the spans that hold them, and finds those of a model call.

    Nodes are picked up where a retriever returns them (with its query and its order, which tells distances from
    similarities), where a postprocessor hands them on (with the scores it gave), and where a span takes them as its
    `nodes` argument, as synthesizers do. Model calls below a retriever or a postprocessor serve the retrieval: they get
    no passages.

    Args:
        registry: Where the passages go.
    """

    def __init__(self, registry: PassageRegistry | None = None) -> None:
        self.registry = registry or PassageRegistry()
        self._sources = _Sources()
        self._span_handler = _Spans(self)
        self._event_handler = _Events(self)

    def install(self) -> None:
        """Listen to LlamaIndex, from now on and in the whole process. Calling it again does nothing."""
        root = get_dispatcher()
        with _INSTALLING:
            if not any(handler is self._span_handler for handler in root.span_handlers):
                root.add_span_handler(self._span_handler)
            if not any(handler is self._event_handler for handler in root.event_handlers):
                root.add_event_handler(self._event_handler)
            _make_spans_of_async_postprocessing()

    def passages(self, prompt: str) -> CapturedPassages:
        """The passages of the model call that runs now.

        Args:
            prompt: All text that the model gets.
        """
        return self.registry.lookup(active_span_id.get(), prompt)

    def entered(self, span_id: str, parent_id: str | None, instance: Any, arguments: Mapping[str, Any]) -> None:
        """A span begins."""
        if isinstance(instance, (BaseRetriever, BaseNodePostprocessor)):
            self.registry.record(span_id, parent_id, gate=True, source=self._sources.name_of(instance))
        else:
            self.registry.record(span_id, parent_id)
            self._hand_on(span_id, arguments.get("nodes"), arguments)

    def left(self, span_id: str, instance: Any, arguments: Mapping[str, Any], result: Any) -> None:
        """A span ends, by an error if there is no result."""
        if isinstance(instance, BaseNodePostprocessor):
            self._hand_on(span_id, result, arguments)

    def retrieved(self, event: RetrievalEndEvent) -> None:
        """A retriever returns."""
        query = _text_of(event.str_or_query_bundle)
        self.registry.put(event.span_id or active_span_id.get(), rows_of(event.nodes), query=query)

    def _hand_on(self, span_id: str, nodes: Any, arguments: Mapping[str, Any]) -> None:
        if isinstance(nodes, (list, tuple)) and nodes:
            self.registry.put(span_id, rows_of(nodes), query=_query_of(arguments), handed_on=True)


class _Sources:
    """Names of retrievers and postprocessors, no two the same, without keeping any of them alive."""

    def __init__(self) -> None:
        self._names: dict[int, tuple[weakref.ref[Any], str]] = {}
        self._serials = itertools.count()

    def name_of(self, instance: Any) -> str:
        """Its own name, although many have the same class and ids are used again."""
        key = id(instance)
        known = self._names.get(key)
        if known is None or known[0]() is not instance:
            gone = weakref.ref(instance, lambda ref: self._forget(key, ref))
            known = self._names[key] = gone, f"{type(instance).__name__} {next(self._serials)}"
        return known[1]

    def _forget(self, key: int, gone: weakref.ref[Any]) -> None:
        known = self._names.get(key)
        if known is not None and known[0] is gone:
            self._names.pop(key, None)


class _Spans(BaseSpanHandler[Any]):
    """Tells the capture of every span; keeps none itself."""

    _capture: PassageCapture = PrivateAttr()

    def __init__(self, capture: PassageCapture) -> None:
        super().__init__()
        self._capture = capture

    def span_enter(
        self,
        id_: str,
        bound_args: inspect.BoundArguments,
        instance: Any = None,
        parent_id: str | None = None,
        tags: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self._capture.entered(id_, parent_id, instance, bound_args.arguments)

    def span_exit(
        self, id_: str, bound_args: inspect.BoundArguments, instance: Any = None, result: Any = None, **kwargs: Any
    ) -> None:
        self._capture.left(id_, instance, bound_args.arguments, result)

    def span_drop(
        self,
        id_: str,
        bound_args: inspect.BoundArguments,
        instance: Any = None,
        err: BaseException | None = None,
        **kwargs: Any,
    ) -> None:
        self._capture.left(id_, instance, bound_args.arguments, None)

    def new_span(self, *_: Any, **__: Any) -> None:
        """Abstract in LlamaIndex; spans are recorded as they are entered."""

    def prepare_to_exit_span(self, *_: Any, **__: Any) -> None:
        """Abstract in LlamaIndex; nothing is open that could be closed."""

    def prepare_to_drop_span(self, *_: Any, **__: Any) -> None:
        """Abstract in LlamaIndex; nothing is open that could be dropped."""


class _Events(BaseEventHandler):
    """Tells the capture of every retrieval."""

    _capture: PassageCapture = PrivateAttr()

    def __init__(self, capture: PassageCapture) -> None:
        super().__init__()
        self._capture = capture

    def handle(self, event: Any, **_: Any) -> None:
        if isinstance(event, RetrievalEndEvent):
            self._capture.retrieved(event)


def rows_of(nodes: Iterable[Any]) -> Iterator[RetrievedText]:
    """Text, score and id of nodes, by the texts that a prompt may hold.

    Synthesizers put a node's metadata before its text, code of one's own often leaves it out. The bare text
    addresses both if no other node has it too; if one has, both texts do.
    """
    scored = [(node.node, node.score) for node in nodes if isinstance(node, NodeWithScore)]
    texts = [node.get_content(metadata_mode=MetadataMode.NONE) for node, _ in scored]
    repeated = {text for text, n in Counter(texts).items() if n > 1} if len(set(texts)) < len(texts) else ()
    for (node, score), bare in zip(scored, texts, strict=True):
        if bare in repeated or len(bare) < _SHORT or not _shows_its_text(node):
            shown = node.get_content(metadata_mode=MetadataMode.LLM)
            if shown.strip() != bare.strip():
                yield shown, score, node.node_id
        yield bare, score, node.node_id


def _shows_its_text(node: BaseNode) -> bool:
    """Whether the text that synthesizers take of a node holds its bare text, as it does unless a template leaves that
    out.
    """
    return not node.metadata or "{content}" in getattr(node, "text_template", "")


def _query_of(arguments: Mapping[str, Any]) -> str | None:
    return next((query for name in _QUERY_ARGUMENTS if (query := _text_of(arguments.get(name)))), None)


def _text_of(query: Any) -> str | None:
    if isinstance(query, QueryBundle):
        return query.query_str
    return query if isinstance(query, str) else None


def _make_spans_of_async_postprocessing() -> None:
    """Let asynchronous reranking be a span, as it is when synchronous.

    LlamaIndex makes a span of `_postprocess_nodes` only, so a model call of an asynchronous reranker would look
    like one that answers. Classes defined later get their spans from LlamaIndex itself, which gives them to whatever
    overrides a method that has one.
    """
    classes: list[type] = [BaseNodePostprocessor]
    while classes:
        cls = classes.pop()
        classes += cls.__subclasses__()
        method = cls.__dict__.get("apostprocess_nodes")
        if inspect.iscoroutinefunction(method):
            cls.apostprocess_nodes = get_dispatcher(cls.__module__).span(method)  # type: ignore[attr-defined]


CAPTURE: Final = PassageCapture()
"""The capture of this process, installed with the first model."""
