"""A generator that records what it is asked and answers at once, for tests of what reaches it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from focus_rag import Answer, GenerationSettings, PassageUse, Request
from focus_rag.answers import Usage
from focus_rag.noise import signal_of
from focus_rag.prompting import PromptBuilder
from tests.tiny_tokenizer import tiny_tokenizer

_TOKENIZER = tiny_tokenizer()


class RecordingGenerator:
    """Has the surface of `FocusGenerator` that adapters use; alpha is the noise of the request's passages."""

    def __init__(self, *, text: str = "The mill was built in 1842.") -> None:
        self.text = text
        self.model_name = "recording"
        self.max_batch = 4
        self.identity = "recording"
        self.split = "auto"
        self.context_window = 32768
        self.settings = GenerationSettings()
        self.alpha = "auto"
        self.profile = None
        self.tokenizer = _TOKENIZER
        self.prompts = PromptBuilder(_TOKENIZER)
        self.requests: list[Request] = []
        self.batches: list[int] = []
        self.threads: list[int] = []
        self._lock = threading.Lock()

    def count_tokens(self, text: str) -> int:
        return len(text.encode())

    def answer_batch(
        self, requests: Sequence[Request], *, return_errors: bool = False, on_outcome: Any = None
    ) -> list[Answer]:
        with self._lock:
            self.batches.append(len(requests))
        answers = [self.run(request) for request in requests]
        for place, answer in enumerate(answers if on_outcome is not None else ()):
            on_outcome(place, answer)
        return answers

    def run(self, request: Request) -> Answer:
        with self._lock:
            self.requests.append(request)
            self.threads.append(threading.get_ident())
        signal = signal_of(
            request.passages,
            higher_is_better=request.higher_is_better,
            score_kind=request.score_kind,
            noise=request.noise,
        )
        alpha = signal.noise if len(request.passages) > 1 else 0.0
        text, finish = self.text, "stop"
        for stop in (request.settings or self.settings).stop:
            text = text.split(stop)[0]
        uses = tuple(PassageUse(p, 1 / len(request.passages), used=True) for p in request.passages)
        usage = Usage(len(prompt_of(request).encode()), len(text.split()) or 1)
        return Answer(text, alpha, signal.noise, signal.reason, uses, usage, finish)

    def run_stream(self, request: Request) -> _Stream:
        return _Stream(self.run(request))

    async def aanswer_batch(
        self, requests: Sequence[Request], *, return_errors: bool = False, on_outcome: Any = None
    ) -> list[Answer]:
        return await asyncio.to_thread(self.answer_batch, requests, return_errors=return_errors, on_outcome=on_outcome)

    async def arun_stream(self, request: Request) -> _AsyncStream:
        return _AsyncStream(await asyncio.to_thread(self.run, request))


def prompt_of(request: Request) -> str:
    """All text of a request."""
    if request.messages is not None:
        return "\n\n".join(message["content"] for message in request.messages)
    return request.prompt or request.question or ""


class _Stream:
    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._pieces = iter(_pieces(answer.text))
        self._ended = False

    def __iter__(self) -> Iterator[str]:
        yield from self._pieces
        self._ended = True

    def __next__(self) -> str:
        for piece in self._pieces:
            return piece
        self._ended = True
        raise StopIteration

    @property
    def answer(self) -> Answer:
        assert self._ended, "not consumed"
        return self._answer

    def close(self) -> None:
        self._ended = True

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _AsyncStream:
    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._ended = False

    async def __aiter__(self) -> AsyncIterator[str]:
        for piece in _pieces(self._answer.text):
            await asyncio.sleep(0)
            yield piece
        self._ended = True

    @property
    def answer(self) -> Answer:
        assert self._ended, "not consumed"
        return self._answer

    async def aclose(self) -> None:
        self._ended = True

    async def __aenter__(self) -> _AsyncStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def _pieces(text: str) -> list[str]:
    words = text.split(" ")
    return [word + " " for word in words[:-1]] + [words[-1]]
