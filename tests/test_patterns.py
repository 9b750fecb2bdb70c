"""Regular expressions keep to what every Python that we run on matches alike."""

import ast
import re
from pathlib import Path

import clipper_backup

SOURCES = sorted(Path(clipper_backup.__file__).parent.rglob("*.py"))
CLASSES = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
"""What is no syntax of a pattern: escaped characters and sets of characters."""


def patterns(source: Path) -> list[str]:
    """The constant texts within each call of `re`."""
    found = []
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        of_re = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) == "re"
        if isinstance(node, ast.Call) and of_re:
            constants = [each.value for each in ast.walk(node) if isinstance(each, ast.Constant)]
            found += [
                each.decode("latin-1") if isinstance(each, bytes) else each for each in constants if isinstance(each, str | bytes)
            ]
    return found


def is_possessive(pattern: str) -> bool:
    return re.search(r"[*+?}]\+|\(\?>", CLASSES.sub("x", pattern)) is not None


def test_no_pattern_is_possessive() -> None:
    """Python 3.11.2, that of Debian 12 and of our image, fails to match with them (gh-106052): every dump looked damaged."""
    assert is_possessive(r"(?:[^'\"]++|'[^']*+')*+;")
    assert is_possessive("(?>a|b)")
    assert not is_possessive(r"[*+]+\++a?b*c{2}")
    every = {source: patterns(source) for source in SOURCES}
    assert sum(map(len, every.values())) > 50
    assert [(source.name, each) for source, texts in every.items() for each in texts if is_possessive(each)] == []
