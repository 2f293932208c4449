"""Every family, every site it allows, over sdpa and eager: steering equals queries that were shifted by hand."""

from __future__ import annotations

import contextlib
import sys

import pytest
import torch

from focus_rag.attention.steering import focus
from focus_rag.model_layout import ModelLayout
from tests.tiny_models import FAMILIES, PECULIAR_FAMILIES, REFUSE_SDPA, VOCABULARY, tiny_model, tiny_profile

pytestmark = pytest.mark.filterwarnings("ignore:.past_key_values. is deprecated:FutureWarning")
TOLERANCE = 1e-5
ALPHAS = (0.7, 0.0, -0.4)
LENGTHS = (19, 12, 7)
NEW_TOKENS = 4
NORMED_FAMILIES = {"qwen3", "qwen3_moe", "gemma3_text", "olmo2", "olmo3", "cohere", "stablelm", "phi"}
"""Families with a query norm, where `normed` and `projection` are two different places."""


def sites_of(model) -> list[str]:
    found = ["post_rope"]
    for site in ("normed", "projection"):
        with contextlib.suppress(ValueError):
            ModelLayout.of(model).require_site(site)
            found.append(site)
    return found


@contextlib.contextmanager
def shifted_by_hand(model, profile, alpha):
    """The same shift, written into the eager modeling file: no hook, no tap, no batching, nothing of the library's.

    After RoPE the eager attention function gets a shifted query. Before RoPE the module's `forward` is replaced by one
    that adds the shift to its output, in the layout that the family's own code makes of that output.
    """
    layout = ModelLayout.of(model)
    undo = contextlib.ExitStack()
    by_layer: dict[int, torch.Tensor] = {}
    for entry, direction in zip(profile.heads, profile.directions, strict=True):
        blank = torch.zeros(layout.query_heads, layout.head_dim)
        by_layer.setdefault(entry.layer, blank)[entry.head] = alpha * direction
    if profile.site == "post_rope":
        for file in {sys.modules[type(layer.attention).__module__] for layer in layout.layers}:
            original = file.eager_attention_forward

            def eager(module, query, *args, _original=original, **kwargs):
                shift = by_layer.get(module.layer_idx)
                return _original(module, query if shift is None else query + shift[None, :, None], *args, **kwargs)

            file.eager_attention_forward = eager
            undo.callback(setattr, file, "eager_attention_forward", original)
    else:
        for layer in layout.layers:
            if layer.index in by_layer:
                module = hand_picked_module(model.config.model_type, layer.attention, profile.site)
                undo.enter_context(replaced_forward(model.config.model_type, module, by_layer[layer.index]))
    with undo:
        yield


def hand_picked_module(family, attention, site):
    if family == "gpt_neox":
        return attention.query_key_value
    if family == "phi3":
        return attention.qkv_proj
    if site == "normed" and family in NORMED_FAMILIES:
        return attention.q_layernorm if family in ("stablelm", "phi") else attention.q_norm
    return attention.q_proj


@contextlib.contextmanager
def replaced_forward(family, module, shift):
    heads, head_dim = shift.shape
    original = module.forward

    def forward(inputs, *args, **kwargs):
        output = original(inputs, *args, **kwargs).clone()
        batch, tokens = output.shape[0], output.shape[1]
        if family == "gpt_neox":  # one block of query, key and value per head
            output.view(batch, tokens, heads, 3 * head_dim)[..., :head_dim] += shift
        elif family == "phi3":
            output[..., : heads * head_dim] += shift.flatten()
        elif output.dim() == 3:
            output += shift.flatten()
        elif output.shape[1] == heads and output.shape[2] != heads:  # heads before tokens
            output += shift[None, :, None]
        else:
            output += shift[None, None]
        return output

    module.forward = forward
    try:
        yield
    finally:
        del module.forward


def prompts(seed: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCABULARY, (length,), generator=generator) for length in LENGTHS]


def left_padded(rows):
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, longest - len(row) :] = row
        mask[index, longest - len(row) :] = 1
    return ids, mask


@torch.no_grad()
def cached_logits(model, ids, mask, continuation):
    """Logits of the last prompt position and of every position of a fixed continuation, read through the cache."""
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    out = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1)
    logits = [out.logits[:, -1]]
    for step in range(continuation.shape[1]):
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        positions = positions[:, -1:] + 1
        out = model(
            input_ids=continuation[:, step : step + 1],
            attention_mask=mask,
            position_ids=positions,
            past_key_values=out.past_key_values,
            use_cache=True,
        )
        logits.append(out.logits[:, -1])
    return torch.stack(logits, dim=1)


@torch.no_grad()
def whole_logits(model, row, continuation):
    """The same logits from one pass over the whole sequence: no cache, no padding, no batch."""
    whole = torch.cat([row, continuation])[None]
    return model(input_ids=whole, use_cache=False).logits[0, len(row) - 1 :]


@pytest.mark.parametrize("family", [*FAMILIES, *PECULIAR_FAMILIES])
def test_steering_equals_queries_shifted_by_hand(family):
    """A left-padded batch with an alpha per row, prefill and cached steps, against single uncached eager rows."""
    reference_model = tiny_model(family, attention="eager")
    rows = prompts()
    ids, mask = left_padded(rows)
    continuation = torch.randint(3, VOCABULARY, (len(rows), NEW_TOKENS), generator=torch.Generator().manual_seed(9))
    implementations = ["eager"] if family in REFUSE_SDPA else ["sdpa", "eager"]
    models = {name: tiny_model(family, attention=name) for name in implementations}
    sites = sites_of(reference_model)
    assert sites == (["post_rope"] if family == "llama4_text" else ["post_rope", "normed", "projection"])
    for site in sites:
        profile = tiny_profile(reference_model, site=site, size=1.0, heads=5)
        expected = []
        for row, alpha, extra in zip(rows, ALPHAS, continuation, strict=True):
            with shifted_by_hand(reference_model, profile, alpha):
                expected.append(whole_logits(reference_model, row, extra))
        for name, model in models.items():
            with focus(model, profile, ALPHAS):
                together = cached_logits(model, ids, mask, continuation)
            bare = cached_logits(model, ids, mask, continuation)
            for index, alpha in enumerate(ALPHAS):
                error = (together[index] - expected[index]).abs().max().item()
                moved = (together[index] - bare[index]).abs().max().item()
                scale = max(1.0, expected[index].abs().max().item())
                assert error <= TOLERANCE * scale, (site, name, alpha, error)
                assert (moved > 100 * TOLERANCE * scale) == (alpha != 0.0), (site, name, alpha, moved)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "phi3", "gpt_neox"])
@pytest.mark.parametrize("site", ["post_rope", "normed"])
def test_a_row_in_a_batch_is_the_row_alone(family, site):
    model = tiny_model(family)
    profile = tiny_profile(model, site=site, size=1.0)
    rows = prompts()
    ids, mask = left_padded(rows)
    continuation = torch.randint(3, VOCABULARY, (len(rows), NEW_TOKENS), generator=torch.Generator().manual_seed(9))
    with focus(model, profile, torch.tensor(ALPHAS)):
        together = cached_logits(model, ids, mask, continuation)
    for index, (row, alpha) in enumerate(zip(rows, ALPHAS, strict=True)):
        with focus(model, profile, alpha):
            alone = cached_logits(
                model, row[None], torch.ones(1, len(row), dtype=torch.long), continuation[index : index + 1]
            )
        assert (together[index] - alone[0]).abs().max() <= TOLERANCE * max(1.0, alone.abs().max().item())


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - NORMED_FAMILIES))
def test_normed_is_the_projection_where_there_is_no_norm(family):
    layout = ModelLayout.of(tiny_model(family, attention="eager"))
    assert all(layer.normed is not None and layer.normed is layer.projection for layer in layout.layers)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "cohere2"])
def test_before_and_after_rope_are_the_same_place_at_position_zero(family):
    """RoPE turns nothing at position 0: a prompt of one token sees one shift, at whatever site it enters."""
    model = tiny_model(family)
    seen = {}
    for site in ("post_rope", "normed", "projection"):
        profile = tiny_profile(model, site=site, size=1.0)
        queries = first_queries(model, profile)
        seen[site] = queries
    assert torch.allclose(seen["normed"], seen["post_rope"], atol=1e-5)
    assert torch.allclose(seen["projection"], seen["post_rope"], atol=1e-5)


def first_queries(model, profile):
    """Queries of the first steered layer as the attention function gets them, at position 0."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    layer = min(entry.layer for entry in profile.heads)
    original, kept = ALL_ATTENTION_FUNCTIONS["sdpa"], []

    def keep(module, query, *args, **kwargs):
        if module.layer_idx == layer:
            kept.append(query.clone())
        return original(module, query, *args, **kwargs)

    ALL_ATTENTION_FUNCTIONS["sdpa"] = keep
    try:
        with torch.no_grad(), focus(model, profile, 0.8):
            model(input_ids=torch.tensor([[17]]), use_cache=False)
    finally:
        del ALL_ATTENTION_FUNCTIONS["sdpa"]
    return kept[-1]
