"""A few threads that do tasks in the order in which they are given; the first failure ends all of it.

Whoever waits here does so in slices: Python does not notice a signal that comes between its last look and the wait for a lock
until that wait ends. The threads are daemons, so that a task which hangs in a request keeps no process alive that was told twice
to end.
"""

import threading
from collections import deque
from collections.abc import Callable

_SLICE_SECONDS = 1.0

Task = Callable[[], None]


class CrewEndedError(Exception):
    """A task was given to a crew that was told to end. It never becomes a user's error: what ended the crew says why."""


class Crew:
    """So many *threads*; *limit* tasks may be under way or wait, whoever gives more waits for room."""

    def __init__(self, name: str, threads: int, limit: int) -> None:
        self._limit = limit
        self._changed = threading.Condition()
        self._waiting: deque[Task] = deque()
        self._running = 0
        self._ended = False
        self._failed: BaseException | None = None
        self._threads = [threading.Thread(target=self._run, name=f"{name} {n}", daemon=True) for n in range(threads)]
        for thread in self._threads:
            thread.start()

    def submit(self, task: Task) -> None:
        """Have *task* done as soon as a thread is free; the first failure of any task is raised here instead."""
        with self._changed:  # throughout, or two who wait for room would both take it
            self.wait(lambda: len(self._waiting) + self._running < self._limit)
            self._waiting.append(task)
            self._changed.notify_all()

    def wait(self, reached: Callable[[], bool]) -> None:
        """Return when *reached* holds, which is looked at whenever a task has ended. Raises the first failure instead."""
        with self._changed:
            while not (self._ended or self._failed is not None or reached()):
                self._changed.wait(_SLICE_SECONDS)
            if self._failed is not None:
                raise self._failed
            if self._ended:
                raise CrewEndedError

    def wait_idle(self) -> None:
        """Wait until every task is done; raises the first failure. The threads take more."""
        self.wait(lambda: not self._waiting and self._running == 0)

    def finish(self) -> None:
        """The same, and end the threads."""
        self.wait_idle()
        self.end()

    def stop(self) -> None:
        """Forget the tasks that wait; whoever waits for room meets CrewEndedError."""
        with self._changed:
            self._ended = True
            self._waiting.clear()
            self._changed.notify_all()

    def end(self) -> None:
        """The same, and return when the tasks under way have ended, well or not."""
        self.stop()
        for thread in self._threads:
            while thread.is_alive():
                thread.join(_SLICE_SECONDS)

    def _run(self) -> None:
        while (task := self._next()) is not None:
            try:
                task()
            except BaseException as error:  # noqa: BLE001  # raised by whoever waits
                with self._changed:
                    self._failed = error if self._failed is None else self._failed
                    self._waiting.clear()
            del task  # what it holds is not kept while this thread waits for the next one
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def _next(self) -> Task | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ended or self._failed is not None)
            if self._ended or self._failed is not None:
                return None
            self._running += 1
            return self._waiting.popleft()
