"""The JSON Schema of what can be read, with what the docstrings say of each field."""

import re
from inspect import getdoc
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import core_schema

from ignite_hooks.config.registry import TAG
from ignite_hooks.config.registry import tag_of
from ignite_hooks.config.registry import tagged

__all__ = ["json_schema"]


def json_schema(cls: type) -> dict[str, Any]:
    """The schema, draft 2020-12, of a document that is one of exactly this class."""
    schema = TypeAdapter(cls).json_schema(schema_generator=_Generator)
    required = [*schema.get("required", []), TAG]  # only a field can say which class it is
    return {"$schema": _Generator.schema_dialect, **schema, "required": required}


class _Generator(GenerateJsonSchema):
    """Pydantic's, which knows of no tags."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._begun: set[type] = set()

    def dataclass_schema(self, schema: core_schema.DataclassSchema) -> JsonSchemaValue:
        """Its fields and its tag; within a document it may be one of a class below it."""
        cls = schema["cls"]
        is_document = not self._begun
        self._begun.add(cls)
        own = super().dataclass_schema(schema)
        lead, about = _described(cls)
        own["description"] = lead
        properties = own.get("properties", {})
        for name, text in about.items():
            if name in properties:
                properties[name]["description"] = text
        tag = tag_of(cls)
        if tag is not None:
            own["properties"] = {TAG: {"const": tag}, **properties}
        below = [] if is_document else [each for each in tagged(cls).values() if each is not cls]
        return {"anyOf": [own, *map(self._with_tag, below)]} if below else own

    def is_instance_schema(self, schema: core_schema.IsInstanceSchema) -> JsonSchemaValue:
        """One of the classes with a tag that are of this one."""
        return {"anyOf": [self._with_tag(each) for each in tagged(schema["cls"]).values()]}

    def float_schema(self, schema: core_schema.FloatSchema) -> JsonSchemaValue:
        """A number, or a string for those that JSON has not."""
        return {"anyOf": [super().float_schema(schema), {"enum": ["inf", "-inf", "nan"]}]}

    def _with_tag(self, cls: type) -> JsonSchemaValue:
        whole: Any = TypeAdapter(cls).core_schema
        schema = whole["schema"] if whole["type"] == "definitions" else whole
        _, reference = self.get_cache_defs_ref_schema(schema.get("ref") or schema["schema_ref"])
        if cls not in self._begun:  # else it has a field where it can stand itself
            self.generate_inner(whole)
        return {**reference, "required": [TAG]}


def _described(cls: type) -> tuple[str, dict[str, str]]:
    """What the docstring says first, and what it says of each argument."""
    text = getdoc(cls) or ""
    lead = text.partition("\n\n")[0]
    arguments = re.search(r"^Args:\n((?:    .*\n|\n)*)", f"{text}\n", re.MULTILINE)
    listed = arguments[1] if arguments else ""
    found = re.findall(r"^    (\w+): (.*\n(?:     .*\n)*)", listed, re.MULTILINE)
    return " ".join(lead.split()), {name: " ".join(about.split()) for name, about in found}
