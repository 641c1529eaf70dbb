"""What the host must hear of one activation: commands, in the order in which they came up.

A step's `finish` may wait here after the code went on with it already (early completion, see
replay.py). Which one is next for that must not be searched for: each of thousands of steps that
run together would look at all the others. Used by replay.py only.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from pipelines.history import Key
from pipelines.wire import Json

FINISH = "finish"
_encode = json.JSONEncoder(separators=(",", ":")).encode


@dataclass(eq=False, slots=True)
class Passed:
    """A `finish` command of a body that returned."""

    attempt: int
    value: str  # as JSON
    at_ms: int  # on the run's clock
    early: bool = False  # the code has gone on with it already


Fields: TypeAlias = Mapping[str, Json] | Passed | str  # a text is a whole command as JSON


class Outbox:
    def __init__(self) -> None:
        self._items: dict[tuple[str, Key], Fields] = {}
        self._order: deque[tuple[str, Key]] = deque()  # may begin with what is gone, or early

    def put(self, op: str, key: Key, fields: Fields) -> None:
        if (op, key) not in self._items:
            self._order.append((op, key))
        self._items[op, key] = fields

    def drop(self, op: str, key: Key) -> None:
        self._items.pop((op, key), None)

    def holds(self, op: str, key: Key) -> bool:
        return (op, key) in self._items

    def next_early(self) -> tuple[Key, Passed] | None:
        """The end of a body that the code may go on with next: none that it does not know of, and
        nothing else that it asked for, stands before it."""
        order = self._order
        while order:
            fields = self._items.get(order[0])
            if isinstance(fields, Passed) and not fields.early:
                return order[0][1], fields
            if fields is not None and not isinstance(fields, Passed):
                return None
            order.popleft()
        return None

    def all_early(self) -> bool:
        return all(isinstance(each, Passed) and each.early for each in self._items.values())

    def clear(self) -> None:
        self._items.clear()
        self._order.clear()

    def __iter__(self) -> Iterator[tuple[str, Key, Fields]]:
        for (op, key), fields in self._items.items():
            yield op, key, fields


def command_of(op: str, key: Key, fields: Fields) -> str:
    """A command as JSON. Encoded no sooner: most commands of a replay are never sent."""
    if isinstance(fields, str):
        return fields
    if isinstance(fields, Passed):
        early = f',"early_ms":{fields.at_ms}' if fields.early else ""
        return (
            f'{{"op":"finish","key":{json.dumps(key)},"attempt":{fields.attempt},'
            f'"value":{fields.value}{early}}}'
        )
    return _encode({"op": op, "key": key, **fields})
