"""What the passage capture costs a LlamaIndex call, and how large its registry gets.

    python benchmarks/llama_index_capture.py --calls 100000 --out capture.json

Writes JSON. Costs are processor time inside the capture itself: its handlers for the spans and the event of a query engine's
call with 20 passages, and looking the passages up. Memory is what the capture holds, by `sys.getsizeof` over everything reachable.
With `--lag`, also the longest delay of a 1 ms timer while the model that comes with the package, or `--model`, answers.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from llama_index.core.instrumentation.events.retrieval import RetrievalEndEvent
from llama_index.core.instrumentation.span import active_span_id
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index_focus_rag import FocusLLM, PassageCapture

PASSAGES = 20


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
    words = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(3, 9))) for _ in range(5000)]
    corpus = [
        TextNode(text=" ".join(rng.choices(words, k=130)), metadata={"file": f"{i}.txt"} if metadata else {})
        for i in range(10_000)
    ]
    capture = PassageCapture()
    filing, looking, sizes = [], [], []
    for i in range(calls):
        nodes = [NodeWithScore(node=node, score=0.9 - j / 100) for j, node in enumerate(rng.sample(corpus, PASSAGES))]
        query = f"what is said about subject {i}?"
        prompt = "\n\n".join(node.node.text for node in nodes) + f"\n\nQuestion: {query}"
        filed, looked_up = one_call(capture, nodes, prompt, query, str(i))
        filing.append(filed)
        looking.append(looked_up)
        if i + 1 in {calls // 10, calls // 2, calls}:
            sizes.append({"calls": i + 1, "reachable_bytes": reachable_bytes(capture), **capture.registry.size})
    both = [a + b for a, b in zip(filing, looking, strict=True)]
    return {
        "passages": PASSAGES,
        "metadata": metadata,
        "calls": calls,
        "ms": {"handlers": quantiles(filing), "lookup": quantiles(looking), "call": quantiles(both)},
        "memory": sizes,
    }


def quantiles(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(1000 * value for value in seconds)
    return {
        "mean": round(statistics.fmean(ordered), 4),
        "median": round(ordered[len(ordered) // 2], 4),
        "p95": round(ordered[int(0.95 * len(ordered))], 4),
    }


def reachable_bytes(root: object) -> int:
    """Size of the registry and what it holds on to; classes, modules and functions are not its own."""
    seen: set[int] = set()
    waiting, total = [root.registry], 0  # type: ignore[attr-defined]
    while waiting:
        value = waiting.pop()
        if id(value) in seen or isinstance(value, (type, type(json), type(reachable_bytes))):
            continue
        seen.add(id(value))
        total += sys.getsizeof(value)
        waiting += gc.get_referents(value)
    return total


async def loop_lag(llm: FocusLLM) -> dict[str, float]:
    """Longest delay of a 1 ms timer, in milliseconds, while answers are generated."""
    delays: list[float] = []

    async def tick() -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            delays.append(1000 * (time.perf_counter() - before) - 1)

    await llm.acomplete("Warm up.", max_new_tokens=4)
    ticking = asyncio.ensure_future(tick())
    await asyncio.gather(*(llm.acomplete(f"Tell me about mill {i}.", max_new_tokens=64) for i in range(8)))
    async for _ in await llm.astream_complete("Tell me about mills.", max_new_tokens=64):
        pass
    ticking.cancel()
    return {"longest_ms": round(max(delays), 2), "median_ms": round(statistics.median(delays), 2)}


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
        result["event_loop_lag"] = asyncio.run(loop_lag(FocusLLM(model=given.model)))
    text = json.dumps(result, indent=2)
    print(text)
    if given.out:
        given.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
