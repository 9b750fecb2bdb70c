"""What belongs to every command is taken out of the command line, wherever it stands."""

from pathlib import Path

import pytest

from clipper_backup.cli.arguments import Arguments, known_flags, split
from clipper_backup.config import DECLARED, Declared
from clipper_backup.errors import UsageError


@pytest.mark.parametrize("declared", [each for each in DECLARED if each.switch], ids=lambda each: each.name)
def test_the_flag_of_a_switch_alone_means_yes(declared: Declared) -> None:
    assert split([declared.flag, "dump", "list"]) == Arguments(("dump", "list"), {declared.name: "yes"}, None, frozenset())
    assert split([f"{declared.flag}=no", "dump"]) == Arguments(("dump",), {declared.name: "no"}, None, frozenset())


@pytest.mark.parametrize("declared", [each for each in DECLARED if not each.secret], ids=lambda each: each.name)
@pytest.mark.parametrize("joined", [True, False])
def test_every_setting_is_a_flag(declared: Declared, joined: bool) -> None:
    flag, name = declared.flag, declared.name
    if declared.switch and not joined:
        return
    words = [f"{flag}=a value"] if joined else [flag, "a value"]
    expected = Arguments(("dump", "list"), {name: "a value"}, None, frozenset())
    assert split(["dump", *words, "list"]) == expected
    assert split([*words, "dump", "list"]) == expected
    assert split(["dump", "list", *words]) == expected


@pytest.mark.parametrize("words", [["--pgpassword", "hush-hush"], ["--pgpassword=hush-hush"], ["--pgpassword"]])
def test_a_secret_is_refused_on_a_command_line_and_not_repeated(words: list[str]) -> None:
    with pytest.raises(UsageError, match="PGPASSWORD cannot be given as a flag") as caught:
        split(["settings", *words])
    assert "hush" not in " ".join([str(caught.value), *caught.value.hints])


def test_the_later_of_two_counts() -> None:
    assert split(["--retention-days", "5", "--retention-days=6"]).flags == {"RETENTION_DAYS": "6"}


def test_switches_and_config() -> None:
    arguments = split(["--json", "settings", "--config", "/etc/a.toml", "--quiet", "--set-only"])
    assert arguments == Arguments(("settings", "--set-only"), {}, Path("/etc/a.toml"), frozenset({"--json", "--quiet"}))
    assert arguments.has("--json")
    assert not arguments.has("--debug")


def test_after_two_dashes_nothing_is_taken() -> None:
    arguments = split(["--json", "x", "--", "--quiet", "--retention-days", "5"])
    assert arguments.words == ("x", "--", "--quiet", "--retention-days", "5")
    assert arguments.switches == {"--json"}
    assert arguments.flags == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--retention-days"], "--retention-days needs a value"),
        (["--retention-days", "--json"], "--retention-days needs a value"),
        (["--config"], "--config needs a value"),
        (["--config="], "--config needs a value"),
        (["--json=yes"], "--json takes no value"),
    ],
)
def test_what_makes_no_sense_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=f"^{message}$"):
        split(words)


def test_a_value_may_begin_with_dashes_or_hold_an_equals_sign() -> None:
    assert split(["--pghost=--odd"]).flags == {"PGHOST": "--odd"}
    assert split(["--validation-queries=n: SELECT 1 = 1"]).flags == {"VALIDATION_QUERIES": "n: SELECT 1 = 1"}
    assert split(["--pguser", "-dash"]).flags == {"PGUSER": "-dash"}


def test_known_flags_offer_no_secret() -> None:
    assert {"--retention-days", "--json", "--config"} <= set(known_flags())
    assert "--pgpassword" not in known_flags()
