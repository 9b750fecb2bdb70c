"""A question whose answer is needed later: its call runs in a thread of its own meanwhile."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Answer = TypeVar("Answer")


class Asked(Generic[Answer]):
    """*call* is under way. Lighter to import than an executor: `wal push` starts for every segment anew."""

    def __init__(self, call: Callable[[], Answer]) -> None:
        self._answer: list[Answer] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(call,), name="asked", daemon=True)
        self._thread.start()

    @property
    def is_answered(self) -> bool:
        """Whether `answer` need not wait."""
        return not self._thread.is_alive()

    def answer(self) -> Answer:
        """What it returned; what it raised is raised here."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._answer[0]

    def _run(self, call: Callable[[], Answer]) -> None:
        try:
            self._answer.append(call())
        except BaseException as error:  # noqa: BLE001  handed on to whoever asks
            self._error = error
