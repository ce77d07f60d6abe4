"""Reading and writing of YAML: ``no`` and ``1:30`` are strings, ``1e-3`` is a number.

PyYAML reads YAML 1.1, in which ``no`` is False and ``1:30`` is 90. This module reads plain scalars
(values without quotes) as the core schema of YAML 1.2 does, with decimal numbers only. Tags,
anchors, aliases, merge keys and duplicate keys are refused. If a reader of YAML 1.1 or 1.2 would
take a string for another type, the string is written with quotes.
"""

import re
from typing import Any

import yaml

from ignite_hooks.config.bounds import MAX_DEPTH
from ignite_hooks.config.bounds import depth_error
from ignite_hooks.config.bounds import parse_float
from ignite_hooks.config.problems import duplicate_key_message

__all__ = ["dumps", "loads"]

_SCALARS = {
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?(?:0|[1-9][0-9]*)",
    "float": r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
    "null": r"~|null|Null|NULL|",
}
_TAG_DIRECTIVE = re.compile(r"(?:\A|[\r\n\x85\u2028\u2029])\ufeff?%TAG")

MAX_NODES = 100_000
"""The largest number of scalars, lists and mappings in a text.

A text of 1 MiB can have ten times as many, and PyYAML then takes 13 s to read the text.
"""


def _add_scalar_resolvers(loader_or_dumper: Any) -> None:
    """Lets a loader or dumper find the types of plain scalars by the patterns of this module."""
    for name, pattern in _SCALARS.items():
        whole = re.compile(rf"(?:{pattern})\Z")
        loader_or_dumper.add_implicit_resolver(f"tag:yaml.org,2002:{name}", whole, None)


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """A dumper that quotes a string if YAML 1.1 or this module would read it as another type.

    PyYAML quotes a string that matches one of the dumper's patterns. The dumper inherits the
    patterns of YAML 1.1, and the patterns of this module are added below.
    """

    def represent_str(self, text: str) -> yaml.ScalarNode:
        """Represents a string, with line breaks and invisible characters escaped."""
        style = None if text.isprintable() else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    def ignore_aliases(self, data: Any) -> bool:
        """Returns True, so that an object that occurs twice is written twice, without an alias."""
        return True


_Dumper.add_representer(str, _Dumper.represent_str)
_add_scalar_resolvers(_Dumper)


def make_loader(base: Any) -> Any:
    """Returns a subclass of ``base``, a safe loader of PyYAML in C (libyaml) or in Python."""

    class Loader(base):  # type: ignore[misc]
        """Constructs data from a text that ``_check_events`` has checked."""

        # This empty table hides the inherited table, which has the patterns of YAML 1.1.
        yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            """Constructs a mapping. Refuses duplicate keys, of which PyYAML would keep the last."""
            keys = set()
            for key_node, _ in node.value:
                position = key_node.start_mark
                if not isinstance(key_node, yaml.ScalarNode):
                    raise _error_at(position, "a key must be a string, got a list or a mapping")
                key = self.construct_object(key_node)
                if key in keys:
                    raise _error_at(position, duplicate_key_message(key_node.value))
                keys.add(key)
            mapping: dict[Any, Any] = super().construct_mapping(node, deep)
            return mapping

        def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
            """Constructs a float, and refuses numbers that are too large for a float."""
            return parse_float(node.value.lower().replace(".inf", "inf").replace(".nan", "nan"))

    _add_scalar_resolvers(Loader)
    Loader.add_constructor("tag:yaml.org,2002:float", Loader.construct_yaml_float)
    return Loader


_Loader = make_loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def dumps(data: Any) -> str:
    """Returns data as YAML."""
    # The width keeps long strings on one line.
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**30)
    return text


def loads(text: str, loader: Any = _Loader) -> Any:
    """Returns the data of a YAML text.

    Raises:
        ValueError: the text is not YAML, exceeds a limit, or uses a feature that this module
            refuses.
    """
    try:
        _check_events(text, loader)
        return yaml.load(text, Loader=loader)
    except yaml.MarkedYAMLError as error:
        problem = ", ".join(each for each in (error.context, error.problem) if each)
        raise _error_at(error.problem_mark, problem) from error
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _check_events(text: str, loader: Any) -> None:
    """Raises an error for a text that exceeds a limit or uses a feature that is refused.

    The check reads only the events of PyYAML's parser. PyYAML constructs nested data recursively,
    so the depth must be checked before any data is constructed.
    """
    if _TAG_DIRECTIVE.search(text):
        # The time that libyaml takes for these directives grows with the square of their number:
        # 20 s for 1 MiB.
        raise ValueError("tags must not be used, got the directive %TAG: remove it")
    depth = nodes = 0
    for event in yaml.parse(text, Loader=loader):
        position = event.start_mark
        nodes += isinstance(event, yaml.NodeEvent)
        if nodes > MAX_NODES:
            raise _error_at(position, f"YAML must have at most {MAX_NODES:,} values")
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise _error_at(position, "anchors and aliases must not be used: write the value out")
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise _error_at(position, f"tags must not be used, got {tag}")
        if isinstance(event, yaml.ScalarEvent) and event.value == "<<" and event.implicit[0]:
            raise _error_at(position, "merge keys must not be used: write the keys out")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise depth_error()


def _error_at(position: Any, problem: str) -> ValueError:
    """Returns an error that names the line and the column, if PyYAML knows them."""
    if position is None:
        return ValueError(problem)
    return ValueError(f"line {position.line + 1}, column {position.column + 1}: {problem}")
