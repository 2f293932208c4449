"""Streams by themselves: several readers, and what goes wrong in one that nobody reads any more."""

import asyncio
import threading

import pytest

from focus_rag.streams import AnswerStream, AsyncAnswerStream


class Answered:
    """Stands for an answer: a stream hands it on and does not look into it."""


def say(on_text, is_cancelled):
    for piece in "abc":
        on_text(piece)
    return Answered()


def fail_when_cancelled(on_text, is_cancelled):
    on_text("a")
    while not is_cancelled():
        pass
    raise RuntimeError("too late to matter")


def test_several_readers_of_one_stream_come_to_its_end_together():
    go, read = threading.Event(), []

    def held(on_text, is_cancelled):
        go.wait(30)
        return say(on_text, is_cancelled)

    stream = AnswerStream(held)
    readers = [threading.Thread(target=lambda: read.extend(stream), daemon=True) for _ in range(3)]
    for reader in readers:
        reader.start()
    go.set()
    for reader in readers:
        reader.join(30)
        assert not reader.is_alive()
    assert sorted(read) == ["a", "b", "c"] and isinstance(stream.answer, Answered)


async def test_several_tasks_that_read_one_stream_come_to_its_end_together():
    stream = AsyncAnswerStream(say)

    async def read():
        return [piece async for piece in stream]

    async with asyncio.timeout(30):
        found = await asyncio.gather(read(), read(), read())
    assert sorted(piece for pieces in found for piece in pieces) == ["a", "b", "c"]


async def test_what_goes_wrong_in_a_stream_that_is_left_does_not_replace_why_it_was_left():
    def leave():
        with AnswerStream(fail_when_cancelled) as stream:
            assert next(stream) == "a"
            raise KeyError

    async def leave_by_the_loop():
        async with AsyncAnswerStream(fail_when_cancelled) as stream:
            assert await anext(stream) == "a"
            raise KeyError

    with pytest.raises(KeyError):
        leave()
    with pytest.raises(KeyError):
        await leave_by_the_loop()


def test_what_goes_wrong_in_a_stream_is_told_to_every_reader():
    stream = AnswerStream(lambda on_text, is_cancelled: (_ for _ in ()).throw(RuntimeError("broken")))
    with pytest.raises(RuntimeError, match="broken"):
        next(stream)
    assert list(stream) == []
