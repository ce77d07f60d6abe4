"""Tests of errors: their paths, their messages and their length."""

import pickle

import pytest

from ignite_hooks.config import ConfigError
from ignite_hooks.config.problems import Problem
from ignite_hooks.config.problems import duplicate_key_message
from ignite_hooks.config.problems import join_path


@pytest.mark.parametrize(
    ("path", "key", "expected"),
    [
        ("", "grad_clip", "grad_clip"),
        ("grad_clip", "max_norm", "grad_clip.max_norm"),
        ("handlers", 1, "handlers[1]"),
        ("", 0, "[0]"),
        ("a", "learning-rate", "a.learning-rate"),
        ("a", "b.c", 'a["b.c"]'),
        ("", "", '[""]'),
        ("a", 'say "é"\n', r'a["say \"é\"\n"]'),
    ],
)
def test_path_reads_like_python(path, key, expected):
    assert join_path(path, key) == expected


def test_path_with_long_keys_loses_its_middle():
    path = join_path(join_path(join_path("handlers", "k" * 100_000), "\x01" * 100_000), "max_norm")
    assert len(path) < 600
    assert path.startswith("handlers.kkk")
    assert path.endswith(".max_norm")


def test_a_problem_has_its_path_before_its_message():
    assert str(Problem("a.b", "must be 1, got 2")) == "a.b: must be 1, got 2"


def test_problem_of_the_whole_document_shows_no_path():
    assert str(Problem("", "must be 1, got 2")) == "must be 1, got 2"


def test_long_message_keeps_rule_and_remedy():
    text = str(Problem("a", f"must be 1, got {'x' * 10_000}: write 1"))
    assert len(text) < 600
    assert text.startswith("a: must be 1, got xxx")
    assert text.endswith("xxx: write 1")


def test_an_error_is_a_value_error_with_a_line_for_each_problem():
    error = ConfigError([Problem("a", "wrong"), Problem("b", "wrong, too")])
    assert isinstance(error, ValueError)
    assert str(error) == "a: wrong\nb: wrong, too"


def test_each_line_has_the_source():
    error = ConfigError([Problem("a", "wrong"), Problem("", "all wrong")], "run.yaml")
    assert str(error) == "run.yaml: a: wrong\nrun.yaml: all wrong"
    assert error.source == "run.yaml"


def test_error_shows_twenty_problems_and_keeps_all():
    problems = [Problem(join_path("", index), "wrong") for index in range(23)]
    error = ConfigError(problems)
    assert error.problems == tuple(problems)
    assert str(error).splitlines()[19:] == ["[19]: wrong", "… and 3 more"]
    assert "more" not in str(ConfigError(problems[:20]))


def test_error_can_be_pickled():
    error = ConfigError([Problem("a", "wrong")], "run.yaml")
    again = pickle.loads(pickle.dumps(error))
    assert (again.problems, again.source, str(again)) == (
        error.problems,
        error.source,
        str(error),
    )


def test_message_for_a_duplicate_key_is_short():
    assert duplicate_key_message("a\n") == (
        r"a key must be unique in its mapping, 'a\n' is given twice: remove one"
    )
    assert len(duplicate_key_message("k" * 100_000)) < 200
