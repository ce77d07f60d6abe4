"""The number of batches per optimizer step, which all accelerators of a process share."""

import warnings
from typing import Any

from accelerate.state import GradientState

from ignite_hooks.core.accelerators import ShortWindow
from ignite_hooks.core.accelerators import full_window_settings
from ignite_hooks.optim.window import Window

__all__ = ["Accumulation"]


class Accumulation:
    """The number of batches in a full window.

    A window is the batches whose gradients are accumulated for one optimizer step. Accelerate keeps
    the number of batches in a dict of settings, ``GradientState.plugin_kwargs``, which all
    accelerators of the process share. ``Accelerator(gradient_accumulation_steps=8)`` replaces the
    dict. ``accelerator.gradient_accumulation_steps = 8`` changes the number in the dict. So a new
    dict means that an accelerator was created, and a new number in the same dict means that the
    user has set the number.

    Args:
        gradient_state: Accelerate's ``GradientState``, which holds the settings.
        window: counts the batches of the present window.
    """

    def __init__(self, gradient_state: GradientState, window: Window) -> None:
        self._gradient_state = gradient_state
        self._window = window
        self._settings = full_window_settings(gradient_state)
        self._short_window: ShortWindow | None = None

    def full_size(self) -> int:
        """Returns the size of a full window in batches; warns if a new accelerator changed it."""
        # The settings are read directly, because Accelerate's property ``num_steps`` would double
        # the cost of this method.
        settings = self._gradient_state.plugin_kwargs
        if settings is not self._settings:
            if not self._window.count:
                self.restore()  # after an exception, `shorten` may not have been undone
            settings = self._settings = self._warn_if_changed(
                full_window_settings(self._gradient_state)
            )
        size: int = settings.get("num_steps", 1)
        return size

    def shorten(self, size: int) -> None:
        """Makes ``accelerator.backward`` divide losses by ``size`` until ``restore`` is called.

        Args:
            size: the number of batches of the present window.
        """
        if (
            self._short_window is None
            or self._gradient_state.plugin_kwargs is not self._short_window
        ):
            self._short_window = ShortWindow(self._settings, size)
            self._gradient_state.plugin_kwargs = self._short_window
        elif self._short_window.size != size:
            self._short_window["num_steps"] = self._short_window.size = size

    def restore(self) -> None:
        """Undoes ``shorten``; keeps a number of batches that the user has set since."""
        short = self._short_window
        if short is None:
            return
        if self._gradient_state.plugin_kwargs is short:  # no accelerator was created since
            if short["num_steps"] != short.size:  # the user has set another number
                short.whole["num_steps"] = short["num_steps"]
            self._gradient_state.plugin_kwargs = short.whole
        self._short_window = None

    def _warn_if_changed(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Returns ``settings``; warns if another accelerator has changed the number of batches."""
        before, now = (each.get("num_steps", 1) for each in (self._settings, settings))
        if settings is not self._settings and before != now:
            warnings.warn(
                "all accelerators of a process must have the same `gradient_accumulation_steps`, "
                "because Accelerate keeps one number for all of them: this run was built with "
                f"{before}, and a later Accelerator has {now}, so this run now takes {now} batches "
                f"a step. Make the later Accelerator with {before}, or set "
                f"accelerator.gradient_accumulation_steps = {before} before this run",
                stacklevel=4,
            )
        return settings
