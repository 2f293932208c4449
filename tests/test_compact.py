"""The small form of a model: half as large, and close."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from focus_rag import FocusGenerator, Passage
from focus_rag.embedded import compact
from focus_rag.errors import InvalidInputError

READER = Path(__file__).parents[1] / "models" / "real-reader"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=True,
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
    assert (
        1.7 * (tmp_path / "small" / "int8-1.safetensors").stat().st_size < (saved / "model.safetensors").stat().st_size
    )


def test_what_cannot_be_done_is_said(saved: Path, tmp_path: Path) -> None:
    compact.compact(saved, tmp_path / "small")
    with pytest.raises(InvalidInputError, match="exists"):
        compact.compact(saved, tmp_path / "small")
    with pytest.raises(InvalidInputError, match="already"):
        compact.compact(tmp_path / "small", tmp_path / "smaller")
    assert not (tmp_path / "smaller").exists()
    config = tmp_path / "small" / "config.json"
    config.write_text(
        config.read_text(encoding="utf-8").replace('"hidden_size": 128', '"hidden_size": 64'), encoding="utf-8"
    )
    with pytest.raises(InvalidInputError, match="no compact model"):
        compact.expand(tmp_path / "small", tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.skipif(not READER.exists(), reason="a source distribution comes without models/")
def test_the_published_reader_expands_and_answers_from_a_passage(tmp_path: Path) -> None:
    compact.expand(READER, tmp_path / "reader")
    reader = FocusGenerator.from_pretrained(tmp_path / "reader")
    passages = [
        Passage("The mill was built in 1841 by a merchant."),
        Passage("The bakery was opened in 1902 by Anna Miller."),
    ]
    assert "Anna Miller" in reader.answer("Who opened the bakery?", passages).text
