"""Whatever happens while an intervention is open, the model and transformers are afterwards what they were."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from focus_rag import FocusGenerator, GenerationSettings, Passage
from focus_rag.attention import steering
from focus_rag.attention import tap as attention_tap
from focus_rag.attention.measuring import SpanMeter
from focus_rag.attention.splitting import split_softmax
from focus_rag.attention.steering import FocusHandle, focus
from tests.tiny_models import tiny_model, tiny_profile
from tests.tiny_tokenizer import tiny_tokenizer

IDS = torch.randint(3, 96, (1, 11), generator=torch.Generator().manual_seed(5))
SITES = ("post_rope", "normed", "projection")


def state_of(model):
    """Everything an intervention could leave behind, by identity."""
    modules = {
        name: (
            type(module),
            {key: id(value) for key, value in vars(module).items()},
            {key: dict(value) for key, value in vars(module).items() if key.endswith("_hooks")},
        )
        for name, module in model.named_modules()
    }
    return {
        "modules": modules,
        "weights": {name: parameter._version for name, parameter in model.named_parameters()},
        "local": dict(ALL_ATTENTION_FUNCTIONS._local_mapping),
        "global": dict(ALL_ATTENTION_FUNCTIONS._global_mapping),
        "attention": model.config._attn_implementation,
        "training": model.training,
        "tapped": dict(attention_tap._tapped_modules),
        "everywhere": attention_tap._open_everywhere,
        "here": [tap for tap in attention_tap._OPEN_HERE.get() if tap.is_open_here],
        "wrapped": dict(attention_tap._wrapped),
    }


@pytest.fixture(params=[("llama", "sdpa"), ("qwen3", "eager")], ids="-".join)
def model(request):
    family, attention = request.param
    return tiny_model(family, attention=attention, vocab_size=len(tiny_tokenizer()))


@pytest.fixture(autouse=True)
def unchanged(model):
    before = state_of(model)
    yield
    after = state_of(model)
    for what in before:
        assert after[what] == before[what], what


def test_the_comparison_sees_what_it_is_for(model):
    """While attached, the state does differ: hooks before RoPE, the interface after it."""
    before = state_of(model)
    with torch.no_grad(), focus(model, tiny_profile(model, site="normed"), 0.5):
        assert state_of(model)["modules"] != before["modules"]
        model(IDS)
    with torch.no_grad(), focus(model, tiny_profile(model, site="post_rope"), 0.5):
        assert state_of(model)["local"] != before["local"]
        assert state_of(model)["tapped"] != before["tapped"]
        model(IDS)


@pytest.mark.parametrize("site", SITES)
def test_after_a_generation(model, site):
    with torch.no_grad(), focus(model, tiny_profile(model, site=site), 0.5):
        model.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=3, do_sample=False)


@pytest.mark.parametrize("site", ["normed", "projection"])
def test_after_a_layer_that_cannot_be_hooked(model, site, monkeypatch):
    """Attaching fails at the second layer, when the first one has its hook."""
    profile = tiny_profile(model, site=site, heads=12)
    with torch.no_grad(), focus(model, profile, 0.5):
        model(IDS)
    original, hooked = steering._hook_queries, []

    def fail_at_the_second(layer, *args):
        if hooked:
            assert any(module._forward_hooks for module in model.modules())
            raise RuntimeError("cannot hook this layer")
        hooked.append(layer)
        return original(layer, *args)

    monkeypatch.setattr(steering, "_hook_queries", fail_at_the_second)
    with pytest.raises(RuntimeError, match="cannot hook"), focus(model, profile, 0.5):
        pass
    assert len(hooked) == 1


def test_after_an_interface_that_takes_no_function(model, monkeypatch):
    """Wrapping fails half-way through the names of the attention interface."""
    real, taken = type(ALL_ATTENTION_FUNCTIONS).__setitem__, []

    def refuse_the_third(self, key, value):
        if len(taken) == 2:
            raise RuntimeError("refused")
        taken.append(key)
        real(self, key, value)

    monkeypatch.setattr(type(ALL_ATTENTION_FUNCTIONS), "__setitem__", refuse_the_third)
    with pytest.raises(RuntimeError, match="refused"), focus(model, tiny_profile(model, site="post_rope"), 0.5):
        pass


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("fatal_pass", [1, 3], ids=["in prefill", "in mid-generation"])
def test_after_an_exception_while_the_model_runs(model, site, fatal_pass):
    passes = []

    def fail(*_):
        passes.append(1)
        if len(passes) == fatal_pass:
            raise RuntimeError("out of memory")

    profile = tiny_profile(model, site=site)
    with torch.no_grad(), focus(model, profile, 0.5):
        model(IDS)
    handle = model.model.layers[1].mlp.register_forward_pre_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="out of memory"), focus(model, profile, 0.5):
            model.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=6, min_new_tokens=6)
    finally:
        handle.remove()
    assert len(passes) == fatal_pass


def test_after_an_alpha_that_does_not_fit_the_batch(model):
    with (
        pytest.raises(RuntimeError, match="2 rows met alpha for 3 requests"),
        torch.no_grad(),
        focus(model, tiny_profile(model, site="post_rope"), [0.1, 0.2, 0.3]),
    ):
        model(IDS.repeat(2, 1))


def test_after_a_generator_of_tokens_is_abandoned(model):
    """A context held by a Python generator closes with it."""
    profile = tiny_profile(model, site="normed")

    def stream():
        with torch.no_grad(), focus(model, profile, 0.5):
            while True:
                yield model(IDS).logits[0, -1].argmax()

    tokens = stream()
    next(tokens)
    tokens.close()


PASSAGES = [Passage("The mill was built in 1840.", score=0.9), Passage("Bread is made of flour.", score=0.2)]
LONG = 800


@pytest.fixture
def generator(model):
    """Over the same model; nothing ends an answer but its length."""
    tokenizer = tiny_tokenizer()
    model.generation_config.eos_token_id = tokenizer.eos_token = None
    model.config.max_position_embeddings = 2048
    return FocusGenerator(model, tokenizer, tiny_profile(model), settings=GenerationSettings(max_new_tokens=LONG))


@pytest.mark.parametrize("ending", ["closed", "left", "collected", "collected by the loop", "failing", "cancelled"])
def test_after_a_stream_that_ends_in_the_middle(generator, ending):
    """The worker thread stops and cleans up when its reader closes, leaves or forgets the stream, or the model fails."""
    model, passes = generator.model, []

    def count(*_):
        passes.append(1)
        if ending == "failing" and len(passes) == 4:
            raise RuntimeError("out of memory")

    generator.answer("When?", PASSAGES, alpha=0.5, max_new_tokens=1)
    handle = model.model.layers[1].mlp.register_forward_pre_hook(count)
    asked = ("When?", PASSAGES)
    if ending == "failing":
        with pytest.raises(RuntimeError, match="out of memory"):
            list(generator.stream(*asked, alpha=0.5))
    elif ending == "left":
        with contextlib.suppress(KeyError), generator.stream(*asked, alpha=0.5) as stream:
            next(stream)
            raise KeyError
    elif ending == "closed":
        stream = generator.stream(*asked, alpha=0.5)
        next(stream)
        stream.close()
    elif ending == "collected":
        next(generator.stream(*asked, alpha=0.5))
    else:
        asyncio.run(forgotten(generator, asked) if ending == "collected by the loop" else cancelled(generator, asked))
    until = time.monotonic() + 30
    while generator._turns.is_taken and time.monotonic() < until:
        time.sleep(0.01)
    assert not generator._turns.is_taken
    assert 1 <= len(passes) < LONG
    handle.remove()


async def forgotten(generator, asked):
    async for _ in await generator.astream(*asked, alpha=0.5):
        break


async def cancelled(generator, asked):
    task = asyncio.create_task(generator.aanswer(*asked, alpha=0.5))
    while not generator._turns.is_taken:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("failing", [False, True])
def test_after_measuring_and_splitting(model, failing):
    heads, spans = [(0, 1), (2, 3)], [[(2, 5)]]
    handle = model.lm_head.register_forward_pre_hook(lambda *_: 1 / 0) if failing else None
    for opened in (SpanMeter(model, heads, spans, 11), split_softmax(model, heads, spans, 11, tau=0.3)):
        if failing:
            with pytest.raises(ZeroDivisionError), opened, torch.no_grad():
                model(IDS)
        else:
            with opened, torch.no_grad():
                model(IDS)
    if handle is not None:
        handle.remove()


def test_handles_removed_in_any_order_and_twice(model):
    profile = tiny_profile(model, site="post_rope")
    first = FocusHandle(model, profile, 0.5).attach()
    second = FocusHandle(model, tiny_profile(model, site="normed"), 0.5, across_threads=True).attach()
    first.remove()
    with torch.no_grad():
        focused = model(IDS).logits
    second.remove()
    first.remove()
    second.remove()
    with torch.no_grad():
        assert not torch.allclose(model(IDS).logits, focused, atol=1e-3)


def test_a_function_registered_meanwhile_stays(model):
    """Somebody else registers an attention function while a focus is open: it is theirs, and it stays."""

    def theirs(*_args, **_kwargs):
        raise NotImplementedError

    with torch.no_grad(), focus(model, tiny_profile(model, site="post_rope"), 0.5):
        ALL_ATTENTION_FUNCTIONS["theirs"] = theirs
        model(IDS)
    assert ALL_ATTENTION_FUNCTIONS["theirs"] is theirs
    del ALL_ATTENTION_FUNCTIONS["theirs"]


def test_a_function_registered_meanwhile_serves_what_is_attached_after_it():
    model, other = tiny_model("llama"), tiny_model("qwen3")
    profile = tiny_profile(model, site="post_rope")
    with torch.no_grad():
        bare = model(IDS).logits
        with focus(model, profile, 0.5):
            focused = model(IDS).logits
        with focus(other, tiny_profile(other, site="post_rope"), 0.5, across_threads=True):
            other(IDS)
            AttentionInterface.register("later", sdpa_attention_forward)
            AttentionMaskInterface.register("later", sdpa_mask)
            model.set_attn_implementation("later")
            with focus(model, profile, 0.5):
                later = model(IDS).logits
            assert torch.allclose(model(IDS).logits, bare, atol=1e-5)
    assert ALL_ATTENTION_FUNCTIONS["later"] is sdpa_attention_forward
    del AttentionInterface._global_mapping["later"], AttentionMaskInterface._global_mapping["later"]
    assert torch.allclose(later, focused, atol=1e-5) and not torch.allclose(later, bare, atol=1e-2)


def test_alpha_zero_attaches_nothing(model):
    before = state_of(model)
    with torch.no_grad(), focus(model, tiny_profile(model, site="normed"), 0.0) as handle:
        assert handle is None
        assert state_of(model) == before


def test_a_function_that_somebody_puts_around_ours_does_not_shift_twice():
    model = tiny_model("llama")
    profile = tiny_profile(model, site="post_rope")
    with torch.no_grad(), focus(model, profile, 0.5):
        focused = model(IDS).logits
        ours = ALL_ATTENTION_FUNCTIONS["sdpa"]
        ALL_ATTENTION_FUNCTIONS["sdpa"] = lambda *args, **options: ours(*args, **options)
        with SpanMeter(model, profile.head_pairs, [[(1, 4)]], IDS.shape[1]) as meter:
            assert torch.equal(model(IDS).logits, focused) and len(meter.steps) == 1
        assert torch.equal(model(IDS).logits, focused)
    del ALL_ATTENTION_FUNCTIONS._local_mapping["sdpa"]
