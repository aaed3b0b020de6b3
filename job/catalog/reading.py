"""Many objects at once: what is far away is waited for together."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

AT_ONCE = 32  # small objects; storage keeps as many connections

Item = TypeVar("Item")
Found = TypeVar("Found")


def each(
    read: Callable[[Item], Found], items: Sequence[Item], at_once: int = AT_ONCE
) -> list[Found]:
    """Return what `read` makes of each of `items`, in their order, several of them at once.

    The first goes alone: it makes the connection that all others share.

    Raises:
        Exception: what `read` raises for the first item that it fails for.
    """
    found = [read(item) for item in items[:1]]
    pool = ThreadPoolExecutor(at_once, thread_name_prefix="reading")
    try:
        found.extend(pool.map(read, items[1:]))
    finally:
        pool.shutdown(cancel_futures=True)
    return found
