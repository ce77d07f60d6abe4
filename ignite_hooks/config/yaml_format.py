"""YAML without its surprises: ``no`` and ``1:30`` are strings, ``1e-3`` is a number.

PyYAML reads YAML 1.1. Here plain scalars are what YAML 1.2's core schema says, of numbers the
decimal ones; there are no tags, anchors, aliases and merge keys; and no key is there twice. What is
written is quoted so that readers of both versions see the same.
"""

import re
from typing import Any

import yaml

from ignite_hooks.config.bounds import MAX_DEPTH
from ignite_hooks.config.bounds import finite
from ignite_hooks.config.bounds import too_deep
from ignite_hooks.config.bounds import twice

__all__ = ["dumps", "loads"]

_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_NULL = re.compile(r"~|null|Null|NULL|")
_TAG_DIRECTIVE = re.compile(r"(?:\A|[\r\n\x85\u2028\u2029])\ufeff?%TAG")
MAX_NODES = 100_000
"""Scalars, lists and mappings. A mebibyte can have ten times as many, which takes PyYAML 13 s."""

_TAGS = {"bool": _BOOL, "int": _INT, "float": _FLOAT, "null": _NULL}


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Quotes strings that would be something else in YAML 1.1 or here."""

    def represent_str(self, text: str) -> yaml.ScalarNode:
        """Line breaks and what cannot be seen are escaped."""
        style = None if text.isprintable() else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    def ignore_aliases(self, data: Any) -> bool:
        """What is there twice is written twice."""
        return True


def _resolve_as_here(user: Any) -> None:
    """What plain scalars are, for a loader or a dumper."""
    for name, pattern in _TAGS.items():
        exactly = re.compile(rf"(?:{pattern.pattern})\Z")
        user.add_implicit_resolver(f"tag:yaml.org,2002:{name}", exactly, None)


_Dumper.add_representer(str, _Dumper.represent_str)
_resolve_as_here(_Dumper)


def loader_on(base: Any) -> Any:
    """The loader on one of PyYAML's safe ones: that of libyaml, or the one in Python."""

    class Loader(base):  # type: ignore[misc]
        """Reads what the module says; the events have been checked before."""

        yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            """With each key once."""
            keys = set()
            for each, _ in node.value:
                if not isinstance(each, yaml.ScalarNode):
                    raise _error("a key must be a string, got a list or a mapping", each.start_mark)
                key = self.construct_object(each)
                if key in keys:
                    raise _error(twice(each.value), each.start_mark)
                keys.add(key)
            mapping: dict[Any, Any] = super().construct_mapping(node, deep)
            return mapping

        def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
            """None is too large."""
            return finite(node.value.lower().replace(".inf", "inf").replace(".nan", "nan"))

    _resolve_as_here(Loader)
    Loader.add_constructor("tag:yaml.org,2002:float", Loader.construct_yaml_float)
    return Loader


_Loader = loader_on(getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def dumps(data: Any) -> str:
    """The text."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**30)
    return text


def loads(text: str, loader: Any = _Loader) -> Any:
    """The data.

    Raises:
        ValueError: it is no YAML, or more than is allowed.
    """
    try:
        _check_events(text, loader)
        return yaml.load(text, Loader=loader)
    except yaml.MarkedYAMLError as error:
        problem = ", ".join(each for each in (error.context, error.problem) if each)
        raise _error(problem, error.problem_mark) from error
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _check_events(text: str, loader: Any) -> None:
    """Before anything is made of it: what it is made with, and how deep."""
    if _TAG_DIRECTIVE.search(text):  # libyaml takes time by their square: 20 s for 1 MiB
        raise ValueError("tags must not be used, got the directive %TAG: remove it")
    depth = nodes = 0
    for event in yaml.parse(text, Loader=loader):
        nodes += isinstance(event, yaml.NodeEvent)
        if nodes > MAX_NODES:
            raise _error(f"YAML must have at most {MAX_NODES:,} values", event.start_mark)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise _error("anchors and aliases must not be used: write it out", event.start_mark)
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise _error(f"tags must not be used, got {tag}", event.start_mark)
        if isinstance(event, yaml.ScalarEvent) and event.value == "<<" and event.implicit[0]:
            raise _error("merge keys must not be used: write it out", event.start_mark)
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise too_deep()


def _error(problem: str, mark: Any) -> ValueError:
    if mark is None:
        return ValueError(problem)
    return ValueError(f"line {mark.line + 1}, column {mark.column + 1}: {problem}")
