"""Answers that arrive piece by piece while a worker thread generates."""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress

from focus_rag.answers import Answer
from focus_rag.errors import InvalidInputError

Produce = Callable[[Callable[[str], None], Callable[[], bool]], Answer]
"""Runs a generation: takes where to put text and how to learn that it was cancelled, returns the finished answer."""


class _Worker:
    """Runs one generation in a thread of its own and hands over text, then the answer or the error."""

    def __init__(self, produce: Produce, deliver: Callable[[str | Answer | BaseException], None]) -> None:
        self._cancelled = threading.Event()
        context = contextvars.copy_context()

        def work() -> None:
            try:
                deliver(produce(deliver, self._cancelled.is_set))
            except BaseException as error:  # handed to the reader, who raises it
                deliver(error)

        self._thread = threading.Thread(target=context.run, args=(work,), name="focus-rag-stream", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def cancel(self) -> None:
        self._cancelled.set()

    def join(self) -> None:
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()


class _Stream:
    """What both streams share: a worker, the answer once it is there, and what a piece from the worker means."""

    def __init__(self, worker: _Worker, put_back: Callable[[Answer | BaseException], None]) -> None:
        self._worker = worker
        self._put_back = put_back
        self._answer: Answer | None = None
        self._ended = False
        worker.start()

    def _text_of(self, piece: str | Answer | BaseException) -> str | None:
        """The piece if it is text; else the stream has ended, with an answer (None) or an error, which is raised."""
        if isinstance(piece, str):
            return piece
        self._ended = True
        self._put_back(piece)  # for whoever else reads the same stream and waits already
        if isinstance(piece, BaseException):
            raise piece
        self._answer = piece
        return None

    @property
    def answer(self) -> Answer:
        """The whole answer.

        Raises:
            InvalidInputError: The stream has not been consumed to its end.
        """
        if self._answer is None:
            raise InvalidInputError("The answer is complete only once the stream has been consumed to its end.")
        return self._answer

    def __del__(self) -> None:
        worker = getattr(self, "_worker", None)
        if worker is not None:
            worker.cancel()


class AnswerStream(_Stream, Iterator[str]):
    """Pieces of an answer; `.answer` holds the whole once they are consumed.

    Generation starts at once and stops, within one token, when the stream is closed, left as a context manager, or
    garbage-collected.
    """

    def __init__(self, produce: Produce) -> None:
        self._pieces: queue.SimpleQueue[str | Answer | BaseException] = queue.SimpleQueue()
        super().__init__(_Worker(produce, self._pieces.put), self._pieces.put)

    def __next__(self) -> str:
        if not self._ended and (text := self._text_of(self._pieces.get())) is not None:
            return text
        raise StopIteration

    def close(self) -> None:
        """Stop generating and wait until the model is free; the answer holds what there was. Closing twice does no
        harm, and what goes wrong on the way no longer matters.
        """
        self._worker.cancel()
        self._worker.join()
        with suppress(Exception):
            for _ in self:
                pass

    def __enter__(self) -> AnswerStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncAnswerStream(_Stream, AsyncIterator[str]):
    """Pieces of an answer for `async for`; the event loop is never blocked."""

    def __init__(self, produce: Produce) -> None:
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[str | Answer | BaseException] = asyncio.Queue()
        self._pieces = pieces

        # The worker holds the queue and not the stream: a stream that nobody reads any more is collected, which cancels
        # it.
        def deliver(piece: str | Answer | BaseException) -> None:
            with suppress(RuntimeError):  # the loop was closed: nobody reads any more
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

        super().__init__(_Worker(produce, deliver), pieces.put_nowait)

    async def __anext__(self) -> str:
        if not self._ended and (text := self._text_of(await self._pieces.get())) is not None:
            return text
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Stop generating and wait, without blocking the loop, until the model is free; what goes wrong on the way no
        longer matters.
        """
        self._worker.cancel()
        await asyncio.to_thread(self._worker.join)
        with suppress(Exception):
            async for _ in self:
                pass

    async def __aenter__(self) -> AsyncAnswerStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
