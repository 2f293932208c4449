"""What the passage capture costs a LlamaIndex call, how large its registry gets, and whether generating blocks the
event loop.

    python -m benchmarks.llama_index_capture --calls 100000 --lag --out capture.json

Writes JSON. Costs are processor time inside the capture itself: its span and event handlers, and looking the passages
up.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from pathlib import Path
from typing import Any

from llama_index.core.instrumentation.events.retrieval import RetrievalEndEvent
from llama_index.core.instrumentation.span import active_span_id
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index_focus_rag import FocusLLM, PassageCapture

from benchmarks.capturing import PASSAGES, costs_of_calls, loop_lag, random_texts, reachable_bytes, write_result


class Nothing(BaseRetriever):
    """Stands for the retriever whose spans are timed."""

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return []


def one_call(
    capture: PassageCapture, nodes: list[NodeWithScore], prompt: str, query: str, name: str
) -> tuple[float, float]:
    """The spans of `RetrieverQueryEngine.query`. Returns seconds in handlers and in the look-up."""
    retriever, bundle = RETRIEVER, QueryBundle(query)
    event = RetrievalEndEvent(str_or_query_bundle=bundle, nodes=nodes, span_id=f"{name}-retrieve")
    started = time.thread_time()
    capture.entered(f"{name}-query", None, None, {"str_or_query_bundle": query})
    capture.entered(f"{name}-_query", f"{name}-query", None, {"query_bundle": bundle})
    capture.entered(f"{name}-retrieve", f"{name}-_query", retriever, {"str_or_query_bundle": bundle})
    capture.entered(f"{name}-_retrieve", f"{name}-retrieve", retriever, {"query_bundle": bundle})
    capture.left(f"{name}-_retrieve", retriever, {}, nodes)
    capture.retrieved(event)
    capture.left(f"{name}-retrieve", retriever, {}, nodes)
    capture.entered(f"{name}-synthesize", f"{name}-_query", None, {"query": bundle, "nodes": nodes})
    for child, parent in (
        ("get_response", "synthesize"),
        ("program", "get_response"),
        ("predict", "program"),
        ("chat", "predict"),
    ):
        capture.entered(f"{name}-{child}", f"{name}-{parent}", None, {})
    filed = time.thread_time()
    token = active_span_id.set(f"{name}-chat")
    found = capture.passages(prompt)
    active_span_id.reset(token)
    looked_up = time.thread_time()
    if len(found.passages) != PASSAGES or found.how != "lineage":
        raise SystemExit(f"only {len(found.passages)} of {PASSAGES} passages were found, by {found.how}")
    return filed - started, looked_up - filed


def capture_cost(calls: int, *, metadata: bool) -> dict[str, Any]:
    rng = random.Random(0)
    corpus = [
        TextNode(text=text, metadata={"file": f"{i}.txt"} if metadata else {})
        for i, text in enumerate(random_texts(10_000))
    ]
    capture = PassageCapture()

    def call(i: int) -> tuple[float, float]:
        nodes = [NodeWithScore(node=node, score=0.9 - j / 100) for j, node in enumerate(rng.sample(corpus, PASSAGES))]
        query = f"what is said about subject {i}?"
        prompt = "\n\n".join(node.node.text for node in nodes) + f"\n\nQuestion: {query}"
        return one_call(capture, nodes, prompt, query, str(i))

    def size() -> dict[str, Any]:
        return {"reachable_bytes": reachable_bytes(capture.registry), **capture.registry.size}

    return {"metadata": metadata, **costs_of_calls(calls, call, size)}


async def answer_some(llm: FocusLLM) -> None:
    """acomplete, several at once, and astream_complete."""
    await asyncio.gather(*(llm.acomplete(f"Tell me about mill {i}.", max_new_tokens=64) for i in range(8)))
    async for _ in await llm.astream_complete("Tell me about mills.", max_new_tokens=64):
        pass


RETRIEVER = Nothing()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    arguments.add_argument("--calls", type=int, default=100_000)
    arguments.add_argument("--out", type=Path)
    arguments.add_argument("--lag", action="store_true")
    arguments.add_argument("--model")
    given = arguments.parse_args()
    result: dict[str, Any] = {
        "capture": [
            capture_cost(given.calls, metadata=False),
            capture_cost(min(given.calls, 10_000), metadata=True),
        ]
    }
    if given.lag:
        llm = FocusLLM(model=given.model)
        result["event_loop"] = asyncio.run(loop_lag(lambda: answer_some(llm)))
    write_result(result, given.out)


if __name__ == "__main__":
    main()
