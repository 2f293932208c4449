"""Layouts are read right, wrong ones are caught, and what cannot be steered is refused by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from focus_rag import model_layout
from focus_rag.attention.query_site_check import check_query_site
from focus_rag.attention.steering import focus
from focus_rag.errors import UnsupportedModelError
from focus_rag.model_layout import ModelLayout
from focus_rag.query_layouts import as_heads
from tests.tiny_models import COMMON, tiny_model, tiny_profile

IDS = torch.randint(3, 96, (1, 11), generator=torch.Generator().manual_seed(5))


def steered(model, profile, alpha=0.8):
    with torch.no_grad(), focus(model, profile, alpha):
        return model(IDS, use_cache=False).logits


@pytest.mark.parametrize(
    ("family", "overrides", "reason"),
    [
        ("deepseek_v3", {"num_key_value_heads": 4}, "latent attention"),
        ("qwen3_next", {}, "linear_attention"),
        ("jamba", {}, "without softmax attention"),
        ("bloom", {}, "attention interface"),
        ("falcon", {}, "attention interface"),
        ("gptj", {"rotary_dim": 4}, "attention interface"),
        ("mamba", {}, "no attention heads"),
        ("diffllama", {}, "attends twice in each layer"),
    ],
)
def test_what_cannot_be_steered_is_refused_by_name(family, overrides, reason):
    with torch.device("meta"):
        config = AutoConfig.for_model(family, **{**COMMON, **overrides})
        model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(UnsupportedModelError, match=reason) as refusal:
        ModelLayout.of(model)
    assert repr(family) in str(refusal.value)
    assert "qwen3, " in str(refusal.value), "the message lists what is supported"


@pytest.mark.parametrize("family", ["mamba", "deepseek_v3", "qwen3_next"])
def test_the_refusal_by_a_configuration_of_its_own(family):
    """Without the sizes that the tests set for all families."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "vocab_size": 96, "intermediate_size": 48}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes))
    with pytest.raises(UnsupportedModelError, match=repr(family)) as refusal:
        ModelLayout.of(model)
    assert "Families with a tested layout" in str(refusal.value)


def test_llama4_allows_the_site_after_rope_only():
    model = tiny_model("llama4_text")
    layout = ModelLayout.of(model)
    layout.require_site("post_rope")
    for site in ("normed", "projection"):
        with pytest.raises(UnsupportedModelError, match="post_rope"):
            layout.require_site(site)
        with (
            pytest.raises(UnsupportedModelError, match="llama4_text"),
            focus(model, tiny_profile(model, site=site), 1.0),
        ):
            pass


@pytest.mark.parametrize("broken", [nn.Linear(3, 3), object()])
def test_something_that_is_no_causal_lm(broken):
    with pytest.raises(UnsupportedModelError, match="config"):
        ModelLayout.of(broken)


def test_sizes():
    layout = ModelLayout.of(tiny_model("qwen3"))
    assert (layout.family, len(layout.layers), layout.query_heads, layout.key_heads, layout.head_dim, layout.known) == (
        "qwen3", 3, 4, 2, 16, True,
    )  # fmt: skip
    assert [layer.index for layer in layout.layers] == [0, 1, 2]
    assert [layer.attention.layer_idx for layer in layout.layers] == [0, 1, 2]


def test_layers_of_different_head_size_are_refused():
    model = tiny_model("llama")
    model.model.layers[1].self_attn.head_dim = 16
    with pytest.raises(UnsupportedModelError, match="differ in head size"):
        ModelLayout.of(model)


@pytest.mark.parametrize("family", ["llama", "qwen3", "olmo2", "phi3"])
@pytest.mark.parametrize("site", ["normed", "projection"])
def test_a_family_outside_the_table_goes_by_the_generic_rules(family, site, monkeypatch):
    expected = steered(model := tiny_model(family), tiny_profile(model, site=site))
    monkeypatch.delitem(model_layout._FAMILIES, family)
    model = tiny_model(family)
    assert not ModelLayout.of(model).known
    assert torch.equal(steered(model, tiny_profile(model, site=site)), expected)


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("gpt2", {"num_key_value_heads": None}),
        ("nemotron", {}),
        ("helium", {"head_dim": 8}),
        ("seed_oss", {"head_dim": 8}),
    ],
)
def test_families_nobody_listed(family, overrides):
    """They pass the check at position 0, and a shift there changes what the model says."""
    model = tiny_model(family, attention="eager", **overrides)
    layout = ModelLayout.of(model)
    assert not layout.known
    check_query_site(model, layout, "normed")
    bare = model(IDS, use_cache=False).logits
    assert (steered(model, tiny_profile(model, site="normed")) - bare).abs().max() > 1e-2


def test_eager_attention_that_a_model_computes_itself_is_refused_and_other_kernels_are_not():
    changes = {"num_key_value_heads": None, "reorder_and_upcast_attn": True}
    with pytest.raises(UnsupportedModelError, match="attn_implementation='sdpa'"):
        ModelLayout.of(tiny_model("gpt2", attention="eager", **changes))
    model = tiny_model("gpt2", attention="sdpa", **changes)
    bare = model(IDS, use_cache=False).logits
    assert (steered(model, tiny_profile(model)) - bare).abs().max() > 1e-2


def test_the_generic_rule_does_not_pass_where_it_guesses_wrong(monkeypatch):
    """Per-head queries that the guess reads with heads and tokens swapped, and a norm after RoPE."""
    monkeypatch.delitem(model_layout._FAMILIES, "llama4_text")
    model = tiny_model("llama4_text")
    with pytest.raises(UnsupportedModelError, match="not where its layout says"):
        check_query_site(model, ModelLayout.of(model), "normed")


WRONG_RULES = {
    "keys for queries": ("llama", model_layout._Rule("k_proj")),
    "a plain slice of interleaved heads": ("gpt_neox", model_layout._Rule("query_key_value", "fused_flat")),
    "interleaved heads of a plain slice": ("phi3", model_layout._Rule("qkv_proj", "fused_interleaved")),
    "before the norm, called after it": ("qwen3", model_layout._Rule("q_proj")),
    "the key's norm": ("qwen3", model_layout._Rule("q_proj", norm="k_norm", norm_format="tokens_heads")),
    "the output projection": ("llama", model_layout._Rule("o_proj")),
}


@pytest.mark.parametrize("wrong", WRONG_RULES)
def test_a_wrong_layout_is_caught(wrong, monkeypatch):
    family, rule = WRONG_RULES[wrong]
    overrides = {"num_key_value_heads": 4} if family == "phi3" else {}
    right = tiny_model(family, **overrides)
    check_query_site(right, ModelLayout.of(right), "normed")
    monkeypatch.setitem(model_layout._FAMILIES, family, rule)
    model = tiny_model(family, **overrides)
    with pytest.raises(UnsupportedModelError, match="layer 0"):
        check_query_site(model, ModelLayout.of(model), "normed")
    with pytest.raises(UnsupportedModelError), focus(model, tiny_profile(model, site="normed"), 0.5):
        pass
    assert all(not module._forward_hooks for module in model.modules())


def test_a_projection_without_a_readable_norm_fails_closed(monkeypatch):
    """The projection of a model with a query norm is checked against what enters the norm; not seeing it is no pass."""
    monkeypatch.setitem(model_layout._FAMILIES, "qwen3", model_layout._Rule("q_proj", norm="o_proj"))
    model = tiny_model("qwen3", hidden_size=48)
    with pytest.raises(UnsupportedModelError):
        check_query_site(model, ModelLayout.of(model), "projection")


@pytest.mark.filterwarnings("ignore::focus_rag.attention.steering.FocusNotAppliedWarning")
def test_the_check_runs_once_per_model_and_site():
    model = tiny_model("llama")
    runs = []
    handle = model.register_forward_pre_hook(lambda *_: runs.append(1))
    profile = tiny_profile(model, site="normed")
    for _ in range(3):
        with torch.no_grad(), focus(model, profile, 0.5):
            pass
        check_query_site(model, ModelLayout.of(model), "normed")
    handle.remove()
    assert len(runs) == 1


@pytest.mark.filterwarnings("ignore::focus_rag.attention.steering.FocusNotAppliedWarning")
def test_the_check_is_blind_to_other_interventions():
    """An outer focus after RoPE, or one over every thread with an alpha per row, does not make the check fail."""
    model = tiny_model("llama")
    outer, inner = tiny_profile(model, site="post_rope"), tiny_profile(model, site="normed")
    with focus(model, outer, [0.9, 0.1, 0.4], across_threads=True), focus(model, outer, 2.0), focus(model, inner, 0.5):
        pass


def test_a_check_that_fails_leaves_nothing_and_is_repeated():
    model = tiny_model("llama")
    layout = ModelLayout.of(model)
    projection = model.model.layers[2].self_attn.q_proj

    def fail(*_):
        raise RuntimeError("out of memory")

    handle = projection.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        check_query_site(model, layout, "normed")
    handle.remove()
    assert all(not module._forward_hooks for module in model.modules())
    check_query_site(model, layout, "normed")


@pytest.mark.parametrize("site", ["post_rope", "normed", "projection"])
def test_lora_wrapped_before_and_while_focused(site):
    peft = pytest.importorskip("peft")

    def lora(model):
        torch.manual_seed(2)
        config = peft.LoraConfig(
            r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
        )
        return peft.get_peft_model(model, config).eval()

    wrapped = lora(tiny_model("llama"))
    profile = tiny_profile(wrapped, site=site)
    bare = wrapped(IDS, use_cache=False).logits
    through_wrapper = steered(wrapped, profile)
    merged = lora(tiny_model("llama")).merge_and_unload()
    assert (through_wrapper - bare).abs().max() > 1e-2
    assert torch.allclose(through_wrapper, steered(merged, profile), atol=1e-4)
    assert torch.equal(wrapped(IDS, use_cache=False).logits, bare)
    inner = tiny_model("llama")
    with torch.no_grad(), focus(inner, profile, 0.8):
        assert torch.allclose(lora(inner)(IDS, use_cache=False).logits, through_wrapper, atol=1e-5)


class Int8Linear(nn.Module):
    """A quantised projection: whole numbers and one scale per row, no float weight, as quantisation packages make them."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.detach().abs().amax(dim=1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("whole", (linear.weight.detach() / scale).round().to(torch.int8))

    @property
    def dequantised(self):
        return self.whole.float() * self.scale

    def forward(self, inputs):
        return inputs @ self.dequantised.T


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "olmo2"])
@pytest.mark.parametrize("site", ["post_rope", "normed", "projection"])
def test_quantised_weights_are_steered_like_the_weights_they_stand_for(family, site):
    quantised, plain = tiny_model(family), tiny_model(family)
    profile = tiny_profile(plain, site=site)
    for name, module in list(plain.named_modules()):
        if isinstance(module, nn.Linear) and "layers" in name:
            int8 = Int8Linear(module)
            quantised.set_submodule(name, int8)
            module.weight.data.copy_(int8.dequantised)
    found = steered(quantised, profile)
    assert torch.allclose(found, steered(plain, profile), atol=1e-4)
    assert (found - quantised(IDS, use_cache=False).logits).abs().max() > 1e-2


def test_an_attention_class_derived_elsewhere_still_finds_its_interface():
    """A subclass in a file of its own (remote code, a patch) runs the parent's forward, with the parent's interface."""
    model = tiny_model("llama", attention="eager")
    kind = type(model.model.layers[0].self_attn)
    derived = type("PatchedAttention", (kind,), {"__module__": __name__})
    profile = tiny_profile(model, site="post_rope")
    expected = steered(model, profile)
    for layer in model.model.layers:
        layer.self_attn.__class__ = derived
    assert torch.equal(steered(model, profile), expected)


@pytest.mark.parametrize("query_format", ["flat", "tokens_heads", "heads_tokens", "fused_flat", "fused_interleaved"])
def test_reading_heads_out_of_every_format(query_format):
    queries = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5)  # (batch, tokens, heads, head_dim)
    noise = torch.full((2, 3, 4, 5), -1.0)
    output = {
        "flat": queries.flatten(2),
        "tokens_heads": queries,
        "heads_tokens": queries.transpose(1, 2),
        "fused_flat": torch.cat([queries.flatten(2), noise.flatten(2)], dim=-1),
        "fused_interleaved": torch.stack([queries, noise, noise], dim=3).flatten(2),
    }[query_format]
    assert torch.equal(as_heads(output, query_format, 4, 5), queries.transpose(1, 2))
