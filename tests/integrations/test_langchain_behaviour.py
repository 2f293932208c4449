"""What `ChatFocus` and `FocusLLM` do with passages, settings and bad input, beyond what LangChain's own suites ask."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import threading
import time
from typing import Any, Literal, TypedDict

import pytest

pytest.importorskip("langchain_core")

import numpy as np
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.exceptions import OutputParserException
from langchain_core.load import dumpd
from langchain_core.messages import AIMessage, ChatMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import ConfigurableField, RunnableLambda, RunnableParallel, RunnablePassthrough
from langchain_core.tools import StructuredTool
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore, VectorStoreRetriever
from langchain_focus_rag import CAPTURE, ChatFocus, FocusLLM, keep_best, keep_scores
from langchain_focus_rag.batching import GatheredBatch, Row
from langchain_focus_rag.messages import chat_template_messages
from pydantic import BaseModel, Field

from focus_rag import (
    FittedAlpha,
    FixedAlpha,
    FocusGenerator,
    GenerationSettings,
    InvalidInputError,
    Passage,
    PassageRegistry,
    PromptLayout,
    ScoreSplit,
)
from focus_rag.alpha import AlphaChoice
from tests.integrations.recording_generator import RecordingGenerator, prompt_of
from tests.tiny_models import tiny_model, tiny_profile
from tests.tiny_tokenizer import tiny_tokenizer

TEXTS = [f"Document {i} tells what happened at the old mill in the year {1800 + 7 * i}." for i in range(6)]
QUESTION = "What happened at the mill?"
PROMPT = ChatPromptTemplate.from_template("Context:\n{context}\n\nQuestion: {question}")
KINDS = ["chat", "llm"]


class Retriever(BaseRetriever):
    documents: list[Document]

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        return self.documents


def join(documents: list[Document]) -> str:
    return "\n\n".join(document.page_content for document in documents)


def documents(scores: list[Any] | None = None) -> list[Document]:
    return [Document(text, metadata={} if scores is None else {"score": scores[i]}) for i, text in enumerate(TEXTS)]


def chain(model: Any, found: list[Document], reorder: Any = join) -> Any:
    return {"context": Retriever(documents=found) | reorder, "question": RunnablePassthrough()} | PROMPT | model


def model_of(kind: str, generator: Any = None, **fields: Any) -> tuple[Any, RecordingGenerator]:
    generator = generator or RecordingGenerator()
    return (ChatFocus if kind == "chat" else FocusLLM)(generator=generator, **fields), generator


def report_of(message: Any) -> dict[str, Any]:
    return message.response_metadata["focus_rag"]


@pytest.fixture(scope="module")
def tiny() -> FocusGenerator:
    tokenizer = tiny_tokenizer()
    model = tiny_model(vocab_size=len(tokenizer), max_position_embeddings=4096, seed=3)
    return FocusGenerator(model, tokenizer, tiny_profile(model), settings=GenerationSettings(max_new_tokens=8))


# --- the real generator
# ------------------------------------------------------------------------------------------------------------


def test_answers_are_the_generators_own(tiny: FocusGenerator) -> None:
    found = documents([0.9, 0.5, 0.4, 0.35, 0.3, 0.28])
    message = chain(ChatFocus(generator=tiny), found).invoke(QUESTION)
    content = prompt = PROMPT.format(context=join(found), question=QUESTION).removeprefix("Human: ")
    passages = [Passage(d.page_content, d.metadata["score"]) for d in found]
    answer = tiny.generate([{"role": "user", "content": content}], passages=passages)
    report = report_of(message)
    assert message.content == answer.text
    assert (report["alpha"], report["noise"], report["found"]) == (answer.alpha, answer.noise, "lineage")
    assert report["alpha"] > 0
    assert sum(use["attention"] for use in report["passages"]) == pytest.approx(1.0)
    assert [use["score"] for use in report["passages"]] == [d.metadata["score"] for d in found]
    assert message.usage_metadata["input_tokens"] == answer.usage.prompt_tokens
    assert message.response_metadata["finish_reason"] == answer.finish_reason
    assert message.response_metadata["focus_rag"]["finish_reason"] == answer.finish_reason
    assert (
        chain(FocusLLM(generator=tiny), found).invoke(QUESTION)
        == tiny.generate([{"role": "user", "content": f"Human: {prompt}"}], passages=passages).text
    )


def test_every_way_gives_the_same_answer(tiny: FocusGenerator) -> None:
    for kind in KINDS:
        rag = chain(model_of(kind, tiny)[0], documents([0.9, 0.5, 0.4, 0.3, 0.2, 0.1])) | StrOutputParser()
        expected = rag.invoke(QUESTION)

        async def asynchronous(rag: Any = rag) -> list[str]:
            pieces = [piece async for piece in rag.astream(QUESTION)]
            return ["".join(pieces), await rag.ainvoke(QUESTION), *(await rag.abatch([QUESTION, QUESTION]))]

        assert "".join(rag.stream(QUESTION)) == expected
        assert rag.batch([QUESTION] * 3) == [expected] * 3
        assert asyncio.run(asynchronous()) == [expected] * 4


def test_a_batch_has_one_alpha_per_row(tiny: FocusGenerator) -> None:
    few, many = documents([0.9, 0.1, 0.1, 0.1, 0.1, 0.1])[:2], documents([0.5, 0.5, 0.49, 0.5, 0.48, 0.5])

    class ByQuestion(BaseRetriever):
        def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
            return {"few": few, "many": many, "none": []}[query]

    rag = {"context": ByQuestion() | join, "question": RunnablePassthrough()} | PROMPT | ChatFocus(generator=tiny)
    alphas = [report_of(message)["alpha"] for message in rag.batch(["few", "many", "none"])]
    assert alphas == [report_of(rag.invoke(question))["alpha"] for question in ("few", "many", "none")]
    assert alphas[2] == 0.0 < alphas[0] < alphas[1]


def test_a_profile_that_relies_on_the_retrievers_order_leaves_reordered_passages_alone(tiny: FocusGenerator) -> None:
    policy = FittedAlpha(counts=(2,), noises=(0.0,), alphas=((0.5,),), needs_order=True)
    profile = tiny.profile.replace(policy=policy)  # type: ignore[union-attr]
    llm = ChatFocus(generator=FocusGenerator(tiny.model, tiny.tokenizer, profile, settings=tiny.settings))

    def ends_first(found: list[Document]) -> str:
        return join(found[::2] + found[1::2][::-1])

    falling, rising = [0.9, 0.8, 0.7, 0.5, 0.3, 0.1], [0.1, 0.3, 0.5, 0.7, 0.8, 0.9]
    for scores, reorder, alpha in (
        (falling, join, 0.5), (rising, join, 0.5), (falling, ends_first, 0.0), (rising, ends_first, 0.0),
        (None, join, 0.5), (None, ends_first, 0.5),  # nothing tells
        ([0.3, 0.45, 0.2, 0.9, 0.4, 0.7], join, 0.0),  # no order of any retriever, whichever end is the better one
    ):  # fmt: skip
        report = report_of(chain(llm, documents(scores), reorder).invoke(QUESTION))
        assert report["alpha"] == alpha
        assert (alpha == 0.0) == ("order of their scores" in report["reason"])


def test_generation_never_runs_on_the_loop(tiny: FocusGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []
    generate = tiny.model.generate
    monkeypatch.setattr(
        tiny.model, "generate", lambda **kw: threads.append(threading.current_thread()) or generate(**kw)
    )

    async def use(kind: str) -> None:
        model, _ = model_of(kind, tiny)
        await model.ainvoke("One")
        await model.abatch(["Two", "Three"])
        async for _ in model.astream("Four"):
            pass

    for kind in KINDS:
        asyncio.run(use(kind))
    assert len(threads) == 6
    assert threading.main_thread() not in threads


@pytest.mark.parametrize("kind", KINDS)
async def test_passages_are_never_looked_for_on_the_loop(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    look_up = PassageRegistry.lookup
    where: list[int] = []

    def watched(registry: PassageRegistry, run_id: Any, prompt: str) -> Any:
        where.append(threading.get_ident())
        return look_up(registry, run_id, prompt)

    monkeypatch.setattr(PassageRegistry, "lookup", watched)
    model, _ = model_of(kind)
    await model.ainvoke("One")
    await model.abatch(["Two", "Three"])
    async for _ in model.astream("Four"):
        pass
    assert len(where) == 4 and threading.get_ident() not in where


def test_a_left_stream_stops_the_generation(tiny: FocusGenerator) -> None:
    model = ChatFocus(generator=tiny, max_tokens=2000)
    stream = model.stream("Go on and on.")
    next(stream)
    stream.close()
    assert tiny.answer("Still there?").usage.completion_tokens > 0

    async def leave() -> None:
        chunks = model.astream("Go on and on.")
        await anext(chunks)
        await chunks.aclose()

    asyncio.run(leave())
    # Its thread stops after the token that it is at, a small part of the 2,000.
    until = time.monotonic() + 2
    while tiny._turns.is_taken and time.monotonic() < until:
        time.sleep(0.01)
    assert not tiny._turns.is_taken


# --- settings
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_fields_and_call_options_reach_the_generator(kind: str) -> None:
    model, generator = model_of(kind, temperature=0.5, max_tokens=7, stop=["\n"], alpha=0.1, noise=0.25)
    model.invoke("Hello")
    model.invoke("Hello", stop=["x"], temperature=0.0, max_new_tokens=9, alpha=0.2, seed=4, top_k=3, top_p=0.5)
    model.bind(alpha=FixedAlpha(alpha=0.3), split=ScoreSplit(), score_kind="cosine", higher_is_better=True).invoke(
        "Hello"
    )
    first, second, third = generator.requests
    assert first.settings == GenerationSettings(temperature=0.5, max_new_tokens=7, stop=("\n",))
    assert (first.alpha, first.noise) == (0.1, 0.25)
    assert second.settings == GenerationSettings(max_new_tokens=9, stop=("x",), seed=4, top_k=3, top_p=0.5)
    assert second.alpha == 0.2
    assert (third.alpha, third.split, third.score_kind, third.higher_is_better) == (
        FixedAlpha(alpha=0.3),
        ScoreSplit(),
        "cosine",
        True,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_settings_can_be_configured_per_call(kind: str) -> None:
    model, generator = model_of(kind)
    configurable = model.configurable_fields(alpha=ConfigurableField(id="alpha"))
    configurable.batch(["a", "b"], [{"configurable": {"alpha": 0.5}}, {"configurable": {"alpha": 0.7}}])
    assert sorted(request.alpha for request in generator.requests) == [0.5, 0.7]


@pytest.mark.parametrize("kind", KINDS)
def test_a_configured_model_is_not_loaded_again(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = RecordingGenerator()
    monkeypatch.setattr(FocusGenerator, "from_pretrained", lambda *_, **__: generator)
    model = (ChatFocus if kind == "chat" else FocusLLM)(model="some/model")
    monkeypatch.setattr(FocusGenerator, "from_pretrained", None)
    configurable = model.configurable_fields(alpha=ConfigurableField(id="alpha"))
    configurable.invoke("a", {"configurable": {"alpha": 0.5}})
    assert generator.requests[-1].alpha == 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_and_wrong_settings_are_told(kind: str) -> None:
    model, _ = model_of(kind)
    with pytest.raises(ValueError, match="temprature"):
        model_of(kind, temprature=0.5)
    with pytest.raises(InvalidInputError, match="'temprature'"):
        model.invoke("Hello", temprature=0.5)
    with pytest.raises(ValueError, match="temperature"):
        model_of(kind, temperature=-1.0)
    with pytest.raises(ValueError, match="score_kind"):
        model_of(kind, score_kind="cosinus")
    with pytest.raises(ValueError, match="generator, or model"):
        model_of(kind, model="some/model")
    with pytest.raises(InvalidInputError, match="passages must hold"):
        model.invoke("Hello", passages=[3])


@pytest.mark.parametrize("kind", KINDS)
def test_stop_is_honoured(kind: str) -> None:
    model, _ = model_of(kind, RecordingGenerator(text="one two three"))
    text = StrOutputParser().invoke
    assert text(model.invoke("Count", stop=["two"])) == "one "
    assert "".join(text(chunk) for chunk in model.stream("Count", stop=["two"])) == "one "
    assert [text(m) for m in model.batch(["Count", "Count"], stop=["three"])] == ["one two "] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_caches_key_on_the_settings(kind: str) -> None:
    cache = InMemoryCache()
    generator = RecordingGenerator()
    for fields in (
        {},
        {"alpha": 0.5},
        {"split": "off"},
        {"split": ScoreSplit()},
        {"noise": 0.5},
        {"temperature": 0.5},
        {"seed": 1},
        {"passages": []},
    ):
        model, _ = model_of(kind, generator, cache=cache, **fields)
        before = len(generator.requests)
        model.invoke("Hello")
        model.invoke("Hello")
        assert len(generator.requests) == before + 1, fields


@pytest.mark.parametrize("kind", KINDS)
def test_caches_tell_models_and_profiles_of_the_same_name_apart(kind: str, tiny: FocusGenerator) -> None:
    cache = InMemoryCache()
    other = tiny_model(vocab_size=len(tiny.tokenizer), max_position_embeddings=4096, seed=4)
    turned = tiny.profile.replace(directions=-tiny.profile.directions)  # type: ignore[union-attr]
    leaning = tiny.profile.replace(split=ScoreSplit())  # type: ignore[union-attr]
    generators = [
        FocusGenerator(model, tiny.tokenizer, profile, settings=tiny.settings, name="the same")
        for model, profile in (
            (tiny.model, None),
            (other, None),
            (tiny.model, tiny.profile),
            (tiny.model, turned),
            (tiny.model, leaning),
        )
    ]
    for generator in generators:
        model_of(kind, generator, cache=cache)[0].invoke("Hello")
    assert len({generator.identity for generator in generators}) == 5
    assert len(cache._cache) == 5
    laid_out = FocusGenerator(
        tiny.model, tiny.tokenizer, settings=tiny.settings, name="the same", layout=PromptLayout(plain_ending=" So:")
    )
    model_of(kind, laid_out, cache=cache)[0].invoke("Hello")
    assert len(cache._cache) == 6


class OwnPolicy:
    """A policy that is no model of pydantic's."""

    def choose(self, signal: Any) -> AlphaChoice:
        return AlphaChoice(0.25, "always")


def test_a_policy_of_ones_own_serves_a_chain_as_it_does_the_generator(tiny: FocusGenerator) -> None:
    own = FocusGenerator(tiny.model, tiny.tokenizer, tiny.profile, settings=tiny.settings, alpha=OwnPolicy())
    message = chain(ChatFocus(generator=own), documents([0.9, 0.5, 0.4, 0.35, 0.3, 0.28])).invoke(QUESTION)
    assert report_of(message)["alpha"] == 0.25


def test_documents_given_by_hand_say_which_way_up_their_scores_are() -> None:
    model, generator = model_of("chat")
    given = documents([0.1, 0.4, 0.2, 0.3, 0.5, 0.6])
    for document in given:
        document.metadata["higher_is_better"] = False
    model.invoke("x", passages=given)
    assert generator.requests[-1].higher_is_better is False
    model.invoke("x", passages=given, score_kind="cosine")
    assert generator.requests[-1].higher_is_better is None
    given[0].metadata["higher_is_better"] = True
    model.invoke("x", passages=given)
    assert generator.requests[-1].higher_is_better is None


def test_a_batch_of_no_size_is_refused() -> None:
    model, _ = model_of("chat")
    with pytest.raises(InvalidInputError, match="max_concurrency must be at least 1; got -1"):
        model.batch(["a", "b"], config={"max_concurrency": -1})


@pytest.mark.parametrize("kind", KINDS)
def test_a_cached_row_keeps_its_answer_when_the_others_fail(kind: str) -> None:
    class Broken(RecordingGenerator):
        def answer_batch(self, requests: Any, **_: Any) -> Any:
            raise MemoryError

    working, _ = model_of(kind, cache=(cache := InMemoryCache()))
    known = working.invoke("known")
    model, _ = model_of(kind, Broken(), cache=cache)
    if kind == "chat":  # LangChain gives a failed batch of a BaseLLM back as failed in every row
        first, second = model.batch(["known", "new"], return_exceptions=True)
        assert first.content == known.content
        assert isinstance(second, MemoryError)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cached_row_of_a_batch_is_not_generated_again(kind: str) -> None:
    model, generator = model_of(kind, cache=InMemoryCache())
    model.invoke("b")
    outputs = model.batch(["a", "b", "c"])
    assert len(outputs) == 3
    assert generator.batches[-1] == 2
    asyncio.run(model.abatch(["a", "d", "e"]))
    assert generator.batches[-1] == 2
    model.batch(["a", "b", "c"])
    assert len(generator.requests) == 5


@pytest.mark.parametrize("kind", KINDS)
def test_errors_of_a_row_stay_with_it(kind: str, tiny: FocusGenerator) -> None:
    model, _ = model_of(kind, tiny)
    too_long = "x" * 5000
    with pytest.raises(InvalidInputError, match="token"):
        model.batch(["fine", too_long])
    results = model.batch(["fine", too_long], return_exceptions=True)
    asynchronous = asyncio.run(model.abatch(["fine", too_long], return_exceptions=True))
    for good, bad in (results, asynchronous):
        assert isinstance(bad, InvalidInputError)
        # LangChain gives a failed batch of a BaseLLM back as failed in every row.
        assert not isinstance(good, Exception) if kind == "chat" else isinstance(good, InvalidInputError)


@pytest.mark.parametrize("kind", KINDS)
def test_an_unexpected_error_reaches_every_row(kind: str) -> None:
    class Broken(RecordingGenerator):
        def answer_batch(self, requests: Any, **_: Any) -> Any:
            raise RuntimeError("out of memory")

    model, _ = model_of(kind, Broken())
    results = model.batch(["a", "b", "c"], return_exceptions=True)
    assert [str(error) for error in results] == ["out of memory"] * 3
    results = asyncio.run(model.abatch(["a", "b", "c"], return_exceptions=True))
    assert [str(error) for error in results] == ["out of memory"] * 3


@pytest.mark.parametrize("kind", KINDS)
def test_callbacks_tracing_and_tokens(kind: str) -> None:
    class Seen(BaseCallbackHandler):
        def __init__(self) -> None:
            self.metadata: list[dict[str, Any]] = []
            self.tokens: list[str] = []
            self.ends: list[Any] = []

        def on_chat_model_start(self, serialized: Any, messages: Any, *, metadata: Any = None, **_: Any) -> None:
            self.metadata.append(metadata)

        def on_llm_start(self, serialized: Any, prompts: Any, *, metadata: Any = None, **_: Any) -> None:
            self.metadata.append(metadata)

        def on_llm_new_token(self, token: str, **_: Any) -> None:
            self.tokens.append(token)

        def on_llm_end(self, response: Any, **_: Any) -> None:
            self.ends.append(response)

    model, generator = model_of(kind, temperature=0.5, max_tokens=7)
    seen = Seen()
    list(model.stream("Hello", {"callbacks": [seen]}))
    assert "".join(seen.tokens) == generator.text
    known = seen.metadata[0]
    assert (known["ls_model_name"], known["ls_provider"]) == ("recording", "focus_rag")
    assert (known["ls_temperature"], known["ls_max_tokens"]) == (0.5, 7)
    assert known["ls_model_type"] == kind
    model.batch(["a", "b", "c"], {"callbacks": [seen]})
    assert len(seen.ends) == 4
    asyncio.run(model.abatch(["a", "b", "c"], {"callbacks": [seen]}))
    assert len(seen.metadata) == len(seen.ends) == 7


@pytest.mark.parametrize("kind", KINDS)
def test_the_capture_keeps_no_other_handler_from_hearing(kind: str) -> None:
    class Other(BaseCallbackHandler):
        started = 0

        def on_chat_model_start(self, *_: Any, **__: Any) -> None:
            self.started += 1

        on_llm_start = on_chat_model_start

    other = Other()
    asyncio.run(model_of(kind)[0].ainvoke("Hello", {"callbacks": [other]}))
    assert other.started == 1


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_counted_by_the_models_own_tokenizer(kind: str) -> None:
    model, _ = model_of(kind)
    assert model.get_num_tokens("abc") == 3
    assert len(model.get_token_ids("<|end|>é")) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_models_are_not_serialised_and_keep_no_key(kind: str) -> None:
    model, _ = model_of(kind, api_key="secret")
    assert dumpd(model)["type"] == "not_implemented"
    assert "secret" not in json.dumps(dumpd(model), default=str)
    assert model.api_key is None


def test_text_models_report_in_generation_info() -> None:
    model, _ = model_of("llm")
    found = documents([0.9, 0.5, 0.4, 0.3, 0.2, 0.1])
    result = model.generate([join(found)], passages=[(d, d.metadata["score"]) for d in found])
    info = result.generations[0][0].generation_info
    assert info["focus_rag"]["found"] == "given"
    assert len(info["focus_rag"]["passages"]) == 6
    assert result.llm_output["token_usage"]["prompt_tokens"] == info["prompt_tokens"]


def test_text_models_use_the_chat_template_unless_told_not_to() -> None:
    model, generator = model_of("llm")
    model.invoke("Hello")
    FocusLLM(generator=generator, use_chat_template=False).invoke("Hello")
    assert generator.requests[0].messages == [{"role": "user", "content": "Hello"}]
    assert (generator.requests[1].messages, generator.requests[1].prompt) == (None, "Hello")


def test_reports_are_plain_json_and_streamed_once() -> None:
    model, _ = model_of("chat")
    chunks = list(chain(model, documents([np.float32(s) for s in (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)])).stream(QUESTION))
    with_report = [chunk for chunk in chunks if "focus_rag" in chunk.response_metadata]
    assert len(with_report) == 1
    assert len(json.dumps(report_of(with_report[0]))) > 100
    assert sum(chunk.usage_metadata is not None for chunk in chunks) == 1
    assert report_of(sum(chunks[1:], chunks[0])) == report_of(with_report[0])


def test_messages_fit_strict_chat_templates() -> None:
    messages = [
        SystemMessage("A."),
        HumanMessage("Q1", name="Ann"),
        HumanMessage([{"type": "text", "text": "Q2"}]),
        AIMessage("", tool_calls=[{"name": "f", "args": {}, "id": "1"}]),
        ToolMessage("Found.", tool_call_id="1"),
        AIMessage("A1"),
        SystemMessage("B."),
        ChatMessage("Q3", role="user"),
    ]
    assert chat_template_messages(messages) == [
        {"role": "system", "content": "A.\n\nB."},
        {"role": "user", "content": "Q1\n\nQ2\n\nFound."},
        {"role": "assistant", "content": "A1"},
        {"role": "user", "content": "Q3"},
    ]
    with pytest.raises(InvalidInputError, match="image_url"):
        chat_template_messages([HumanMessage([{"type": "image_url", "image_url": {"url": "x"}}])])
    with pytest.raises(InvalidInputError, match="no text"):
        chat_template_messages([HumanMessage("")])


# --- bad input: documented behaviour, never a wrong alpha in silence
# ----------------------------------------------------------------


def scores_sent(generator: RecordingGenerator) -> list[float | None]:
    return [passage.score for passage in generator.requests[-1].passages]


def noise_of(message: Any) -> float:
    return report_of(message)["noise"]


def test_a_retriever_without_scores_is_judged_by_its_count() -> None:
    model, generator = model_of("chat")
    message = chain(model, documents()).invoke(QUESTION)
    assert scores_sent(generator) == [None] * 6
    assert noise_of(message) == pytest.approx(1 - 1 / 6)
    assert "no usable scores" in report_of(message)["reason"]
    assert generator.requests[-1].query == QUESTION  # by whose words it can be told which of them it is about


def test_scores_that_are_strings() -> None:
    model, generator = model_of("chat")
    chain(model, documents(["0.9", "0.5", "0.4", "0.3", "0.2", "0.1"])).invoke(QUESTION)
    assert scores_sent(generator) == [0.9, 0.5, 0.4, 0.3, 0.2, 0.1]
    message = chain(model, documents(["HIGH", "HIGH", "LOW", "LOW", "LOW", "LOW"])).invoke(QUESTION)
    assert scores_sent(generator) == [None] * 6
    assert noise_of(message) == pytest.approx(1 - 1 / 6)


def test_distances_are_told_by_their_order_even_where_the_prompt_has_another() -> None:
    distances = [0.1, 0.9, 1.0, 1.05, 1.1, 1.2]
    model, generator = model_of("chat")
    as_distances = noise_of(chain(model, documents(distances)).invoke(QUESTION))
    assert generator.requests[-1].higher_is_better is False
    turned = chain(model, documents(distances), lambda found: join(found[::-1])).invoke(QUESTION)
    assert generator.requests[-1].higher_is_better is False
    assert scores_sent(generator) == distances[::-1]
    assert noise_of(turned) == pytest.approx(as_distances)
    similar = noise_of(chain(model, documents([1 - d for d in distances])).invoke(QUESTION))
    assert similar == pytest.approx(as_distances)


def searched(scores: list[float], first: int = 0, **names: Any) -> Any:
    """A search of one's own that returns documents and scores, in this order."""
    found = documents()[first:]
    return RunnableLambda(lambda _: [(found[i], score) for i, score in enumerate(scores)]).with_config(**names)


def joined_pairs(pairs: list[tuple[Document, float]]) -> str:
    return join([document for document, _ in pairs])


def test_scores_in_no_order_are_not_used_unless_their_kind_is_told() -> None:
    model, generator = model_of("chat")
    shuffled = [0.4, 0.9, 0.1, 0.8, 0.3, 0.7]
    rag = {"context": searched(shuffled) | joined_pairs, "question": RunnablePassthrough()} | PROMPT
    message = (rag | model).invoke(QUESTION)
    assert scores_sent(generator) == [None] * 6
    assert noise_of(message) == pytest.approx(1 - 1 / 6)
    assert "which way up" in report_of(message)["note"]
    (rag | model.bind(score_kind="cosine")).invoke(QUESTION)
    assert scores_sent(generator) == shuffled


def test_scores_of_two_searches_are_not_mixed() -> None:
    model, generator = model_of("chat")
    both = RunnableParallel(
        words=searched([9.5, 7.1, 6.2], run_name="bm25"),
        vectors=searched([0.9, 0.5, 0.3], first=3, run_name="cosine"),
    )
    context = both | (lambda found: joined_pairs(found["words"] + found["vectors"]))
    message = ({"context": context, "question": RunnablePassthrough()} | PROMPT | model).invoke(QUESTION)
    assert scores_sent(generator) == [None] * 6
    assert "different retrievers" in report_of(message)["note"]


def test_scores_of_two_tools_are_not_mixed() -> None:
    model, generator = model_of("chat")
    words, vectors = documents([9.5, 7.1, 6.2, 0, 0, 0])[:3], documents([0, 0, 0, 0.9, 0.5, 0.3])[3:]
    calls = [{"name": name, "args": {}, "id": name} for name in ("words", "vectors")]
    results = [
        ToolMessage(join(found), artifact=found, name=name, tool_call_id=name)
        for name, found in (("words", words), ("vectors", vectors))
    ]
    message = model.invoke([HumanMessage(QUESTION), AIMessage("", tool_calls=calls), *results])
    assert scores_sent(generator) == [None] * 6
    assert "different retrievers" in report_of(message)["note"]
    model.invoke([HumanMessage(QUESTION), AIMessage("", tool_calls=calls[:1]), results[0]])
    assert scores_sent(generator) == [9.5, 7.1, 6.2]


def test_documents_with_several_kinds_of_score_have_none() -> None:
    model, generator = model_of("chat")
    found = documents([0.9, 0.5, 0.4, 0.3, 0.2, 0.1])
    found[4].metadata = {"relevance_score": 7.5}
    message = chain(model, found).invoke(QUESTION)
    assert scores_sent(generator) == [None] * 6
    assert noise_of(message) == pytest.approx(1 - 1 / 6)


def test_candidates_beside_their_reranked_half_in_one_state() -> None:
    model, generator = model_of("chat")
    candidates = documents([0.9, 0.5, 0.4, 0.3, 0.2, 0.1])
    best = [
        candidates[i].model_copy(update={"metadata": {"score": candidates[i].metadata["score"], "relevance_score": s}})
        for i, s in ((3, 8.0), (1, 5.0), (0, 2.0))
    ]

    def answer(state: dict[str, Any]) -> Any:
        return (PROMPT | model).invoke({"context": join(state["documents"]), "question": QUESTION})

    state = {"candidates": candidates, "documents": best, "also": candidates}
    RunnableLambda(answer).invoke(state)
    assert scores_sent(generator) == [8.0, 5.0, 2.0]
    assert generator.requests[-1].higher_is_better is True


def test_an_answer_that_quotes_its_passages_makes_no_passages_of_the_next_question() -> None:
    model, generator = model_of("chat")
    found = documents([0.9, 0.5, 0.4, 0.3, 0.2, 0.1])
    chain(model, found).invoke(QUESTION)
    rewrite = ChatPromptTemplate.from_messages([("placeholder", "{history}"), ("human", "Rephrase: {question}")])
    history = [HumanMessage(QUESTION), AIMessage(join(found[:3]))]
    (rewrite | model).invoke({"history": history, "question": "And after that?"})
    assert generator.requests[-1].passages == ()


def test_a_prompt_without_its_passages_is_not_focused_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    model, generator = model_of("chat")
    lost = chain(model, documents(), lambda found: "nothing")
    with caplog.at_level(logging.WARNING, logger="focus_rag"):
        first, second = lost.invoke(QUESTION), lost.invoke(QUESTION)
    assert generator.requests[-1].passages == ()
    assert report_of(first)["alpha"] == report_of(second)["alpha"] == 0.0
    assert "6 retrieved texts, none of them in this prompt" in report_of(first)["note"]
    assert len(caplog.records) == 1
    assert "6 passages were retrieved" in caplog.records[0].message


def test_models_made_anew_for_each_call_warn_once_too_and_copies_share_the_generator(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, generator = model_of("chat")
    varied = model.configurable_fields(alpha=ConfigurableField(id="alpha"))
    lost = chain(varied.with_config(configurable={"alpha": 0.0}), documents(), lambda found: "nothing")
    with caplog.at_level(logging.WARNING, logger="focus_rag"):
        for _ in range(3):
            lost.invoke(QUESTION)
    assert len(caplog.records) == 1
    copied = copy.deepcopy(model)
    assert copied is not model and copied.generator is generator


@pytest.mark.parametrize("given", ["text", "mapping", "tool", "messages"])
def test_a_search_without_a_retriever_is_for_what_its_step_was_given(given: str) -> None:
    model, generator = model_of("chat")
    if given == "tool":
        search = StructuredTool.from_function(
            lambda query: (query, documents()), name="search", description="d", response_format="content_and_artifact",
            args_schema={"type": "object", "properties": {"query": {"type": "string"}}},
        )  # fmt: skip

        def answer(question: str) -> Any:
            called = {"name": "search", "args": {"query": question}, "id": "1", "type": "tool_call"}
            found = search.invoke(called).artifact
            return (PROMPT | model).invoke({"context": join(found), "question": question})

        RunnableLambda(answer).invoke(QUESTION)
    else:
        inputs = {
            "text": QUESTION,
            "mapping": {"question": QUESTION, "other": "x"},
            "messages": {"messages": [HumanMessage("Earlier?"), AIMessage("So."), HumanMessage(QUESTION)]},
        }[given]
        searched = RunnableLambda(lambda _: documents())
        RunnableLambda(lambda value: (PROMPT | model).invoke(
            {"context": join(searched.invoke(value)), "question": QUESTION}
        )).invoke(inputs)  # fmt: skip
    assert generator.requests[-1].query == QUESTION
    assert len(generator.requests[-1].passages) == len(TEXTS)


def test_calls_that_have_nothing_to_find_are_not_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    model, _ = model_of("chat")
    with caplog.at_level(logging.WARNING, logger="focus_rag"):
        model.invoke("Hello")
        chain(model.bind(passages=[]), documents(), lambda found: "nothing").invoke(QUESTION)
    assert caplog.records == []


def test_duplicated_passages_count_as_often_as_they_stand_there() -> None:
    model, generator = model_of("chat")
    doubled = documents([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])[:2] * 2
    chain(model, doubled).invoke(QUESTION)
    assert scores_sent(generator) == [0.9, 0.8, 0.9, 0.8]
    chain(model, doubled, lambda found: join(found[:2])).invoke(QUESTION)
    assert scores_sent(generator) == [0.9, 0.8]


def test_passages_in_another_order_keep_their_scores() -> None:
    model, generator = model_of("chat")
    chain(model, documents([0.9, 0.8, 0.7, 0.6, 0.5, 0.4]), lambda found: join([found[4], found[1]])).invoke(QUESTION)
    assert scores_sent(generator) == [0.5, 0.8]
    assert generator.requests[-1].higher_is_better is True


def test_white_space_and_truncation_are_survived() -> None:
    long = [Document(" ".join([text] * 4), metadata={"score": 0.9 - i / 10}) for i, text in enumerate(TEXTS)]
    model, generator = model_of("chat")
    chain(model, long, lambda found: "\n---\n".join(d.page_content.replace(" ", "\n", 9) for d in found)).invoke(
        QUESTION
    )
    assert scores_sent(generator) == [0.9 - i / 10 for i in range(6)]
    chain(model, long, lambda found: "\n---\n".join(d.page_content[:150] for d in found)).invoke(QUESTION)
    assert scores_sent(generator) == [0.9 - i / 10 for i in range(6)]


def test_explicit_passages_win_and_none_turns_focusing_off() -> None:
    model, generator = model_of("chat")
    rag = chain(
        model.bind(passages=[Passage(TEXTS[0], 1.0), (TEXTS[1], 0.5), Document(TEXTS[2])]),
        documents([1, 2, 3, 4, 5, 6]),
    )
    assert report_of(rag.invoke(QUESTION))["found"] == "given"
    assert scores_sent(generator) == [1.0, 0.5, None]
    off = chain(model_of("chat", generator, passages=[])[0], documents([1, 2, 3, 4, 5, 6])).invoke(QUESTION)
    assert (report_of(off)["alpha"], report_of(off)["passages"]) == (0.0, [])


# --- keep_best
# ----------------------------------------------------------------------------------------------------------------------

ABOUT_MILLS = [
    "A wheel turned in the river.",
    "The Ashford mill was built in 1803.",
    "The bakery was opened in 1841.",
    "Ashford lies on a river.",
]


@pytest.mark.parametrize(
    ("metadata", "options", "kept"),
    [
        ([{}] * 4, {}, [1, 3]),  # words alone, as of a plain vector store
        ([{"score": score} for score in (0.9, 0.8, 0.2, 0.1)], {}, [0, 1]),
        ([{"score": score} for score in (0.1, 0.2, 0.8, 0.9)], {}, [0, 1]),  # distances
        (
            [{"score": score, "higher_is_better": True} for score in (0.1, 0.2, 0.8, 0.9)],
            {},
            [1, 3],
        ),  # as keep_scores says it
        ([{"score": score} for score in (0.1, 0.2, 0.8, 0.9)], {"score_kind": "cosine"}, [1, 3]),
        (
            [{"score": 0.9}, {"relevance_score": 0.8}, {"score": 0.2}, {"score": 0.1}],
            {},
            [1, 3],
        ),  # of two kinds: not compared
        ([{"score": 0.9}, {}, {}, {}], {}, [1, 3]),  # of two retrievers, one without scores
        (
            [{"score": score, "higher_is_better": True} for score in (300, 0.2, 280, 0.1)],
            {},
            [1, 3],
        ),  # of two, their scores side by side
        (
            [{"score": score, "higher_is_better": True} for score in (0.1, 0.2, 0.8, 0.9)],
            {"by": "scores", "higher_is_better": True},
            [2, 3],
        ),
    ],
)
async def test_keep_best(metadata: list[dict[str, Any]], options: dict[str, Any], kept: list[int]) -> None:
    found = [Document(text, metadata=known) for text, known in zip(ABOUT_MILLS, metadata, strict=True)]
    retriever = keep_best(Retriever(documents=found), 2, **options)
    question = "When was the Ashford mill built?"
    assert retriever.invoke(question) == await retriever.ainvoke(question) == [found[place] for place in kept]
    assert keep_best(RunnableLambda(lambda query: found), 2, **options).invoke(question) == [
        found[place] for place in kept
    ]


def test_a_model_gets_what_keep_best_leaves_with_its_scores() -> None:
    llm, generator = model_of("chat")
    found = [
        Document(text, metadata={"score": score}) for text, score in zip(ABOUT_MILLS, (0.9, 0.8, 0.2, 0.1), strict=True)
    ]
    rag = {"context": keep_best(Retriever(documents=found), 2) | join, "question": RunnablePassthrough()} | PROMPT | llm
    message = rag.invoke("When was the Ashford mill built?")
    assert report_of(message)["found"] == "lineage"
    (request,) = generator.requests
    assert [(one.text, one.score) for one in request.passages] == [(ABOUT_MILLS[0], 0.9), (ABOUT_MILLS[1], 0.8)]
    assert request.query == "When was the Ashford mill built?" and request.higher_is_better is True


async def test_the_configuration_of_a_call_reaches_the_other_retriever() -> None:
    store = InMemoryVectorStore(DeterministicFakeEmbedding(size=8))
    store.add_documents(
        [Document(f"The mill of {tenant}, {i}.", metadata={"tenant": tenant}) for tenant in "ab" for i in range(4)]
    )
    searching = store.as_retriever(search_kwargs={"k": 8}).configurable_fields(
        search_kwargs=ConfigurableField(id="search")
    )
    retriever = keep_best(searching, 3)
    only = {"configurable": {"search": {"k": 8, "filter": lambda document: document.metadata["tenant"] == "a"}}}
    for found in (
        retriever.invoke("mill", only),
        await retriever.ainvoke("mill", only),
        retriever.with_config(only).invoke("mill"),
        retriever.batch(["mill"], only)[0],
    ):
        assert len(found) == 3 and {document.metadata["tenant"] for document in found} == {"a"}


@pytest.mark.parametrize("returned", [["text"], None, 7, [("text", 0.5)]])
def test_keep_best_of_what_is_no_retriever(returned: Any) -> None:
    with pytest.raises(InvalidInputError, match="which returns documents; got"):
        keep_best(RunnableLambda(lambda query: returned), 2).invoke("mill")


@pytest.mark.parametrize(
    ("arguments", "options", "problem"),
    [
        (("store", 2), {}, "retriever"),
        ((Retriever(documents=[]), True), {}, "top_n"),
        ((Retriever(documents=[]), 0), {}, "top_n"),
        ((Retriever(documents=[]), 2), {"score_kind": "stars"}, "score_kind"),
        ((Retriever(documents=[]), 2), {"k": 3}, "k: Extra inputs"),
    ],
)
def test_keep_best_says_what_is_wrong(arguments: Any, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidInputError, match=f"keep_best: {problem}"):
        keep_best(*arguments, **options)


# --- keep_scores
# --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def store() -> InMemoryVectorStore:
    store = InMemoryVectorStore(DeterministicFakeEmbedding(size=8))
    store.add_texts(TEXTS)
    return store


@pytest.mark.parametrize("search_type", ["similarity", "mmr"])
def test_keep_scores(store: InMemoryVectorStore, search_type: str) -> None:
    plain = store.as_retriever(search_type=search_type, search_kwargs={"k": 4}, tags=["mine"])
    scored = keep_scores(plain)
    raw = {document.page_content: score for document, score in store.similarity_search_with_score(QUESTION, k=6)}
    found = scored.invoke(QUESTION)
    assert [d.page_content for d in found] == [d.page_content for d in plain.invoke(QUESTION)]
    assert [d.metadata["score"] for d in found] == [raw[d.page_content] for d in found]
    assert all(d.metadata["higher_is_better"] is True for d in found)
    assert [d.metadata["score"] for d in asyncio.run(scored.ainvoke(QUESTION))] == [d.metadata["score"] for d in found]
    assert all("score" not in d.metadata for d in plain.invoke(QUESTION))
    assert "mine" in scored.tags

    model, generator = model_of("chat")
    ({"context": scored | join, "question": RunnablePassthrough()} | PROMPT | model).invoke(QUESTION)
    assert scores_sent(generator) == [raw[d.page_content] for d in found]
    assert generator.requests[-1].higher_is_better is True


@pytest.mark.parametrize("key", ["relevance_score", "score"])
def test_a_reranker_after_keep_scores_is_not_taken_for_a_distance(store: InMemoryVectorStore, key: str) -> None:
    class Distances(InMemoryVectorStore):
        def similarity_search_with_score(self, query: str, k: int = 4, **_: Any) -> list[tuple[Document, float]]:
            return [(d, 1 - s) for d, s in super().similarity_search_with_score(query, k)]

    distances = Distances(DeterministicFakeEmbedding(size=8))
    distances.add_texts(TEXTS)
    retriever = keep_scores(distances.as_retriever(search_kwargs={"k": 6}))
    assert all(d.metadata["higher_is_better"] is False for d in retriever.invoke(QUESTION))

    def rerank(found: list[Document]) -> list[Document]:
        return [
            d.model_copy(update={"metadata": {**d.metadata, key: 9.0 - 2 * i}}) for i, d in enumerate(reversed(found))
        ]

    model, generator = model_of("chat")
    context = retriever | rerank | join
    message = ({"context": context, "question": RunnablePassthrough()} | PROMPT | model).invoke(QUESTION)
    if key == "score":  # the orientation that was left behind contradicts the order
        assert scores_sent(generator) == [None] * 6 and "which way up" in report_of(message)["note"]
    else:
        assert scores_sent(generator) == [9.0 - 2 * i for i in range(6)]
        assert generator.requests[-1].higher_is_better is True


def test_a_store_that_leaves_out_scores_leaves_them_out(
    store: InMemoryVectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = InMemoryVectorStore.similarity_search_with_score

    def some(self: Any, query: str, **options: Any) -> Any:
        return [
            (document, None if i == 1 else score) for i, (document, score) in enumerate(real(self, query, **options))
        ]

    monkeypatch.setattr(InMemoryVectorStore, "similarity_search_with_score", some)
    found = keep_scores(store.as_retriever(search_kwargs={"k": 3})).invoke("mill")
    assert ["score" in document.metadata for document in found] == [True, False, True]


def test_a_store_without_scores_has_none_to_keep() -> None:
    class Bare(VectorStore):
        def similarity_search(self, query: str, k: int = 4, **_: Any) -> list[Document]:
            return []

        @classmethod
        def from_texts(cls, *_: Any, **__: Any) -> Any:
            return cls()

    with pytest.raises(InvalidInputError, match="Bare has no similarity_search_with_score"):
        keep_scores(Bare().as_retriever())


def test_keep_scores_takes_vector_store_retrievers_only() -> None:
    with pytest.raises(InvalidInputError, match="as_retriever"):
        keep_scores(Retriever(documents=[]))  # type: ignore[arg-type]


def test_keep_scores_refuses_a_retriever_whose_own_ways_it_would_lose(store: InMemoryVectorStore) -> None:
    class Filtering(VectorStoreRetriever):
        def _get_relevant_documents(self, query: str, *, run_manager: Any, **kwargs: Any) -> list[Document]:
            return [
                one
                for one in super()._get_relevant_documents(query, run_manager=run_manager)
                if "secret" not in one.page_content
            ]

    with pytest.raises(InvalidInputError, match="Filtering retrieves in its own way"):
        keep_scores(Filtering(vectorstore=store))


def test_the_capture_can_be_asked_and_emptied() -> None:
    found = documents([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    Retriever(documents=found).invoke(QUESTION)
    captured = CAPTURE.passages(None, join(found) + QUESTION)
    assert captured.how == "registry"
    assert [p.score for p in captured.passages] == [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]
    CAPTURE.registry.clear()
    assert CAPTURE.passages(None, join(found)).how == "none"


def test_prompts_reach_the_generator_unchanged() -> None:
    model, generator = model_of("chat")
    found = documents()
    chain(model, found).invoke(QUESTION)
    assert prompt_of(generator.requests[-1]) == f"Context:\n{join(found)}\n\nQuestion: {QUESTION}"


class HeldGenerator:
    """Answers when it is let go, and tells what it was asked and whether it was stopped."""

    def __init__(self) -> None:
        self.begun, self.go, self.asked, self.is_stopped = asyncio.Event(), asyncio.Event(), [], False

    async def aanswer_batch(self, requests: Any, *, return_errors: bool = False) -> Any:
        self.asked.append(list(requests))
        self.begun.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.is_stopped = True
            raise
        return [f"answer to {request}" for request in requests]


async def rows_of(generator: Any, cancelled: tuple[int, ...]) -> list[Any]:
    """What becomes of three rows of a batch, some of which are cancelled while it is answered; the last one serves it."""
    batch = GatheredBatch(generator, 3)

    async def row(number: int) -> Any:
        async with Row(batch) as one:
            return await one.aanswer(number)

    tasks = [asyncio.create_task(row(number)) for number in range(3)]
    await generator.begun.wait()
    for number in cancelled:
        tasks[number].cancel()
    await asyncio.sleep(0.01)
    generator.go.set()
    async with asyncio.timeout(10):
        return await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("cancelled", [0, 1, 2])
def test_a_cancelled_row_leaves_the_others_their_answers(cancelled: int) -> None:
    async def run() -> list[Any]:
        return await rows_of(HeldGenerator(), (cancelled,))

    outcomes = asyncio.run(run())
    assert isinstance(outcomes[cancelled], asyncio.CancelledError)
    assert [one for number, one in enumerate(outcomes) if number != cancelled] == [
        f"answer to {number}" for number in range(3) if number != cancelled
    ]


def test_the_model_is_stopped_when_no_row_waits_any_more() -> None:
    async def run() -> tuple[list[Any], bool]:
        generator = HeldGenerator()
        return await rows_of(generator, (0, 1, 2)), generator.is_stopped

    outcomes, is_stopped = asyncio.run(run())
    assert is_stopped and all(isinstance(one, asyncio.CancelledError) for one in outcomes)


def test_a_batch_of_which_no_row_waits_is_not_begun() -> None:
    async def run() -> list[Any]:
        generator = HeldGenerator()
        batch = GatheredBatch(generator, 2)

        async def asking() -> Any:
            async with Row(batch) as one:
                return await one.aanswer(0)

        first = asyncio.create_task(asking())
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        async with Row(batch):  # ends without asking, and would have served the other
            pass
        return generator.asked

    assert asyncio.run(run()) == []


# --- structured output
# ----------------------------------------------------------------------------------------------------------------


class Reply(BaseModel):
    answer: str = Field(max_length=8)
    sure: bool


def test_a_chain_of_structured_output_is_focused_as_any_other(tiny: FocusGenerator) -> None:
    pytest.importorskip("llguidance")
    found = documents([0.9, 0.5, 0.4, 0.35, 0.3, 0.28])
    llm = ChatFocus(tiny, max_tokens=120)
    message = chain(llm.with_structured_output(Reply, include_raw=True), found).invoke(QUESTION)
    assert isinstance(message["parsed"], Reply) and message["parsing_error"] is None
    plain = report_of(chain(llm, found).invoke(QUESTION))
    by_answer = dict.fromkeys(("passages", "evidence", "support", "confidence", "finish_reason"))
    assert (
        {**report_of(message["raw"]), **by_answer} == {**plain, **by_answer}
        and plain["found"] == "lineage"
        and plain["alpha"] > 0
    )
    (parsed, other) = chain(llm.with_structured_output(Reply.model_json_schema()), found).batch([QUESTION] * 2)
    assert parsed == other == message["parsed"].model_dump()
    choice = FocusLLM(tiny, max_tokens=20).invoke(QUESTION, json_schema={"enum": ["yes", "no"]})
    assert choice in ('"yes"', '"no"')


class Loose(BaseModel):
    """What is mended of a part of it passes for the whole."""

    text: str
    year: int = 0


class Tree(BaseModel):
    name: Literal["leaf"]
    kids: list[Tree] = Field(max_length=1)


class Typed(TypedDict):
    text: str


@pytest.mark.parametrize("schema", [Reply, Loose, Typed, Loose.model_json_schema()])
async def test_structured_output_that_is_cut_off_is_an_error_or_told_beside_the_message(
    tiny: FocusGenerator, schema: Any
) -> None:
    pytest.importorskip("llguidance")
    short = ChatFocus(tiny, max_tokens=14)
    held = short.with_structured_output(schema)
    with pytest.raises(OutputParserException, match="cut off"):
        held.invoke(QUESTION)
    with pytest.raises(OutputParserException, match="cut off"):
        list(held.stream(QUESTION))
    with pytest.raises(OutputParserException, match="cut off"):
        [part async for part in held.astream(QUESTION)]
    outcome = short.with_structured_output(schema, include_raw=True).invoke(QUESTION)
    assert outcome["parsed"] is None and isinstance(outcome["parsing_error"], OutputParserException)
    assert outcome["raw"].response_metadata["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("schema", "is_right"),
    [
        ({"enum": ["yes", "no"]}, lambda said: said in ("yes", "no")),
        ({"title": "Answer", "enum": ["yes", "no"]}, lambda said: said in ("yes", "no")),
        (
            {"title": "L", "type": "array", "items": {"type": "null"}, "minItems": 2, "maxItems": 2},
            lambda said: said == [None, None],
        ),
        (
            {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]},
            lambda said: said == {"a": None},
        ),
        (Tree, lambda said: isinstance(said, Tree)),
        ({**Tree.model_json_schema(), "title": "Tree"}, lambda said: Tree.model_validate(said)),
        (
            {
                "name": "reply",
                "description": "A reply.",
                "parameters": {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]},
            },
            lambda said: said == {"a": None},
        ),
    ],
)
def test_structured_output_of_every_kind_of_schema(tiny: FocusGenerator, schema: Any, is_right: Any) -> None:
    pytest.importorskip("llguidance")
    held = ChatFocus(tiny, max_tokens=400).with_structured_output(schema)
    assert is_right(held.invoke(QUESTION))
    assert is_right(list(held.stream(QUESTION))[-1])


def test_passages_said_by_bind_reach_structured_output() -> None:
    llm, generator = model_of("chat", RecordingGenerator(text='{"answer": "there", "sure": true}'))
    held = llm.with_structured_output(Reply)
    assert held.bind(passages=TEXTS).invoke(QUESTION) == Reply(answer="there", sure=True)
    assert [one.text for one in generator.requests[-1].passages] == TEXTS
    assert generator.requests[-1].settings.json_schema == Reply.model_json_schema()


def test_structured_output_by_no_known_method() -> None:
    with pytest.raises(InvalidInputError, match="method must be one of"):
        model_of("chat")[0].with_structured_output(Reply, method="telepathy")


def test_tools_are_refused_in_words() -> None:
    with pytest.raises(NotImplementedError, match="calls no tools"):
        ChatFocus(RecordingGenerator()).bind_tools([])
