"""A model's attention layout: its layers, heads and the modules where queries can be reached.

The only module that knows architectures by name.
"""

from __future__ import annotations

import copy
import re
import sys
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from focus_rag.errors import UnsupportedModelError
from focus_rag.query_layouts import QueryFormat

Site = Literal["post_rope", "normed", "projection"]
"""Where a query shift enters: after RoPE (the paper's), before RoPE and after any query norm, or at the query
projection's output (equal to `normed` in models without a query norm)."""


@dataclass(frozen=True, slots=True)
class QueryModule:
    """A module whose output holds queries before RoPE."""

    module: nn.Module
    format: QueryFormat


@dataclass(frozen=True, slots=True)
class LayerLayout:
    """One attention layer.

    Attributes:
        index: Position among the model's layers.
        attention: The attention module, as the attention function receives it.
        projection: Where queries leave the projection; None if it is not known.
        normed: Where queries are last seen before RoPE; None if it is not known, or if RoPE comes before the norm.
    """

    index: int
    attention: nn.Module
    projection: QueryModule | None
    normed: QueryModule | None

    def query_module(self, site: Site) -> QueryModule | None:
        """The module to hook for a site before RoPE."""
        return self.projection if site == "projection" else self.normed


@dataclass(frozen=True, slots=True)
class ModelLayout:
    """Where a causal LM's attention heads are.

    Attributes:
        family: The model type of its configuration.
        layers: All attention layers in order.
        query_heads: Query heads per layer.
        key_heads: Key heads per layer.
        head_dim: Size of a query.
        known: Whether the family stands in the table; others pass through the generic rules.
    """

    family: str
    layers: tuple[LayerLayout, ...]
    query_heads: int
    key_heads: int
    head_dim: int
    known: bool

    @classmethod
    def of(cls, model: nn.Module) -> ModelLayout:
        """Read the layout of a model, PEFT-wrapped ones included.

        Raises:
            UnsupportedModelError: The model has no per-head queries of its own, has layers without softmax attention,
                or does not call transformers' attention interface.
        """
        config = _text_config(model)
        family = str(getattr(config, "model_type", type(model).__name__))
        _refuse_by_name(family, config)
        attentions = _attention_modules(model)
        _refuse_by_structure(family, attentions, config)
        query_heads = int(config.num_attention_heads)
        key_heads = int(getattr(config, "num_key_value_heads", None) or query_heads)
        head_dims = [_head_dim(attention, config) for attention in attentions]
        if len(set(head_dims)) > 1:
            raise UnsupportedModelError(
                f"Layers of {family!r} differ in head size ({sorted(set(head_dims))}); one size is needed. {_SUPPORTED}"
            )
        head_dim = head_dims[0]
        rule = _FAMILIES.get(family)
        layers = tuple(
            _layer(index, attention, rule or _generic_rule(attention, head_dim), query_heads, head_dim)
            for index, attention in enumerate(attentions)
        )
        return cls(family, layers, query_heads, key_heads, head_dim, known=rule is not None)

    def require_site(self, site: Site) -> None:
        """Raise `UnsupportedModelError` if queries cannot be reached at `site`."""
        if site != "post_rope" and any(layer.query_module(site) is None for layer in self.layers):
            raise UnsupportedModelError(
                f"Queries of {self.family!r} cannot be reached at site {site!r}. Use site 'post_rope', which works "
                f"over every attention implementation. {_SUPPORTED}"
            )


@dataclass(frozen=True, slots=True)
class _Rule:
    """Attribute names inside an attention module, and the layout of what they return."""

    projection: str
    projection_format: QueryFormat = "flat"
    norm: str | None = None
    norm_format: QueryFormat = "flat"
    norm_is_optional: bool = False
    after_rope_only: bool = False


_PLAIN = _Rule("q_proj")
_NORM_PER_HEAD = _Rule("q_proj", norm="q_norm", norm_format="tokens_heads")
_FAMILIES: dict[str, _Rule] = {
    **dict.fromkeys(
        (
            "llama",
            "mistral",
            "mixtral",
            "ministral",
            "qwen2",
            "qwen2_moe",
            "gemma",
            "gemma2",
            "smollm3",
            "granite",
            "cohere2",
            "starcoder2",
            "glm",
            "glm4",
            "gpt_oss",
            "olmo",
        ),
        _PLAIN,
    ),
    **dict.fromkeys(("qwen3", "qwen3_moe"), _NORM_PER_HEAD),
    "cohere": _Rule("q_proj", norm="q_norm", norm_format="tokens_heads", norm_is_optional=True),
    **dict.fromkeys(("gemma3", "gemma3_text"), _Rule("q_proj", norm="q_norm", norm_format="heads_tokens")),
    **dict.fromkeys(
        ("stablelm", "phi"), _Rule("q_proj", norm="q_layernorm", norm_format="heads_tokens", norm_is_optional=True)
    ),
    **dict.fromkeys(("olmo2", "olmo3"), _Rule("q_proj", norm="q_norm")),
    "phi3": _Rule("qkv_proj", "fused_flat"),
    "gpt_neox": _Rule("query_key_value", "fused_interleaved"),
    "llama4_text": _Rule("q_proj", after_rope_only=True),
}
_SUPPORTED = "Families with a tested layout: " + ", ".join(sorted(_FAMILIES)) + "; others are checked when attached."

_QUERY_BIAS_FLAGS = ("attention_bias", "qkv_bias", "use_qkv_bias")
"""Settings that give the query projection a bias, and other projections of the attention with it."""
_WITHOUT_QUERY_BIAS = frozenset({"phi3", "mixtral", "ministral", "llama4_text"})
"""Families of the table that have neither the bias nor the setting, or no place for it before RoPE."""
_WITH_QUERY_BIAS = "Families that can: " + ", ".join(sorted(set(_FAMILIES) - _WITHOUT_QUERY_BIAS)) + "."

_LATENT_ATTENTION = ("kv_a_proj_with_mqa", "kv_b_proj", "kv_a_layernorm")
_OWN_ATTENTION = frozenset({"bloom", "falcon", "gptj", "mpt", "codegen", "gpt_neo", "xglm", "ctrl", "xlnet"})
_SEVERAL_ATTENTIONS = frozenset({"diffllama"})
_NO_ATTENTION = frozenset({"rwkv", "mamba", "mamba2", "falcon_mamba", "xlstm"})


def _text_config(model: nn.Module) -> Any:
    config = getattr(model, "config", None)
    if config is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no `config`; a Hugging Face causal LM (or a PEFT wrapper of one) was expected."
        )
    get_text_config = getattr(config, "get_text_config", None)
    return get_text_config() if callable(get_text_config) else config


def window_of(model: nn.Module, default: int = 4096) -> int:
    """Tokens the model can read at once, as its configuration says; `default` where it says nothing.

    Raises:
        UnsupportedModelError: The model has no configuration.
    """
    config = _text_config(model)
    return int(getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or default)


def rolling_sizes(model: nn.Module) -> dict[int, int]:
    """Layers whose cache lets old positions go, and how many it keeps; read from the configuration, as transformers
    makes its caches.

    Not every model hands such a window to its attention function: some have it in the mask alone.

    Raises:
        UnsupportedModelError: The model has no configuration.
    """
    config = _text_config(model)
    window, chunk = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    by_default = "sliding_attention" if window else "chunked_attention" if chunk else "full_attention"
    layers = range(int(config.num_hidden_layers))
    kinds = getattr(config, "layer_types", None) or [by_default for _ in layers]
    sizes = {
        layer: window if "sliding" in kind else chunk if kind == "chunked_attention" else None
        for layer, kind in zip(layers, kinds, strict=False)
    }
    return {layer: int(size) for layer, size in sizes.items() if size}


def config_with_query_bias(model: nn.Module) -> Any:
    """A copy of a model's configuration from which transformers builds it with a bias on every query projection.

    It is that of another family for Mistral alone, which has no such bias: without a sliding window it computes what
    Llama does.

    Raises:
        UnsupportedModelError: The family has no bias on its query projections and no setting for one, or the model is
            no supported one.
    """
    layout = ModelLayout.of(model)
    config: Any = copy.deepcopy(model.config)
    if all(
        layer.projection is not None and getattr(layer.projection.module, "bias", None) is not None
        for layer in layout.layers
    ):
        return config
    text_config = config.get_text_config()
    if layout.family == "mistral" and text_config is config:  # not the language model of a multimodal one
        return _as_llama(config)
    flag = next((name for name in _QUERY_BIAS_FLAGS if getattr(text_config, name, None) is False), None)
    if flag is None:
        raise UnsupportedModelError(
            f"This model of {layout.family!r} has no bias on its query projections and no setting for one, so no "
            f"direction can be baked into it. {_WITH_QUERY_BIAS}"
        )
    setattr(text_config, flag, True)
    return config


def _as_llama(mistral: Any) -> Any:
    """The configuration of the Llama model that computes what a Mistral model without a window does, with biases in its
    attention.
    """
    from transformers import LlamaConfig

    if mistral.sliding_window is not None:
        raise UnsupportedModelError(
            f"This model of 'mistral' has a sliding window of {mistral.sliding_window} tokens. Mistral has no bias "
            "on its query projections, and Llama, as which it is exported without a window, has none, so no "
            f"direction can be baked into it. {_WITH_QUERY_BIAS}"
        )
    own = {"model_type", "architectures", "sliding_window", "layer_types", "attention_bias"}
    shared = {name: value for name, value in mistral.to_dict().items() if name not in own}
    return LlamaConfig(**shared, attention_bias=True)


def _refuse_by_name(family: str, config: Any) -> None:
    if family in _NO_ATTENTION or not hasattr(config, "num_attention_heads"):
        raise UnsupportedModelError(
            f"{family!r} has no attention heads, so there are no queries to shift. {_SUPPORTED}"
        )
    if family in _OWN_ATTENTION:
        raise UnsupportedModelError(
            f"{family!r} computes attention itself, not through transformers' attention interface, and cannot be "
            f"steered. {_SUPPORTED}"
        )
    if family in _SEVERAL_ATTENTIONS:
        raise UnsupportedModelError(
            f"{family!r} attends twice in each layer and subtracts the one from the other, so a head has no attention "
            f"of its own to steer or to measure. {_SUPPORTED}"
        )
    if getattr(config, "reorder_and_upcast_attn", False) and config._attn_implementation == "eager":
        raise UnsupportedModelError(
            f"{family!r} with reorder_and_upcast_attn computes eager attention itself and cannot be steered there: "
            "load it with attn_implementation='sdpa'."
        )
    kinds = set(getattr(config, "layer_types", None) or ())
    linear = sorted(
        kind for kind in kinds if "linear" in kind or "mamba" in kind or "conv" in kind or "recurrent" in kind
    )
    if linear:
        raise UnsupportedModelError(
            f"{family!r} has layers without softmax attention ({', '.join(linear)}), which have no queries to shift. "
            f"{_SUPPORTED}"
        )


def _attention_modules(model: nn.Module) -> list[nn.Module]:
    """Attention modules of the text model, found by class name and layer index and never by path."""
    found = [
        (name, module)
        for name, module in model.named_modules()
        if type(module).__name__.endswith(("Attention", "SelfAttention", "SdpaAttention"))
        and isinstance(getattr(module, "layer_idx", None), int)
        and not re.search(r"vision|audio|encoder\.", name)
    ]
    return [module for _, module in sorted(found, key=lambda item: int(item[1].layer_idx))]  # type: ignore[arg-type]


def attention_home(kind: type[nn.Module]) -> Any:
    """The file whose attention interface a kind of attention module uses: its own, or that of a class it derives from.

    Returns:
        The Python module that holds `ALL_ATTENTION_FUNCTIONS` and `eager_attention_forward`, or None.
    """
    homes = (sys.modules.get(ancestor.__module__) for ancestor in kind.__mro__)
    return next((home for home in homes if hasattr(home, "ALL_ATTENTION_FUNCTIONS")), None)


def _refuse_by_structure(family: str, attentions: list[nn.Module], config: Any) -> None:
    if any(hasattr(module, name) for module in attentions for name in _LATENT_ATTENTION):
        raise UnsupportedModelError(
            f"{family!r} uses multi-head latent attention, whose queries are split into a rotated and an unrotated "
            f"part; focus directions are not defined for it. {_SUPPORTED}"
        )
    expected = int(config.num_hidden_layers)
    if len(attentions) != expected:
        raise UnsupportedModelError(
            f"Found {len(attentions)} softmax-attention layers in {family!r} where its configuration promises "
            f"{expected}. {_SUPPORTED}"
        )
    if any(attention_home(type(module)) is None for module in attentions):
        raise UnsupportedModelError(
            f"{family!r} does not call transformers' attention interface and cannot be steered. {_SUPPORTED}"
        )


def _head_dim(attention: nn.Module, config: Any) -> int:
    for name in ("head_dim", "head_size"):
        value = getattr(attention, name, None)
        if isinstance(value, int):
            return value
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _generic_rule(attention: nn.Module, head_dim: int) -> _Rule | None:
    """Best guess for a family outside the table; attaching checks it against the running model."""
    if hasattr(attention, "q_proj"):
        if hasattr(attention, "q_norm"):
            weight = getattr(attention.q_norm, "weight", None)
            per_head = weight is not None and weight.numel() == head_dim
            return _NORM_PER_HEAD if per_head else _Rule("q_proj", norm="q_norm")
        return _PLAIN
    for name in ("qkv_proj", "c_attn", "W_pack", "Wqkv"):
        if hasattr(attention, name):
            return _Rule(name, "fused_flat")
    return None


def _layer(index: int, attention: nn.Module, rule: _Rule | None, query_heads: int, head_dim: int) -> LayerLayout:
    module = getattr(attention, rule.projection, None) if rule else None
    if rule is None or module is None or rule.after_rope_only:
        return LayerLayout(index, attention, None, None)
    width = getattr(module, "out_features", None)
    if rule.projection_format == "flat" and width not in (None, query_heads * head_dim):
        # A gate shares the projection: only the query norm, if there is one, shows the queries alone.
        projection = None
    else:
        projection = QueryModule(module, rule.projection_format)
    norm = getattr(attention, rule.norm, None) if rule.norm else None
    if norm is not None:
        return LayerLayout(index, attention, projection, QueryModule(norm, rule.norm_format))
    if rule.norm and not rule.norm_is_optional:
        return LayerLayout(index, attention, projection, None)
    return LayerLayout(index, attention, projection, projection)
