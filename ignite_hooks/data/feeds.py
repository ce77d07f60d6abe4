"""One feed for each loader."""

from typing import Any

from accelerate import Accelerator
from torch.utils.data import DataLoader

from ignite_hooks.data.feed import DataFeed

__all__ = ["Feeds"]


class Feeds:
    """The feeds of an engine: no loader is prepared twice, and each goes on where it was left.

    Loaders are remembered as long as the engine is, as Accelerate remembers what it prepared.

    Args:
        accelerator: prepares the loaders.
        even_batches: as in ``DataFeed``.
    """

    def __init__(self, accelerator: Accelerator, even_batches: bool = True) -> None:
        self._accelerator = accelerator
        self._even_batches = even_batches
        self._of_loaders: dict[Any, DataFeed] = {}
        self._newest: tuple[Any, DataFeed | None] = (None, None)

    def of(self, data: Any) -> DataFeed:
        """The feed of ``data``; of data that is no DataLoader only the newest is remembered."""
        if isinstance(data, DataFeed):
            return data
        newest, feed = self._newest
        if feed is not None and data is newest:
            return feed
        known = self._of_loaders.get(data) if isinstance(data, DataLoader) else None
        if known is None:
            known = DataFeed(data, self._accelerator, even_batches=self._even_batches)
        self.add(data, known)
        return known

    def add(self, data: Any, feed: DataFeed) -> None:
        """Says that ``feed`` is the one of ``data``."""
        self._newest = data, feed
        for loader in (data, feed.loader):
            if isinstance(loader, DataLoader):
                self._of_loaders[loader] = feed
