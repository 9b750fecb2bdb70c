"""What an operation tells while it runs. `cli` renders the same events as text or as JSON lines; `ops` prints nothing."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class StepBegun:
    """A step begins. `step` is its stable name (JSON), `text` what a person reads."""

    step: str
    text: str


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the running step is; `total` is None where nobody can know. `unit` is `bytes`, or what is counted."""

    step: str
    done: int
    total: int | None
    unit: str = "bytes"


@dataclass(frozen=True, slots=True)
class StepDone:
    """A step ended well, with its duration and a one-line result."""

    step: str
    text: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Warned:
    """Something a person should know although the work goes on."""

    text: str
    hints: tuple[str, ...] = ()


Event: TypeAlias = StepBegun | Progress | StepDone | Warned
Emit: TypeAlias = Callable[[Event], None]


def ignore(event: Event) -> None:
    """An `Emit` that drops everything, for callers that do not care."""
