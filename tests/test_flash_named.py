"""Attention functions with flash's contract: no mask or a padding mask of two axes, and the last token sees the last
key.

Real kernels need a GPU. This one computes the same attention plainly, and its own mathematics is checked against eager.
"""

from __future__ import annotations

import pytest
import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from focus_rag.attention.measuring import SpanMeter
from focus_rag.attention.splitting import split_softmax
from focus_rag.attention.steering import focus
from tests.test_measuring import HEADS, LENGTH, SPANS, batch
from tests.tiny_models import VOCABULARY, tiny_model, tiny_profile

pytestmark = pytest.mark.filterwarnings("ignore:.past_key_values. is deprecated:FutureWarning")
TOLERANCE = 1e-5
FAMILIES = ["llama", "mistral", "gemma3_text", "cohere2"]
GREEDY = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}


def plain_flash(module, query, key, value, attention_mask, scaling=None, sliding_window=None, **_):
    """What flash kernels compute: causal from the end, within the window, padding and a static cache's tail left out."""
    if attention_mask is not None:
        assert attention_mask.dim() == 2
        key, value = key[:, :, : attention_mask.shape[1]], value[:, :, : attention_mask.shape[1]]
    repeat = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeat, dim=1), value.repeat_interleave(repeat, dim=1)
    tokens, keys = query.shape[2], key.shape[2]
    row, place = torch.arange(tokens)[:, None] + keys - tokens, torch.arange(keys)[None]
    visible = place <= row
    if sliding_window is not None:
        visible = visible & (place > row - sliding_window)
    visible = visible[None, None]
    if attention_mask is not None:
        visible = visible & attention_mask[:, None, None].bool()
    logits = (query @ key.transpose(2, 3) * scaling).masked_fill(~visible, torch.finfo(query.dtype).min)
    return (logits.softmax(-1) @ value).transpose(1, 2).contiguous(), None


@pytest.fixture(params=["flash_attention_2", "kernels-community/flash-attn"])
def flash_model(request, monkeypatch):
    """Makes models whose attention goes by a flash name, registered as transformers registers kernels from the Hub."""
    functions, masks = type(ALL_ATTENTION_FUNCTIONS)._global_mapping, type(ALL_MASK_ATTENTION_FUNCTIONS)._global_mapping
    monkeypatch.setitem(functions, request.param, plain_flash)
    monkeypatch.setitem(masks, request.param, masks["flash_attention_2"])

    def make(family):
        model = tiny_model(family)
        model.config._attn_implementation = request.param  # the setter would load the kernel
        return model

    return make


def in_pieces(model, ids, mask, pieces=(11, 6, 2, 1)):
    """Logits of the last row of each piece of the prompt, read through the cache: what chunked prefill and assistants
    do.
    """
    cache, start, logits = None, 0, []
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    with torch.no_grad():
        for size in pieces:
            out = model(
                ids[:, start : start + size],
                attention_mask=mask[:, : start + size],
                position_ids=positions[:, start : start + size],
                past_key_values=cache,
                use_cache=True,
            )
            cache, start = out.past_key_values, start + size
            logits.append(out.logits[:, -1])
    return torch.stack(logits, dim=1)


def padded_or_not(padded):
    ids, mask = batch()
    return (ids, mask) if padded else (ids[:1].repeat(3, 1), torch.ones_like(mask))


@pytest.mark.parametrize("padded", [False, True], ids=["no mask", "padding"])
@pytest.mark.parametrize("family", FAMILIES)
def test_focus_measure_and_split_equal_eager(flash_model, family, padded):
    flash, eager = flash_model(family), tiny_model(family, attention="eager")
    ids, mask = padded_or_not(padded)
    spans = SPANS if padded else [SPANS[0]] * 3
    bare = in_pieces(eager, ids, mask)
    real = mask[:, [10, 16, 18, 19]].bool()  # a padding row has no keys: what it says is nobody's business
    scale = max(1.0, bare.abs().max().item())
    assert (in_pieces(flash, ids, mask) - bare)[real].abs().max() <= TOLERANCE * scale

    interventions = {
        site: lambda model, site=site: focus(model, tiny_profile(eager, site=site), [0.6, 0.0, -0.4])
        for site in ("post_rope", "normed", "projection")
    }
    interventions["split softmax"] = lambda model: split_softmax(model, HEADS, spans, LENGTH, tau=0.2)
    for name, opened in interventions.items():
        results, masses = [], []
        for model in (flash, eager):
            with opened(model), SpanMeter(model, HEADS, spans, LENGTH) as meter:
                results.append(in_pieces(model, ids, mask))
            masses.append(torch.cat(meter.steps, dim=2).transpose(1, 2))
        assert (results[0] - results[1])[real].abs().max() <= TOLERANCE * scale, name
        assert (masses[0] - masses[1])[real].abs().max() <= TOLERANCE, name
        assert (results[1] - bare)[real].abs().max() > 1e-3, name


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_generation_with_every_cache(flash_model, family, cache):
    """A static cache longer than what it holds: flash's mask is then shorter than the keys."""
    flash, eager = flash_model(family), tiny_model(family, attention="eager")
    ids, mask = batch()
    kwargs = {"cache_implementation": "static", "disable_compile": True} if cache == "static" else {}
    found = []
    for model in (flash, eager):
        with (
            torch.no_grad(),
            focus(model, tiny_profile(eager, site="post_rope"), [0.6, 0.0, -0.4]),
            split_softmax(model, HEADS, SPANS, LENGTH, tau=0.2),
            SpanMeter(model, HEADS, SPANS, LENGTH) as meter,
        ):
            tokens = model.generate(ids, attention_mask=mask, **GREEDY, **(kwargs if model is flash else {}))
        found.append((tokens.tolist(), torch.cat(meter.steps, dim=2)))
    assert found[0][0] == found[1][0]
    assert torch.allclose(found[0][1], found[1][1], atol=TOLERANCE)


def test_assisted_decoding_says_what_greedy_says(flash_model):
    model = flash_model("llama")
    ids = torch.randint(3, VOCABULARY, (1, 6), generator=torch.Generator().manual_seed(5)).repeat(1, 4)
    found = []
    for extra in ({}, {"prompt_lookup_num_tokens": 3}):
        with (
            torch.no_grad(),
            focus(model, tiny_profile(model, site="post_rope"), 0.6),
            split_softmax(model, HEADS, [[(3, 9)]], 24, tau=0.2),
        ):
            found.append(model.generate(ids, attention_mask=torch.ones_like(ids), **GREEDY, **extra).tolist())
    assert found[0] == found[1]
