"""The tree of errors: drawn in its docstring, complete, and each with the exit code the design names."""

import re
import signal

import pytest

from clipper_backup import errors
from clipper_backup.errors import ClipperError, StoppedError, every_error, exit_code_of

DRAWN = re.compile(r"(\w+Error)\s+(\d+(?: / \d+)?)\s")
CODES = {0, 1, 2, 3, 10, 11, 12, 13, 14, 15, 44}


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = dict(DRAWN.findall(errors.__doc__ or ""))
    codes = {error.__name__: str(error.exit_code) for error in every_error()}
    assert drawn == codes | {"StoppedError": "130 / 143"}


def test_every_error_of_the_module_is_in_the_tree() -> None:
    found = {value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, BaseException)}
    assert found == {*every_error(), StoppedError}


def test_parents_come_first_and_none_twice() -> None:
    order = list(every_error())
    assert order[0] is ClipperError
    assert len(order) == len(set(order))
    for error in order[1:]:
        assert order.index(error.__mro__[1]) < order.index(error)


def test_every_error_says_what_it_is_for_and_has_a_code_of_the_design() -> None:
    for error in every_error():
        assert error.__doc__
        assert error.meaning
        assert error.exit_code in CODES


def test_one_code_has_one_meaning() -> None:
    meanings: dict[int, set[str]] = {}
    for error in every_error():
        meanings.setdefault(error.exit_code, set()).add(error.meaning)
    assert {code: len(said) for code, said in meanings.items()} == dict.fromkeys(meanings, 1)


def test_only_an_unreachable_store_or_cluster_is_temporary() -> None:
    assert [error.__name__ for error in every_error() if error.temporary] == ["StoreUnavailableError", "ApiUnavailableError"]


@pytest.mark.parametrize("error", list(every_error()), ids=lambda each: each.__name__)
def test_an_error_carries_its_message_and_hints(error: type[ClipperError]) -> None:
    raised = error("no dump x", hints=["look", "again"])
    assert str(raised) == raised.message == "no dump x"
    assert raised.hints == ("look", "again")
    assert error("no dump x").hints == ()
    assert exit_code_of(raised) == error.exit_code


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGPIPE, 141)])
def test_a_signal_is_128_and_its_number(number: signal.Signals, code: int) -> None:
    stopped = StoppedError(number)
    assert exit_code_of(stopped) == code
    assert str(stopped) == f"stopped by signal {number.value}"


@pytest.mark.parametrize("error", [KeyError("x"), OSError(2, "gone"), KeyboardInterrupt(), MemoryError()])
def test_anything_unknown_is_a_failure(error: BaseException) -> None:
    assert exit_code_of(error) == 1
