"""Answers as text line up, are never cut, and survive any name."""

from clipper_backup.cli.output import printable
from clipper_backup.cli.tables import pairs, table


def test_columns_line_up_and_numbers_stand_right() -> None:
    shown = table(("ID", "SIZE", "STATE"), [("a", "1.2 GB", "ok"), ("long-id", "9 B", "held")], right={"SIZE"})
    assert shown == "ID         SIZE  STATE\na        1.2 GB  ok\nlong-id     9 B  held\n"


def test_no_rows_leave_the_headings() -> None:
    assert table(("ID", "SIZE"), []) == "ID  SIZE\n"


def test_a_cell_of_several_lines_makes_its_row_as_tall() -> None:
    assert table(("A", "B", "C"), [("1", "x\ny", "2")]) == "A  B  C\n1  x  2\n   y\n"


def test_only_the_last_column_is_wrapped_and_only_for_a_terminal() -> None:
    rows = [("name", "a meaning of several words that goes on")]
    assert table(("N", "MEANING"), rows) == "N     MEANING\nname  a meaning of several words that goes on\n"
    assert table(("N", "MEANING"), rows, width=30) == ("N     MEANING\nname  a meaning of several\n      words that goes on\n")


def test_a_terminal_too_narrow_to_wrap_for_is_not_wrapped_for() -> None:
    assert table(("N", "M"), [("name", "one two")], width=10) == "N     M\nname  one two\n"


def test_wide_and_combining_characters_are_counted_as_shown() -> None:
    assert table(("N", "X"), [("数据", "1"), ("e\u0301", "2")]) == "N     X\n数据  1\ne\u0301     2\n"


def test_pairs_line_up_and_indent_further_lines() -> None:
    assert pairs([("id", "x"), ("queries", "one\ntwo"), ("none", "")]) == "id:       x\nqueries:  one\n          two\nnone:\n"


def test_printable_spells_control_characters_out_and_keeps_line_ends() -> None:
    assert printable("a\tb\nc\r\x1b[1m\x9b…\x7f") == "a\tb\nc\\x0d\\x1b[1m\\x9b…\\x7f"
