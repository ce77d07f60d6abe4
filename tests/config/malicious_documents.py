"""Documents that try to run code, to import modules, or to exhaust time and memory."""

import json
from typing import NamedTuple

import tomli_w

SIZE = 2**20
MAKES_A_FILE = "touch made_by_a_document"
TARGETS = ["os.system", "ignite_hooks.GradientClipping", "builtins.eval", "antigravity",
           "ignite_hooks.optim.gradient_clipping:GradientClipping", "__import__('antigravity')",
           "lambda: 1", "../clear_cache", "{0.__class__}", "${oc.env:HOME}"]  # fmt: skip
CODE = [f"__import__('os').system('{MAKES_A_FILE}')", f"lambda: os.system('{MAKES_A_FILE}')",
        f"$({MAKES_A_FILE})", "{0.__class__.__init__.__globals__}", "%(HOME)s",
        "file:///etc/passwd"]  # fmt: skip
TAGS = [f'!!python/object/apply:os.system ["{MAKES_A_FILE}"]', "!!python/module:antigravity",
        "!!python/name:antigravity.fly", f'!!python/object/new:os.system ["{MAKES_A_FILE}"]',
        f"!!python/object/apply:builtins.eval [\"{CODE[0]}\"]", "!ignite_hooks.GradientClipping {}",
        "!include /etc/passwd", "!!python/tuple [1]"]  # fmt: skip


class Document(NamedTuple):
    """A text for ``loads``, and the class of the result or error that is expected."""

    format: str
    text: str
    expected: str = "ConfigError"


def in_all(data, expected="ConfigError"):
    """Returns the data as a document in each format. A text of JSON is YAML too."""
    text = json.dumps(data)
    return [
        Document("json", text, expected),
        Document("yaml", text, expected),
        Document("toml", tomli_w.dumps(data), expected),
    ]


def documents():
    """Returns all documents by their names."""
    return {
        document_name(group, index, each): each
        for group, documents_of_group in GROUPS.items()
        for index, each in enumerate(documents_of_group)
    }


def document_name(group, index, document):
    """Returns the name of a document: its group, its number and its format."""
    return f"{group} {index}: {document.format}"


def _laughs():
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    for level in range(1, 12):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]")
    return "\n".join(lines)


def _merges():
    lines = ["a0: &a0 {x: 1}"]
    for level in range(1, 24):
        lines.append(f"a{level}: &a{level} {{<<: [{', '.join([f'*a{level - 1}'] * 9)}]}}")
    return "\n".join(lines)


GROUPS = {
    "class path as type": [each for name in TARGETS for each in in_all({"type": name})],
    "class path as another key": [
        each
        for key in ("_target_", "class_path", "__config_type__", "__reduce__", "py/object")
        for each in in_all({key: "os.system", "args": [MAKES_A_FILE]})
    ],
    "type of another type": [
        each for data in (["os", "system"], {"os": "system"}) for each in in_all({"type": data})
    ],
    "code in place of a number": [
        each
        for code in CODE
        for each in in_all({"type": "gradient_clipping", "max_norm": code})
    ],
    "code in place of a string": [
        each
        for code in CODE
        for each in in_all(
            {"type": "save_checkpoint", "directory": code, "every_epochs": 1},
            "ConfigError" if "://" in code else "SaveCheckpoint",
        )
    ],
    "python tag": [Document("yaml", f"type: {tag}") for tag in TAGS]
    + [Document("yaml", f"{tag}") for tag in TAGS]
    + [Document("yaml", f"? {tag}\n: 1") for tag in TAGS],
    "billion laughs": [Document("yaml", _laughs())],
    "bomb of merge keys": [
        Document("yaml", _merges()),
        Document("yaml", "<<: [" + "{<<: [" * 12 + "]}" * 12 + "]"),
    ],
    "directives": [Document("yaml", "".join(f"%TAG !{n}! x\n" for n in range(60_000)) + "--- a")],
    "dotted key": [
        Document("toml", "a." * 19_500 + "a = 1"),
        Document("toml", ("a." * SIZE)[: SIZE - 5] + "a = 1"),
        Document("toml", "[" + ("a." * SIZE)[: SIZE - 3] + "a]"),
        Document("toml", "x = {" + ("'' . " * SIZE)[: SIZE - 10] + "a=1}"),
    ],
    "deep nesting": [
        *(Document("json", (each * SIZE)[:SIZE]) for each in ("[", '{"a":')),
        *(Document("yaml", (each * SIZE)[:SIZE]) for each in ("[", "{a: ", "- ", "? ", "- ? ")),
        *(Document("toml", ("x = " + each * SIZE)[:SIZE]) for each in ("[", "{a = ", "[{a = ")),
    ],
    "sexagesimal number": [
        Document("yaml", "type: gradient_clipping\nmax_norm: " + "1:" * (SIZE // 2 - 30) + "1"),
        Document("toml", "x = " + "1:" * (SIZE // 2 - 10) + "1"),
        Document("json", "1:" * (SIZE // 2 - 10) + "1"),
    ],
    "huge integer": [
        Document("json", "9" * SIZE),
        Document("yaml", "x: " + "9" * (SIZE - 10)),
        Document("toml", "x = " + "9" * (SIZE - 10)),
        Document("toml", "x = 1" + "_1" * (SIZE // 2 - 10)),
    ],
    "number with many digits": [
        Document("json", '{"x": 0.' + "1" * (SIZE - 20) + "}"),
        Document("yaml", "x: 1e" + "9" * (SIZE - 10)),
        Document("toml", "x = 1e" + "9" * (SIZE - 10)),
    ],
    "flat list": [
        Document("json", "[" + f"{10**40}," * (SIZE // 42 - 2) + "1]"),
        Document("yaml", f"- {10**40}\n" * (SIZE // 44)),
        Document("yaml", "[" + "a: ," * (SIZE // 4 - 2) + "]"),
        Document("toml", "x = [" + f"{10**40}," * (SIZE // 42 - 2) + "1]"),
    ],
    "flat list with a long key": [
        Document("json", '{"' + "k" * 500_000 + '": [' + "0," * 30_000 + "0]}")
    ],
    "string without an end": [
        Document("json", ('"' + r"\n" * SIZE)[:SIZE]),
        Document("json", ('{"' + r"\\" * SIZE)[:SIZE]),
        Document("yaml", ('a: "' + r"\n" * SIZE)[:SIZE]),
        Document("yaml", ("a: '" + "''" * SIZE)[:SIZE]),
        Document("toml", ('a = "' + r"\n" * SIZE)[:SIZE]),
        Document("toml", ('a = """' + "a\n" * SIZE)[:SIZE]),
        Document("toml", ("a = '" + r"\n" * SIZE)[:SIZE]),
        Document("toml", ("a = '''" + "''a" * SIZE)[:SIZE]),
    ],
    "quotes": [
        Document(format, start + quote * (SIZE - len(start)))
        for format, start in (("json", ""), ("yaml", "a: "), ("toml", "a = "))
        for quote in "\"'"
    ],
    "one key many times": [
        Document("json", "{" + '"a":0,' * (SIZE // 6 - 2) + '"a":0}'),
        Document("yaml", "a: 0\n" * 10_000),
        Document("toml", "a=0\n" * 20_000),
    ],
    "many unknown fields": [
        Document("json", '{"type": "run"' + "".join(f',"k{n}":0' for n in range(3_000)) + "}")
    ],
}  # fmt: skip
