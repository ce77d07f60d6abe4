"""Old names of arguments, which work with a warning until a later version removes them.

For the old name of a function or a class, use ``typing_extensions.deprecated``.
"""

import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any
from typing import TypeVar

__all__ = ["renamed_argument"]

TargetT = TypeVar("TargetT", bound=Callable[..., Any])


def renamed_argument(old: str, new: str, *, removed_in: str) -> Callable[[TargetT], TargetT]:
    """Lets a function or a class accept the keyword ``old`` for its argument ``new``.

    A DeprecationWarning names the new name and ``removed_in``, the first version without the old
    name. ``help``, type checkers and settings files know the new name only.
    """

    def decorate(target: Any) -> Any:
        is_class = isinstance(target, type)
        function = target.__init__ if is_class else target

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if old in kwargs:
                message = f"`{old}` of `{target.__name__}` was renamed: write {new}=…"
                if new in kwargs:
                    raise TypeError(f"{message}, got both names")
                message += f"; version {removed_in} removes the old name"
                warnings.warn(message, DeprecationWarning, stacklevel=2)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        if is_class:
            target.__init__ = call
        return target if is_class else call

    return decorate
