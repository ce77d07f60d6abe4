import io
import sys
from datetime import datetime
from datetime import timedelta
from datetime import timezone

import pytest

from ignite_hooks.checkpoint.terminal import age_text
from ignite_hooks.checkpoint.terminal import printable
from ignite_hooks.checkpoint.terminal import shortened
from ignite_hooks.checkpoint.terminal import size_text
from ignite_hooks.checkpoint.terminal import table

NOW = datetime(2026, 1, 2, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("model.safetensors", "model.safetensors"),
        ("精度 é 😀", "精度 é 😀"),
        ("\x1b[2J\x9b", "\\x1b[2J\\x9b"),
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("\u2028\u2029\x85", "\\u2028\\u2029\\x85"),
        ("\u202etxt\u2066\u200b", "\\u202etxt\\u2066\\u200b"),
        ("\x00\x7f\xa0", "\\x00\\x7f\\xa0"),
        ("\ud800\udcff", "\\ud800\\udcff"),
        ("\U000e0041", "\\U000e0041"),
        (None, "None"),
    ],
    ids=ascii,
)
def test_printed_value_is_one_line_without_control_characters(text, shown):
    assert printable(text) == shown


def test_characters_outside_the_encoding_are_escaped(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert printable("精度 é") == "\\u7cbe\\u5ea6 \\xe9"


def test_stream_without_an_encoding_is_utf_8(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert printable("é") == "é"


@pytest.mark.parametrize(
    ("text", "shown"), [("abcdefgh", "abcdefgh"), ("abcdefghi", "abc...hi"), ("", "")]
)
def test_middle_of_a_long_text_is_replaced_by_dots(text, shown):
    assert shortened(text, 8) == shown


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (49305, "48.15 KiB"),
        (3 * 2**20, "3 MiB"),
        (2**60, "1 EiB"),
        (10**30, "8.674e+11 EiB"),
        (3 * 2**20 + 1, "3 MiB"),
        (10**400, "inf EiB"),
    ],
)
def test_size_is_shown_with_four_digits_and_a_unit(size, shown):
    assert size_text(size) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 s"),
        (-0.5, "0 s"),
        (59, "59 s"),
        (7300, "2 h"),
        (3 * 86400, "3 d"),
        (-120, "in 2 min"),
    ],
)
def test_age_is_shown_in_its_largest_unit(seconds, shown):
    assert age_text(NOW - timedelta(seconds=seconds), NOW) == shown


def test_time_without_a_zone_is_taken_as_utc():
    assert age_text(datetime(2026, 1, 1, 23, 59), NOW) == "60 s"


@pytest.mark.parametrize("hours", [-14, 14])
def test_age_of_the_first_and_last_year_is_no_error(hours):
    zone = timezone(timedelta(hours=hours))
    assert age_text(datetime(1, 1, 1, tzinfo=zone), NOW).endswith(" d")
    assert age_text(datetime(9999, 12, 31, tzinfo=zone), NOW).startswith("in ")


def test_wide_characters_and_marks_keep_columns_aligned():
    lines = table([("精度", "1"), ("abcd", "2"), ("e\u0301", "3"), ("", "")])
    assert lines == ["精度  1", "abcd  2", "e\u0301     3", ""]
