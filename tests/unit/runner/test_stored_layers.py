from __future__ import annotations

import time
from pathlib import Path

import obstore
from obstore.store import LocalStore, MemoryStore, ObjectStore

from ci_platform.runner.layers import layer_path
from ci_platform.runner.stored_layers import StoredLayers

LATER_MS = 4_000_000_000_000


def put(objects: ObjectStore, *digests: str) -> None:
    for digest in digests:
        obstore.put(objects, layer_path(digest), b"x")


def listed(layers: StoredLayers, before_ms: int) -> list[str]:
    return sorted(digest for page in layers.stored(before_ms=before_ms) for digest in page)


def test_layers_are_listed_by_digest_once_they_are_old(tmp_path: Path) -> None:
    for objects in (MemoryStore(), LocalStore(tmp_path)):
        put(objects, "a" * 64, "b" * 64)
        obstore.put(objects, "packs/cc/c.pack", b"x")
        layers = StoredLayers(objects)
        assert listed(layers, LATER_MS) == ["a" * 64, "b" * 64]
        assert listed(layers, 1000) == []


def test_a_layer_that_was_stored_again_meanwhile_stays() -> None:
    objects = MemoryStore()
    layers = StoredLayers(objects)
    put(objects, "a" * 64, "b" * 64)
    assert layers.remove(["a" * 64], before_ms=1000) == 0
    now_ms = round(time.time() * 1000)
    assert layers.remove(["b" * 64, "gone"], before_ms=now_ms + 60_000) == 1
    assert listed(layers, LATER_MS) == ["a" * 64]


def test_an_empty_store_has_no_layers(tmp_path: Path) -> None:
    assert listed(StoredLayers(LocalStore(tmp_path)), LATER_MS) == []
