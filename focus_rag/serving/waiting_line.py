"""Requests that come while the model is busy wait in line, and go together into its next forward pass."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from focus_rag.answers import Answer, Request
from focus_rag.errors import FocusRagError
from focus_rag.generator import FocusGenerator, Outcome

_Batch = list[tuple[Request, asyncio.Future[Answer]]]


class LineFullError(FocusRagError, RuntimeError):
    """More requests than a server may hold at the same time."""


class WaitingLine:
    """Answers requests in batches of what is waiting; belongs to one event loop.

    Nothing waits for a batch to fill up: a request that finds the model free is answered at once, alone.

    Args:
        generator: Answers them, one alpha for each.
        most: Requests that are answered or wait at the same time, streams included.
    """

    def __init__(self, generator: FocusGenerator, most: int) -> None:
        self._generator = generator
        self._most = most
        self._places = 0
        self._waiting: deque[tuple[Request, asyncio.Future[Answer]]] = deque()
        self._serving: asyncio.Task[None] | None = None

    @property
    def length(self) -> int:
        """Requests that are answered or wait now."""
        return self._places

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place; a stream, which has the model to itself, holds one while it runs.

        Raises:
            LineFullError: There is none left.
        """
        if self._places >= self._most:
            raise LineFullError(f"{self._most} requests are answered or wait already: try again later.")
        self._places += 1
        try:
            yield
        finally:
            self._places -= 1

    async def answer(self, request: Request) -> Answer:
        """Wait for a request's turn and its answer. Cancelling takes it out of the line, or out of its batch.

        Raises:
            LineFullError: Too many wait already.
            InvalidInputError: The request cannot be used.
        """
        with self.place():
            future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
            self._waiting.append((request, future))
            if self._serving is None or self._serving.done():
                self._serving = asyncio.create_task(self._serve())
            return await future

    async def _serve(self) -> None:
        while self._waiting:
            batch: _Batch = []
            while self._waiting and len(batch) < self._generator.max_batch:
                request, future = self._waiting.popleft()
                if not future.done():
                    batch.append((request, future))
            if batch:
                await self._answer_batch(batch)

    async def _answer_batch(self, batch: _Batch) -> None:
        requests, futures = zip(*batch, strict=True)
        loop = asyncio.get_running_loop()

        def hand_over(place: int, outcome: Outcome) -> None:
            """In the thread of the model: what is done does not wait for the longest answer beside it."""
            loop.call_soon_threadsafe(_settle, futures[place], outcome)

        answering = asyncio.ensure_future(
            self._generator.aanswer_batch(requests, return_errors=True, on_outcome=hand_over)
        )

        def stop_if_nobody_waits(_: asyncio.Future[Answer]) -> None:
            if all(future.done() for future in futures):
                answering.cancel()

        for future in futures:
            future.add_done_callback(stop_if_nobody_waits)
        await asyncio.wait([answering])
        if answering.cancelled():
            for future in futures:
                future.cancel()
        elif (error := answering.exception()) is not None:
            for future in futures:
                _settle(future, error)


def _settle(future: asyncio.Future[Answer], outcome: Answer | BaseException) -> None:
    """Give an outcome to whoever still waits for it."""
    if future.done():
        return
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
