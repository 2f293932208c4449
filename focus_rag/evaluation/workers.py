"""Work spread over processes that share the model with the one that loaded it."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

import torch

from focus_rag.errors import InvalidInputError

T = TypeVar("T")


def check_workers(workers: int, model: torch.nn.Module) -> None:
    """Refuse what cannot run.

    Raises:
        InvalidInputError: More than one worker where processes cannot share a model in memory.
    """
    on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
    if workers > 1 and not (on_cpu and sys.platform == "linux"):
        raise InvalidInputError(
            "More than one worker needs a model on the CPU of a Linux machine; on a GPU raise the batch size instead."
        )


def spread(work: Sequence[T], do: Callable[[T], Any], workers: int) -> Iterator[tuple[T, Any]]:
    """Every piece of work with its result, as they become ready.

    Args:
        work: The pieces.
        do: Makes the result of a piece, of plain JSON types. It runs here where there is one worker; else in forked
            processes, each with one thread, so that two of them use two cores.
        workers: Number of processes.

    Raises:
        RuntimeError: A process ended before its work did.
    """
    if workers == 1 or len(work) < 2:
        for piece in work:
            yield piece, do(piece)
        return
    context = multiprocessing.get_context("fork")
    readers: dict[Connection, Any] = {}
    try:
        for number in range(min(workers, len(work))):
            receive, send = context.Pipe(duplex=False)
            mine = range(number, len(work), workers)
            process = context.Process(target=_run, args=(work, mine, do, send, [*readers, receive]), daemon=True)
            process.start()
            send.close()
            readers[receive] = process
        finished = 0
        while readers:
            for ready in wait(list(readers)):
                assert isinstance(ready, Connection)
                try:
                    index, result = json.loads(ready.recv_bytes())
                except EOFError:
                    readers.pop(ready).join()
                    continue
                finished += 1
                yield work[index], result
        if finished < len(work):
            raise RuntimeError(
                f"A worker ended early, {len(work) - finished} of {len(work)} batches were not answered; what it "
                "said stands above."
            )
    finally:
        for process in readers.values():
            process.terminate()


def _run(work: Sequence[T], mine: range, do: Callable[[T], Any], send: Connection, others: list[Connection]) -> None:
    # With the reading ends of the other pipes closed, this process ends when the one that reads its own is gone.
    for one in others:
        one.close()
    torch.set_num_threads(1)
    parent = os.getppid()
    for index in mine:
        if os.getppid() != parent:
            return
        send.send_bytes(json.dumps([index, do(work[index])]).encode())
