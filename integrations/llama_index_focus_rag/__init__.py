"""focus_rag as the language model of LlamaIndex: replace the model, keep everything else.

With the first `FocusLLM`, LlamaIndex's instrumentation gets two handlers, for the whole process: they remember, within
fixed bounds, which nodes were retrieved in which span, so that a model call knows its own passages and scores.
Importing this package changes nothing.
"""

from __future__ import annotations

from llama_index_focus_rag.calls import collect_reports
from llama_index_focus_rag.capture import CAPTURE, PassageCapture
from llama_index_focus_rag.keeping import KeepBest
from llama_index_focus_rag.llm import FocusLLM

__all__ = ["CAPTURE", "FocusLLM", "KeepBest", "PassageCapture", "collect_reports"]
