"""A tiny Llama built so that known heads read the gold passage from the response rows, and examples for it."""

from __future__ import annotations

from typing import Any

import torch
from tiny_models import tiny_model

from focus_rag.fitting.teacher_forcing import TeacherForced

PLANTED = [(1, 2), (0, 1), (2, 0)]
"""Planted heads, the strongest first."""
_GAINS = (1.5, 1.1, 0.8)
_GOLD_TOKENS, _ANSWER_TOKENS = range(60, 70), range(70, 80)


def planted_model(*, attention: str = "sdpa") -> Any:
    """Layers write nothing, so hidden states are the embeddings; gold tokens and answer tokens carry a mark each."""
    model = tiny_model("llama", attention=attention)
    head_dim = model.config.hidden_size // model.config.num_attention_heads
    slow = head_dim // 2 - 1  # the slowest of RoPE's frequencies: position hardly matters to it
    with torch.no_grad():
        embedding = model.model.embed_tokens.weight
        embedding[:, :2] = 0.0
        embedding[list(_GOLD_TOKENS), 0] = 4.0
        embedding[list(_ANSWER_TOKENS), 1] = 4.0
        for index, layer in enumerate(model.model.layers):
            layer.input_layernorm.weight.fill_(1.0)
            attention_layer = layer.self_attn
            attention_layer.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
            attention_layer.q_proj.weight.mul_(0.3)
            attention_layer.k_proj.weight.mul_(0.3)
            for key_head in range(model.config.num_key_value_heads):
                attention_layer.k_proj.weight[key_head * head_dim + slow, 0] = 1.0
            for (planted_layer, head), gain in zip(PLANTED, _GAINS, strict=True):
                if planted_layer == index:
                    attention_layer.q_proj.weight[head * head_dim + slow, 1] = gain
    return model


def planted_examples(count: int = 6, *, passages: int = 4, seed: int = 0) -> list[TeacherForced]:
    """Passages of ordinary tokens, one of gold tokens among them, then an answer; lengths differ."""
    generator = torch.Generator().manual_seed(seed)

    def some(tokens: range, number: int) -> list[int]:
        return [tokens[int(i)] for i in torch.randint(len(tokens), (number,), generator=generator)]

    examples = []
    for index in range(count):
        ids, gold, others = [1, *some(range(3, 60), 4)], [], []
        for place in range(passages):
            length = 5 + (index + place) % 4
            is_gold = place == index % passages
            (gold if is_gold else others).append((len(ids), len(ids) + length))
            ids += some(_GOLD_TOKENS if is_gold else range(3, 60), length)
        ids += some(_ANSWER_TOKENS, 1)
        prompt, answer = len(ids), 2 + index % 3
        ids += some(_ANSWER_TOKENS, answer)
        rows = tuple(range(prompt - 1, prompt + answer - 1))
        examples.append(TeacherForced(tuple(ids), prompt, rows, tuple(gold), tuple(others)))
    return examples
