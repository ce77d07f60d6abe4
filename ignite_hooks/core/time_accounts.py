"""Accounts that divide the time of an engine's runs, and functions that charge time to them."""

from collections import defaultdict
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import AbstractContextManager
from contextlib import contextmanager
from typing import Any
from weakref import ref

from ignite_hooks.core.engine import engine_storage
from ignite_hooks.core.scopes import NULL_CONTEXT
from ignite_hooks.core.training_engine import AnyEngine

__all__ = [
    "OTHER",
    "TimeAccounts",
    "account_of",
    "charged_in_background",
    "charged_to",
    "set_time_accounts",
]

OTHER = "other"
"""The account of the time that no other account has."""


# The handlers whose time is charged to a part of training.
_PARTS = {
    "OptimizerStep": "optimizer",
    "SaveCheckpoint": "checkpoint",
    "Validation": "validation",
}


def account_of(handler_name: str) -> str:
    """Returns the account to which the time of a handler is charged."""
    return _PARTS.get(handler_name) or f"handlers/{handler_name}"


class TimeAccounts:
    """Divides the time of an engine's runs over accounts.

    Each moment of a run is charged to exactly one account, so the seconds of all accounts add up to
    the duration of the run. If the code of one account calls the code of another, for example a
    handler that runs a validation, the time of the call is charged to the other account only.

    Args:
        clock: returns seconds.

    Attributes:
        background: the seconds by account that background threads took beside the run.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.background: defaultdict[str, float] = defaultdict(float)
        self._earlier: dict[str, float] = {}  # the seconds of earlier calls of ``engine.run``
        self._seconds: defaultdict[str, float] = defaultdict(float)  # of the present call
        self._current, self._since = OTHER, 0.0  # the present account, and since when it is charged
        self._is_counting = False

    def switch(self, account: str, engine: object = None) -> str:
        """Charges the time from now on to ``account``, and returns the account until now.

        This is the hot path. Outside a run the call has no effect on ``seconds``. ``engine`` is not
        used: with this argument, ``partial(switch, account)`` is a handler.
        """
        now, current = self.clock(), self._current
        self._seconds[current] += now - self._since
        self._since, self._current = now, account
        return current

    def start(self, *, is_continued: bool) -> None:
        """Starts to count, when ``engine.run`` is entered.

        Args:
            is_continued: whether an interrupted run continues, and with it the present account.
        """
        self._seconds = defaultdict(float)
        if not is_continued:
            self._current = OTHER
        self._since, self._is_counting = self.clock(), True

    def stop(self) -> None:
        """Stops to count, when ``engine.run`` is left. A second call does nothing."""
        # One statement, so that Ctrl-C cannot come in between.
        self._earlier, self._is_counting = self.seconds, False

    def forget_earlier(self) -> None:
        """Forgets the earlier calls of ``engine.run``, because a new run has begun."""
        self._earlier = {}
        self.background.clear()

    @property
    def seconds(self) -> dict[str, float]:
        """The seconds by account, until now."""
        if not self._is_counting:
            return {**self._earlier}
        # Nothing is charged here, because another thread may read the seconds. Python runs neither
        # a garbage collection nor another thread within this line once the copy is begun.
        charged, current, since = {**self._seconds}, self._current, self._since
        charged[current] = charged.get(current, 0.0) + (self.clock() - since)
        names = {**self._earlier, **charged}
        return {name: self._earlier.get(name, 0.0) + charged.get(name, 0.0) for name in names}

    @contextmanager
    def charged(self, account: str) -> Iterator[None]:
        """Charges the time of the body to ``account``."""
        previous = self.switch(account)
        try:
            yield
        finally:
            self.switch(previous)

    @contextmanager
    def charged_in_background(self, account: str) -> Iterator[None]:
        """Adds the duration of the body, which runs in a thread, to ``background``."""
        began = self.clock()
        try:
            yield
        finally:
            self.background[account] += self.clock() - began


def set_time_accounts(engine: AnyEngine, accounts: TimeAccounts) -> Callable[[], None]:
    """Makes ``accounts`` those of ``engine``, and returns a function that removes them again."""
    engine_storage(engine)["time_accounts"] = accounts
    engine_ref = ref(engine)

    def remove() -> None:
        if (owner := engine_ref()) is not None:
            engine_storage(owner).pop("time_accounts", None)

    return remove


def charged_to(engine: AnyEngine, account: str) -> AbstractContextManager[Any]:
    """Returns a context manager that charges the time of its body, if ``engine`` has accounts."""
    accounts: TimeAccounts | None = engine_storage(engine).get("time_accounts")
    return NULL_CONTEXT if accounts is None else accounts.charged(account)


def charged_in_background(engine: AnyEngine, account: str) -> AbstractContextManager[Any]:
    """Returns a context manager for a thread that works beside the run of ``engine``."""
    accounts: TimeAccounts | None = engine_storage(engine).get("time_accounts")
    return NULL_CONTEXT if accounts is None else accounts.charged_in_background(account)
