"""Split softmax on a running model against an eager copy whose attention weights are split by the formula."""

from __future__ import annotations

import contextlib
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from focus_rag.attention import formulas
from focus_rag.attention.measuring import SpanMeter
from focus_rag.attention.splitting import split_softmax
from focus_rag.errors import AttachError, InvalidInputError
from tests.test_measuring import HEADS, LENGTH, SPANS, batch
from tests.tiny_models import REFUSE_SDPA, VOCABULARY, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:.past_key_values. is deprecated:FutureWarning")
TOLERANCE = 1e-5
NEW_TOKENS = 8


@contextlib.contextmanager
def split_by_hand(eager, spans, first_row, tau):
    """Replace the file's eager attention by one that splits the softmax weights of one unpadded, uncached sequence."""
    file = sys.modules[type(eager.model.layers[0].self_attn).__module__]
    original = file.eager_attention_forward

    def attention(module, query, key, value, mask, **kwargs):
        output, weights = original(module, query, key, value, mask, **kwargs)
        keys = weights.shape[-1]
        in_span = torch.zeros(keys, dtype=torch.bool)
        for start, end in spans:
            in_span[start:end] = True
        values = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
        late = torch.arange(query.shape[2]) >= first_row
        for layer, head in HEADS:
            if layer == module.layer_idx:
                split = formulas.split_weights(weights[:, head], in_span, tau) @ values[:, head, :keys]
                output[:, late, head] = split[:, late]
        return output, weights

    file.eager_attention_forward = attention
    try:
        yield
    finally:
        file.eager_attention_forward = original


@torch.no_grad()
def cached_logits(model, ids, mask, continuation):
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    out = model(ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1)
    logits = [out.logits[:, -1]]
    for step in range(continuation.shape[1]):
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        positions = positions[:, -1:] + 1
        out = model(
            continuation[:, step : step + 1],
            attention_mask=mask,
            position_ids=positions,
            past_key_values=out.past_key_values,
            use_cache=True,
        )
        logits.append(out.logits[:, -1])
    return torch.stack(logits, dim=1)


@pytest.mark.parametrize("tau", [0.1, 0.6])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text", "qwen3", "phi3", "gpt_oss"])
def test_left_padded_cached_steps_equal_each_row_by_the_formula(family, tau):
    """Spans end in different places: every row is split from its own spans on, as it would be alone."""
    attention = "eager" if family in REFUSE_SDPA else "sdpa"
    model, eager = tiny_model(family, attention=attention), tiny_model(family, attention="eager")
    ids, mask = batch()
    continuation = torch.randint(3, VOCABULARY, (3, NEW_TOKENS), generator=torch.Generator().manual_seed(4))
    spans = [[(7, 10), (10, 12)], [(13, 15), (15, 19)], [(4, 9)]]
    with split_softmax(model, HEADS, spans, LENGTH, tau=tau):
        together = cached_logits(model, ids, mask, continuation)
    bare = cached_logits(model, ids, mask, continuation)
    for row in range(3):
        pad = int((mask[row] == 0).sum())
        alone = torch.cat([ids[row, pad:], continuation[row]])[None]
        own = [(start - pad, end - pad) for start, end in spans[row]]
        with split_by_hand(eager, own, max(end for _, end in own), tau), torch.no_grad():
            expected = eager(alone, use_cache=False).logits[0, LENGTH - pad - 1 :]
        scale = max(1.0, expected.abs().max().item())
        assert (together[row] - expected).abs().max() <= TOLERANCE * scale
        assert (bare[row] - expected).abs().max() > 100 * TOLERANCE * scale


def test_tau_one_is_the_bare_model_bit_by_bit():
    model = tiny_model("llama")
    ids, mask = batch()
    bare = model(ids, attention_mask=mask).logits
    with split_softmax(model, HEADS, SPANS, LENGTH, tau=1.0):
        assert torch.equal(model(ids, attention_mask=mask).logits, bare)


def test_other_rows_and_other_requests_are_untouched():
    """Rows before `first_row` in the first steered layer, and a request without spans, keep what they had."""
    model = tiny_model("llama")
    ids, mask = batch()
    bare = model(ids, attention_mask=mask).logits
    with split_softmax(model, HEADS, [[(7, 10)], [], []], LENGTH, tau=0.2, first_row=15):
        split = model(ids, attention_mask=mask).logits
    assert torch.allclose(split[1:], bare[1:], atol=1e-6)
    assert torch.allclose(split[0, :15], bare[0, :15], atol=1e-6)
    with split_softmax(model, HEADS, [[(7, 10)], [], []], LENGTH, tau=0.2, first_row=[15, 0, LENGTH]):
        assert torch.allclose(model(ids, attention_mask=mask).logits, split, atol=1e-5)
    with (
        pytest.raises(InvalidInputError, match="first row"),
        split_softmax(model, HEADS, [[(7, 10)], [], []], LENGTH, first_row=[15]),
    ):
        pass
    assert (split[0, 15:] - bare[0, 15:]).abs().amax(-1).min() > 1e-3


def test_long_prompts_are_split_in_pieces_without_seams():
    """More rows than are split at once."""
    model, eager = (tiny_model("llama", attention=name, max_position_embeddings=512) for name in ("sdpa", "eager"))
    ids = torch.randint(3, VOCABULARY, (1, 300), generator=torch.Generator().manual_seed(4))
    with torch.no_grad(), split_softmax(model, HEADS, [[(5, 20)]], 300, tau=0.3):
        ours = model(ids).logits
    with torch.no_grad(), split_by_hand(eager, [(5, 20)], 20, 0.3):
        expected = eager(ids).logits
    assert (ours - expected).abs().max() <= TOLERANCE * max(1.0, expected.abs().max().item())


class LargestTensor(TorchDispatchMode):
    """Notes the most elements any tensor computed inside has."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        sizes = [one.numel() for one in tree_leaves(result) if isinstance(one, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


@pytest.mark.parametrize("what", ["split softmax", "span mass"])
def test_no_matrix_of_prompt_by_prompt_is_ever_made(what):
    """Four heads share keys two by two: an eager layer makes 4 * 900 ** 2 elements, a mask alone 900 ** 2."""
    model = tiny_model("llama", max_position_embeddings=1024)
    ids = torch.randint(3, VOCABULARY, (1, 900), generator=torch.Generator().manual_seed(4))
    opened = (
        split_softmax(model, HEADS, [[(5, 20)]], 900, tau=0.3)
        if what == "split softmax"
        else SpanMeter(model, HEADS, [[(5, 20)]], 900)
    )
    with torch.no_grad(), LargestTensor() as bare:
        model(ids, logits_to_keep=1)
    with torch.no_grad(), opened, LargestTensor() as ours:
        model(ids, logits_to_keep=1)
    assert ours.elements < 900**2 / 3
    assert bare.elements < ours.elements or what == "span mass"
    with torch.no_grad(), LargestTensor() as eager:
        tiny_model("llama", attention="eager", max_position_embeddings=1024)(ids, logits_to_keep=1)
    assert eager.elements == 4 * 900**2


def test_static_cache_and_beams_generate_what_they_generate_otherwise():
    model = tiny_model("llama")
    ids, mask = batch()
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    with torch.no_grad(), split_softmax(model, HEADS, SPANS, LENGTH, tau=0.2):
        dynamic = model.generate(ids, attention_mask=mask, **settings)
    with torch.no_grad(), split_softmax(model, HEADS, SPANS, LENGTH, tau=0.2):
        assert torch.equal(model.generate(ids, attention_mask=mask, cache_implementation="static", **settings), dynamic)
    assert not torch.equal(model.generate(ids, attention_mask=mask, **settings), dynamic)
    with torch.no_grad(), split_softmax(model, HEADS, SPANS, LENGTH, tau=0.2):
        beams = model.generate(ids, attention_mask=mask, num_beams=2, **settings)
    for row, pad in enumerate((0, 12, 3)):
        spans = [[(max(start - pad, 0), end - pad) for start, end in SPANS[row] if end > pad]]
        with torch.no_grad(), split_softmax(model, HEADS, spans, LENGTH - pad, tau=0.2):
            alone = model.generate(
                ids[row : row + 1, pad:], attention_mask=mask[row : row + 1, pad:], num_beams=2, **settings
            )
        assert alone[0, LENGTH - pad :].tolist() == beams[row, LENGTH:].tolist()


@pytest.mark.parametrize("tau", [0.0, -0.5, 1.5, float("nan"), float("inf")])
def test_tau_out_of_range(tau):
    with pytest.raises(InvalidInputError, match="tau"), split_softmax(tiny_model(), HEADS, SPANS, LENGTH, tau=tau):
        pass


@pytest.mark.parametrize("spans", [[], [[]], [[(3, 25)]], [[(4, 4)]], [[(-2, 3)]]])
def test_spans_that_are_none(spans):
    with (
        pytest.raises(InvalidInputError, match="spans within the prompt"),
        split_softmax(tiny_model(), HEADS, spans, LENGTH),
    ):
        pass


def test_spans_for_another_number_of_rows():
    model = tiny_model("llama")
    ids, mask = batch()
    with (
        pytest.raises(AttachError, match="3 rows met spans for 2 requests"),
        split_softmax(model, HEADS, SPANS[:2], LENGTH),
    ):
        model(ids, attention_mask=mask)


@pytest.mark.parametrize("heads", [[], [(0, 99)], [(99, 0)], [(0, -1)]])
def test_heads_that_the_model_has_not_are_refused(heads):
    with (
        pytest.raises(InvalidInputError, match="heads of the model"),
        split_softmax(tiny_model(), heads, [[(1, 3)]], 8),
    ):
        pass
