"""Masses measured during ordinary forward passes against the attention matrices of an eager copy."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from focus_rag.attention.attention_call import with_bias
from focus_rag.attention.formulas import span_mass
from focus_rag.attention.measuring import KeyCounter, SpanMeter
from focus_rag.attention.steering import focus
from focus_rag.errors import AttachError, InvalidInputError
from tests.test_attention_formulas import random_call
from tests.tiny_models import REFUSE_SDPA, VOCABULARY, tiny_model, tiny_profile

pytestmark = pytest.mark.filterwarnings("ignore:.past_key_values. is deprecated:FutureWarning")
TOLERANCE = 1e-5
HEADS = [(1, 3), (0, 0), (2, 2), (1, 0)]
SPANS = [[(7, 10), (12, 16)], [(13, 15), (15, 19)], [(0, 1), (4, 18)]]
PADS = (0, 12, 3)
LENGTH = 20
FAMILIES = ["llama", "gemma2", "gemma3_text", "qwen3", "gpt_neox", "gpt_oss", "cohere2"]


def pair(family):
    """The model measured, and an eager copy that returns its attention matrices."""
    attention = "eager" if family in REFUSE_SDPA else "sdpa"
    return tiny_model(family, attention=attention), tiny_model(family, attention="eager")


def batch(seed=2):
    ids = torch.randint(3, VOCABULARY, (3, LENGTH), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    for row, pad in enumerate(PADS):
        ids[row, :pad], mask[row, :pad] = 0, 0
    return ids, mask


@torch.no_grad()
def matrices(eager, sequences, mask):
    """`(layers, batch, heads, rows, keys)` of one uncached pass."""
    mask = torch.cat([mask, mask.new_ones(len(mask), sequences.shape[1] - mask.shape[1])], dim=1)
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    out = eager(sequences, attention_mask=mask, position_ids=positions, use_cache=False, output_attentions=True)
    return torch.stack([weights[..., : sequences.shape[1]] for weights in out.attentions])


def expected_mass(attentions, spans, row):
    """`(batch, heads, spans)`, summed by hand."""
    mass = torch.zeros(attentions.shape[1], len(HEADS), max(map(len, spans)))
    for index, of_request in enumerate(spans):
        for place, (layer, head) in enumerate(HEADS):
            for span, (start, end) in enumerate(of_request):
                mass[index, place, span] = attentions[layer, index, head, row, start:end].sum()
    return mass


def generated(model, ids, mask, **kwargs):
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    with torch.no_grad():
        return model.generate(ids, attention_mask=mask, **{**settings, **kwargs})


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_a_left_padded_prefill(family):
    model, eager = pair(family)
    ids, mask = batch()
    rows = [13, 19, 16]
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    with torch.no_grad(), SpanMeter(model, HEADS, SPANS, LENGTH, rows=rows) as meter:
        model(ids, attention_mask=mask, position_ids=positions)
    (mass,) = meter.steps
    assert mass.shape == (3, len(HEADS), 3, 2)
    attentions = matrices(eager, ids, mask)
    for place, row in enumerate(rows):
        assert torch.allclose(mass[:, :, place], expected_mass(attentions, SPANS, row), atol=TOLERANCE)
    assert mass.max() > 0.05


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_step_of_a_generation(family, cache):
    """Prefill and cached steps past the sliding window (8 tokens), padded batch, growing, rolling and static caches."""
    model, eager = pair(family)
    ids, mask = batch()
    kwargs = {"cache_implementation": "static"} if cache == "static" else {}
    with SpanMeter(model, HEADS, SPANS, LENGTH) as meter:
        sequences = generated(model, ids, mask, **kwargs)
    attentions = matrices(eager, sequences, mask)
    assert len(meter.steps) == 6
    for step, mass in enumerate(meter.steps):
        assert torch.allclose(mass[:, :, 0], expected_mass(attentions, SPANS, LENGTH - 1 + step), atol=TOLERANCE), step


ROLLING = {
    "qwen2_moe": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "phimoe": {"sliding_window": 8, "num_local_experts": 2},
    "llama4_text": {"attention_chunk_size": 16},
    "doge": {"sliding_window": 8},
}
"""Families whose caches roll though their attention functions are not told of a window: it is in the mask alone."""


@pytest.mark.parametrize("family", ROLLING)
def test_caches_that_roll_without_saying_so(family):
    attention = "eager" if family == "doge" else "sdpa"
    model, eager = (tiny_model(family, attention=kind, **ROLLING[family]) for kind in (attention, "eager"))
    ids = batch()[0][:1]
    spans = [[(3, 6), (13, 16), (16, 19)]]
    with SpanMeter(model, HEADS, spans, LENGTH) as meter:
        sequences = generated(model, ids, torch.ones_like(ids))
    attentions = matrices(eager, sequences, torch.ones_like(ids))
    for step, mass in enumerate(meter.steps):
        assert torch.allclose(mass[:, :, 0], expected_mass(attentions, spans, LENGTH - 1 + step), atol=TOLERANCE), step


def test_a_second_sequence_through_a_static_cache_is_counted_from_its_own_beginning():
    model = tiny_model("llama")
    ids = batch()[0][:1]
    with SpanMeter(model, HEADS, [SPANS[0]], LENGTH) as meter:
        for _ in range(2):
            generated(model, ids, torch.ones_like(ids), cache_implementation="static")
    assert all(torch.equal(first, second) for first, second in zip(meter.steps[:6], meter.steps[6:], strict=True))


def test_steps_asked_for_on_the_way_are_those_asked_for_at_the_end():
    model = tiny_model("llama")
    ids = batch()[0][:1]
    with (
        torch.no_grad(),
        SpanMeter(model, HEADS, [SPANS[0]], LENGTH) as often,
        SpanMeter(model, HEADS, [SPANS[0]], LENGTH) as once,
    ):
        assert often.steps == []
        for length in (8, 12, 12, LENGTH):
            model(ids[:, :length])
            seen = often.steps
            assert seen is not often.steps
            seen.append(None)  # the caller's own list
    assert len(often.steps) == 4 and all(map(torch.equal, often.steps, once.steps))


def test_passes_of_different_batches_are_measured_each_for_itself():
    model = tiny_model("llama")
    ids = batch()[0][:1]
    with torch.no_grad(), SpanMeter(model, HEADS, [SPANS[0]], LENGTH) as meter:
        model(ids)
        model(ids.repeat(2, 1))
    one, two = meter.steps
    assert len(one) == 1 and len(two) == 2 and torch.allclose(two, one.expand_as(two), atol=TOLERANCE)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_short_prompt_that_outgrows_the_window(family):
    model, eager = pair(family)
    ids = batch()[0][:1, :5]
    spans = [[(0, 2), (3, 5)]]
    for kwargs in ({}, {"cache_implementation": "static"}):
        with SpanMeter(model, HEADS, spans, 5) as meter:
            sequences = generated(model, ids, torch.ones_like(ids), max_new_tokens=9, min_new_tokens=9, **kwargs)
        attentions = matrices(eager, sequences, torch.ones_like(ids))
        for step, mass in enumerate(meter.steps):
            assert torch.allclose(mass[:, :, 0], expected_mass(attentions, spans, 4 + step), atol=TOLERANCE), step


def test_flex_attention():
    model, eager = tiny_model("llama", attention="flex_attention"), tiny_model("llama", attention="eager")
    ids, mask = batch()
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    with torch.no_grad(), SpanMeter(model, HEADS, SPANS, LENGTH, rows=[19, 15]) as meter:
        model(ids, attention_mask=mask, position_ids=positions)
    attentions = matrices(eager, ids, mask)
    for place, row in enumerate((19, 15)):
        assert torch.allclose(meter.steps[0][:, :, place], expected_mass(attentions, SPANS, row), atol=TOLERANCE)


def test_beams_are_rows_of_their_request():
    """Two requests, three beams each: the first step has the beams' prompts, and all six read their request's spans."""
    model, eager = pair("llama")
    ids, mask = batch()
    with SpanMeter(model, HEADS, SPANS[1:], LENGTH) as meter:
        generated(model, ids[1:], mask[1:], num_beams=3)
    first = meter.steps[0][:, :, 0]
    expected = expected_mass(matrices(eager, ids[1:], mask[1:]), SPANS[1:], LENGTH - 1)
    rows = len(first) // 2
    assert torch.allclose(first, expected.repeat_interleave(rows, dim=0), atol=TOLERANCE)
    assert all(len(mass) == 6 for mass in meter.steps[1:])


def test_a_cache_that_shrinks():
    """What assisted decoding does: extend a cache by three candidates, take them back, go on with another token."""
    model, eager = pair("llama")
    ids = batch()[0][:1]
    extra = torch.tensor([[40, 41, 42]])
    with torch.no_grad(), SpanMeter(model, HEADS, [SPANS[0]], LENGTH) as meter:
        cache = model(ids, use_cache=True).past_key_values
        model(extra, past_key_values=cache)
        cache.crop(-3)
        model(torch.tensor([[50]]), past_key_values=cache)
    attentions = matrices(eager, torch.cat([ids, torch.tensor([[50]])], dim=1), torch.ones_like(ids))
    assert torch.allclose(meter.steps[-1][:, :, 0], expected_mass(attentions, [SPANS[0]], LENGTH), atol=TOLERANCE)


def test_a_prefix_that_was_cached_before_the_meter_opened():
    model, eager = pair("llama")
    ids = batch()[0][:1]
    with torch.no_grad():
        cache = model(ids[:, :12], use_cache=True).past_key_values
        with SpanMeter(model, HEADS, [SPANS[0]], LENGTH) as meter:
            model(ids[:, 12:], past_key_values=cache)
    attentions = matrices(eager, ids, torch.ones_like(ids))
    assert torch.allclose(meter.steps[0][:, :, 0], expected_mass(attentions, [SPANS[0]], LENGTH - 1), atol=TOLERANCE)


@pytest.mark.parametrize("site", ["post_rope", "normed"])
@pytest.mark.parametrize("meter_first", [False, True])
def test_measuring_a_focused_model_sees_the_shifted_queries(site, meter_first):
    model, eager = pair("llama")
    profile = tiny_profile(model, site=site, heads=6)
    ids, mask = batch()
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    meter = SpanMeter(model, HEADS, SPANS, LENGTH)
    outer, inner = (meter, focus(model, profile, 0.6)) if meter_first else (focus(model, profile, 0.6), meter)
    with torch.no_grad(), outer, inner:
        model(ids, attention_mask=mask, position_ids=positions)
    with focus(eager, profile, 0.6):
        attentions = matrices(eager, ids, mask)
    expected = expected_mass(attentions, SPANS, LENGTH - 1)
    assert torch.allclose(meter.steps[0][:, :, 0], expected, atol=TOLERANCE)
    assert not torch.allclose(expected, expected_mass(matrices(eager, ids, mask), SPANS, LENGTH - 1), atol=1e-3)


def test_measuring_changes_nothing():
    model, _ = pair("llama")
    ids, mask = batch()
    bare = generated(model, ids, mask, output_logits=True, return_dict_in_generate=True)
    with SpanMeter(model, HEADS, SPANS, LENGTH):
        measured = generated(model, ids, mask, output_logits=True, return_dict_in_generate=True)
    assert torch.equal(bare.sequences, measured.sequences)
    assert all(torch.equal(*step) for step in zip(bare.logits, measured.logits, strict=True))


@pytest.mark.parametrize("spans", [[[(3, 25)]], [[(-1, 3)]], [[(5, 3)]]])
def test_spans_outside_the_prompt(spans):
    with pytest.raises(InvalidInputError, match="within the prompt of 20 tokens"):
        SpanMeter(tiny_model(), HEADS, spans, LENGTH)


def test_no_forward_pass_gives_no_steps():
    with SpanMeter(tiny_model(), HEADS, [[(1, 2)]], 5) as meter:
        pass
    assert meter.steps == []


def test_counting_positions_through_every_kind_of_cache():
    def run(calls, window=None, sizes=None, starts_first=True):
        counter = KeyCounter(sizes)
        made = (random_call(tokens=tokens, keys=keys, window=window) for tokens, keys in calls)
        return [counter.update(0, replace(call, starts_first=starts_first)) for call in made]

    assert run([(6, 6), (1, 7), (1, 8), (6, 6)]) == [6, 7, 8, 6], "growing, and a second sequence"
    assert run([(6, 6), (3, 9), (1, 7)], starts_first=False) == [6, 9, 7], "two of three candidates rejected"
    assert run([(6, 6), (1, 4), (1, 4)], window=4) == [6, 7, 8], "rolling"
    assert run([(2, 2), (1, 3), (1, 4), (1, 4)], window=4) == [2, 3, 4, 5], "begins to roll"
    assert run([(6, 20), (1, 20), (1, 20)]) == [6, 7, 8], "static"
    assert run([(4, 4), (1, 5), (6, 20), (1, 20)]) == [4, 5, 6, 7], "static after growing"
    assert run([(1, 7), (1, 8)], sizes={0: 9}) == [7, 8], "rolling, filled before but not full"
    with pytest.raises(AttachError, match="filled before"):
        run([(1, 9)], sizes={0: 9})


@pytest.mark.parametrize("heads", [[], [(0, 99)], [(77, 0)], [(-1, 0)]])
def test_heads_that_the_model_has_not_are_refused(heads):
    with pytest.raises(InvalidInputError, match="heads of the model"):
        SpanMeter(tiny_model(), heads, [[(1, 3)]], 8)


@pytest.mark.parametrize("mask", [None, "boolean", "additive"])
def test_a_bias_on_the_logits_counts(mask):
    call = random_call(heads=4, key_heads=2, tokens=3, keys=7)
    bias, causal = torch.randn(1, 4, 3, 7), torch.ones(3, 7, dtype=torch.bool).tril(4)
    hidden = {"boolean": causal, "additive": torch.zeros(3, 7).masked_fill(~causal, -1e9)}
    call = replace(call, mask=None if mask is None else hidden[mask][None, None], starts_first=False)
    query, key = call.query.float(), call.key.float().repeat_interleave(2, dim=1)
    logits = (query @ key.mT * call.scaling + bias).masked_fill(~causal, -1e9)
    expected = logits.softmax(-1)[..., 2:5].sum(-1)
    member = torch.zeros(1, 7, 1)
    member[:, 2:5] = 1
    found = span_mass(with_bias(call, bias), range(4), None, member)[..., 0]
    assert torch.allclose(found, expected.expand_as(found), atol=1e-6)


def test_the_empty_tail_of_a_static_cache_has_no_bias():
    call = random_call(heads=4, key_heads=2, tokens=5, keys=9)
    grown = replace(call, key=call.key[:, :, :5], value=call.value[:, :, :5])
    bias, member = torch.randn(1, 4, 5, 9), torch.ones(1, 3, 1)
    static = span_mass(with_bias(call, bias), range(4), None, member)
    assert torch.allclose(static, span_mass(with_bias(grown, bias[..., :5]), range(4), None, member), atol=1e-6)
