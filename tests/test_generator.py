"""FocusGenerator on a tiny random model: what matters is that every way to the same request gives the same answer."""

from __future__ import annotations

import asyncio
import threading

import pytest
import torch

from focus_rag import FixedAlpha, FocusGenerator, GenerationSettings, Passage, Request, RetrievalAlpha, focus
from focus_rag.errors import InvalidInputError, ProfileMismatchError, PromptTooLongError
from tests.tiny_models import tiny_model, tiny_profile
from tests.tiny_tokenizer import tiny_tokenizer

QUESTION = "When was the mill built?"
PASSAGES = [Passage(f"Passage number {i} about the mill.", score=1 / (i + 1) ** 2, title="Mill") for i in range(5)]


@pytest.fixture(scope="module")
def parts():
    tokenizer = tiny_tokenizer()
    model = tiny_model(vocab_size=len(tokenizer), max_position_embeddings=1024)
    return model, tokenizer, tiny_profile(model)


@pytest.fixture(scope="module")
def generator(parts):
    return FocusGenerator(*parts, settings=GenerationSettings(max_new_tokens=10))


def test_answer_matches_plain_generate_under_focus(parts, generator):
    model, tokenizer, profile = parts
    answer = generator.answer(QUESTION, PASSAGES)
    content = "Answer the question from the passages. If they do not hold the answer, say: not stated.\n"
    content += f"Question: {QUESTION}\n"
    content += "".join(f"\n[{i}] Mill: {p.text}\n" for i, p in enumerate(PASSAGES, start=1)) + f"\nQuestion: {QUESTION}"
    ids = torch.tensor(
        [tokenizer(f"<|user|>\n{content}<|end|>\n<|assistant|>\n", add_special_tokens=False)["input_ids"]]
    )
    with focus(model, profile, answer.alpha):
        plain = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False, pad_token_id=0, eos_token_id=2
        )
    assert answer.text == tokenizer.decode(plain[0, ids.shape[1] :], skip_special_tokens=True)
    assert answer.usage.prompt_tokens == ids.shape[1]
    assert answer.alpha > 0
    assert sum(use.attention for use in answer.passages) == pytest.approx(1.0)


def test_stream_batch_and_async_give_the_same_answer(generator):
    answer = generator.answer(QUESTION, PASSAGES)
    stream = generator.stream(QUESTION, PASSAGES)
    assert "".join(stream) == answer.text
    assert stream.answer.text == answer.text
    requests = [
        Request(question=QUESTION, passages=PASSAGES),
        Request(question="Why?", passages=PASSAGES[:2], alpha=0.0),
        Request(prompt="Hello"),
    ]
    batch = generator.answer_batch(requests)
    assert [a.text for a in batch] == [answer.text, *(generator.run(request).text for request in requests[1:])]
    assert [a.alpha for a in batch] == [answer.alpha, 0.0, 0.0]
    assert [use.attention for use in batch[0].passages] == pytest.approx(
        [use.attention for use in answer.passages], abs=1e-4
    )

    async def asynchronous():
        alone = await generator.aanswer(QUESTION, PASSAGES)
        stream = await generator.astream(QUESTION, PASSAGES)
        pieces = [piece async for piece in stream]
        several = await generator.aanswer_batch(requests)
        return alone, "".join(pieces), stream.answer, several

    alone, text, streamed, several = asyncio.run(asynchronous())
    assert alone.text == text == streamed.text == answer.text
    assert [a.text for a in several] == [a.text for a in batch]


def test_alpha_zero_is_the_bare_model_and_alpha_changes_the_answer(parts, generator):
    bare = FocusGenerator(parts[0], parts[1], settings=GenerationSettings(max_new_tokens=10))
    assert generator.answer(QUESTION, PASSAGES, alpha=0.0).text == bare.answer(QUESTION, PASSAGES).text
    assert generator.answer(QUESTION, PASSAGES, alpha=3.0).text != bare.answer(QUESTION, PASSAGES).text


def test_alpha_settings(parts, generator):
    assert generator.answer(QUESTION, PASSAGES[:1]).alpha == 0.0
    assert generator.answer(QUESTION).alpha == 0.0
    assert generator.answer(QUESTION, PASSAGES, alpha=0.7).alpha == 0.7
    assert generator.answer(QUESTION, PASSAGES, alpha=FixedAlpha(alpha=-0.2)).alpha == -0.2
    assert generator.answer(QUESTION, PASSAGES, alpha=RetrievalAlpha(ceiling=2.0), noise=1.0).alpha == pytest.approx(
        1.0
    )
    assert "no profile" in FocusGenerator(parts[0], parts[1]).answer(QUESTION, PASSAGES, max_new_tokens=1).reason


def test_seeded_sampling_repeats_alone_and_in_a_batch(generator):
    hot = GenerationSettings(max_new_tokens=8, temperature=1.5, seed=3)
    before = torch.random.get_rng_state()
    first = generator.run(Request(question=QUESTION, passages=PASSAGES, settings=hot)).text
    rows = generator.answer_batch(
        [
            Request(prompt="Quite another one", settings=hot),
            Request(question=QUESTION, passages=PASSAGES, settings=hot),
            Request(question=QUESTION, passages=PASSAGES, settings=hot.changed({"seed": 4})),
        ]
    )
    assert rows[1].text == first != rows[2].text
    assert torch.equal(before, torch.random.get_rng_state())


def test_stop_strings_cut_alike_everywhere(generator):
    whole = generator.answer(QUESTION, PASSAGES).text
    stop = whole[3:5]
    assert stop
    expected = whole[: whole.find(stop)]
    answer = generator.answer(QUESTION, PASSAGES, stop=[stop])
    assert (answer.text, answer.finish_reason) == (expected, "stop")
    assert "".join(generator.stream(QUESTION, PASSAGES, stop=stop)) == expected
    assert generator.answer(QUESTION, PASSAGES, stop=["never in there"]).text == whole


def test_lengths_and_finish_reasons(generator):
    answer = generator.answer(QUESTION, PASSAGES, max_new_tokens=3)
    assert (answer.usage.completion_tokens, answer.finish_reason) == (3, "length")
    short, long = generator.answer_batch(
        [Request(prompt="Hello", settings=GenerationSettings(max_new_tokens=n)) for n in (2, 6)]
    )
    assert (short.usage.completion_tokens, long.usage.completion_tokens) == (2, 6)
    assert generator.run(Request(prompt="Hello", settings=GenerationSettings(max_new_tokens=2))).text == short.text


def test_closing_a_stream_frees_the_model(generator):
    stream = generator.stream(QUESTION, PASSAGES, max_new_tokens=400)
    next(stream)
    stream.close()
    assert stream.answer.finish_reason == "cancelled"
    assert stream.answer.usage.completion_tokens < 400
    assert generator.answer(QUESTION, PASSAGES, max_new_tokens=2).text


def test_passages_in_messages_and_prompts_are_located(generator):
    text = f"Context:\n{PASSAGES[0].text}\n\n{PASSAGES[2].text}\nQuestion: {QUESTION}"
    for asked in (text, [{"role": "user", "content": text}]):
        answer = generator.generate(asked, passages=PASSAGES)
        assert [use.used for use in answer.passages] == [True, False, True, False, False]
        assert answer.passages[1].dropped_reason == "not found in the prompt"
        assert answer.passages[0].attention + answer.passages[2].attention == pytest.approx(1.0)
        assert answer.alpha > 0
    assert generator.generate("Rewrite the question.", passages=PASSAGES).alpha == 0.0


def test_passages_that_do_not_fit_are_dropped_from_the_lowest_score_up(generator):
    passages = [Passage("word " * 50, score=score) for score in (3.0, 1.0, 5.0, 2.0, 4.0)]
    answer = generator.answer(QUESTION, passages)
    dropped = [use.passage.score for use in answer.passages if not use.used]
    assert dropped and dropped == sorted(dropped, key=[3.0, 1.0, 5.0, 2.0, 4.0].index)
    assert max(dropped) < min(use.passage.score for use in answer.passages if use.used)
    assert all("window" in use.dropped_reason for use in answer.passages if not use.used)
    far = generator.answer(QUESTION, passages, higher_is_better=False)
    assert min(use.passage.score for use in far.passages if not use.used) > max(
        use.passage.score for use in far.passages if use.used
    )
    with pytest.raises(PromptTooLongError, match="window"):
        generator.answer("x" * 100_000, passages)
    with pytest.raises(PromptTooLongError, match="nothing was cut"):
        generator.generate("x" * 100_000)


def test_bad_input_is_one_clear_error(parts, generator):
    with pytest.raises(InvalidInputError, match="empty"):
        generator.answer("   ", PASSAGES)
    with pytest.raises(InvalidInputError, match="Passage"):
        generator.answer(QUESTION, ["a plain string"])
    with pytest.raises(InvalidInputError, match="temperature"):
        generator.answer(QUESTION, PASSAGES, temperature=-1)
    with pytest.raises(InvalidInputError, match="tempratur"):
        generator.answer(QUESTION, PASSAGES, tempratur=1)
    with pytest.raises(InvalidInputError, match="alpha"):
        generator.answer(QUESTION, PASSAGES, alpha="strong")
    with pytest.raises(InvalidInputError, match="finite"):
        generator.answer(QUESTION, PASSAGES, alpha=float("nan"))
    with pytest.raises(InvalidInputError, match="exactly one"):
        Request(question="a", prompt="b")
    with pytest.raises(InvalidInputError, match="profile"):
        FocusGenerator(parts[0], parts[1]).answer(QUESTION, PASSAGES, alpha=0.3)
    with pytest.raises(InvalidInputError, match="no room"):
        generator.answer(QUESTION, PASSAGES, max_new_tokens=5000)
    other = tiny_model(num_hidden_layers=2, vocab_size=len(parts[1]))
    with pytest.raises(ProfileMismatchError, match="layers: profile 3, model 2"):
        FocusGenerator(other, parts[1], parts[2])


def test_threads_share_one_generator(generator):
    alphas = [0.0, 0.4, 0.8, 1.6, 3.0, -0.5]
    expected = [generator.answer(QUESTION, PASSAGES, alpha=alpha).text for alpha in alphas]
    got: dict[int, str] = {}
    threads = [
        threading.Thread(target=lambda i=i, a=a: got.update({i: generator.answer(QUESTION, PASSAGES, alpha=a).text}))
        for i, a in enumerate(alphas)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[i] for i in range(len(alphas))] == expected


def test_base_models_without_a_chat_template(parts):
    tokenizer = tiny_tokenizer(chat=False)
    generator = FocusGenerator(parts[0], tokenizer, parts[2], settings=GenerationSettings(max_new_tokens=4))
    assert sum(use.attention for use in generator.answer(QUESTION, PASSAGES).passages) == pytest.approx(1.0)
