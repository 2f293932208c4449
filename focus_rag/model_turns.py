"""Who may run a model next: one at a time, in the order in which they came."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

_PATIENCE: Final = 0.1  # seconds of waiting, after which is asked whether anybody still wants the turn


class ModelTurns:
    """A lock that is had in the order of asking, and that who no longer wants it need not wait for.

    A plain lock that is asked for again and again serves whoever asks at the right moment.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._waiting: deque[threading.Event] = deque()
        self._is_taken = False

    @property
    def is_taken(self) -> bool:
        """Whether somebody has the model."""
        return self._is_taken

    @contextmanager
    def turn(self, is_cancelled: Callable[[], bool]) -> Iterator[None]:
        """Have the model to oneself; who is cancelled no longer waits for it, and must not run it."""
        is_ours = self._take(is_cancelled)
        try:
            yield
        finally:
            if is_ours:
                self._hand_on()

    def _take(self, is_cancelled: Callable[[], bool]) -> bool:
        with self._guard:
            if not self._is_taken:
                self._is_taken = True
                return True
            called = threading.Event()
            self._waiting.append(called)
        try:
            while not called.wait(_PATIENCE):
                if is_cancelled() and self._leave(called):
                    return False
        except BaseException:  # an interrupt of the waiting thread
            if not self._leave(called):
                self._hand_on()
            raise
        return True

    def _leave(self, called: threading.Event) -> bool:
        """Stand in line no longer; False where it is one's turn already."""
        with self._guard:
            if called.is_set():
                return False
            self._waiting.remove(called)
            return True

    def _hand_on(self) -> None:
        with self._guard:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._is_taken = False
