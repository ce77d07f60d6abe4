import warnings

import pytest

from ignite_hooks.core.warn_once import warn_once


@pytest.fixture(autouse=True)
def _no_earlier_warnings():
    warn_once.cache_clear()
    yield
    warn_once.cache_clear()


def warn_for_caller(message):
    warn_once(message)


def test_each_message_is_warned_once_from_any_place():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for message in ("a", "b", "a"):
            warn_for_caller(message)
        warn_once("b")
    assert [str(each.message) for each in caught] == ["a", "b"]


def test_the_warning_names_the_line_of_the_callers_caller():
    with pytest.warns(UserWarning, match="here") as caught:
        warn_for_caller("here")
    code = test_the_warning_names_the_line_of_the_callers_caller.__code__
    lines = {line for _, _, line in code.co_lines()}
    assert caught[0].filename == __file__
    assert caught[0].lineno in lines


def test_as_an_error_it_is_raised_each_time():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            with pytest.raises(UserWarning, match="again"):
                warn_once("again")
