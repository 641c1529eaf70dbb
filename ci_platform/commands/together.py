"""Doing a few things at once that wait for other servers, without holding up a process that ends.

An executor's threads are waited for when the interpreter ends, however long they take; these are
not: what they were at is due again when its time in hand is over.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def together(work: Callable[[T], None], items: Sequence[T], *, name: str) -> None:
    """Do it for each item on a thread of its own; returns when all have ended. The caller bounds
    how many there are. Raises what the first one that failed raised."""
    failed: list[Exception] = []

    def one(item: T) -> None:
        try:
            work(item)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=one, args=(item,), name=name, daemon=True) for item in items]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
