"""The command line of this process, with its secrets redacted."""

import re
import sys
from collections.abc import Iterator
from collections.abc import Sequence
from functools import cache

from ignite_hooks.checkpoint.plain_data import plain_text

__all__ = ["command_line", "without_secrets"]

HIDDEN = "***"
MAX_LENGTH = 8192
"""The number of characters after which the command line is cut."""
MAX_ARGUMENT_LENGTH = 1024
"""The number of characters after which a single argument is cut."""
MAX_SEARCHED_LENGTH = 4096
"""The length of the longest argument that is searched for secrets.

A longer argument is not shown. A text with its length replaces it: "(5000 characters)".
"""

_SECRET_WORDS = {
    "auth", "authorization", "bearer", "cookie", "credential", "jwt", "key", "pass", "passcode",
    "passphrase", "passwd", "password", "pat", "pw", "pwd", "sas", "secret", "sig", "signature",
    "token",
}  # fmt: skip
_PLURAL_SECRET_WORDS = {"cookies", "credentials", "keys", "passwords", "secrets", "tokens"}
# These endings mark a word without separators as the name of a secret: "--hftoken", "APIKEY".
_SECRET_SUFFIX = re.compile(
    r"(?:token|secret|password|passwd|passphrase|pwd|credentials?"
    r"|(?:api|access|account|auth|private|secret|encryption|license|ssh)key)$"
)
_NUMBER = re.compile(r"[-+]?[\d_.,]+(?:e[-+]?\d+)?[kmgtb]?", re.IGNORECASE)
# Options and assignments may begin with "-" or "--", with "/" as on Windows, or with "+", "++" or
# "~" as for Hydra.
_OPTION = re.compile(r"(-{1,2}|\+{0,2}|~|/)([^\W\d][\w.-]*)")
_ASSIGNMENT = re.compile(r"((?:-{0,2}|\+{0,2}|~|/)([^\W\d][\w.-]*)\s*[=:]\s*)(?!//)(.*)", re.DOTALL)
# The look-behind lets a match begin only at the start of a word. If a match could begin at every
# character, the time of the search would be quadratic in the length of the argument.
_NAME_BEFORE_VALUE = re.compile(r"""(?<![\w.-])-*([^\W\d][\w.-]*)["']?\s*[=:]\s*(?!//)""")
_VALUE = re.compile(
    r"""("[^"]*"|'[^']*'|(?:(?:bearer|basic|token)\s+)?[^\s,;&"'}\])]+)""", re.IGNORECASE
)
_URL_CREDENTIALS = re.compile(
    r"(?<![a-z0-9+.-])([a-z][a-z0-9+.-]*://)"
    r"(?:[^\s/]*|[^\s/:@]*:(?!\d+(?:/|$))\S*)@",
    re.IGNORECASE,
)
_BEARER_TOKEN = re.compile(r"(\bbearer\s+)[^\s\"']+", re.IGNORECASE)
# A token of a well-known service has a special format, so it is found anywhere in a text.
_KNOWN_TOKEN = re.compile(
    r"\b(?:hf_\w{16,}|gh[a-z]_\w{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}|sk-[\w-]{16,}"
    r"|xox[a-z]-[\w-]{10,}|(?:AKIA|ASIA)[0-9A-Z]{16}|AIza[\w-]{30,}|npm_\w{30,}|pypi-[\w-]{16,}"
    r"|eyJ[\w-]{8,}\.[\w-]+\.[\w-]*)"
    r"|-----BEGIN[ A-Z]*PRIVATE KEY-----(?:.|\n)*"
)
_CAMEL_CASE_BOUNDARY = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


@cache
def command_line() -> tuple[str, ...]:
    """Returns the command line that started the program, without secrets and bounded in length.

    The command line is ``sys.orig_argv``, which includes the options of the interpreter. In a
    process that ``multiprocessing`` has spawned, ``sys.orig_argv`` has only internal code. In
    that case the arguments are taken from ``sys.argv``, a copy from the parent process.
    """
    arguments = [str(each) for each in sys.orig_argv]
    if not arguments or any(each.startswith("from multiprocessing.") for each in arguments):
        arguments = [sys.executable or "python", *(str(each) for each in sys.argv)]
    shown, remaining = [], MAX_LENGTH
    for number, argument in enumerate(without_secrets(arguments)):
        text = plain_text(argument, MAX_ARGUMENT_LENGTH)
        remaining -= len(text)
        if remaining < 0:
            shown.append(f"... {len(arguments) - number} more")
            break
        shown.append(text)
    return tuple(shown)


def without_secrets(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments with ``***`` in place of each secret.

    A value is a secret if its name has a word such as token, key, secret or password, or if the
    value has the format of a well-known service's token. Named values are found in options,
    assignments, URLs, headers and JSON: ``--api-key=…``, ``--api-key …``, ``model.token=…``,
    ``https://user:…@host?sig=…``, ``{"password": …}``. A number is not replaced if its name
    has such a word only in the plural, as in ``--max-tokens 512``.
    """
    return list(_redact_arguments(arguments))


def _redact_arguments(arguments: Sequence[str]) -> Iterator[str]:
    """Yields each argument without secrets. An option ``--api-key`` hides the next argument."""
    name = ""  # the name of the last option
    is_next = False  # True if the value of a secret option is expected next
    for argument in arguments:
        option = _OPTION.fullmatch(argument) if argument.startswith(("-", "/")) else None
        is_option = argument.startswith("--") or re.fullmatch(r"-[A-Za-z]", argument) is not None
        if is_next and not is_option:
            yield argument if _is_count(name, argument) else HIDDEN
            is_next = _is_plural(name)  # an option like "--tokens A B" has several values
            continue
        name = "" if option is None else option[2]
        is_next = _is_secret(name)
        yield _redact_argument(argument)


def _redact_argument(text: str) -> str:
    """Returns one argument without the secrets that can be recognized from the argument alone."""
    if len(text) > MAX_SEARCHED_LENGTH:
        return f"({len(text)} characters)"
    assigned = _ASSIGNMENT.fullmatch(text)
    if assigned and _is_secret(assigned[2]):
        is_kept = not assigned[3] or _is_count(assigned[2], assigned[3])
        return text if is_kept else assigned[1] + HIDDEN
    text = _URL_CREDENTIALS.sub(rf"\g<1>{HIDDEN}@", text)
    text = _BEARER_TOKEN.sub(rf"\g<1>{HIDDEN}", text)
    text = _KNOWN_TOKEN.sub(HIDDEN, text)
    return "".join(_redact_named_values(text))


def _redact_named_values(text: str) -> Iterator[str]:
    """Yields a text in pieces. ``***`` replaces each value that follows the name of a secret."""
    end = 0
    while named := _NAME_BEFORE_VALUE.search(text, end):
        yield text[end : named.end()]
        end = named.end()
        value = _VALUE.match(text, end)
        if value and _is_secret(named[1]) and not _is_count(named[1], value[0]):
            quote = value[0][0] if value[0][0] in "\"'" else ""
            yield f"{quote}{HIDDEN}{quote}"
            end = value.end()
    yield text[end:]


def _is_secret(name: str) -> bool:
    """Returns whether a name has a word that denotes a secret."""
    return any(
        word in _SECRET_WORDS
        or word in _PLURAL_SECRET_WORDS
        or _SECRET_SUFFIX.search(word) is not None
        for word in _split_words(name)
    )


def _is_count(name: str, value: str) -> bool:
    """Returns whether a value is a count and not a secret, as in ``--max-tokens 512``."""
    return _is_plural(name) and _NUMBER.fullmatch(value) is not None


def _is_plural(name: str) -> bool:
    """Returns whether a name has a plural secret word and no singular one.

    For example, "max_tokens" has "tokens" only, and "keys_token" has the singular "token", too.
    """
    words = _split_words(name)
    return any(word in _PLURAL_SECRET_WORDS for word in words) and not any(
        word in _SECRET_WORDS for word in words
    )


def _split_words(name: str) -> list[str]:
    return [
        word.lower() for word in re.split(r"[\W_]+", _CAMEL_CASE_BOUNDARY.sub("_", name)) if word
    ]
