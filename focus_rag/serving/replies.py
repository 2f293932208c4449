"""The bodies of replies, whole and in pieces: those of the OpenAI API, with how the answer came about under
`focus_rag`.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any, Final, Literal

from focus_rag.answers import Answer

ReplyKind = Literal["chat", "text"]
_OBJECTS: Final = {
    "chat": ("chat.completion", "chat.completion.chunk", "chatcmpl"),
    "text": ("text_completion", "text_completion", "cmpl"),
}


class Reply:
    """The reply to one request.

    Args:
        kind: `chat` for a message, `text` for text that goes on from a prompt.
        model: What the model is called.
    """

    def __init__(self, kind: ReplyKind, model: str) -> None:
        self._is_chat = kind == "chat"
        self._whole, self._part, prefix = _OBJECTS[kind]
        self._always = {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def whole(self, answer: Answer) -> dict[str, Any]:
        """The whole answer."""
        said: dict[str, Any] = {"text": answer.text}
        if self._is_chat:
            said = {"message": {"role": "assistant", "content": answer.text, "refusal": None}}
        return {
            **self._always,
            "object": self._whole,
            "choices": [_choice(said, answer.finish_reason)],
            "usage": _usage(answer),
            "focus_rag": _report(answer),
        }

    def opening(self) -> Iterator[dict[str, Any]]:
        """What comes before the first piece: a message tells who speaks."""
        if self._is_chat:
            yield self._chunk({"delta": {"role": "assistant", "content": ""}})

    def piece(self, text: str) -> dict[str, Any]:
        """A piece of the text."""
        return self._chunk({"delta": {"content": text}} if self._is_chat else {"text": text})

    def ending(self, answer: Answer, *, usage: bool) -> Iterator[dict[str, Any]]:
        """What comes after the last piece: why it ended and how it came about, and how many tokens it took, if that was
        asked for.
        """
        yield {
            **self._chunk({"delta": {}} if self._is_chat else {"text": ""}, answer.finish_reason),
            "focus_rag": _report(answer),
        }
        if usage:
            yield {**self._always, "object": self._part, "choices": [], "usage": _usage(answer)}

    def _chunk(self, said: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        return {**self._always, "object": self._part, "choices": [_choice(said, finish_reason)]}


def error_body(message: str, kind: str, code: str | None = None) -> dict[str, Any]:
    """An error, the kinds and codes of which are the OpenAI API's."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def _choice(said: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
    return {"index": 0, **said, "finish_reason": finish_reason, "logprobs": None}


def _usage(answer: Answer) -> dict[str, int]:
    used = answer.usage
    return {
        "prompt_tokens": used.prompt_tokens,
        "completion_tokens": used.completion_tokens,
        "total_tokens": used.total_tokens,
    }


def _report(answer: Answer) -> dict[str, Any]:
    if answer.passages:
        return {**answer.report(), "found": "given", "note": "passages given by the caller"}
    return {**answer.report(), "found": "none", "note": "no passages were given"}
