"""langchain-tests' own suites on a tiny random model: the contract that every LangChain chat model is held to."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("langchain_tests")
pytest.importorskip("llguidance")

from langchain_focus_rag import ChatFocus
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from focus_rag import FocusGenerator, GenerationSettings
from tests.tiny_models import tiny_model, tiny_profile
from tests.tiny_tokenizer import tiny_tokenizer

_LOADED: list[FocusGenerator] = []


def tiny_generator() -> FocusGenerator:
    """One tiny generator for the module; it never ends an answer at once, but likes to end a string, so that structured
    output fits into few tokens.
    """
    if not _LOADED:
        tokenizer = tiny_tokenizer()
        model = tiny_model(vocab_size=len(tokenizer), max_position_embeddings=4096, seed=3)
        head = torch.nn.Linear(model.lm_head.in_features, len(tokenizer))
        head.weight = model.lm_head.weight
        torch.nn.init.zeros_(head.bias)
        head.bias.data[tokenizer.encode('"', add_special_tokens=False)] = 5.0
        model.lm_head = head
        _LOADED.append(
            FocusGenerator(model, tokenizer, tiny_profile(model), settings=GenerationSettings(max_new_tokens=60))
        )
    return _LOADED[0]


class _ChatFocusSuite:
    @property
    def chat_model_class(self) -> type[ChatFocus]:
        return ChatFocus

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"generator": tiny_generator()}

    @property
    def supports_model_override(self) -> bool:
        return False

    @property
    def has_tool_calling(self) -> bool:
        return False

    @property
    def supports_json_mode(self) -> bool:
        return True


class TestUnit(_ChatFocusSuite, ChatModelUnitTests):
    pass


class TestIntegration(_ChatFocusSuite, ChatModelIntegrationTests):
    pass
