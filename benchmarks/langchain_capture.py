"""What the passage capture costs a LangChain call, how large its registry gets, and whether generating blocks the event
loop.

    python -m benchmarks.langchain_capture --calls 100000 --out capture.json

Writes JSON. Costs are processor time inside the capture itself (its callbacks, and looking the passages up), and wall
time of a whole chain with and without it; memory is what the registry and the callback handler hold, by `sys.getsizeof`
over everything reachable. The loop's lag is the longest delay of a 1 ms timer while answers are generated, with the
model that comes with the package or the one in `--model`.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

from langchain_core.documents import Document
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnablePassthrough
from langchain_focus_rag import ChatFocus, PassageCapture

from benchmarks.capturing import (
    PASSAGES,
    costs_of_calls,
    loop_lag,
    quantiles,
    random_texts,
    reachable_bytes,
    write_result,
)
from focus_rag import FocusGenerator


class Corpus:
    """Random passages, retrieved at random."""

    def __init__(self, size: int) -> None:
        self.texts = random_texts(size)
        self.rng = random.Random(0)

    def retrieve(self) -> list[Document]:
        chosen = self.rng.sample(self.texts, PASSAGES)
        return [Document(text, metadata={"score": 0.9 - i / 100}) for i, text in enumerate(chosen)]


def one_call(capture: PassageCapture, documents: list[Document], prompt: str, query: str) -> tuple[float, float]:
    """The events of retriever | join | prompt | model. Returns seconds in callbacks and in the look-up."""
    root, inner, retriever, join, template, model = (uuid4() for _ in range(6))
    started = time.thread_time()
    capture.on_chain_start({}, query, run_id=root)
    capture.on_chain_start({}, query, run_id=inner, parent_run_id=root)
    capture.on_retriever_start({}, query, run_id=retriever, parent_run_id=inner, name="Retriever")
    capture.on_retriever_end(documents, run_id=retriever)
    capture.on_chain_start({}, documents, run_id=join, parent_run_id=inner)
    capture.on_chain_end(prompt, run_id=join)
    capture.on_chain_end({"context": prompt, "question": query}, run_id=inner)
    capture.on_chain_start({}, {"context": prompt, "question": query}, run_id=template, parent_run_id=root)
    capture.on_chain_end(prompt, run_id=template)
    capture.on_llm_start({}, [prompt], run_id=model, parent_run_id=root)
    filed = time.thread_time()
    found = capture.passages(model, prompt)
    looked_up = time.thread_time()
    capture.on_chain_end("answer", run_id=root)
    ended = time.thread_time()
    if len(found.passages) != PASSAGES or found.how != "lineage":
        raise SystemExit(f"only {len(found.passages)} of {PASSAGES} passages were found, by {found.how}")
    return filed - started + ended - looked_up, looked_up - filed


def capture_cost(calls: int, corpus: Corpus) -> dict[str, Any]:
    capture = PassageCapture()

    def call(i: int) -> tuple[float, float]:
        documents = corpus.retrieve()
        query = f"what is said about subject {i}?"
        prompt = "\n\n".join(document.page_content for document in documents) + f"\n\nQuestion: {query}"
        return one_call(capture, documents, prompt, query)

    return costs_of_calls(calls, call, lambda: {"reachable_bytes": reachable_bytes(capture), **capture.registry.size})


class RandomRetriever(BaseRetriever):
    """Finds random passages."""

    corpus: Any

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        return self.corpus.retrieve()


def chain_cost(corpus: Corpus, runs: int) -> dict[str, Any]:
    """A whole chain with a model that answers at once, with the capture at work and with its callbacks emptied."""
    from langchain_core.language_models import FakeListChatModel

    prompt = ChatPromptTemplate.from_template("{context}\n\nQuestion: {question}")
    join = lambda documents: "\n\n".join(document.page_content for document in documents)  # noqa: E731
    model = FakeListChatModel(responses=["answer"])
    chain = {"context": RandomRetriever(corpus=corpus) | join, "question": RunnablePassthrough()} | prompt | model

    async def asynchronous() -> list[float]:
        return [await timed_async(chain, i) for i in range(runs)]

    result = {}
    for name in ("with", "without"):
        ignore_events(name == "without")
        chain.invoke("warm up")
        result[f"invoke_ms_{name}"] = quantiles([timed(chain.invoke, i) for i in range(runs)])["median"]
        result[f"ainvoke_ms_{name}"] = quantiles(asyncio.run(asynchronous()))["median"]
    ignore_events(False)
    return result


def ignore_events(ignored: bool) -> None:
    """Make LangChain pass the capture over, as it does with handlers that ignore a kind of event."""
    for kind in ("chain", "retriever", "llm", "chat_model"):
        setattr(PassageCapture, f"ignore_{kind}", property(lambda _: ignored))


def timed(run: Callable[[str], Any], i: int) -> float:
    started = time.perf_counter()
    run(f"what is said about subject {i}?")
    return time.perf_counter() - started


async def timed_async(chain: Any, i: int) -> float:
    started = time.perf_counter()
    await chain.ainvoke(f"what is said about subject {i}?")
    return time.perf_counter() - started


async def answer_some(model: ChatFocus, corpus: Corpus) -> None:
    """ainvoke, abatch and astream."""
    documents = corpus.retrieve()[:4]
    prompt = "\n\n".join(document.page_content for document in documents) + "\n\nQuestion: what is said?"
    await asyncio.gather(*(model.ainvoke(prompt, passages=documents) for _ in range(3)))
    await model.abatch([prompt] * 4, passages=documents)
    async for _ in model.astream(prompt, passages=documents):
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=100_000, help="calls of the cost and memory measurement")
    parser.add_argument("--chains", type=int, default=300, help="runs of a whole chain")
    parser.add_argument(
        "--model", help="model whose event loop is watched; default: the one that comes with the package"
    )
    parser.add_argument("--no-model", action="store_true", help="leave the event loop out")
    parser.add_argument("--out", type=Path, help="where the JSON goes; default: standard output")
    arguments = parser.parse_args()
    corpus = Corpus(20_000)
    result: dict[str, Any] = {
        "capture": capture_cost(arguments.calls, corpus),
        "chain": chain_cost(corpus, arguments.chains),
    }
    if not arguments.no_model:
        model = ChatFocus(generator=FocusGenerator.from_pretrained(arguments.model), max_tokens=64)
        result["event_loop"] = asyncio.run(loop_lag(lambda: answer_some(model, corpus)))
    write_result(result, arguments.out)


if __name__ == "__main__":
    main()
