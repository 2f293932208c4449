"""Site `post_rope` against golden vectors of the authors' published code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from focus_rag.attention.steering import focus
from focus_rag.fingerprint import Fingerprint
from focus_rag.profile import FocusProfile, HeadEntry

FOLDER = Path(__file__).parent / "parity"
FAMILIES = ("llama", "qwen2", "mistral")
ALPHAS = (0.0, 0.2, 0.5, -0.3)
LOGIT_TOLERANCE = 2e-5


def load(family: str, attention: str = "sdpa"):
    config = AutoConfig.for_model(**json.loads((FOLDER / f"{family}.config.json").read_text()))
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    missing, unexpected = model.load_state_dict(load_file(FOLDER / f"{family}.weights.safetensors"), strict=False)
    assert not missing and not unexpected
    golden = load_file(FOLDER / f"{family}.golden.safetensors")
    heads = [(int(layer), int(head)) for layer, head in golden["head_mask"].nonzero().tolist()]
    profile = FocusProfile(
        Fingerprint.of(model),
        [HeadEntry(layer=layer, head=head) for layer, head in heads],
        torch.stack([golden["query_directions"][layer, head] for layer, head in heads]),
        site="post_rope",
        key_directions=torch.stack([golden["key_directions"][layer, head] for layer, head in heads]),
    )
    return model, profile, golden


@pytest.fixture(scope="module", params=FAMILIES)
def parity(request):
    return load(request.param)


def golden_key(alpha: float, which: str, what: str) -> str:
    return f"alpha={alpha:+}.{which}.{what}"


@pytest.mark.parametrize("which", ["both", "query_only"])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_logits_and_tokens(parity, alpha, which):
    """`both` is matched although only queries are shifted: the published key direction cancels in the softmax."""
    model, profile, golden = parity
    ids = golden["input_ids"]
    with torch.no_grad(), focus(model, profile, alpha):
        logits = model(ids).logits[0]
        tokens = model.generate(ids, max_new_tokens=12, do_sample=False, min_new_tokens=12)[0, ids.shape[1] :]
    assert torch.allclose(logits, golden[golden_key(alpha, which, "logits")], atol=LOGIT_TOLERANCE, rtol=0)
    assert tokens.tolist() == golden[golden_key(alpha, which, "generated")].tolist()


@pytest.mark.parametrize("attention", ["eager", "flex_attention"])
def test_other_attention_implementations(attention):
    model, profile, golden = load("llama", attention)
    with torch.no_grad(), focus(model, profile, 0.5):
        logits = model(golden["input_ids"]).logits[0]
    assert torch.allclose(logits, golden[golden_key(0.5, "both", "logits")], atol=LOGIT_TOLERANCE, rtol=0)


def test_alpha_moves_the_logits_far_beyond_the_tolerance(parity):
    _, _, golden = parity
    moved = (golden[golden_key(0.5, "both", "logits")] - golden[golden_key(0.0, "both", "logits")]).abs().max()
    assert moved > 0.5


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_batch_of_four_with_its_own_alphas_and_left_padding(parity, cache):
    """Rows of different length in one batch: each generates what it generates alone, and the full row what the paper's
    code does.
    """
    model, profile, golden = parity
    ids = golden["input_ids"][0]
    rows = [ids, ids[9:], ids[20:], ids]
    alphas = [0.2, -0.3, 0.5, 0.0]
    batch = torch.zeros(4, 41, dtype=torch.long)
    mask = torch.zeros(4, 41, dtype=torch.long)
    for index, row in enumerate(rows):
        batch[index, 41 - len(row) :] = row
        mask[index, 41 - len(row) :] = 1
    kwargs = {"max_new_tokens": 12, "do_sample": False, "min_new_tokens": 12}
    if cache == "static":
        kwargs["cache_implementation"] = "static"
    with torch.no_grad(), focus(model, profile, alphas):
        together = model.generate(batch, attention_mask=mask, **kwargs)[:, 41:]
    for index, row in enumerate(rows):
        with torch.no_grad(), focus(model, profile, alphas[index]):
            alone = model.generate(row[None], attention_mask=torch.ones(1, len(row)), **kwargs)[0, len(row) :]
        assert together[index].tolist() == alone.tolist()
    assert together[0].tolist() == golden[golden_key(0.2, "both", "generated")].tolist()
    assert together[3].tolist() == golden[golden_key(0.0, "both", "generated")].tolist()


def test_beams_and_return_sequences_keep_their_rows_alpha(parity):
    model, profile, golden = parity
    ids = golden["input_ids"]
    kwargs = {"max_new_tokens": 6, "do_sample": False, "num_beams": 3, "num_return_sequences": 2, "min_new_tokens": 6}
    with torch.no_grad(), focus(model, profile, [0.2, 0.5]):
        together = model.generate(ids.repeat(2, 1), attention_mask=torch.ones(2, 41), **kwargs)
    for index, alpha in enumerate([0.2, 0.5]):
        with torch.no_grad(), focus(model, profile, alpha):
            alone = model.generate(ids, attention_mask=torch.ones(1, 41), **kwargs)
        assert together[2 * index : 2 * index + 2].tolist() == alone.tolist()


def test_alpha_zero_is_bit_identical(parity):
    model, profile, golden = parity
    with torch.no_grad():
        bare = model(golden["input_ids"]).logits
        with focus(model, profile, 0.0):
            assert torch.equal(model(golden["input_ids"]).logits, bare)
        with focus(model, profile, [0.0, 0.4]):
            both = model(golden["input_ids"].repeat(2, 1)).logits
        assert torch.equal(both[0], model(golden["input_ids"].repeat(2, 1)).logits[0])
        assert not torch.allclose(both[1], bare[0], atol=1e-3)
