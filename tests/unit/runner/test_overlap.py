"""Which layers of parallel steps may lie on one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from ci_platform.runner.overlap import DIRECTORY, Listing, cache_directories, overlap


def layer(
    written: Mapping[str, str] | None = None,
    deleted: Sequence[str] = (),
    caches: Sequence[str] = (),
) -> Listing:
    return Listing(written or {}, deleted, caches)


@pytest.mark.parametrize(
    ("one", "other", "path"),
    [
        (layer({"a": "1"}), layer({"b": "1"}), None),
        (layer({"a": "1"}), layer({"a": "2"}), "a"),
        (layer({"a": "1"}), layer({"a": "1"}), None),
        (layer({"b": "1", "a": "1"}), layer({"a": "2", "b": "2"}), "a"),
        (layer(deleted=["a"]), layer(deleted=["a"]), None),
        (layer(deleted=["a"]), layer({"a": "1"}), "a"),
        (layer(deleted=["d"]), layer({"d/e/f": "1"}), "d/e/f"),
        (layer(deleted=["d"]), layer(deleted=["d/e"]), None),
        (layer({"d": "1"}), layer({"d/e": "1"}), "d/e"),
        (layer({"d": DIRECTORY, "d/a": "1"}), layer({"d": DIRECTORY, "d/b": "1"}), None),
        (layer({"d": DIRECTORY}), layer({"d": "link to e"}), "d"),
        (layer({"d": "1"}), layer({"d2/e": "1"}), None),
    ],
)
def test_layers_collide_where_both_changed_a_path_in_their_own_way(
    one: Listing, other: Listing, path: str | None
) -> None:
    assert overlap(one, other) == path
    assert overlap(other, one) == path


def test_caches_of_tools_do_not_collide() -> None:
    one = layer({"p/__pycache__/m.pyc": "1", "c/x/y": "1"}, caches=["c"])
    other = layer({"p/__pycache__/m.pyc": "2", "c/x/y": "2"})
    assert overlap(one, other) is None
    assert overlap(other, one) is None
    assert overlap(layer({"c/x": "1"}), layer({"c/x": "2"})) == "c/x"


def test_a_cache_is_a_directory_with_a_tag() -> None:
    there = dict.fromkeys(["c/CACHEDIR.TAG", "c/d/e", "f/g", "h/CACHEDIR.TAG"])
    assert cache_directories(["c/d/e", "f/g"], there) == ["c"]
