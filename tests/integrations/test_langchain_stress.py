"""Every call gets exactly its own passages and scores, whatever the chain does in between.

Queries share passages, and the score of a shared passage depends on the query, so a passage that comes from the wrong
retrieval shows.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import operator
import random
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, TypedDict

import pytest

pytest.importorskip("langchain_core")
pytest.importorskip("langgraph")
pytest.importorskip("langchain_classic")

from langchain_classic.chains import create_history_aware_retriever, create_retrieval_chain
from langchain_classic.chains.combine_documents import create_stuff_documents_chain
from langchain_classic.retrievers import ContextualCompressionRetriever, EnsembleRetriever, MultiQueryRetriever
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import (
    ConfigurableField,
    RunnableConfig,
    RunnableLambda,
    RunnableParallel,
    RunnablePassthrough,
)
from langchain_core.tools import tool
from langchain_focus_rag import ChatFocus, FocusLLM
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import Send

from focus_rag import Passage
from tests.integrations.recording_generator import RecordingGenerator, prompt_of

Expected = dict[str, set[tuple[str, float | None]]]

_WORDS = [
    "mill", "river", "stone", "wheel", "fire", "harvest", "bridge", "miller", "grain", "winter", "timber", "flood", "road", "tower",
]  # fmt: skip
_RANDOM = random.Random(7)
POOL = [
    f"Record {i}: " + " ".join(_RANDOM.choices(_WORDS, k=_RANDOM.randint(14, 40))) + f", entry {i} ends."
    for i in range(60)
]
_NUMBERS = itertools.count(1)


def new_question() -> str:
    return f"What does the archive say about item {next(_NUMBERS):06d}?"


def found_for(query: str, first: int = 0, last: int = 6) -> list[Document]:
    number = int(re.search(r"(\d{6})", query).group(1))
    order = random.Random(number).sample(POOL, 6)[first:last]
    return [
        Document(text, id=f"{number}-{i}", metadata={"score": 0.9 - 0.05 * (first + i) + number / 1e6})
        for i, text in enumerate(order)
    ]


def expected_for(query: str, first: int = 0, last: int = 6) -> set[tuple[str, float | None]]:
    return {(d.page_content, d.metadata["score"]) for d in found_for(query, first, last)}


class ArchiveRetriever(BaseRetriever):
    first: int = 0
    last: int = 6

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        return found_for(query, self.first, self.last)


class TopThree(BaseDocumentCompressor):
    """A reranker that gives scores of its own."""

    def compress_documents(self, documents: Any, query: str, callbacks: Any = None) -> list[Document]:
        return reranked(documents)


class AskingReranker(BaseDocumentCompressor):
    """A reranker that asks the model about each passage."""

    model: Any

    def compress_documents(self, documents: Any, query: str, callbacks: Any = None) -> list[Document]:
        for document in documents:
            self.model.invoke(f"Grade this passage.\n{document.page_content}", config={"callbacks": callbacks})
        return reranked(documents)


def reranked(documents: Any) -> list[Document]:
    chosen = sorted(documents, key=lambda d: d.page_content)[:3]
    return [
        d.model_copy(update={"metadata": {"relevance_score": 5.0 - i + d.metadata["score"]}})
        for i, d in enumerate(chosen)
    ]


def reranked_rows(query: str) -> set[tuple[str, float | None]]:
    return {(d.page_content, d.metadata["relevance_score"]) for d in reranked(found_for(query))}


def join(documents: list[Document]) -> str:
    return "\n\n".join(f"[{i}] {d.page_content}" for i, d in enumerate(documents, start=1))


PROMPT = ChatPromptTemplate.from_messages([("human", "Context:\n{context}\n\nQuestion: {question}")])


def simple(model: Any, retriever: Any = None) -> Any:
    context = (retriever or ArchiveRetriever()) | join
    return {"context": context, "question": RunnablePassthrough()} | PROMPT | model | StrOutputParser()


def questions(n: int) -> list[str]:
    return [new_question() for _ in range(n)]


def all_of(asked: list[str]) -> Expected:
    return {question: expected_for(question) for question in asked}


def invoke(model: Any) -> Expected:
    question = new_question()
    simple(model).invoke(question)
    return all_of([question])


def batch_of_forty(model: Any) -> Expected:
    asked = questions(40)
    simple(model).batch(asked)
    return all_of(asked)


def batch_with_limit(model: Any) -> Expected:
    asked = questions(10)
    simple(model).batch(asked, config={"max_concurrency": 3})
    return all_of(asked)


async def abatch_of_forty(model: Any) -> Expected:
    asked = questions(40)
    await simple(model).abatch(asked)
    return all_of(asked)


async def gathered(model: Any) -> Expected:
    asked, chain = questions(24), simple(model)
    await asyncio.gather(*(chain.ainvoke(question) for question in asked))
    return all_of(asked)


def threads(model: Any) -> Expected:
    asked, chain = questions(16), simple(model)
    workers = [threading.Thread(target=chain.invoke, args=(question,)) for question in asked]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return all_of(asked)


def interleaved_streams(model: Any) -> Expected:
    asked, chain = questions(6), simple(model)
    streams = [chain.stream(question) for question in asked]
    for _ in itertools.zip_longest(*streams):
        pass
    return all_of(asked)


async def interleaved_async_streams(model: Any) -> Expected:
    asked, chain = questions(6), simple(model)
    streams = [chain.astream(question) for question in asked]
    open_streams = list(streams)
    while open_streams:
        for stream in list(open_streams):
            if await anext(stream, None) is None:
                open_streams.remove(stream)
    return all_of(asked)


async def streamed_events(model: Any) -> Expected:
    asked, chain = questions(4), simple(model)

    async def one(question: str) -> None:
        events = [event["event"] async for event in chain.astream_events(question, version="v2")]
        assert "on_chat_model_stream" in events or "on_llm_stream" in events

    await asyncio.gather(*(one(question) for question in asked))
    return all_of(asked)


def condense_then_answer(model: Any) -> Expected:
    question = new_question()
    rewrite = ChatPromptTemplate.from_messages(
        [("placeholder", "{chat_history}"), ("human", "Rephrase the question to stand alone: {input}")]
    )
    answer = ChatPromptTemplate.from_messages(
        [
            ("system", "Context:\n{context}"),
            ("placeholder", "{chat_history}"),
            ("human", "Question: {input}"),
        ]
    )
    # The retriever is asked what the model made of the question, so the number must come back in its text.
    echo = RunnableLambda(lambda _: question)
    retriever = create_history_aware_retriever(model | echo, ArchiveRetriever(), rewrite)
    chain = create_retrieval_chain(retriever, create_stuff_documents_chain(model, answer))
    earlier = found_for(new_question())
    history = [HumanMessage("Earlier question"), AIMessage(f"Earlier answer from {earlier[0].page_content[:20]}")]
    chain.invoke({"input": question, "chat_history": history})
    return all_of([question])


def ensemble(model: Any) -> Expected:
    question = new_question()
    both = EnsembleRetriever(
        retrievers=[ArchiveRetriever(first=0, last=4), ArchiveRetriever(first=4, last=6)], weights=[0.5, 0.5]
    )
    simple(model, both).invoke(question)
    return all_of([question])


async def ensemble_async(model: Any) -> Expected:
    asked = questions(5)
    both = EnsembleRetriever(
        retrievers=[ArchiveRetriever(first=0, last=4), ArchiveRetriever(first=4, last=6)], weights=[0.5, 0.5]
    )
    await simple(model, both).abatch(asked)
    return all_of(asked)


def reranker(model: Any) -> Expected:
    asked = questions(4)
    retriever = ContextualCompressionRetriever(base_compressor=TopThree(), base_retriever=ArchiveRetriever())
    simple(model, retriever).batch(asked)
    return {question: reranked_rows(question) for question in asked}


def reranker_that_asks_the_model(model: Any) -> Expected:
    asked = questions(3)
    retriever = ContextualCompressionRetriever(
        base_compressor=AskingReranker(model=model), base_retriever=ArchiveRetriever()
    )
    simple(model, retriever).batch(asked)
    return {question: reranked_rows(question) for question in asked}


def multi_query(model: Any) -> Expected:
    question = new_question()
    variants = RunnableLambda(lambda text: [question])
    rewriter = ChatPromptTemplate.from_template("Rephrase: {question}") | model | variants
    retriever = MultiQueryRetriever(retriever=ArchiveRetriever(), llm_chain=rewriter)
    simple(model, retriever).invoke(question)
    return all_of([question])


class RagState(TypedDict, total=False):
    question: str
    documents: list[Document]
    answer: str


def rag_graph(model: Any) -> Any:
    def retrieve(state: RagState) -> RagState:
        return {"documents": ArchiveRetriever().invoke(state["question"])}

    def answer(state: RagState) -> RagState:
        text = (PROMPT | model | StrOutputParser()).invoke(
            {"context": join(state["documents"]), "question": state["question"]}
        )
        return {"answer": text}

    graph = StateGraph(RagState)
    graph.add_node("retrieve", retrieve)
    graph.add_node("answer", answer)
    graph.add_edge(START, "retrieve")
    graph.add_edge("retrieve", "answer")
    graph.add_edge("answer", END)
    return graph.compile()


def langgraph_nodes(model: Any) -> Expected:
    asked = questions(6)
    rag_graph(model).batch([{"question": question} for question in asked])
    return all_of(asked)


async def langgraph_async(model: Any) -> Expected:
    asked, graph = questions(6), rag_graph(model)
    await asyncio.gather(*(graph.ainvoke({"question": question}) for question in asked))
    return all_of(asked)


async def langgraph_message_stream(model: Any) -> Expected:
    question = new_question()
    async for _ in rag_graph(model).astream({"question": question}, stream_mode=["messages", "values"]):
        pass
    return all_of([question])


class FanState(TypedDict):
    questions: list[str]
    answers: Annotated[list[str], operator.add]


def langgraph_fan_out(model: Any) -> Expected:
    asked = questions(5)

    def one(state: Any) -> dict[str, list[str]]:
        documents = ArchiveRetriever().invoke(state["question"])
        prompt = PROMPT.invoke({"context": join(documents), "question": state["question"]})
        return {"answers": [str(model.invoke(prompt))]}

    graph = StateGraph(FanState)
    graph.add_node("one", one)
    graph.add_conditional_edges(START, lambda s: [Send("one", {"question": q}) for q in s["questions"]], ["one"])
    graph.add_edge("one", END)
    graph.compile().invoke({"questions": asked, "answers": []})
    return all_of(asked)


@tool(response_format="content_and_artifact")
def search_archive(query: str) -> tuple[str, list[Document]]:
    """Search the archive."""
    documents = found_for(query)
    return join(documents), documents


def agent_with_tool_artifacts(model: Any) -> Expected:
    question = new_question()

    def think(state: MessagesState) -> dict[str, Any]:
        if not any(isinstance(m, ToolMessage) for m in state["messages"]):
            call = {"name": "search_archive", "args": {"query": question}, "id": "1"}
            return {"messages": [AIMessage("", tool_calls=[call])]}
        prompt = ChatPromptTemplate.from_messages([("placeholder", "{messages}"), ("human", "Question: {question}")])
        return {"messages": [AIMessage(str((prompt | model).invoke({**state, "question": question})))]}

    graph = StateGraph(MessagesState)
    graph.add_node("think", think)
    graph.add_node("tools", ToolNode([search_archive]))
    graph.add_edge(START, "think")
    graph.add_conditional_edges("think", lambda s: "tools" if getattr(s["messages"][-1], "tool_calls", None) else END)
    graph.add_edge("tools", "think")
    graph.compile().invoke({"messages": [HumanMessage(question)]})
    return all_of([question])


def tool_message_in_a_later_run(model: Any) -> Expected:
    question = new_question()
    documents = found_for(question)
    messages = [
        HumanMessage("Look it up."),
        AIMessage("", tool_calls=[{"name": "search_archive", "args": {"query": question}, "id": "1"}]),
        ToolMessage(join(documents), artifact=documents, tool_call_id="1"),
        HumanMessage(f"Question: {question}"),
    ]
    model.invoke(messages)
    return all_of([question])


def formatted_before_the_chain(model: Any) -> Expected:
    asked = questions(8)
    contexts = [join(ArchiveRetriever().invoke(question)) for question in asked]
    inputs = [{"context": context, "question": question} for context, question in zip(contexts, asked, strict=True)]
    (PROMPT | model).batch(inputs)
    return all_of(asked)


def retrieved_in_a_raw_thread(model: Any) -> Expected:
    question = new_question()

    def fetch(query: str) -> str:
        with ThreadPoolExecutor(1) as pool:
            return join(pool.submit(ArchiveRetriever().invoke, query).result())

    ({"context": RunnableLambda(fetch), "question": RunnablePassthrough()} | PROMPT | model).invoke(question)
    return all_of([question])


def bound_passages(model: Any) -> Expected:
    asked = questions(3)
    for question in asked:
        documents = found_for(question)
        passages = [Passage(d.page_content, 7.0 - i) for i, d in enumerate(documents)]
        (PROMPT | model.bind(passages=passages)).invoke({"context": join(documents), "question": question})
    return {q: {(d.page_content, 7.0 - i) for i, d in enumerate(found_for(q))} for q in asked}


def configured_passages(model: Any) -> Expected:
    question = new_question()
    chain = PROMPT | model.configurable_fields(passages=ConfigurableField(id="passages"))
    documents = found_for(question)
    given = [(d, 3.0 - i) for i, d in enumerate(documents)]
    chain.invoke({"context": join(documents), "question": question}, {"configurable": {"passages": given}})
    return {question: {(d.page_content, 3.0 - i) for i, d in enumerate(documents)}}


def two_questions_under_one_root(model: Any) -> Expected:
    asked = questions(2)
    first, second = (RunnableLambda(lambda _, q=q: q) | simple(model) for q in asked)
    RunnableParallel(first=first, second=second).invoke("both")
    return all_of(asked)


def scored_pairs(model: Any) -> Expected:
    asked = questions(4)

    def search(query: str) -> list[tuple[Document, float]]:
        return [(Document(d.page_content), d.metadata["score"]) for d in found_for(query)]

    context = RunnableLambda(search) | (lambda pairs: join([d for d, _ in pairs]))
    ({"context": context, "question": RunnablePassthrough()} | PROMPT | model).batch(asked)
    return all_of(asked)


def reordered_and_cut(model: Any) -> Expected:
    question = new_question()
    shuffle = RunnableLambda(lambda documents: [documents[i] for i in (3, 0, 4)])
    simple(model, ArchiveRetriever() | shuffle).invoke(question)
    rows = found_for(question)
    return {question: {(rows[i].page_content, rows[i].metadata["score"]) for i in (3, 0, 4)}}


def retried_and_with_fallback(model: Any) -> Expected:
    question = new_question()
    failing = RunnableLambda(_refuse)
    simple(failing.with_fallbacks([model]).with_retry(stop_after_attempt=2)).invoke(question)
    return all_of([question])


def _refuse(_: Any) -> str:
    raise ValueError("refused")


async def async_tool_threads(model: Any) -> Expected:
    asked, chain = questions(6), simple(model)

    async def one(question: str, config: RunnableConfig) -> str:
        return await asyncio.to_thread(chain.invoke, question, config)

    await RunnableLambda(_never, afunc=one).abatch(asked)
    return all_of(asked)


async def sync_inside_a_loop(model: Any) -> Expected:
    """What notebooks do."""
    asked = questions(3)
    chain = simple(model)
    chain.invoke(asked[0])
    chain.batch(asked[1:])
    return all_of(asked)


def _never(_: Any) -> str:
    raise AssertionError("only the asynchronous path is used")


SCENARIOS: list[Callable[[Any], Any]] = [
    invoke, batch_of_forty, batch_with_limit, abatch_of_forty, gathered, threads, interleaved_streams, interleaved_async_streams,
    streamed_events, condense_then_answer, ensemble, ensemble_async, reranker, reranker_that_asks_the_model, multi_query, langgraph_nodes,
    langgraph_async, langgraph_message_stream, langgraph_fan_out, agent_with_tool_artifacts, tool_message_in_a_later_run,
    formatted_before_the_chain, retrieved_in_a_raw_thread, bound_passages, configured_passages, two_questions_under_one_root,
    sync_inside_a_loop, scored_pairs, reordered_and_cut, retried_and_with_fallback, async_tool_threads,
]  # fmt: skip


# A text model is handed no messages, so it cannot know a tool message's artifact.
CASES = [
    (s, kind) for s in SCENARIOS for kind in ("chat", "llm") if kind == "chat" or s is not tool_message_in_a_later_run
]


def play(scenario: Callable[[Any], Any], model: Any) -> Expected:
    if inspect.iscoroutinefunction(scenario):
        return asyncio.run(scenario(model))
    return scenario(model)


def check(generator: RecordingGenerator, expected: Expected) -> None:
    """Every question was answered once, over its own passages in prompt order; all other calls had none."""
    seen: dict[str, int] = dict.fromkeys(expected, 0)
    for request in generator.requests:
        prompt = prompt_of(request)
        asked = re.findall(r"Question: (.+\?)", prompt)
        question = asked[-1] if asked and not re.search("Rephrase|Grade", prompt) else None
        if question not in expected:
            assert request.passages == (), prompt
            continue
        seen[question] += 1
        rows = [(p.text, p.score) for p in request.passages]
        assert set(rows) == expected[question], question
        assert len(rows) == len(expected[question])
        places = [prompt.index(text) for text, _ in rows]
        assert places == sorted(places) or request.passages[0].id is None
    assert seen == dict.fromkeys(expected, 1)


def model_of(kind: str, generator: RecordingGenerator) -> Any:
    return ChatFocus(generator=generator) if kind == "chat" else FocusLLM(generator=generator)


@pytest.mark.parametrize(("scenario", "kind"), CASES, ids=lambda value: getattr(value, "__name__", value))
@pytest.mark.parametrize("repeats", [3, pytest.param(20, marks=pytest.mark.stress)])
def test_own_passages_and_scores(scenario: Callable[[Any], Any], kind: str, repeats: int) -> None:
    generator = RecordingGenerator()
    model = model_of(kind, generator)
    with ThreadPoolExecutor(min(repeats, 8)) as pool:
        results = list(pool.map(lambda _: play(scenario, model), range(repeats)))
    expected: Expected = {}
    for result in results:
        expected.update(result)
    check(generator, expected)


@pytest.mark.parametrize("kind", ["chat", "llm"])
@pytest.mark.parametrize("repeats", [1, pytest.param(20, marks=pytest.mark.stress)])
def test_all_scenarios_at_once(kind: str, repeats: int) -> None:
    generator = RecordingGenerator()
    model = model_of(kind, generator)
    work = [scenario for scenario, for_kind in CASES if for_kind == kind] * repeats
    random.Random(repeats).shuffle(work)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda scenario: play(scenario, model), work))
    check(generator, {question: rows for result in results for question, rows in result.items()})


@pytest.mark.parametrize("kind", ["chat", "llm"])
def test_batches_reach_the_generator_whole(kind: str) -> None:
    generator = RecordingGenerator()
    model = model_of(kind, generator)
    batch_of_forty(model)
    asyncio.run(abatch_of_forty(model))
    assert generator.batches == [40, 40]
    batch_with_limit(model)
    assert generator.batches[2:] == [3, 3, 3, 1]
