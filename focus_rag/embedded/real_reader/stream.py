"""Batches in an order that is a function of the seed alone, so that a run can go on exactly where it stopped.

Rows are drawn in pools; every pool has a random generator of its own, made from the seed and the pool's number. The
rows of a pool are sorted by length and cut into batches that are padded on the right to their longest row. Such batches
need no attention mask: plain causal attention runs in the fused kernel on every device, on a CPU as on a GPU, which
packed sequences with a mask per document do not; what it costs is the padding, and the metrics show its share.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import threading
from collections import deque
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from focus_rag.embedded.real_reader.mix import Mix, RowMaker
from focus_rag.embedded.real_reader.pack import Pack
from focus_rag.embedded.rows import Row, cut_by_length
from focus_rag.errors import InvalidInputError

if TYPE_CHECKING:
    from focus_rag.embedded.real_reader.pack import Array


@dataclass(frozen=True)
class Batch:
    """Rows of similar length as arrays.

    Attributes:
        ids: `(rows, sequence)` token ids, padded on the right.
        at: `(predicted)` indices into the flattened `(rows, sequence)` positions that predict a weighted token.
        targets: `(predicted)` the tokens they should predict.
        weights: `(predicted)` their loss weights.
        first_answers: `(questions, 2)` the first answer of each real question as a range of `predicted`.
        total: What the summed loss is divided by: the pool's mean weight per token times the tokens of this batch,
            so that an answer counts the same whichever batch it falls into.
        filled: Tokens that are not padding.
        name: The stretch of the curriculum it is from.
    """

    ids: Array
    at: Array
    targets: Array
    weights: Array
    first_answers: Array
    total: float
    filled: int
    name: str = ""


@dataclass(frozen=True)
class StreamSettings:
    """What the order of the batches follows from, beside the pack.

    Attributes:
        seed: Of all draws.
        batch_tokens: Tokens of a batch, padding included.
        pool_batches: Batches of a pool: the more, the less padding.
        longest: Longest row.
        curriculum: The mixes, in order.
    """

    seed: int
    batch_tokens: int
    pool_batches: int
    longest: int
    curriculum: tuple[Mix, ...]

    def mix_of(self, pool: int) -> Mix:
        """The mix of a pool, by the tokens that went before it."""
        left = pool * self.pool_batches * self.batch_tokens
        for mix in self.curriculum:
            if mix.tokens is None or left < mix.tokens:
                return mix
            left -= mix.tokens
        return self.curriculum[-1]


def batch_of(rows: list[Row], pad: int, density: float = 0.0, name: str = "") -> Batch:
    """Rows as one batch.

    Args:
        rows: The rows.
        pad: Token id of the padding.
        density: Mean loss weight per token of the pool; 0 takes the batch's own.
        name: Of the stretch.
    """
    import numpy as np

    length = max(len(row.tokens) for row in rows)
    ids = np.full((len(rows), length), pad, dtype="int64")
    weights = np.zeros((len(rows), length), dtype="float32")
    for i, row in enumerate(rows):
        ids[i, : len(row.tokens)] = row.tokens
        weights[i, : len(row.weights)] = row.weights
    at = np.flatnonzero(weights) - 1
    order = np.zeros(ids.size + 1, dtype="int64")
    order[1:] = np.cumsum(weights.reshape(-1) > 0)
    answers = [
        (order[i * length + row.first_answer[0]], order[i * length + row.first_answer[1]])
        for i, row in enumerate(rows)
        if row.first_answer is not None and row.source == "question"
    ]
    filled = sum(len(row.tokens) for row in rows)
    return Batch(
        ids=ids,
        at=at,
        targets=ids.reshape(-1)[at + 1],
        weights=weights.reshape(-1)[at + 1],
        first_answers=np.array(answers, dtype="int64").reshape(-1, 2),
        total=density * filled if density else float(weights.sum()),
        filled=filled,
        name=name,
    )


def draw_pool(maker: RowMaker, settings: StreamSettings, number: int) -> list[Batch]:
    """The batches of one pool."""
    rng = random.Random(f"{settings.seed} pool {number}")
    mix = settings.mix_of(number)
    wanted = settings.pool_batches * settings.batch_tokens
    rows: list[Row] = []
    for kind, share in mix.shares.items():
        drawn = misses = 0
        while drawn < share * wanted:
            row = maker.row(rng, kind, mix)
            if len(row.tokens) <= settings.longest:
                rows.append(row)
                drawn, misses = drawn + len(row.tokens), 0
            elif (misses := misses + 1) == 1000:
                raise InvalidInputError(
                    f"No row of kind {kind!r} fits {settings.longest} tokens: use a larger window or fewer passages."
                )
    cuts = cut_by_length(rows, settings.batch_tokens)
    density = sum(sum(row.weights) for row in rows) / sum(len(row.tokens) for row in rows)
    batches = [batch_of(cut, maker.pack.tokenizer.pad_token_id, density, mix.name) for cut in cuts]
    rng.shuffle(batches)
    return batches


class Stream:
    """Endless batches, from a position on.

    Args:
        folder: The pack.
        settings: What the order follows from.
        pool: Pool to begin in.
        batch: Batches of that pool to skip.
        workers: Processes that draw ahead; 0 draws here.
    """

    def __init__(self, folder: Path, settings: StreamSettings, pool: int = 0, batch: int = 0, workers: int = 0) -> None:
        if workers < 0:
            raise InvalidInputError(f"workers must be 0 or more; got {workers}.")
        self._settings = settings
        self.pool, self.batch = pool, batch
        self._batches: list[Batch] | None = None
        self._ahead: deque[Future[list[Batch]]] = deque()
        self._maker: RowMaker | None = None
        self._executor: ProcessPoolExecutor | None = None
        if workers:
            self._executor = ProcessPoolExecutor(
                workers, multiprocessing.get_context("spawn"), initializer=_open, initargs=(folder, settings)
            )
            self._submitted = pool
            for _ in range(workers + 2):
                self._submit()
        else:
            self._maker = RowMaker(Pack.load(folder), longest=settings.longest)

    def next(self) -> Batch:
        """The next batch; `pool` and `batch` then say where to go on."""
        if self._batches is None:
            self._batches = self._pool()
        if self.batch >= len(self._batches):
            self.pool, self.batch = self.pool + 1, 0
            self._batches = self._pool()
        self.batch += 1
        return self._batches[self.batch - 1]

    def close(self) -> None:
        """Let the processes go."""
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)

    def _pool(self) -> list[Batch]:
        if self._maker is not None:
            return draw_pool(self._maker, self._settings, self.pool)
        self._submit()
        return self._ahead.popleft().result()

    def _submit(self) -> None:
        assert self._executor is not None
        self._ahead.append(self._executor.submit(_draw, self._submitted))
        self._submitted += 1


_opened: tuple[RowMaker, StreamSettings] | None = None


def _open(folder: Path, settings: StreamSettings) -> None:
    """In each process, once."""
    global _opened
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _opened = RowMaker(Pack.load(folder), longest=settings.longest), settings


def _end_with_parent() -> None:
    """A process that was killed sends its own no word: without this they would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _draw(number: int) -> list[Batch]:
    assert _opened is not None
    return draw_pool(*_opened, number)
