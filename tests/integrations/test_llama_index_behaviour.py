"""FocusLLM keeps LlamaIndex's contract for language models, and says what it does with bad input."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import subprocess
import sys
import threading
from typing import Any

import pytest

pytest.importorskip("llama_index.core")

import itertools

import llama_index.core
from llama_index.core import PromptTemplate, Settings
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.chat_engine import CondensePlusContextChatEngine
from llama_index.core.llms import ChatMessage, ImageBlock, MessageRole
from llama_index.core.query_engine import CustomQueryEngine, RetrieverQueryEngine
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index_focus_rag import FocusLLM, KeepBest, collect_reports
from pydantic import BaseModel, Field, ValidationError

from focus_rag import FocusGenerator, GenerationSettings, InvalidInputError, Passage, PassageRegistry, ScoreSplit
from tests.integrations.recording_generator import RecordingGenerator, prompt_of
from tests.tiny_models import tiny_model, tiny_profile
from tests.tiny_tokenizer import tiny_tokenizer

TEXTS = [f"Passage number {i} tells of the mill at the {name} and of its wheel." for i, name in enumerate(
    ["river", "bridge", "harbour", "castle", "forest"])]  # fmt: skip


class Fixed(BaseRetriever):
    def __init__(self, nodes: list[NodeWithScore]) -> None:
        super().__init__()
        self.nodes = nodes

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return self.nodes


def scored(scores: list[Any], texts: list[str] = TEXTS) -> list[NodeWithScore]:
    return [NodeWithScore(node=TextNode(text=text), score=score) for text, score in zip(texts, scores, strict=True)]


def asked(nodes: list[NodeWithScore], question: str = "Where is the mill?", **fields: Any) -> Any:
    """The request that a query engine makes over these nodes."""
    generator = RecordingGenerator()
    RetrieverQueryEngine.from_args(Fixed(nodes), llm=FocusLLM(generator, **fields)).query(question)
    (request,) = generator.requests
    return request


@pytest.fixture
def generator() -> RecordingGenerator:
    return RecordingGenerator()


@pytest.fixture
def llm(generator: RecordingGenerator) -> FocusLLM:
    return FocusLLM(generator)


@pytest.fixture(scope="module")
def real() -> FocusLLM:
    model = tiny_model(max_position_embeddings=4096, vocab_size=300)
    profile = tiny_profile(model)
    settings = GenerationSettings(max_new_tokens=6)
    return FocusLLM(FocusGenerator(model, tiny_tokenizer(), profile, alpha=0.4, settings=settings))


def user(text: str) -> ChatMessage:
    return ChatMessage(role=MessageRole.USER, content=text)


async def all_eight(llm: FocusLLM, **options: Any) -> list[Any]:
    """The last response of every way to call a model."""
    return [
        llm.complete("What is it?", **options),
        list(llm.stream_complete("What is it?", **options))[-1],
        llm.chat([user("What is it?")], **options),
        list(llm.stream_chat([user("What is it?")], **options))[-1],
        await llm.acomplete("What is it?", **options),
        [r async for r in await llm.astream_complete("What is it?", **options)][-1],
        await llm.achat([user("What is it?")], **options),
        [r async for r in await llm.astream_chat([user("What is it?")], **options)][-1],
    ]


def words(response: Any) -> str:
    return response.text if hasattr(response, "text") else response.message.content


async def test_all_ways_to_call_say_the_same(llm: FocusLLM, generator: RecordingGenerator) -> None:
    responses = await all_eight(llm)
    assert [words(response) for response in responses] == [generator.text] * 8
    for response in responses:
        assert response.raw["usage"]["total_tokens"] == sum(
            response.raw["usage"][name] for name in ("prompt_tokens", "completion_tokens")
        )
        assert response.additional_kwargs["focus_rag"]["found"] == "none"
    assert all(request.messages == [{"role": "user", "content": "What is it?"}] for request in generator.requests)


async def test_all_ways_to_call_agree_on_a_real_model(real: FocusLLM) -> None:
    texts = {words(response) for response in await all_eight(real)}
    assert len(texts) == 1
    assert texts != {words(real.complete("Something else entirely?"))}


async def test_options_of_a_call_reach_the_generator(llm: FocusLLM, generator: RecordingGenerator) -> None:
    passages = [Passage("The mill stands at the river.", 0.5), Passage("The wheel is made of oak.", 0.4)]
    options = {"max_new_tokens": 7, "stop": ["built"], "temperature": 0.5, "top_p": 0.9, "seed": 3}
    responses = await all_eight(
        llm,
        passages=passages,
        alpha=0.25,
        split=ScoreSplit(reach=0.1),
        noise=0.5,
        score_kind="cosine",
        higher_is_better=True,
        **options,
    )
    for response in responses:
        assert words(response) == "The mill was "
        assert response.additional_kwargs["focus_rag"]["found"] == "given"
    for request in generator.requests:
        assert request.settings.model_dump() == {**GenerationSettings().model_dump(), **options, "stop": ("built",)}
        assert request.passages == tuple(passages)
        assert request.split == ScoreSplit(reach=0.1)
        assert (request.alpha, request.noise, request.score_kind, request.higher_is_better) == (
            0.25,
            0.5,
            "cosine",
            True,
        )


def test_fields_are_defaults_and_calls_win(generator: RecordingGenerator) -> None:
    llm = FocusLLM(generator, max_new_tokens=11, stop="END", alpha=0.1, passages=["A passage given to all calls."])
    llm.complete("one")
    llm.complete("two", max_tokens=5, stop=[], alpha=0.2, passages=[])
    first, second = generator.requests
    assert (first.settings.max_new_tokens, first.settings.stop, first.alpha, len(first.passages)) == (
        11,
        ("END",),
        0.1,
        1,
    )
    assert (second.settings.max_new_tokens, second.settings.stop, second.alpha, second.passages) == (5, (), 0.2, ())


def test_streams_grow_and_carry_usage_once(llm: FocusLLM) -> None:
    pieces = list(llm.stream_chat([user("hello")]))
    assert "".join(piece.delta for piece in pieces) == pieces[-1].message.content
    assert all(
        later.message.content.startswith(earlier.message.content) for earlier, later in itertools.pairwise(pieces)
    )
    assert [piece.raw is not None for piece in pieces] == [False] * (len(pieces) - 1) + [True]


def test_input_errors_are_raised_when_a_stream_is_made(real: FocusLLM) -> None:
    with pytest.raises(InvalidInputError):
        real.stream_complete("word " * 4000)


def test_metadata(real: FocusLLM) -> None:
    metadata = real.metadata
    assert metadata.context_window == 4096 and metadata.num_output == 6
    assert metadata.is_chat_model and not metadata.is_function_calling_model
    assert metadata.model_name and real.class_name() == "FocusLLM"
    assert not FocusLLM(real.generator, use_chat_template=False).metadata.is_chat_model


def test_tokenizer_for_settings(real: FocusLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(real.tokenizer_fn("mill")) == real.generator.count_tokens("mill") == 4
    monkeypatch.setattr(llama_index.core, "global_tokenizer", None)
    FocusLLM(real.generator, share_tokenizer=False)
    assert llama_index.core.global_tokenizer is None
    FocusLLM(real.generator)
    assert len(Settings.tokenizer("mill")) == 4
    chosen = str.split
    Settings.tokenizer = chosen
    FocusLLM(real.generator)
    assert Settings.tokenizer is chosen


async def test_tokens_are_counted_once(generator: RecordingGenerator) -> None:
    counter = TokenCountingHandler(tokenizer=str.split)
    llm = FocusLLM(generator, callback_manager=CallbackManager([counter]))
    for response in await all_eight(llm):
        del response
    assert len(counter.llm_token_counts) == 8
    usage = llm.complete("What is it?").raw["usage"]
    assert {count.prompt_token_count for count in counter.llm_token_counts} == {usage["prompt_tokens"]}
    assert {count.completion_token_count for count in counter.llm_token_counts} == {usage["completion_tokens"]}


async def test_generation_never_runs_on_the_loops_thread(llm: FocusLLM, generator: RecordingGenerator) -> None:
    await llm.acomplete("one")
    await llm.achat([user("two")])
    [r async for r in await llm.astream_complete("three")]
    [r async for r in await llm.astream_chat([user("four")])]
    assert len(generator.threads) == 4 and threading.get_ident() not in generator.threads


async def test_passages_are_never_looked_for_on_the_loops_thread(
    llm: FocusLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_up = PassageRegistry.lookup
    threads: list[int] = []

    def watched(registry: PassageRegistry, run_id: Any, prompt: str) -> Any:
        threads.append(threading.get_ident())
        return look_up(registry, run_id, prompt)

    monkeypatch.setattr(PassageRegistry, "lookup", watched)
    await llm.acomplete("one")
    await llm.achat([user("two")])
    [r async for r in await llm.astream_complete("three")]
    [r async for r in await llm.astream_chat([user("four")])]
    assert len(threads) == 4 and threading.get_ident() not in threads


async def test_the_loop_runs_on_while_a_real_model_generates(real: FocusLLM) -> None:
    turns = 0

    async def tick() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    ticking = asyncio.ensure_future(tick())
    await asyncio.gather(real.acomplete("one", max_new_tokens=16), real.achat([user("two")], max_new_tokens=16))
    ticking.cancel()
    assert turns > 10


def test_prompts_and_messages_take_the_right_form(generator: RecordingGenerator) -> None:
    llm = FocusLLM(generator, system_prompt="Be brief.")
    llm.complete("Why?")
    llm.complete("Already formatted", formatted=True)
    llm.predict(PromptTemplate("Tell me about {thing}"), thing="mills")
    llm.chat([ChatMessage(role=MessageRole.SYSTEM, content="a"), ChatMessage(role=MessageRole.SYSTEM, content="b"),
              user("c"), user("d"), ChatMessage(role=MessageRole.ASSISTANT, content="e"),
              ChatMessage(role=MessageRole.TOOL, content="f")])  # fmt: skip
    first, second, third, fourth = generator.requests
    system = {"role": "system", "content": "Be brief."}
    assert first.messages == [system, {"role": "user", "content": "Why?"}]
    assert second.messages is None and second.prompt == "Already formatted"
    assert third.messages == [system, {"role": "user", "content": "Tell me about mills"}]
    assert [(m["role"], m["content"]) for m in fourth.messages] == [
        ("system", "a\n\nb"), ("user", "c\n\nd"), ("assistant", "e"), ("user", "f")]  # fmt: skip
    own = FocusLLM(
        generator, messages_to_prompt=lambda messages: f"<<{messages[-1].content}>>", completion_to_prompt=str.upper
    )
    own.chat([user("mine")])
    own.complete("loud")
    assert [request.prompt for request in generator.requests[-2:]] == ["<<mine>>", "LOUD"]


def test_what_cannot_be_used_is_refused(llm: FocusLLM, generator: RecordingGenerator) -> None:
    for options in ({"max_new_token": 5}, {"temperature": -1.0}, {"passages": [3]}, {"passages": "text"}):
        with pytest.raises(InvalidInputError):
            llm.complete("x", **options)
    with pytest.raises(InvalidInputError, match="reads text only"):
        llm.chat([ChatMessage(role=MessageRole.USER, blocks=[ImageBlock(url="http://localhost/x.png")])])
    with pytest.raises(InvalidInputError, match="no text"):
        llm.chat([user(" ")])
    with pytest.raises(InvalidInputError, match="not both"):
        FocusLLM(generator, model="x")
    with pytest.raises(InvalidInputError):
        FocusLLM(generator, score_kind="stars")
    with pytest.raises(InvalidInputError):
        FocusLLM(generator, max_new_tokens=0)
    with pytest.raises(ValueError, match="alhpa"):
        FocusLLM(generator, alhpa=0.1)
    assert generator.requests == []


def test_passages_may_be_nodes_pairs_and_texts(llm: FocusLLM, generator: RecordingGenerator) -> None:
    node = TextNode(text="The node's text.", id_="n", metadata={"file": "a.txt"})
    llm.complete("x", passages=[NodeWithScore(node=node, score=0.5), (node, 0.4), node, "A text.", ("A pair.", 0.3)])
    assert [(p.text, p.score, p.id) for p in generator.requests[0].passages] == [
        ("The node's text.", 0.5, "n"), ("The node's text.", 0.4, "n"), ("The node's text.", None, "n"),
        ("A text.", None, None), ("A pair.", 0.3, None)]  # fmt: skip


def test_importing_installs_nothing() -> None:
    code = (
        "import focus_rag, llama_index_focus_rag as f\n"
        "from llama_index.core.instrumentation import get_dispatcher as d\n"
        "kinds = {type(h).__module__ for h in d().span_handlers + d().event_handlers}\n"
        "raise SystemExit(any('focus' in kind for kind in kinds))"
    )
    environment = {"PYTHONPATH": ".:integrations"}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def test_models_share_one_capture(generator: RecordingGenerator) -> None:
    handlers = len(llama_index.core.instrumentation.get_dispatcher().span_handlers)
    FocusLLM(generator)
    FocusLLM(generator)
    assert len(llama_index.core.instrumentation.get_dispatcher().span_handlers) == handlers


def test_reports_reach_whoever_asks_an_engine(real: FocusLLM) -> None:
    engine = RetrieverQueryEngine.from_args(Fixed(scored([0.9, 0.8, 0.5, 0.4, 0.2])), llm=real)
    with collect_reports() as reports:
        engine.query("Where is the mill?")
    engine.query("And this is not collected?")
    (report,) = reports
    assert report["alpha"] == 0.4 and report["found"] == "lineage"
    assert [passage["score"] for passage in report["passages"]] == [0.9, 0.8, 0.5, 0.4, 0.2]
    assert sum(passage["attention"] for passage in report["passages"]) == pytest.approx(1.0, abs=1e-3)


def test_focus_changes_what_a_real_model_is_steered_by(real: FocusLLM) -> None:
    engine = RetrieverQueryEngine.from_args(Fixed(scored([0.9, 0.8, 0.5, 0.4, 0.2])), llm=real)
    with collect_reports() as reports:
        engine.query("Where is the mill?")
        real.complete("No passages here?", alpha="auto")
    assert [report["alpha"] for report in reports] == [0.4, 0.0]


def test_no_scores_leave_the_count() -> None:
    request = asked(scored([None] * 5))
    assert [p.text for p in request.passages] == TEXTS
    assert [p.score for p in request.passages] == [None] * 5 and request.higher_is_better is None
    assert request.query == "Where is the mill?"  # by whose words it can be told which of them it is about


def test_scores_that_are_strings_count_as_numbers_or_not_at_all() -> None:
    nodes = scored([0.9] * 5)
    for node, score in zip(nodes, ["0.9", "0.8", "high", float("nan"), "0.2"], strict=True):
        object.__setattr__(node, "score", score)
    assert [p.score for p in asked(nodes).passages] == [0.9, 0.8, None, None, 0.2]


def test_distances_rise_in_retrieval_order() -> None:
    assert asked(scored([0.1, 0.4, 0.6, 1.3, 1.9])).higher_is_better is False
    assert asked(scored([0.9, 0.8, 0.5, 0.4, 0.2])).higher_is_better is True
    assert asked(scored([0.1, 0.4, 0.6, 1.3, 1.9]), higher_is_better=True).higher_is_better is True


def test_duplicated_passages_come_as_often_as_they_stand_in_the_prompt() -> None:
    generator = RecordingGenerator()
    # Given to the synthesizer, because retrievers of some versions drop nodes of the same text.
    nodes = scored([0.9, 0.8, 0.7], [TEXTS[0], TEXTS[1], TEXTS[0]])
    get_response_synthesizer(llm=FocusLLM(generator)).synthesize("Where is the mill?", nodes)
    (request,) = generator.requests
    assert [(p.text, p.score) for p in request.passages] == [(TEXTS[0], 0.9), (TEXTS[1], 0.8), (TEXTS[0], 0.7)]


def test_one_text_in_two_files_keeps_the_score_of_each() -> None:
    nodes = [
        NodeWithScore(node=TextNode(text=TEXTS[0], metadata={"file": name}), score=score)
        for name, score in (("first.txt", 0.9), ("second.txt", 0.3))
    ]
    generator = RecordingGenerator()
    synthesizer = get_response_synthesizer(llm=FocusLLM(generator))
    synthesizer.synthesize("Where is the mill?", list(reversed(nodes)))
    (request,) = generator.requests
    assert {(("first" in p.text), p.score) for p in request.passages} == {(True, 0.9), (False, 0.3)}


def test_scores_in_no_order_are_not_used_unless_their_kind_is_told() -> None:
    shuffled = scored([0.4, 0.9, 0.1, 0.8, 0.3])
    assert [p.score for p in asked(shuffled).passages] == [None] * 5
    assert [p.score for p in asked(shuffled, score_kind="cosine").passages] == [0.4, 0.9, 0.1, 0.8, 0.3]


def test_scores_of_two_retrievers_are_not_mixed(llm: FocusLLM, generator: RecordingGenerator) -> None:
    class Both(BaseRetriever):
        def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
            words = Fixed(scored([9.5, 7.1], TEXTS[:2])).retrieve(query_bundle)
            return words + Fixed(scored([0.9, 0.5, 0.3], TEXTS[2:])).retrieve(query_bundle)

    engine = RetrieverQueryEngine.from_args(Both(), llm=llm)
    with collect_reports() as reports:
        engine.query("Where is the mill?")
    assert [p.score for p in generator.requests[0].passages] == [None] * 5
    assert "different retrievers" in reports[0]["note"]


def test_a_node_whose_template_leaves_its_text_out_is_known_by_what_is_shown() -> None:
    nodes = scored([0.9, 0.8, 0.5, 0.4, 0.2])
    for i, node in enumerate(nodes):
        node.node.metadata = {"summary": f"A summary of volume {i}, which is shown in place of the text."}
        node.node.text_template = "{metadata_str}"
    assert [p.score for p in asked(nodes).passages] == [0.9, 0.8, 0.5, 0.4, 0.2]


def test_an_answer_that_quotes_its_passages_makes_no_passages_of_the_next_question() -> None:
    long = [" ".join(f"word{i}{j}" for j in range(80)) for i in range(3)]
    quotes = " and ".join(" ".join(text.split()[10:24]) for text in long)
    generator = RecordingGenerator(text=f"It is said that {quotes}.")
    chat = CondensePlusContextChatEngine.from_defaults(Fixed(scored([0.9, 0.8, 0.5], long)), llm=FocusLLM(generator))
    chat.chat("Where is the mill?")
    chat.chat("And after that?")
    answered, condensed, again = generator.requests
    assert len(answered.passages) == len(again.passages) == 3
    assert quotes in prompt_of(condensed) and condensed.passages == ()


def test_passages_in_another_order_keep_their_scores(llm: FocusLLM, generator: RecordingGenerator) -> None:
    Fixed(scored([0.1, 0.4, 0.6, 1.3, 1.9])).retrieve("order?")
    llm.complete("\n".join(reversed(TEXTS)) + "\norder?")
    (request,) = generator.requests
    assert [p.score for p in request.passages] == [1.9, 1.3, 0.6, 0.4, 0.1] and request.higher_is_better is False


def test_collapsed_white_space_and_cut_ends_are_still_found(llm: FocusLLM, generator: RecordingGenerator) -> None:
    long = " ".join(f"word{i}" for i in range(60))
    Fixed(scored([0.9, 0.8], [f"First\n\n{long}", f"Second\n{long[::-1]}"])).retrieve("cut?")
    llm.complete(f"First {long}\nSecond {long[::-1][:200]}\ncut?")
    assert [p.score for p in generator.requests[0].passages] == [0.9, 0.8]


def test_a_retrieval_that_is_not_in_the_prompt_is_told_once(
    generator: RecordingGenerator, caplog: pytest.LogCaptureFixture
) -> None:
    llm = FocusLLM(generator)

    class Engine(CustomQueryEngine):
        def custom_query(self, query_str: str) -> str:
            Fixed(scored([0.9, 0.8, 0.5, 0.4, 0.2])).retrieve(query_str)
            return llm.complete(f"Nothing but {query_str}").text

    with caplog.at_level(logging.WARNING, logger="focus_rag"):
        for _ in range(3):
            Engine().query("the question")
    assert len(caplog.records) == 1 and "none of them stands in the prompt" in caplog.text
    assert all(request.passages == () for request in generator.requests)
    caplog.clear()
    llm.complete("Nothing was retrieved.")
    assert not caplog.records


async def test_abandoned_streams_set_the_model_free(real: FocusLLM) -> None:
    stream = real.stream_complete("one", max_new_tokens=200)
    next(stream)
    stream.close()
    real.stream_complete("never read", max_new_tokens=200)
    astream = await real.astream_complete("two", max_new_tokens=200)
    await anext(astream)
    await astream.aclose()
    assert real.complete("three").raw["finish_reason"] in ("length", "stop")


def test_a_dump_is_read_back_with_its_generator_and_never_as_another_model(real: FocusLLM) -> None:
    dumped = FocusLLM(real.generator, alpha=0.2, max_new_tokens=7).to_dict()
    with pytest.raises(InvalidInputError, match="does not hold its model"):
        FocusLLM.from_dict(dumped)
    again = FocusLLM.from_dict(dumped, generator=real.generator)
    assert (again.alpha, again.max_new_tokens, again.generator) == (0.2, 7, real.generator)


@pytest.mark.parametrize(
    ("scores", "options", "kept"),
    [
        ([None] * 4, {}, [1, 3]),  # words alone
        ([0.9, 0.8, 0.2, 0.1], {}, [0, 1]),
        ([0.1, 0.2, 0.8, 0.9], {}, [0, 1]),  # distances
        ([0.1, 0.2, 0.8, 0.9], {"score_kind": "cosine"}, [1, 3]),
        ([0.1, 0.2, 0.8, 0.9], {"higher_is_better": True}, [1, 3]),
    ],
)
async def test_keep_best(
    generator: RecordingGenerator, scores: list[Any], options: dict[str, Any], kept: list[int]
) -> None:
    texts = [
        "A wheel turned in the river.",
        "The Ashford mill was built in 1803.",
        "The bakery was opened in 1841.",
        "Ashford lies on a river.",
    ]
    nodes, question = scored(scores, texts), "When was the Ashford mill built?"
    keeping = KeepBest(top_n=2, **options)
    expected = [nodes[place] for place in kept]
    assert (
        keeping.postprocess_nodes(nodes, query_str=question)
        == await keeping.apostprocess_nodes(nodes, query_str=question)
        == expected
    )
    engine = RetrieverQueryEngine.from_args(Fixed(nodes), llm=FocusLLM(generator), node_postprocessors=[keeping])
    engine.query(question)
    (request,) = generator.requests
    assert [(one.text, one.score) for one in request.passages] == [(one.node.text, one.score) for one in expected]
    assert request.query == question


def test_keep_best_goes_by_scores_where_nothing_is_asked_and_says_what_is_wrong() -> None:
    nodes = scored([0.2, 0.9, 0.3, 0.8, 0.1])
    assert KeepBest(top_n=2, score_kind="cosine").postprocess_nodes(nodes) == [nodes[1], nodes[3]]
    assert KeepBest(top_n=9).postprocess_nodes(nodes) == nodes
    for wrong in ({"top_n": 0}, {"top_n": True}, {"score_kind": "stars"}, {"k": 3}):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            KeepBest(**wrong)


def test_keep_best_reads_the_metadata_that_the_model_is_shown() -> None:
    texts = [("It went up in 1803 and is of stone.", "Ashford mill"), ("The barn was built of wood.", "Bakery")]
    nodes = [NodeWithScore(node=TextNode(text=text, metadata={"title": title})) for text, title in texts]
    assert KeepBest(top_n=1).postprocess_nodes(nodes, query_str="When was the Ashford mill built?") == [nodes[0]]
    for node in nodes:
        node.node.excluded_llm_metadata_keys = ["title"]
    assert KeepBest(top_n=1).postprocess_nodes(nodes, query_str="When was the Ashford mill built?") == [nodes[1]]


def test_keep_best_is_read_back_from_its_dumps() -> None:
    keeping = KeepBest(top_n=3, by="words", score_kind="cosine")
    copies = [
        KeepBest.model_validate(keeping.model_dump()),
        KeepBest.model_validate_json(keeping.model_dump_json()),
        KeepBest.from_dict(keeping.to_dict()),
    ]
    for copy in copies:
        assert (copy.top_n, copy.by, copy.score_kind) == (3, "words", "cosine")


class Reply(BaseModel):
    answer: str = Field(max_length=8)
    sure: bool


async def test_structured_answers_follow_their_class(real: FocusLLM) -> None:
    pytest.importorskip("llguidance")
    llm = FocusLLM(real.generator, max_new_tokens=120)
    prompt = PromptTemplate("Where is the {thing}?")
    reply = llm.structured_predict(Reply, prompt, thing="mill")
    assert isinstance(reply, Reply) and reply == await llm.astructured_predict(Reply, prompt, thing="mill")
    assert list(llm.stream_structured_predict(Reply, prompt, thing="mill"))[-1].model_dump() == reply.model_dump()
    assert [part async for part in await llm.astream_structured_predict(Reply, prompt, thing="mill")][
        -1
    ].model_dump() == reply.model_dump()
    with collect_reports() as reports:
        engine = RetrieverQueryEngine.from_args(Fixed(scored([0.9, 0.5, 0.4, 0.3, 0.2])), llm=llm, output_cls=Reply)
        answer = engine.query("Where is the mill?").response
    assert isinstance(answer, Reply) and reports[0]["found"] == "lineage" and reports[0]["alpha"] == 0.4


def test_without_llguidance_structure_is_left_to_the_prompt(
    generator: RecordingGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    generator.text = '{"answer": "there", "sure": true}'
    assert FocusLLM(generator).structured_predict(Reply, PromptTemplate("Where?")) == Reply(answer="there", sure=True)
    assert generator.requests[0].settings.json_schema is None and "JSON" in prompt_of(generator.requests[0])
