"""Evidence: answer quality of focusing and of its rivals, over passage counts, gold positions and noise."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOMES = {
    "Case": "cases",
    "Cell": "cases",
    "EmbeddedCases": "cases",
    "EvalSettings": "settings",
    "Evaluation": "results",
    "FileCases": "cases",
    "cells_of": "cases",
    "evaluate": "runner",
    "load_cases": "datasets",
    "write_report": "report",
}

__all__ = [
    "Case",
    "Cell",
    "EmbeddedCases",
    "EvalSettings",
    "Evaluation",
    "FileCases",
    "cells_of",
    "evaluate",
    "load_cases",
    "write_report",
]

if TYPE_CHECKING:
    from focus_rag.evaluation.cases import Case, Cell, EmbeddedCases, FileCases, cells_of
    from focus_rag.evaluation.datasets import load_cases
    from focus_rag.evaluation.report import write_report
    from focus_rag.evaluation.results import Evaluation
    from focus_rag.evaluation.runner import evaluate
    from focus_rag.evaluation.settings import EvalSettings


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'focus_rag.evaluation' has no attribute {name!r}")
    return getattr(importlib.import_module(f"focus_rag.evaluation.{home}"), name)
