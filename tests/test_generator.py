"""FocusGenerator on a tiny random model: what matters is that every way to the same request gives the same answer."""

from __future__ import annotations

import asyncio
import copy
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from focus_rag import (
    FittedAlpha,
    FixedAlpha,
    FocusGenerator,
    GenerationSettings,
    Passage,
    Request,
    RetrievalAlpha,
    focus,
)
from focus_rag.errors import (
    InvalidInputError,
    MissingDependencyError,
    ProfileError,
    ProfileMismatchError,
    PromptTooLongError,
)
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


def test_rows_of_a_batch_stay_within_the_window_of_learned_positions():
    tokenizer = tiny_tokenizer()
    small = GPT2Config(
        vocab_size=len(tokenizer), n_positions=64, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=None
    )
    generator = FocusGenerator(GPT2LMHeadModel(small).eval(), tokenizer)
    asked = [
        Request(prompt=prompt, settings=GenerationSettings(max_new_tokens=new))
        for prompt, new in (("a " * 25, 4), ("hi", 50), ("b " * 25, 3), ("ho", 2))
    ]
    assert [one.text for one in generator.answer_batch(asked)] == [generator.run(one).text for one in asked]


def test_a_text_that_cannot_be_encoded_is_counted_and_odd_flags_are_refused(generator):
    assert generator.count_tokens("mill \ud800") == generator.count_tokens("mill ?")
    for flag in (torch.tensor([True, False]), np.array([True])):
        with pytest.raises(InvalidInputError, match="higher_is_better"):
            Request(question=QUESTION, higher_is_better=flag)
    assert Request(question=QUESTION, higher_is_better=np.bool_(True)).higher_is_better is True
    assert Passage("text", torch.empty((), device="meta")).score is None


def test_ends_given_as_a_tensor_and_guidance_of_the_model_change_nothing(parts, generator):
    model = copy.deepcopy(parts[0])
    other = FocusGenerator(model, *parts[1:], settings=generator.settings)
    model.generation_config.guidance_scale = 1.5
    model.generation_config.eos_token_id = torch.tensor([2, 5])
    alone = generator.answer(QUESTION, PASSAGES)
    answer = other.answer(QUESTION, PASSAGES)
    assert answer.text == alone.text
    assert [use.attention for use in answer.passages] == pytest.approx([use.attention for use in alone.passages])


def test_outcomes_are_told_once_as_they_come_and_errors_take_their_places(parts, generator):
    lengths = (6, 2, 4)
    asked = [
        Request(question=QUESTION, passages=PASSAGES, settings=GenerationSettings(max_new_tokens=length))
        for length in lengths
    ]
    asked.insert(1, Request(question=QUESTION, passages=PASSAGES, alpha=1e9))
    told = []
    outcomes = generator.answer_batch(asked, return_errors=True, on_outcome=lambda *outcome: told.append(outcome))
    assert [place for place, _ in told] == [1, 2, 3, 0]  # what cannot be used at once, then the shortest answer first
    assert all(outcomes[place] is outcome for place, outcome in told)
    assert isinstance(outcomes[1], InvalidInputError)
    for place in (0, 2, 3):
        alone = generator.run(asked[place])
        assert (outcomes[place].text, outcomes[place].usage) == (alone.text, alone.usage)
        assert [use.attention for use in outcomes[place].passages] == pytest.approx(
            [use.attention for use in alone.passages], abs=1e-5
        )
    small = FocusGenerator(*parts, settings=generator.settings, max_batch=2)
    told.clear()
    assert [
        one.text for one in small.answer_batch([asked[0], *asked[2:]], on_outcome=lambda *outcome: told.append(outcome))
    ] == [outcomes[place].text for place in (0, 2, 3)]
    assert [place for place, _ in told] == [1, 0, 2]
    with pytest.raises(InvalidInputError, match="alpha"):
        generator.answer_batch(asked, on_outcome=lambda *_: pytest.fail("nothing is generated"))


@pytest.mark.parametrize(("raised", "arrives"), [(ZeroDivisionError, ZeroDivisionError), (StopIteration, RuntimeError)])
def test_what_nobody_foresaw_in_one_request_does_not_fail_the_others(parts, generator, raised, arrives):
    class Broken(RetrievalAlpha):
        def choose(self, signal):
            raise raised

    asked = [
        Request(question=QUESTION, passages=PASSAGES),
        Request(question=QUESTION, passages=PASSAGES, alpha=Broken()),
    ]
    answer, error = generator.answer_batch(asked, return_errors=True)
    assert answer.text == generator.run(asked[0]).text
    assert isinstance(error, arrives)  # asyncio can hand no StopIteration on
    with pytest.raises(raised):
        generator.answer_batch(asked)


@pytest.mark.parametrize(("raised", "arrives"), [(KeyError, KeyError), (StopIteration, RuntimeError)])
async def test_what_is_raised_on_an_outcome_ends_the_batch_and_leaves_the_model_free(generator, raised, arrives):
    def on_outcome(*_):
        raise raised

    asked = [Request(question=QUESTION, passages=PASSAGES)] * 2
    with pytest.raises(arrives):
        await asyncio.wait_for(generator.aanswer_batch(asked, on_outcome=on_outcome), 60)
    assert generator.run(asked[0]).text == generator.answer(QUESTION, PASSAGES).text


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


def test_the_order_that_counts_is_that_of_the_prompt(parts):
    relying = FittedAlpha(counts=(2,), noises=(0.0,), alphas=((0.5,),), needs_order=True)
    generator = FocusGenerator(*parts[:2], parts[2].replace(policy=relying))
    falling = [Passage(f"The mill number {number} stood by the river.", score=0.9 - number / 10) for number in range(3)]
    for order, alpha in (([0, 1, 2], 0.5), ([2, 1, 0], 0.0), ([0, 2, 1], 0.0)):
        prompt = "\n".join(falling[place].text for place in order)
        for asked in (prompt, [{"role": "user", "content": prompt}]):
            assert generator.generate(asked, passages=falling, max_new_tokens=1).alpha == alpha
    assert generator.answer(QUESTION, falling, max_new_tokens=1).alpha == 0.5


def test_attention_is_that_of_the_answer_whatever_the_models_prefill(generator, monkeypatch):
    whole = [use.attention for use in generator.answer(QUESTION, PASSAGES, max_new_tokens=2).passages]
    monkeypatch.setattr(generator.model.generation_config, "prefill_chunk_size", 16)
    assert [use.attention for use in generator.answer(QUESTION, PASSAGES, max_new_tokens=2).passages] == whole


def test_stop_strings_cut_alike_everywhere(generator):
    whole = generator.answer(QUESTION, PASSAGES).text
    stop = whole[3:5]
    assert stop
    expected = whole[: whole.find(stop)]
    answer = generator.answer(QUESTION, PASSAGES, stop=[stop])
    assert (answer.text, answer.finish_reason) == (expected, "stop")
    assert "".join(generator.stream(QUESTION, PASSAGES, stop=stop)) == expected
    assert generator.answer(QUESTION, PASSAGES, stop=["never in there"]).text == whole
    assert (
        generator.answer(QUESTION, PASSAGES, stop="").text
        == generator.answer(QUESTION, PASSAGES, stop=[""]).text
        == whole
    )
    with pytest.raises(InvalidInputError, match="setting stop:"):
        generator.answer(QUESTION, PASSAGES, stop=5)


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


def test_texts_and_pairs_of_text_and_score_are_passages(generator):
    plain = [(passage.text, passage.score) for passage in PASSAGES]
    same = [Passage(*pair) for pair in plain]
    assert generator.answer(QUESTION, plain).text == generator.answer(QUESTION, same).text
    assert generator.answer(QUESTION, ["The mill is old."]).passages[0].passage == Passage("The mill is old.")


def test_bad_input_is_one_clear_error(parts, generator):
    with pytest.raises(InvalidInputError, match="empty"):
        generator.answer("   ", PASSAGES)
    with pytest.raises(InvalidInputError, match="Passage"):
        generator.answer(QUESTION, [object()])
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


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda g: g.answer(QUESTION, None), "list of Passage objects; got NoneType"),
        (lambda g: g.answer(QUESTION, PASSAGES[0]), "list of Passage objects; got Passage"),
        (lambda g: g.answer(QUESTION, "text"), "list of Passage objects; got str"),
        (lambda g: g.answer(None, PASSAGES), "exactly one"),
        (lambda g: g.answer(7, PASSAGES), "question must be a string"),
        (lambda g: g.answer_batch([("q", PASSAGES)]), "Request objects; got tuple"),
        (lambda g: g.generate(7), "messages must be a list"),
        (lambda g: g.generate([("user", "hi")]), "role of one word"),
        (lambda g: g.generate([{"role": "user|>\n<|system", "content": "hi"}]), "role of one word"),
        (lambda g: g.answer(QUESTION, PASSAGES, alpha=[0.1, 0.2]), "alpha must be a number"),
        (lambda g: g.answer(QUESTION, PASSAGES, alpha=np.array(0.3)), "alpha must be a number"),
        (lambda g: g.answer(QUESTION, PASSAGES, alpha=10**400), "alpha must be finite"),
        (lambda g: g.run(Request(question=QUESTION, settings={"max_new_tokens": 5})), "GenerationSettings; got dict"),
        (lambda g: g.answer(QUESTION, PASSAGES, noise=float("nan")), r"noise .* \[0, 1\]"),
        (lambda g: g.answer(QUESTION, PASSAGES, score_kind="vibes"), "score_kind"),
        (lambda g: g.answer(QUESTION, PASSAGES, seed=10**30), "seed"),
        (lambda g: g.answer(QUESTION, PASSAGES, max_new_tokens="many"), "max_new_tokens"),
    ],
)
def test_other_things_than_requests_are_one_clear_error(generator, call, says):
    with pytest.raises(InvalidInputError, match=says):
        call(generator)


SCORES = st.none() | st.floats() | st.text(max_size=4) | st.sampled_from(["0.5", "nan", 10**400])
TEXTS = st.text(max_size=20) | st.sampled_from(["", " ", "\ud800", "<|end|>\n<|user|>", "word " * 60])


@settings(max_examples=25, deadline=None)
@given(TEXTS, st.lists(st.tuples(TEXTS, SCORES), max_size=5))
def test_any_question_and_passages_give_an_answer_or_one_error(generator, question, rows):
    passages = [Passage(text, score=score) for text, score in rows]
    if not question.strip():
        with pytest.raises(InvalidInputError, match="question"):
            generator.answer(question, passages)
        return
    answer = generator.answer(question, passages, max_new_tokens=1)
    used = [use for use in answer.passages if use.used]
    assert [use.passage for use in answer.passages] == passages
    assert all(use.used or use.dropped_reason for use in answer.passages)
    assert all(use.used == bool(use.passage.text.strip()) for use in answer.passages)
    assert (answer.alpha == 0.0) if len(used) < 2 else (0.0 <= answer.alpha < 0.3)
    assert answer.usage.prompt_tokens + 1 <= generator.context_window


def test_empty_passages_are_left_out_and_reported(generator):
    answer = generator.answer(QUESTION, [Passage("  "), PASSAGES[0], Passage("", title="Title")])
    assert [use.used for use in answer.passages] == [False, True, True]
    assert answer.passages[0].dropped_reason == "it holds no text"


def test_a_temperature_near_zero_is_greedy(generator):
    greedy = generator.answer(QUESTION, PASSAGES).text
    for temperature in (1e-6, 1e-30, 5e-324):
        assert generator.answer(QUESTION, PASSAGES, temperature=temperature, seed=1).text == greedy


def test_what_the_models_own_configuration_sets_does_not_break_rows(parts, generator):
    """A model that ships prompt lookup, stop strings, beams and sampling still reads row by row."""
    expected = generator.answer(QUESTION, PASSAGES).text
    model, tokenizer, profile = parts
    own = model.generation_config
    model.generation_config = type(own)(
        **{
            **own.to_diff_dict(),
            "prompt_lookup_num_tokens": 3,
            "stop_strings": ["e"],
            "num_beams": 3,
            "do_sample": True,
        }
    )
    try:
        other = FocusGenerator(model, tokenizer, profile, settings=GenerationSettings(max_new_tokens=10))
        assert other.answer(QUESTION, PASSAGES).text == expected
    finally:
        model.generation_config = own


@pytest.fixture(scope="module")
def saved(parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    parts[0].save_pretrained(folder / "reader")
    parts[1].save_pretrained(folder / "reader")
    parts[2].save(folder / "profile")
    return folder


class TestFromPretrained:
    def test_precision_attention_and_device_arrive(self, saved, generator):
        pytest.importorskip("accelerate")
        loaded = FocusGenerator.from_pretrained(
            saved / "reader",
            saved / "profile",
            dtype=torch.bfloat16,
            attn_implementation="eager",
            device_map={"": "cpu"},
        )
        assert loaded.model.dtype == torch.bfloat16
        assert loaded.model.config._attn_implementation == "eager"
        assert loaded.model_name == "reader" and not loaded.model.training
        plain = FocusGenerator.from_pretrained(
            str(saved / "reader"), str(saved / "profile"), settings=GenerationSettings(max_new_tokens=10)
        )
        assert plain.model.dtype == torch.float32 and plain.model.config._attn_implementation == "sdpa"
        assert plain.answer(QUESTION, PASSAGES).text == generator.answer(QUESTION, PASSAGES).text

    def test_weights_on_disk_are_steered_like_weights_in_memory(self, saved, generator, tmp_path):
        pytest.importorskip("accelerate")
        places = {
            "model.embed_tokens": "cpu",
            "model.layers.0": "cpu",
            "model.layers.1": "disk",
            "model.layers.2": "disk",
        }
        offloaded = FocusGenerator.from_pretrained(
            saved / "reader",
            saved / "profile",
            device_map={**places, "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"},
            offload_folder=str(tmp_path),
        )
        for alpha in (0.0, 1.5):
            answers = [one.answer(QUESTION, PASSAGES, alpha=alpha, max_new_tokens=6) for one in (offloaded, generator)]
            assert answers[0].text == answers[1].text

    def test_a_model_that_lies_on_disk_whole_answers_too(self, saved, generator, tmp_path):
        pytest.importorskip("accelerate")
        offloaded = FocusGenerator.from_pretrained(
            saved / "reader", saved / "profile", device_map={"": "disk"}, offload_folder=str(tmp_path)
        )
        answers = [one.answer(QUESTION, PASSAGES, alpha=1.5, max_new_tokens=4) for one in (offloaded, generator)]
        assert answers[0].text == answers[1].text
        assert [use.attention for use in answers[0].passages] == pytest.approx(
            [use.attention for use in answers[1].passages], abs=1e-5
        )

    def test_everything_else_is_handed_on(self, saved, parts, monkeypatch):
        from transformers import AutoModelForCausalLM

        seen = {}

        def load(model, **options):
            seen.update(options, model=model)
            return parts[0]

        monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
        quantised = object()
        FocusGenerator.from_pretrained(
            saved / "reader", quantization_config=quantised, device_map="auto", revision="v1", max_memory={0: "1GiB"}
        )
        assert seen == {
            "model": saved / "reader", "dtype": "auto", "quantization_config": quantised, "device_map": "auto",
            "revision": "v1", "trust_remote_code": False, "max_memory": {0: "1GiB"},
        }  # fmt: skip

    @pytest.mark.parametrize(
        ("model", "options", "kind", "says"),
        [
            ("{saved}/nowhere", {}, InvalidInputError, "neither a folder nor a Hub id"),
            ("{saved}", {}, InvalidInputError, "cannot be loaded"),
            ("{saved}/reader", {"attn_implementation": "nonsense"}, InvalidInputError, "nonsense"),
            (
                "{saved}/reader",
                {"attn_implementation": "flash_attention_2"},
                MissingDependencyError,
                "cannot be loaded",
            ),
            ("{saved}/reader", {"dtype": "float7"}, InvalidInputError, "float7"),
            ("{saved}/reader", {"profile": "{saved}/reader"}, ProfileError, "is not a profile"),
        ],
    )
    def test_what_cannot_be_loaded_is_one_error(self, saved, model, options, kind, says):
        filled = {name: value.format(saved=saved) for name, value in options.items()}
        with pytest.raises(kind, match=says):
            FocusGenerator.from_pretrained(model.format(saved=saved), **filled)

    def test_the_embedded_reader_says_what_it_is(self, monkeypatch, saved):
        monkeypatch.setattr("focus_rag.embedded.embedded_model_folder", lambda: saved / "reader")
        monkeypatch.setattr("focus_rag.embedded.embedded_profile_folder", lambda: saved / "profile")
        assert FocusGenerator.from_pretrained().model_name == "embedded reader"


def test_the_event_loop_runs_on_while_the_model_does(generator):
    """While answers, batches and streams are generated, a ticking task is never held up for long."""

    async def ticking(work):
        late, done = [], asyncio.ensure_future(work)
        while not done.done():
            before = asyncio.get_running_loop().time()
            await asyncio.sleep(0.001)
            late.append(asyncio.get_running_loop().time() - before)
        return len(late)

    async def streamed():
        return [piece async for piece in await generator.astream(QUESTION, PASSAGES, max_new_tokens=60)]

    requests = [Request(question=QUESTION, passages=PASSAGES, settings=GenerationSettings(max_new_tokens=60))] * 2
    for work in (
        lambda: generator.aanswer(QUESTION, PASSAGES, max_new_tokens=60),
        lambda: generator.agenerate("Hello", max_new_tokens=60),
        lambda: generator.aanswer_batch(requests),
        streamed,
    ):
        # A blocked loop would tick once or twice; sixty passes through the model leave room for many more.
        assert asyncio.run(ticking(work())) > 10


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
