"""Focus directions for retrieval-augmented generation: make a local language model attend to what matters.

Names are resolved on first use, so that importing the package loads neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "AlphaPolicy": "focus_rag.alpha",
    "Answer": "focus_rag.answers",
    "AnswerStream": "focus_rag.streams",
    "AsyncAnswerStream": "focus_rag.streams",
    "AttachError": "focus_rag.errors",
    "CapturedPassages": "focus_rag.adapters.passage_registry",
    "DocumentError": "focus_rag.errors",
    "Evidence": "focus_rag.evidence",
    "FitSettings": "focus_rag.fitting.settings",
    "FittedAlpha": "focus_rag.alpha",
    "FixedAlpha": "focus_rag.alpha",
    "FocusCall": "focus_rag.adapters.calls",
    "FocusGenerator": "focus_rag.generator",
    "FocusHandle": "focus_rag.attention.steering",
    "FocusNotAppliedWarning": "focus_rag.attention.steering",
    "FocusProfile": "focus_rag.profile",
    "FocusRagError": "focus_rag.errors",
    "FocusSettings": "focus_rag.adapters.calls",
    "GenerationSettings": "focus_rag.answers",
    "InvalidInputError": "focus_rag.errors",
    "MissingDependencyError": "focus_rag.errors",
    "ModelLayout": "focus_rag.model_layout",
    "Passage": "focus_rag.passages",
    "PassageRegistry": "focus_rag.adapters.passage_registry",
    "PassageUse": "focus_rag.answers",
    "ProfileError": "focus_rag.errors",
    "ProfileMismatchError": "focus_rag.errors",
    "PromptLayout": "focus_rag.prompt_layout",
    "PromptTooLongError": "focus_rag.errors",
    "Request": "focus_rag.answers",
    "RetrievalAlpha": "focus_rag.alpha",
    "RetrievalSignal": "focus_rag.passages",
    "RetrievedText": "focus_rag.adapters.passage_registry",
    "ScoreKind": "focus_rag.score_order",
    "ScoreSplit": "focus_rag.score_split",
    "SpanMeter": "focus_rag.attention.measuring",
    "UnsupportedModelError": "focus_rag.errors",
    "as_passages": "focus_rag.passages",
    "best_passages": "focus_rag.passage_ranking",
    "chat_turns": "focus_rag.turns",
    "estimate_noise": "focus_rag.noise",
    "export_model": "focus_rag.export",
    "fit_profile": "focus_rag.fitting.fit",
    "focus": "focus_rag.attention.steering",
    "generated_examples": "focus_rag.embedded.retrieval",
    "load_examples": "focus_rag.examples",
    "locate_passages": "focus_rag.locating",
    "split_softmax": "focus_rag.attention.splitting",
}

__all__ = [
    "AlphaPolicy",
    "Answer",
    "AnswerStream",
    "AsyncAnswerStream",
    "AttachError",
    "CapturedPassages",
    "DocumentError",
    "Evidence",
    "FitSettings",
    "FittedAlpha",
    "FixedAlpha",
    "FocusCall",
    "FocusGenerator",
    "FocusHandle",
    "FocusNotAppliedWarning",
    "FocusProfile",
    "FocusRagError",
    "FocusSettings",
    "GenerationSettings",
    "InvalidInputError",
    "MissingDependencyError",
    "ModelLayout",
    "Passage",
    "PassageRegistry",
    "PassageUse",
    "ProfileError",
    "ProfileMismatchError",
    "PromptLayout",
    "PromptTooLongError",
    "Request",
    "RetrievalAlpha",
    "RetrievalSignal",
    "RetrievedText",
    "ScoreKind",
    "ScoreSplit",
    "SpanMeter",
    "UnsupportedModelError",
    "as_passages",
    "best_passages",
    "chat_turns",
    "estimate_noise",
    "export_model",
    "fit_profile",
    "focus",
    "generated_examples",
    "load_examples",
    "locate_passages",
    "split_softmax",
]

if TYPE_CHECKING:
    from focus_rag.adapters.calls import FocusCall, FocusSettings
    from focus_rag.adapters.passage_registry import CapturedPassages, PassageRegistry, RetrievedText
    from focus_rag.alpha import AlphaPolicy, FittedAlpha, FixedAlpha, RetrievalAlpha
    from focus_rag.answers import Answer, GenerationSettings, PassageUse, Request
    from focus_rag.attention.measuring import SpanMeter
    from focus_rag.attention.splitting import split_softmax
    from focus_rag.attention.steering import FocusHandle, FocusNotAppliedWarning, focus
    from focus_rag.embedded.retrieval import generated_examples
    from focus_rag.errors import (
        AttachError,
        DocumentError,
        FocusRagError,
        InvalidInputError,
        MissingDependencyError,
        ProfileError,
        ProfileMismatchError,
        PromptTooLongError,
        UnsupportedModelError,
    )
    from focus_rag.evidence import Evidence
    from focus_rag.examples import load_examples
    from focus_rag.export import export_model
    from focus_rag.fitting.fit import fit_profile
    from focus_rag.fitting.settings import FitSettings
    from focus_rag.generator import FocusGenerator
    from focus_rag.locating import locate_passages
    from focus_rag.model_layout import ModelLayout
    from focus_rag.noise import estimate_noise
    from focus_rag.passage_ranking import best_passages
    from focus_rag.passages import Passage, RetrievalSignal, as_passages
    from focus_rag.profile import FocusProfile
    from focus_rag.prompt_layout import PromptLayout
    from focus_rag.score_order import ScoreKind
    from focus_rag.score_split import ScoreSplit
    from focus_rag.streams import AnswerStream, AsyncAnswerStream
    from focus_rag.turns import chat_turns


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'focus_rag' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
