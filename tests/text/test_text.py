"""Printable text, display width and truncation."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memtools._text import display_width, printable, truncate_middle


@pytest.mark.parametrize("text", ["", "plain", "two words", "größe", "東京", "a\N{COMBINING ACUTE ACCENT}", "50 %"])
def test_ordinary_text_is_unchanged(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", "\\x1b[31mred"),
        ("first\nsecond", "first\\nsecond"),
        ("tab\there", "tab\\there"),
        ("\0", "\\x00"),
        ("\N{RIGHT-TO-LEFT OVERRIDE}gpj.exe", "\\u202egpj.exe"),
        ("zero\N{ZERO WIDTH SPACE}width", "zero\\u200bwidth"),
        ("line\N{LINE SEPARATOR}end", "line\\u2028end"),
        ("\ud800", "\\ud800"),
        ("\ue000", "\\ue000"),
        ("\x85", "\\x85"),
        ("\U000e0001", "\\U000e0001"),
    ],
)
def test_harmful_characters_are_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_max_length_counts_characters_before_escaping() -> None:
    assert printable("abcdef", 3) == "abc"
    assert printable("a\nb\nc", 3) == "a\\nb"
    assert printable("abc", 3) == "abc"


@given(st.text(st.characters()))
def test_result_is_encodable_and_on_one_line(text: str) -> None:
    shown = printable(text)

    shown.encode("utf-8")
    assert len(shown.splitlines()) <= 1
    assert not any(unicodedata.category(character) in {"Cc", "Cf", "Cs"} for character in shown)


@given(st.text())
def test_printable_text_stays_as_it_is(text: str) -> None:
    shown = printable(text)

    assert printable(shown) == shown


@pytest.mark.parametrize(
    ("text", "width"),
    [
        ("", 0),
        ("abc", 3),
        ("東京", 4),
        ("a\N{COMBINING ACUTE ACCENT}", 1),
        ("ä", 1),
        ("\N{FULLWIDTH LATIN CAPITAL LETTER A}", 2),
    ],
)
def test_display_width_counts_terminal_columns(text: str, width: int) -> None:
    assert display_width(text) == width


@pytest.mark.parametrize(
    ("text", "width", "shown"),
    [
        ("short", 10, "short"),
        ("exactly ten", 11, "exactly ten"),
        ("abcdefghij", 5, "ab…ij"),
        ("abcdefghij", 6, "abc…ij"),
        ("abcdefghij", 1, "…"),
        ("東京都大阪府", 7, "東京…府"),
        ("東京都大阪府", 6, "東…府"),
    ],
)
def test_long_text_loses_its_middle(text: str, width: int, shown: str) -> None:
    assert truncate_middle(text, width) == shown


def test_mark_of_truncated_text_can_be_ascii() -> None:
    assert truncate_middle("abcdefghij", 7, mark="...") == "ab...ij"


@given(st.text(), st.integers(1, 40))
def test_truncated_text_fits_into_its_width(text: str, width: int) -> None:
    shown = truncate_middle(text, width)

    assert display_width(shown) <= width or shown == text
    assert display_width(shown) <= width
