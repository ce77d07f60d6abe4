"""How many batches go into one optimizer step, and whether the present one is the last of them."""

__all__ = ["Window"]


class Window:
    """The batches of one step: as many as wanted, or as many as are left.

    Args:
        size: how many batches the window is going to have, as far as is known when it opens.
        count: how many it has.
        taken: how many all windows have had.
        is_closing: whether the present batch is its last.
    """

    def __init__(self) -> None:
        self.size = 1
        self.count = 0
        self.taken = 0
        self.is_closing = False

    def take(self, full_size: int, left: int | None) -> None:
        """Takes a batch, the first of a new window if none is open.

        Args:
            full_size: how many batches a window has unless the data ends.
            left: how many batches the data has from this one on; None where that is not known.
        """
        if self.count == 0:
            self.size = full_size if left is None else min(full_size, left)
        self.count += 1
        self.taken += 1
        self.is_closing = self.count >= self.size or left == 1

    def close(self) -> None:
        """Leaves no batch in it; the next ``take`` opens a new one."""
        self.count = 0
        self.is_closing = False
