import sys

import pytest

from ignite_hooks.core.lazy import lazy_names


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package whose one public name is imported lazily."""
    folder = tmp_path / "lazily"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "from ignite_hooks.core.lazy import lazy_names\n"
        "__getattr__, __dir__ = lazy_names(__name__, {'answer': 'deep.thought'})\n"
    )
    (folder / "deep").mkdir()
    (folder / "deep" / "__init__.py").touch()
    (folder / "deep" / "thought.py").write_text("answer = [42]\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield __import__("lazily")
    for name in [name for name in sys.modules if name.partition(".")[0] == "lazily"]:
        del sys.modules[name]


def test_a_module_is_imported_when_its_name_is_first_used(package):
    assert "lazily.deep.thought" not in sys.modules
    assert package.answer == [42]
    assert "lazily.deep.thought" in sys.modules


def test_a_name_is_looked_up_once(package):
    assert package.answer is package.answer
    assert vars(package)["answer"] is package.answer


def test_an_unknown_name_is_an_attribute_error(package):
    with pytest.raises(AttributeError, match="module 'lazily' has no attribute 'question'"):
        _ = package.question


def test_a_submodule_can_still_be_imported(package):
    from lazily import deep

    assert deep.__name__ == "lazily.deep"


def test_a_module_without_the_name_is_an_error(package):
    with pytest.raises(AttributeError, match=r"module 'lazily\.deep' has no attribute 'answer'"):
        lazy_names("lazily", {"answer": "deep"})[0]("answer")


def test_lazy_names_are_listed_by_dir(package):
    assert {"answer", "__name__"} <= set(dir(package))
