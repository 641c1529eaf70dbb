"""The stored layers and artifacts as a whole, for their sweep: which are old, and removing them.

What refers to them is the platform's knowledge. Called by the worker's duty of layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import obstore
from obstore.exceptions import BaseError
from obstore.store import ObjectStore

from ci_platform.errors import StoreUnavailable
from ci_platform.runner.artifacts import artifact_path
from ci_platform.runner.layers import layer_path

PAGE = 500
_LOGS = "logs/"  # where the store puts logs that have ended
_PREFIXES = (layer_path(""), artifact_path(""), _LOGS)


class StoredLayers:
    """ports.Layers over an object store."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects

    def size(self, digest: str) -> int:
        try:
            return int(obstore.head(self._objects, layer_path(digest))["size"])
        except FileNotFoundError:
            return 0
        except (BaseError, OSError) as error:
            raise StoreUnavailable(f"layer {digest} cannot be looked at: {error}") from error

    def stored(self, *, before_ms: int) -> Iterator[Sequence[str]]:
        try:
            pages = [obstore.list(self._objects, one, chunk_size=PAGE) for one in _PREFIXES]
            for page in chain.from_iterable(pages):
                old = [item["path"] for item in page if _written_ms(item) < before_ms]
                yield [path.rsplit("/", 1)[-1] for path in old]
        except (BaseError, OSError) as error:
            raise StoreUnavailable(f"layers cannot be listed: {error}") from error

    def remove(self, digests: Sequence[str], *, before_ms: int) -> int:
        removed = 0
        for path in (prefix + digest for digest in digests for prefix in _PREFIXES):
            try:
                # A command that made the same changes has stored the same layer again: its entry
                # is about to refer to it.
                if _written_ms(obstore.head(self._objects, path)) < before_ms:
                    obstore.delete(self._objects, path)
                    removed += 1
            except FileNotFoundError:
                continue  # another sweep was here first
            except (BaseError, OSError) as error:
                raise StoreUnavailable(f"{path} cannot be removed: {error}") from error
        return removed


def _written_ms(found: obstore.ObjectMeta) -> float:
    return found["last_modified"].timestamp() * 1000
