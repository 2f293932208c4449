"""Turns at a model: first come, first served, and nobody waits for whoever has left."""

import threading
import time

from focus_rag.model_turns import ModelTurns


def until(condition) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def waiting(turns: ModelTurns, served: list[int], number: int, left: threading.Event | None = None) -> threading.Thread:
    def work() -> None:
        is_cancelled = (lambda: False) if left is None else left.is_set
        with turns.turn(is_cancelled):
            if not is_cancelled():
                served.append(number)

    already = len(turns._waiting)
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    until(lambda: len(turns._waiting) == already + 1)
    return thread


def test_turns_are_had_in_the_order_of_asking_although_some_leave():
    turns, served, left = ModelTurns(), [], threading.Event()
    with turns.turn(lambda: False):
        threads = [waiting(turns, served, number, left if number in (1, 4) else None) for number in range(6)]
        left.set()
        until(lambda: len(turns._waiting) == 4)
        time.sleep(0.25)  # longer than anybody's patience: who asks again must not lose the place
        assert served == []
    for thread in threads:
        thread.join(30)
    assert served == [0, 2, 3, 5] and not turns.is_taken


def test_a_turn_is_given_back_whatever_happens_in_it():
    turns = ModelTurns()
    for _ in range(2):
        try:
            with turns.turn(lambda: False):
                assert turns.is_taken
                raise KeyError
        except KeyError:
            assert not turns.is_taken


def test_who_has_left_neither_waits_nor_has_the_model():
    turns = ModelTurns()
    with turns.turn(lambda: False), turns.turn(lambda: True):
        assert turns.is_taken
    assert not turns.is_taken
