"""JSON Schemas of configurations, with the descriptions of fields from the docstrings.

In a configuration, a mapping describes an instance of a class. The mapping has an entry "type", the
*tag*, which names the class.
"""

import re
from inspect import getdoc
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import core_schema

from ignite_hooks.config.registry import TAG
from ignite_hooks.config.registry import registered_subclasses
from ignite_hooks.config.registry import tag_of

__all__ = ["json_schema"]


def json_schema(cls: type) -> dict[str, Any]:
    """Returns the JSON Schema (draft 2020-12) of a document that describes a ``cls`` instance."""
    schema = TypeAdapter(cls).json_schema(schema_generator=_Generator)
    # `_Generator` does not require the tag of `cls`, because a field that accepts only one class
    # needs no tag. A whole document needs the tag, because nothing else names its class.
    required = [*schema.get("required", []), TAG]
    return {"$schema": _Generator.schema_dialect, **schema, "required": required}


class _Generator(GenerateJsonSchema):
    """Pydantic's generator of schemas, extended by tags and descriptions."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # The classes whose schemas have been begun, and perhaps finished.
        self._begun: set[type] = set()

    def dataclass_schema(self, schema: core_schema.DataclassSchema) -> JsonSchemaValue:
        """Returns the schema of a dataclass: its fields, its tag, and its registered subclasses.

        The subclasses are included, because a field of this class accepts them too. The
        schema of the whole document, which is generated first, leaves them out.
        """
        cls = schema["cls"]
        is_document = not self._begun
        self._begun.add(cls)
        own = super().dataclass_schema(schema)
        summary, arguments = _parse_docstring(cls)
        own["description"] = summary
        properties = own.get("properties", {})
        for name, text in arguments.items():
            if name in properties:
                properties[name]["description"] = text
        tag = tag_of(cls)
        if tag is not None:
            own["properties"] = {TAG: {"const": tag}, **properties}
        if is_document:
            return own
        subclasses = [each for each in registered_subclasses(cls).values() if each is not cls]
        return {"anyOf": [own, *map(self._schema_with_tag, subclasses)]} if subclasses else own

    def is_instance_schema(self, schema: core_schema.IsInstanceSchema) -> JsonSchemaValue:
        """Returns the schema of a field whose class is not a dataclass, for example ``Handler``."""
        classes = registered_subclasses(schema["cls"]).values()
        return {"anyOf": [self._schema_with_tag(each) for each in classes]}

    def float_schema(self, schema: core_schema.FloatSchema) -> JsonSchemaValue:
        """Returns the schema of a float: a number, or a string for inf, -inf and nan."""
        return {"anyOf": [super().float_schema(schema), {"enum": ["inf", "-inf", "nan"]}]}

    def _schema_with_tag(self, cls: type) -> JsonSchemaValue:
        """Returns a reference to the schema of a class, with the tag required."""
        whole: Any = TypeAdapter(cls).core_schema
        schema = whole["schema"] if whole["type"] == "definitions" else whole
        _, reference = self.get_cache_defs_ref_schema(schema.get("ref") or schema["schema_ref"])
        # A class that can contain itself is met again while its schema is generated. To generate
        # the schema once more would never end.
        if cls not in self._begun:
            self.generate_inner(whole)
        return {**reference, "required": [TAG]}


def _parse_docstring(cls: type) -> tuple[str, dict[str, str]]:
    """Returns the first paragraph of the docstring of a class, and the texts of its arguments."""
    text = getdoc(cls) or ""
    summary = text.partition("\n\n")[0]
    section = re.search(r"^Args:\n((?:    .*\n|\n)*)", f"{text}\n", re.MULTILINE)
    arguments = section[1] if section else ""
    found = re.findall(r"^    (\w+): (.*\n(?:     .*\n)*)", arguments, re.MULTILINE)
    return " ".join(summary.split()), {name: " ".join(about.split()) for name, about in found}
