"""Accelerate's number of batches per step, of which a process has one."""

import warnings
from typing import Any

from accelerate.state import GradientState

from ignite_hooks.core.accelerators import ShortWindow
from ignite_hooks.core.accelerators import whole_accumulation
from ignite_hooks.optim.window import Window

__all__ = ["Accumulation"]


class Accumulation:
    """The size of windows, as Accelerate keeps it for all accelerators of the process.

    ``Accelerator(gradient_accumulation_steps=8)`` replaces the settings of all accelerators;
    ``accelerator.gradient_accumulation_steps = 8`` writes into them. So the settings that an
    OptimizerStep was built with tell the one from the other.

    Args:
        gradient_state: Accelerate's, which holds the settings.
        window: the window of the present batches.
    """

    def __init__(self, gradient_state: GradientState, window: Window) -> None:
        self._state = gradient_state
        self._window = window
        self._settings = whole_accumulation(gradient_state)
        self._short: ShortWindow | None = None

    def full_size(self) -> int:
        """Returns the number of batches of a full window; warns if another accelerator set it."""
        settings = self._state.plugin_kwargs  # Accelerate's property `num_steps` costs as much
        if settings is not self._settings:
            if not self._window.count:
                self.restore()  # of a window that was interrupted on its way out
            settings = self._settings = self._check(whole_accumulation(self._state))
        size: int = settings.get("num_steps", 1)
        return size

    def shorten(self, size: int) -> None:
        """Has ``accelerator.backward`` divide by ``size`` until ``restore`` is called."""
        if self._short is None or self._state.plugin_kwargs is not self._short:
            self._short = ShortWindow(self._settings, size)
            self._state.plugin_kwargs = self._short
        elif self._short.size != size:
            self._short["num_steps"] = self._short.size = size

    def restore(self) -> None:
        """Ends what ``shorten`` began, if it did; a number set by the user meanwhile stays."""
        short = self._short
        if short is None:
            return
        if self._state.plugin_kwargs is short:  # and no accelerator was made meanwhile
            if short["num_steps"] != short.size:
                short.whole["num_steps"] = short["num_steps"]
            self._state.plugin_kwargs = short.whole
        self._short = None

    def _check(self, settings: dict[str, Any]) -> dict[str, Any]:
        before, now = (each.get("num_steps", 1) for each in (self._settings, settings))
        if settings is not self._settings and before != now:
            warnings.warn(
                "all accelerators of a process must have the same `gradient_accumulation_steps`, "
                f"of which Accelerate keeps one: an Accelerator({before}) was followed by an "
                f"Accelerator({now}), so this training, built with {before}, now takes {now} "
                "batches a step. Make the second one with the number of the first, or set "
                f"accelerator.gradient_accumulation_steps = {before} before this run",
                stacklevel=4,
            )
        return settings
