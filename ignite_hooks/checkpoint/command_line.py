"""The command line of this process, without the secrets in it."""

import re
import sys
from collections.abc import Iterator
from collections.abc import Sequence
from functools import cache

from ignite_hooks.checkpoint.plain_data import plain_text

__all__ = ["command_line", "without_secrets"]

HIDDEN = "***"
MAX_LENGTH = 8192
"""Characters of all arguments together."""
MAX_ARGUMENT = 1024
"""Characters that are shown of one argument."""
MAX_SEARCHED = 4096
"""Characters of an argument that is searched for secrets; of a longer one the length is shown."""

_ONE = {
    "auth", "authorization", "bearer", "cookie", "credential", "jwt", "key", "pass", "passcode",
    "passphrase", "passwd", "password", "pat", "pw", "pwd", "sas", "secret", "sig", "signature",
    "token",
}  # fmt: skip
_SEVERAL = {"cookies", "credentials", "keys", "passwords", "secrets", "tokens"}
# Words that are written together: "--hftoken", "APIKEY".
_WITHIN = re.compile(
    r"(?:token|secret|password|passwd|passphrase|pwd|credentials?"
    r"|(?:api|access|account|auth|private|secret|encryption|license|ssh)key)$"
)
_NUMBER = re.compile(r"[-+]?[\d_.,]+(?:e[-+]?\d+)?[kmgtb]?", re.IGNORECASE)
_OPTION = re.compile(r"(-{1,2}|\+{0,2}|~|/)([^\W\d][\w.-]*)")
_ASSIGNED = re.compile(r"((?:-{0,2}|\+{0,2}|~|/)([^\W\d][\w.-]*)\s*[=:]\s*)(?!//)(.*)", re.DOTALL)
# Each begins where a word begins: a search that began at every character would take its square.
_NAMED = re.compile(r"""(?<![\w.-])-*([^\W\d][\w.-]*)["']?\s*[=:]\s*(?!//)""")
_VALUE = re.compile(
    r"""("[^"]*"|'[^']*'|(?:(?:bearer|basic|token)\s+)?[^\s,;&"'}\])]+)""", re.IGNORECASE
)
_IN_URL = re.compile(
    r"(?<![a-z0-9+.-])([a-z][a-z0-9+.-]*://)"
    r"(?:[^\s/]*|[^\s/:@]*:(?!\d+(?:/|$))\S*)@",
    re.IGNORECASE,
)
_BEARER = re.compile(r"(\bbearer\s+)[^\s\"']+", re.IGNORECASE)
# Tokens of services that are known by their shape, wherever they stand.
_KNOWN = re.compile(
    r"\b(?:hf_\w{16,}|gh[a-z]_\w{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}|sk-[\w-]{16,}"
    r"|xox[a-z]-[\w-]{10,}|(?:AKIA|ASIA)[0-9A-Z]{16}|AIza[\w-]{30,}|npm_\w{30,}|pypi-[\w-]{16,}"
    r"|eyJ[\w-]{8,}\.[\w-]+\.[\w-]*)"
    r"|-----BEGIN[ A-Z]*PRIVATE KEY-----(?:.|\n)*"
)
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


@cache
def command_line() -> tuple[str, ...]:
    """Returns the command line that started the program, as it may be shown to others.

    A process that ``multiprocessing`` has started has a command line that says nothing; its
    ``sys.argv`` is that of the program.
    """
    arguments = [str(each) for each in sys.orig_argv]
    if not arguments or any(each.startswith("from multiprocessing.") for each in arguments):
        arguments = [sys.executable or "python", *(str(each) for each in sys.argv)]
    shown, left = [], MAX_LENGTH
    for number, argument in enumerate(without_secrets(arguments)):
        text = plain_text(argument, MAX_ARGUMENT)
        left -= len(text)
        if left < 0:
            shown.append(f"... {len(arguments) - number} more")
            break
        shown.append(text)
    return tuple(shown)


def without_secrets(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments with ``***`` for each value that is a secret by its name or shape.

    Names that have a word such as token, key, secret or password count, in options, assignments,
    URLs, headers and JSON: ``--api-key=…``, ``--api-key …``, ``model.token=…``,
    ``https://user:…@host?sig=…``, ``{"password": …}``.
    """
    return list(_shown(arguments))


def _shown(arguments: Sequence[str]) -> Iterator[str]:
    name, is_next = "", False  # of the option before, and whether the argument is its value
    for argument in arguments:
        option = _OPTION.fullmatch(argument) if argument.startswith(("-", "/")) else None
        is_option = argument.startswith("--") or re.fullmatch(r"-[A-Za-z]", argument) is not None
        if is_next and not is_option:
            yield argument if _is_count(name, argument) else HIDDEN
            is_next = _is_plural(name)  # then it may take several values
            continue
        name = "" if option is None else option[2]
        is_next = _is_secret(name)
        yield _scrubbed(argument)


def _scrubbed(text: str) -> str:
    """Returns one argument without the values that it names as secrets itself."""
    if len(text) > MAX_SEARCHED:
        return f"({len(text)} characters)"
    assigned = _ASSIGNED.fullmatch(text)
    if assigned and _is_secret(assigned[2]):
        is_kept = not assigned[3] or _is_count(assigned[2], assigned[3])
        return text if is_kept else assigned[1] + HIDDEN
    text = _IN_URL.sub(rf"\g<1>{HIDDEN}@", text)
    text = _BEARER.sub(rf"\g<1>{HIDDEN}", text)
    text = _KNOWN.sub(HIDDEN, text)
    return "".join(_without_named(text))


def _without_named(text: str) -> Iterator[str]:
    """Yields the pieces of a text, values after a secret's name hidden, in JSON for instance."""
    end = 0
    while named := _NAMED.search(text, end):
        yield text[end : named.end()]
        end = named.end()
        value = _VALUE.match(text, end)
        if value and _is_secret(named[1]) and not _is_count(named[1], value[0]):
            quote = value[0][0] if value[0][0] in "\"'" else ""
            yield f"{quote}{HIDDEN}{quote}"
            end = value.end()
    yield text[end:]


def _is_secret(name: str) -> bool:
    return any(
        word in _ONE or word in _SEVERAL or _WITHIN.search(word) is not None
        for word in _words(name)
    )


def _is_count(name: str, value: str) -> bool:
    """Returns whether a value counts secrets, or what is called so: ``--max-tokens 512``."""
    return _is_plural(name) and _NUMBER.fullmatch(value) is not None


def _is_plural(name: str) -> bool:
    words = _words(name)
    return any(word in _SEVERAL for word in words) and not any(word in _ONE for word in words)


def _words(name: str) -> list[str]:
    return [word.lower() for word in re.split(r"[\W_]+", _CAMEL.sub("_", name)) if word]
