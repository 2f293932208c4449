"""The small form of a model: half as large, close, and expanded once for all processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from focus_rag.embedded import compact
from focus_rag.errors import InvalidInputError


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2, tie_word_embeddings=True
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_there_and_back_is_close(saved: Path, tmp_path: Path) -> None:
    compact.compact(saved, tmp_path / "small")
    compact.expand(tmp_path / "small", tmp_path / "again")
    one, other = (AutoModelForCausalLM.from_pretrained(folder) for folder in (saved, tmp_path / "again"))
    assert other.dtype == torch.bfloat16
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert (mine - theirs).abs().max() <= 0.01 * mine.abs().max()
    assert 1.7 * (tmp_path / "small" / "int8-1.safetensors").stat().st_size < (saved / "model.safetensors").stat().st_size


def test_it_is_expanded_once_and_a_faster_process_is_believed(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compact.compact(saved, tmp_path / "small")
    cache = tmp_path / "deep" / "cache"
    found = compact.expanded_once(tmp_path / "small", cache)
    expand = compact.expand

    def raced(folder: Path, out: Path) -> None:
        expand(folder, out)
        expand(folder, cache / found.name)

    written = (found / "model.safetensors").read_bytes()
    (found.rename(cache / "moved"))
    monkeypatch.setattr(compact, "expand", raced)
    assert compact.expanded_once(tmp_path / "small", cache) == found
    assert (found / "model.safetensors").read_bytes() == written
    assert sorted(one.name for one in cache.iterdir()) == sorted(["moved", found.name])
    monkeypatch.setattr(compact, "expand", None)  # it would fail if it were called
    assert compact.expanded_once(tmp_path / "small", cache) == found


def test_what_cannot_be_done_is_said(saved: Path, tmp_path: Path) -> None:
    compact.compact(saved, tmp_path / "small")
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(InvalidInputError, match="cannot be written"):
        compact.expanded_once(tmp_path / "small", tmp_path / "file" / "cache")
    with pytest.raises(InvalidInputError, match="exists"):
        compact.compact(saved, tmp_path / "small")
    config = tmp_path / "small" / "config.json"
    config.write_text(config.read_text(encoding="utf-8").replace('"hidden_size": 128', '"hidden_size": 64'), encoding="utf-8")
    with pytest.raises(InvalidInputError, match="no compact model"):
        compact.expand(tmp_path / "small", tmp_path / "other")
    assert not (tmp_path / "other").exists()
