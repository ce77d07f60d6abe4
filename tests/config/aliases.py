"""Annotations as Python 3.10 has them, on any version of Python."""

from types import GenericAlias


class AliasOfPython310(GenericAlias):
    """A ``list[int]`` that says it is a class, and that ``issubclass`` refuses."""

    __class__ = property(lambda self: type)


NUMBERS = AliasOfPython310(list, (int,))
