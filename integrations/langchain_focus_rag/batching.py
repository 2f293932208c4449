"""Many model calls, each started by LangChain with its own callbacks and cache look-up, answered as one batch."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, Final

from focus_rag import Answer, Request

LARGEST_BATCH: Final = 64
"""Rows that wait for each other; the generator cuts what it gets into forward passes itself."""


class GatheredBatch:
    """Waits until every row has asked for its answer or has ended without asking, then answers all at once.

    A row ends without asking when a cache served it, when it failed before the model was reached, or when it was
    streamed. The last row to arrive does the work for all.

    Args:
        generator: Answers the batch.
        rows: How many rows there are.
    """

    def __init__(self, generator: Any, rows: int) -> None:
        self.generator = generator
        self._missing = rows
        self._lock = threading.Lock()
        self._waiting: list[tuple[Request, Future[Answer]]] = []

    def arrive(self, asked: tuple[Request, Future[Answer]] | None) -> list[tuple[Request, Future[Answer]]]:
        """Count a row, with what it asked for. Returns the whole batch to the last one, nothing to the others."""
        with self._lock:
            self._missing -= 1
            if asked is not None:
                self._waiting.append(asked)
            return self._waiting if self._missing == 0 else []

    def serve(self, batch: Sequence[tuple[Request, Future[Answer]]]) -> None:
        """Answer a complete batch; a row that is refused gets its own error."""
        batch = _still_wanted(batch)
        try:
            outcomes = (
                self.generator.answer_batch([request for request, _ in batch], return_errors=True) if batch else []
            )
        except BaseException as error:
            _fail(batch, error)
            raise
        _finish(batch, outcomes)

    async def aserve(self, batch: Sequence[tuple[Request, Future[Answer]]]) -> None:
        """`serve` without blocking the event loop. A row that is cancelled leaves the others their answers; after the
        last one the model is stopped.
        """
        batch = _still_wanted(batch)
        if not batch:
            return
        answering, loop = asyncio.ensure_future(self._answers(batch)), asyncio.get_running_loop()

        def stop_if_nobody_waits(_: Future[Answer]) -> None:
            if all(future.done() for _, future in batch):
                loop.call_soon_threadsafe(answering.cancel)

        for _, future in batch:
            future.add_done_callback(stop_if_nobody_waits)
        await asyncio.shield(answering)

    async def _answers(self, batch: Sequence[tuple[Request, Future[Answer]]]) -> None:
        try:
            outcomes = await self.generator.aanswer_batch([request for request, _ in batch], return_errors=True)
        except BaseException as error:  # each row raises it
            _fail(batch, error)
        else:
            _finish(batch, outcomes)


class Row:
    """One row of a batch, current while its call runs: `with Row(batch): model.invoke(...)`."""

    def __init__(self, batch: GatheredBatch) -> None:
        self._batch = batch
        self._arrived = False

    @staticmethod
    def current(generator: Any) -> Row | None:
        """The row of this generator that this context is in, unless it has asked already."""
        row = _CURRENT.get()
        return row if row is not None and row._batch.generator is generator and not row._arrived else None

    def answer(self, request: Request) -> Answer:
        """Ask, and wait for the batch."""
        future: Future[Answer] = Future()
        if batch := self._arrive((request, future)):
            self._batch.serve(batch)
        return future.result()

    async def aanswer(self, request: Request) -> Answer:
        """`answer` without blocking the event loop."""
        future: Future[Answer] = Future()
        try:
            if batch := self._arrive((request, future)):
                await self._batch.aserve(batch)
        except asyncio.CancelledError:
            future.cancel()
            raise
        return await asyncio.wrap_future(future)

    def _arrive(self, asked: tuple[Request, Future[Answer]] | None) -> list[tuple[Request, Future[Answer]]]:
        if self._arrived:
            return []
        self._arrived = True
        return self._batch.arrive(asked)

    def __enter__(self) -> Row:
        self._token = _CURRENT.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        _CURRENT.reset(self._token)
        if batch := self._arrive(None):
            with suppress(Exception):  # the rows that wait have it; this one did not ask
                self._batch.serve(batch)

    async def __aenter__(self) -> Row:
        return self.__enter__()

    async def __aexit__(self, *_: object) -> None:
        _CURRENT.reset(self._token)
        if batch := self._arrive(None):
            with suppress(Exception):
                await self._batch.aserve(batch)


_CURRENT: ContextVar[Row | None] = ContextVar("focus_rag_batch_row", default=None)


def _still_wanted(batch: Sequence[tuple[Request, Future[Answer]]]) -> list[tuple[Request, Future[Answer]]]:
    return [(request, future) for request, future in batch if not future.done()]


def _finish(batch: Sequence[tuple[Request, Future[Answer]]], outcomes: Sequence[Answer | Exception]) -> None:
    for (_, future), outcome in zip(batch, outcomes, strict=True):
        if not future.set_running_or_notify_cancel():  # the row was cancelled on the way
            continue
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)


def _fail(batch: Sequence[tuple[Request, Future[Answer]]], error: BaseException) -> None:
    for _, future in batch:
        if not future.done():
            future.set_exception(error)
