"""focus_rag as the language model of a LangChain chain: replace the model, keep everything else.

Importing this package registers one callback handler with LangChain, for the whole process: it remembers, within fixed
bounds, which documents were retrieved by which run, so that a model call knows its own passages and scores.
"""

from __future__ import annotations

from langchain_focus_rag.capture import CAPTURE, PassageCapture
from langchain_focus_rag.chat import ChatFocus
from langchain_focus_rag.keeping import KeepBestRetriever, keep_best
from langchain_focus_rag.llm import FocusLLM
from langchain_focus_rag.scores import keep_scores

__all__ = ["CAPTURE", "ChatFocus", "FocusLLM", "KeepBestRetriever", "PassageCapture", "keep_best", "keep_scores"]
