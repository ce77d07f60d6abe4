"""Generic aliases that behave as on Python 3.10, on any version of Python."""

from types import GenericAlias


class AliasOfPython310(GenericAlias):
    """A ``list[int]`` that says it is a class, and that ``issubclass`` refuses."""

    __class__ = property(lambda self: type)


NUMBERS = AliasOfPython310(list, (int,))
