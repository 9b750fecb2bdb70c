"""Sets of whole numbers as ranges, for segments and positions: a month of WAL is a few ranges, not millions of numbers."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator

END = 1 << 80
"""Behind every position: where a range has no end."""


class Ranges:
    """Whole numbers, held as ranges that are rising and apart; each from `first` to before `end`. Immutable."""

    __slots__ = ("_ends", "_firsts")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        """Of ranges in any order, which may overlap; an empty one counts for nothing."""
        self._firsts: list[int] = []
        self._ends: list[int] = []
        for first, end in sorted(ranges):
            if first >= end:
                continue
            if self._ends and first <= self._ends[-1]:
                self._ends[-1] = max(self._ends[-1], end)
            else:
                self._firsts.append(first)
                self._ends.append(end)

    @classmethod
    def of(cls, numbers: Iterable[int]) -> "Ranges":
        """Of single numbers."""
        return cls((number, number + 1) for number in numbers)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(zip(self._firsts, self._ends, strict=True))

    def __bool__(self) -> bool:
        return bool(self._firsts)

    def __contains__(self, number: object) -> bool:
        return isinstance(number, int) and self.end_of(number) is not None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ranges) and list(self) == list(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __or__(self, other: "Ranges") -> "Ranges":
        return Ranges([*self, *other])

    def __and__(self, other: "Ranges") -> "Ranges":
        found: list[tuple[int, int]] = []
        for first, end in self:
            place = max(0, bisect_right(other._firsts, first) - 1)
            while place < len(other._firsts) and other._firsts[place] < end:
                found.append((max(first, other._firsts[place]), min(end, other._ends[place])))
                place += 1
        return Ranges(found)

    def __sub__(self, other: "Ranges") -> "Ranges":
        gaps: list[tuple[int, int]] = []
        begin = -END
        for first, end in other:
            gaps.append((begin, first))
            begin = end
        return self & Ranges([*gaps, (begin, 2 * END)])

    @property
    def first(self) -> int | None:
        """The lowest number."""
        return self._firsts[0] if self._firsts else None

    @property
    def last(self) -> int | None:
        """The highest number."""
        return self._ends[-1] - 1 if self._ends else None

    def end_of(self, number: int) -> int | None:
        """The end of the range that has *number*; None when none has."""
        place = bisect_right(self._firsts, number) - 1
        return self._ends[place] if place >= 0 and number < self._ends[place] else None

    def range_of(self, number: int) -> tuple[int, int] | None:
        """The range that has *number*."""
        place = bisect_right(self._firsts, number) - 1
        return (self._firsts[place], self._ends[place]) if place >= 0 and number < self._ends[place] else None
