"""Every call gets exactly its own passages and scores, whatever LlamaIndex does in between.

Queries share passages, and the score of a shared passage depends on the query, so a passage that comes from the wrong
retrieval shows.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import json
import random
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("llama_index.core")

from llama_index.core.agent.workflow import ReActAgent
from llama_index.core.chat_engine import CondensePlusContextChatEngine, CondenseQuestionChatEngine, ContextChatEngine
from llama_index.core.indices.prompt_helper import PromptHelper
from llama_index.core.postprocessor import LLMRerank, LongContextReorder
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.query_engine import (
    CitationQueryEngine,
    CustomQueryEngine,
    RetrieverQueryEngine,
    SubQuestionQueryEngine,
)
from llama_index.core.question_gen import LLMQuestionGenerator
from llama_index.core.response_synthesizers import ResponseMode, get_response_synthesizer
from llama_index.core.retrievers import BaseRetriever, QueryFusionRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.core.tools import QueryEngineTool, RetrieverTool
from llama_index.core.workflow import Context, Event, StartEvent, StopEvent, Workflow, step
from llama_index_focus_rag import FocusLLM

from focus_rag import Answer, Passage, Request
from tests.integrations.recording_generator import RecordingGenerator, prompt_of

Rows = set[tuple[str, float | None]]
Expected = dict[str, Rows]

_WORDS = [
    "mill", "river", "stone", "wheel", "fire", "harvest", "bridge", "miller", "grain", "winter", "timber", "flood", "road", "tower",
]  # fmt: skip
_RANDOM = random.Random(7)
POOL = [
    f"Record {i}: " + " ".join(_RANDOM.choices(_WORDS, k=_RANDOM.randint(14, 40))) + f", entry {i} ends."
    for i in range(60)
]
QUESTION = re.compile(r"What does the archive say about item \d{6}\?")
_NUMBERS = itertools.count(1)


def new_question() -> str:
    return f"What does the archive say about item {next(_NUMBERS):06d}?"


def questions(n: int) -> list[str]:
    return [new_question() for _ in range(n)]


def number_in(query: str) -> int:
    return int(re.findall(r"\d{6}", query)[-1])


def nodes_for(query: str, *, distances: bool = False) -> list[NodeWithScore]:
    number = number_in(query)
    scores = [0.9 - 0.05 * i + number / 1e6 for i in range(6)]
    return [
        NodeWithScore(
            node=TextNode(text=text, id_=f"{number}-{i}", metadata={"file": f"volume {POOL.index(text)}"}),
            score=1 - score if distances else score,
        )
        for i, (text, score) in enumerate(zip(random.Random(number).sample(POOL, 6), scores, strict=True))
    ]


def rows(nodes: list[NodeWithScore]) -> Rows:
    return {(node.node.text, node.score) for node in nodes}


class ArchiveRetriever(BaseRetriever):
    def __init__(self, *, distances: bool = False) -> None:
        super().__init__()
        self._distances = distances

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return nodes_for(query_bundle.query_str, distances=self._distances)


class Rescore(BaseNodePostprocessor):
    """A reranker that gives scores of its own and drops half."""

    def _postprocess_nodes(self, nodes: Any, query_bundle: Any = None) -> list[NodeWithScore]:
        kept = sorted(nodes, key=lambda n: n.node.text)[:3]
        return [
            NodeWithScore(node=n.node, score=5.0 - i + number_in(query_bundle.query_str) / 1e6)
            for i, n in enumerate(kept)
        ]


class ScriptedGenerator(RecordingGenerator):
    """Says what rerankers, condensers and question generators want to hear."""

    def run(self, request: Request) -> Answer:
        prompt = prompt_of(request)
        answer = super().run(request)
        asked = QUESTION.findall(prompt)
        if is_rerank(prompt):
            return replace(answer, text="Doc: 3, Relevance: 9\nDoc: 1, Relevance: 7\nDoc: 2, Relevance: 6")
        if is_condense(prompt):
            return replace(answer, text=f"In other words, {asked[-1]}")
        if is_agent(prompt):
            step = {"input": asked[-1]}
            return replace(
                answer,
                text="Thought: I know enough.\nAnswer: It says so."
                if "Observation: " in prompt.split(asked[-1], 1)[-1]
                else f"Thought: I need a tool.\nAction: archive\nAction Input: {json.dumps(step)}",
            )
        if "sub_question" in prompt:
            number = number_in(asked[-1])
            subs = [f"What does the archive say about item {number + i * 100000:06d}?" for i in (1, 2)]
            return replace(
                answer, text=json.dumps({"items": [{"sub_question": q, "tool_name": "archive"} for q in subs]})
            )
        if "search queries" in prompt:
            number = number_in(asked[-1])
            return replace(answer, text=f"archive item {number + 300000:06d}\narchive item {number + 400000:06d}")
        return answer


def is_rerank(prompt: str) -> bool:
    return "Relevance" in prompt and "Doc" in prompt


def is_agent(prompt: str) -> bool:
    return "Action Input" in prompt


def is_condense(prompt: str) -> bool:
    return "standalone question" in prompt.lower()


def check(generator: RecordingGenerator, expected: Expected, *, whole: bool = True) -> None:
    """Each recorded call got what it should, and each question got all."""
    got: dict[str, Rows] = {question: set() for question in expected}
    for request in generator.requests:
        prompt = prompt_of(request)
        shown = {text for text in POOL if text in prompt}
        mine = [(text, p.score) for p in request.passages for text in POOL if text in p.text]
        if is_rerank(prompt) or is_condense(prompt):
            assert request.passages == ()
            continue
        if whole and not shown:
            assert mine == []
            continue
        question = QUESTION.findall(prompt)[-1]
        wanted = {row for row in expected[question] if row[0] in shown}
        if whole:
            assert len(mine) == len(set(mine))
            assert set(mine) == wanted
        else:
            assert set(mine) <= expected[question]
        got[question] |= set(mine)
        if len(wanted) > 1:
            assert request.higher_is_better is not False
    assert got == expected


def engine(
    llm: FocusLLM, mode: str = "compact", *, streaming: bool = False, retriever: Any = None, post: Any = None
) -> Any:
    return RetrieverQueryEngine.from_args(
        retriever or ArchiveRetriever(),
        llm=llm,
        response_mode=ResponseMode(mode),
        streaming=streaming,
        node_postprocessors=post,
    )


def mode(name: str) -> Callable[[FocusLLM], Expected]:
    def ask(llm: FocusLLM) -> Expected:
        question = new_question()
        engine(llm, name).query(question)
        return {question: rows(nodes_for(question))}

    return ask


def amode(name: str) -> Callable[[FocusLLM], Any]:
    async def ask(llm: FocusLLM) -> Expected:
        question = new_question()
        await engine(llm, name).aquery(question)
        return {question: rows(nodes_for(question))}

    return ask


async def gathered(llm: FocusLLM) -> Expected:
    asked = questions(24)
    shared = engine(llm)
    await asyncio.gather(*(shared.aquery(question) for question in asked))
    return {question: rows(nodes_for(question)) for question in asked}


def threads(llm: FocusLLM) -> Expected:
    asked = questions(24)
    shared = engine(llm)
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(shared.query, asked))
    return {question: rows(nodes_for(question)) for question in asked}


def interleaved_streams(llm: FocusLLM) -> Expected:
    asked = questions(6)
    shared = engine(llm, streaming=True)
    streams = [iter(shared.query(question).response_gen) for question in asked]
    while streams:
        streams = [stream for stream in streams if next(stream, None) is not None]
    return {question: rows(nodes_for(question)) for question in asked}


async def interleaved_async_streams(llm: FocusLLM) -> Expected:
    asked = questions(6)
    shared = engine(llm, streaming=True)
    responses = [await shared.aquery(question) for question in asked]
    streams = [response.async_response_gen() for response in responses]
    while streams:
        streams = [stream for stream in streams if await anext(stream, None) is not None]
    return {question: rows(nodes_for(question)) for question in asked}


def tree_summarize_streams(llm: FocusLLM) -> Expected:
    asked = questions(3)
    shared = engine(llm, "tree_summarize", streaming=True)
    streams = [iter(shared.query(question).response_gen) for question in reversed(asked)]
    while streams:
        streams = [stream for stream in streams if next(stream, None) is not None]
    return {question: rows(nodes_for(question)) for question in asked}


def reranked_streams(llm: FocusLLM) -> Expected:
    asked = questions(4)
    shared = engine(llm, streaming=True, post=[Rescore()])
    responses = [shared.query(question) for question in asked]
    expected = {question: rows(response.source_nodes) for question, response in zip(asked, responses, strict=True)}
    for response in reversed(responses):
        "".join(response.response_gen)
    assert all(len(found) == 3 for found in expected.values())
    return expected


def chat_engine(kind: str, llm: FocusLLM) -> Any:
    if kind == "condense_plus_context":
        return CondensePlusContextChatEngine.from_defaults(ArchiveRetriever(), llm=llm)
    if kind == "context":
        return ContextChatEngine.from_defaults(ArchiveRetriever(), llm=llm)
    return CondenseQuestionChatEngine.from_defaults(engine(llm), llm=llm)


def conversation(kind: str) -> Callable[[FocusLLM], Expected]:
    def talk(llm: FocusLLM) -> Expected:
        asked = questions(3)
        engine = chat_engine(kind, llm)
        for question in asked:
            engine.chat(question)
        return {question: rows(nodes_for(question)) for question in asked}

    return talk


def aconversation(kind: str) -> Callable[[FocusLLM], Any]:
    async def talk(llm: FocusLLM) -> Expected:
        talks = [questions(2) for _ in range(4)]

        async def one(asked: list[str]) -> None:
            engine = chat_engine(kind, llm)
            for question in asked:
                await engine.achat(question)

        await asyncio.gather(*map(one, talks))
        return {question: rows(nodes_for(question)) for asked in talks for question in asked}

    return talk


def streamed_conversation(kind: str) -> Callable[[FocusLLM], Expected]:
    def talk(llm: FocusLLM) -> Expected:
        asked = questions(2)
        engine = chat_engine(kind, llm)
        for question in asked:
            "".join(engine.stream_chat(question).response_gen)
        return {question: rows(nodes_for(question)) for question in asked}

    return talk


async def astreamed_conversation(llm: FocusLLM) -> Expected:
    asked = questions(2)
    engine = chat_engine("condense_plus_context", llm)
    for question in asked:
        response = await engine.astream_chat(question)
        async for _ in response.async_response_gen():
            pass
    return {question: rows(nodes_for(question)) for question in asked}


def cited(llm: FocusLLM) -> Expected:
    question = new_question()
    citing = CitationQueryEngine.from_args(None, llm=llm, retriever=ArchiveRetriever(), citation_chunk_size=2000)  # type: ignore[arg-type]
    return citing_rows(question, citing.query(question))


async def acited(llm: FocusLLM) -> Expected:
    asked = questions(4)
    citing = CitationQueryEngine.from_args(None, llm=llm, retriever=ArchiveRetriever(), citation_chunk_size=2000)  # type: ignore[arg-type]
    responses = await asyncio.gather(*(citing.aquery(question) for question in asked))
    return {q: r for pair in zip(asked, responses, strict=True) for q, r in citing_rows(*pair).items()}


def citing_rows(question: str, response: Any) -> Expected:
    """Sources as the citation engine numbers them hold the passages; the passage is known by its own text or by the
    source's.
    """
    assert len(response.source_nodes) == 6
    return {question: {(text, n.score) for n in response.source_nodes for text in POOL if text in n.node.text}}


def asking_reranker(llm: FocusLLM) -> Expected:
    question = new_question()
    response = engine(llm, post=[LLMRerank(llm=llm, top_n=3)]).query(question)
    assert sorted(n.score for n in response.source_nodes) == [6.0, 7.0, 9.0]
    return {question: rows(response.source_nodes)}


async def asking_reranker_async(llm: FocusLLM) -> Expected:
    asked = questions(6)
    shared = engine(llm, post=[LLMRerank(llm=llm, top_n=3, choice_batch_size=6)])
    responses = await asyncio.gather(*(shared.aquery(question) for question in asked))
    return {question: rows(response.source_nodes) for question, response in zip(asked, responses, strict=True)}


def fused(llm: FocusLLM, *, fusion: str = "reciprocal_rerank") -> Expected:
    question = new_question()
    response = engine(llm, retriever=fusion_of(llm, fusion)).query(question)
    return {question: rows(response.source_nodes)}


def fused_by_score(llm: FocusLLM) -> Expected:
    return fused(llm, fusion="relative_score")


async def afused(llm: FocusLLM) -> Expected:
    asked = questions(5)
    shared = engine(llm, retriever=fusion_of(llm, "simple"))
    responses = await asyncio.gather(*(shared.aquery(question) for question in asked))
    return {question: rows(response.source_nodes) for question, response in zip(asked, responses, strict=True)}


def fusion_of(llm: FocusLLM, fusion: str) -> QueryFusionRetriever:
    return QueryFusionRetriever(
        [ArchiveRetriever()], llm=llm, mode=fusion, num_queries=3, similarity_top_k=8, use_async=False
    )


def reordered_and_reranked(llm: FocusLLM) -> Expected:
    question = new_question()
    response = engine(llm, post=[Rescore(), LongContextReorder()]).query(question)
    return {question: rows(response.source_nodes)}


def sub_question_engine(llm: FocusLLM, *, use_async: bool) -> SubQuestionQueryEngine:
    tool = QueryEngineTool.from_defaults(engine(llm), name="archive", description="The archive.")
    return SubQuestionQueryEngine.from_defaults(
        [tool],
        llm=llm,
        question_gen=LLMQuestionGenerator.from_defaults(llm),
        response_synthesizer=get_response_synthesizer(llm=llm, use_async=use_async),
        use_async=use_async,
        verbose=False,
    )


def sub_questions(llm: FocusLLM) -> Expected:
    question = new_question()
    sub_question_engine(llm, use_async=False).query(question)
    return sub_rows(question)


async def asub_questions(llm: FocusLLM) -> Expected:
    asked = questions(3)
    shared = sub_question_engine(llm, use_async=True)
    await asyncio.gather(*(shared.aquery(question) for question in asked))
    return {sub: found for question in asked for sub, found in sub_rows(question).items()}


def sub_rows(question: str) -> Expected:
    subs = [f"What does the archive say about item {number_in(question) + i * 100000:06d}?" for i in (1, 2)]
    return {sub: rows(nodes_for(sub)) for sub in subs}


def agents(*, over_engine: bool) -> Callable[[FocusLLM], Any]:
    """ReAct agents, whose tool is a query engine that asks the model itself, or a retriever whose passages the agent
    reads.
    """

    async def run(llm: FocusLLM) -> Expected:
        about = {"name": "archive", "description": "The archive."}
        tool = (
            QueryEngineTool.from_defaults(engine(llm), **about)
            if over_engine
            else RetrieverTool.from_defaults(ArchiveRetriever(), **about)
        )
        asked = questions(4)
        agent = ReActAgent(tools=[tool], llm=llm)
        await asyncio.gather(*(agent.run(user_msg=question) for question in asked))
        return {question: rows(nodes_for(question)) for question in asked}

    return run


class Retrieved(Event):
    nodes: list[NodeWithScore]
    question: str


class ArchiveWorkflow(Workflow):
    """Retrieves in one step, reranks and asks in the next."""

    def __init__(self, llm: FocusLLM, *, synthesize: bool) -> None:
        super().__init__(timeout=120)
        self.llm = llm
        self.synthesize = synthesize

    @step
    async def retrieve(self, ctx: Context, ev: StartEvent) -> Retrieved:
        return Retrieved(nodes=await ArchiveRetriever().aretrieve(ev.question), question=ev.question)

    @step
    async def answer(self, ctx: Context, ev: Retrieved) -> StopEvent:
        if self.synthesize:
            synthesizer = get_response_synthesizer(llm=self.llm, response_mode=ResponseMode.COMPACT)
            return StopEvent(result=str(await synthesizer.asynthesize(ev.question, ev.nodes)))
        context = "\n\n".join(node.node.text for node in ev.nodes)
        return StopEvent(result=(await self.llm.acomplete(f"{context}\n\n{ev.question}")).text)


def workflows(*, synthesize: bool) -> Callable[[FocusLLM], Any]:
    async def run(llm: FocusLLM) -> Expected:
        asked = questions(12)
        await asyncio.gather(*(ArchiveWorkflow(llm, synthesize=synthesize).run(question=q) for q in asked))
        return {question: rows(nodes_for(question)) for question in asked}

    return run


class OwnEngine(CustomQueryEngine):
    """The engine of LlamaIndex's own documentation: retrieves, formats, calls the model."""

    llm: Any
    retriever: Any

    def custom_query(self, query_str: str) -> str:
        nodes = self.retriever.retrieve(query_str)
        context = "\n\n".join(node.node.get_content() for node in nodes)
        return str(self.llm.complete(f"Context:\n{context}\nQuestion: {query_str}\nAnswer: "))


def own_engine(llm: FocusLLM) -> Expected:
    asked = questions(4)
    shared = OwnEngine(llm=llm, retriever=ArchiveRetriever())
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(shared.query, asked))
    return {question: rows(nodes_for(question)) for question in asked}


def retrieval_outside(llm: FocusLLM) -> Expected:
    asked = questions(4)
    found = [ArchiveRetriever().retrieve(question) for question in asked]
    synthesizer = get_response_synthesizer(llm=llm)
    for question, nodes in list(zip(asked, found, strict=True))[:2]:
        synthesizer.synthesize(question, nodes)
    for question, nodes in list(zip(asked, found, strict=True))[2:]:
        llm.complete("\n\n".join(node.node.text for node in nodes) + f"\n\n{question}")
    return {question: rows(nodes_for(question)) for question in asked}


def given_by_hand(llm: FocusLLM) -> Expected:
    first, second = questions(2)
    nodes = nodes_for(first)
    context = "\n\n".join(node.node.text for node in nodes)
    ArchiveRetriever().retrieve(first)
    llm.complete(f"{context}\n{first}", passages=[Passage(n.node.text, 0.25) for n in nodes])
    llm.complete(f"{context}\n{second}", passages=[])
    return {first: {(n.node.text, 0.25) for n in nodes}, second: set()}


def same_passages_two_questions(llm: FocusLLM) -> Expected:
    """One prompt after the other in one span, the same passages retrieved with different scores for each."""
    asked = questions(2)
    shared = nodes_for(asked[0])

    class Same(BaseRetriever):
        def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
            by = number_in(query_bundle.query_str) / 1e6
            return [NodeWithScore(node=n.node, score=0.7 - 0.1 * i + by) for i, n in enumerate(shared)]

    streaming = engine(llm, streaming=True, retriever=Same())
    responses = [streaming.query(question) for question in asked]
    expected = {question: rows(response.source_nodes) for question, response in zip(asked, responses, strict=True)}
    for response in responses:
        "".join(response.response_gen)
    assert expected[asked[0]] != expected[asked[1]]
    return expected


SCENARIOS: list[Callable[[FocusLLM], Any]] = [
    mode("compact"), mode("refine"), mode("tree_summarize"), mode("accumulate"), mode("compact_accumulate"), mode("simple_summarize"),
    amode("compact"), amode("refine"), amode("tree_summarize"), amode("accumulate"), gathered, threads, interleaved_streams,
    interleaved_async_streams, tree_summarize_streams, reranked_streams, conversation("condense_plus_context"), conversation("context"),
    conversation("condense_question"), aconversation("condense_plus_context"), aconversation("context"), aconversation("condense_question"),
    streamed_conversation("condense_plus_context"), streamed_conversation("context"), streamed_conversation("condense_question"),
    astreamed_conversation, cited, acited, asking_reranker, asking_reranker_async, fused, fused_by_score, afused, reordered_and_reranked,
    sub_questions, asub_questions, workflows(synthesize=True), workflows(synthesize=False), agents(over_engine=True), agents(over_engine=False), own_engine, retrieval_outside, given_by_hand,
    same_passages_two_questions,
]  # fmt: skip


def named(scenario: Callable[[FocusLLM], Any]) -> str:
    free = [cell.cell_contents for cell in scenario.__closure__ or ()]
    return "-".join([scenario.__qualname__.split(".")[0], *map(str, free)])


def perform(scenario: Callable[[FocusLLM], Any], llm: FocusLLM) -> Expected:
    result = scenario(llm)
    return asyncio.run(result) if inspect.iscoroutine(result) else result


@pytest.mark.parametrize("scenario", SCENARIOS, ids=named)
def test_each_call_gets_its_own_passages(scenario: Callable[[FocusLLM], Any]) -> None:
    generator = ScriptedGenerator()
    expected = perform(scenario, FocusLLM(generator))
    check(generator, expected)
    assert generator.requests


def all_at_once(workers: int) -> None:
    generator = ScriptedGenerator()
    llm = FocusLLM(generator)
    order = random.Random(workers).sample(SCENARIOS, len(SCENARIOS))
    with ThreadPoolExecutor(workers) as pool:
        parts = list(pool.map(lambda scenario: perform(scenario, llm), order))
    check(generator, {question: found for part in parts for question, found in part.items()})


@pytest.mark.parametrize("workers", [4, 8, 12])
def test_all_scenarios_at_once(workers: int) -> None:
    all_at_once(workers)


@pytest.mark.stress
@pytest.mark.parametrize("workers", range(3, 23))
def test_all_scenarios_at_once_twenty_times(workers: int) -> None:
    all_at_once(workers)


def test_distances_are_told_by_their_order_at_retrieval() -> None:
    generator = ScriptedGenerator()
    question = new_question()
    engine(FocusLLM(generator), retriever=ArchiveRetriever(distances=True), post=[LongContextReorder()]).query(question)
    (request,) = generator.requests
    assert request.higher_is_better is False
    assert {(p.text, p.score) for p in request.passages} == rows(nodes_for(question, distances=True))


def test_passages_that_compacting_splits_are_still_found() -> None:
    generator = ScriptedGenerator()
    llm = FocusLLM(generator)
    question = new_question()
    helper = PromptHelper(context_window=1400, num_output=64, chunk_overlap_ratio=0.05, tokenizer=str.split)
    long = [" ".join(_RANDOM.choices(_WORDS, k=250)) + f" {i}" for i in range(8)]
    nodes = [NodeWithScore(node=TextNode(text=text), score=0.9 - 0.1 * i) for i, text in enumerate(long)]
    get_response_synthesizer(llm=llm, prompt_helper=helper).synthesize(question, nodes)
    assert len(generator.requests) > 1
    found = {(p.text, p.score) for request in generator.requests for p in request.passages}
    assert found == {(n.node.text, n.score) for n in nodes}
    assert all(request.passages for request in generator.requests)
