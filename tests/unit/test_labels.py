"""Labels: how they are read, and which pool of commands a worker with them may empty."""

from __future__ import annotations

import pytest

from ci_platform.errors import InvalidRequest
from ci_platform.labels import (
    RECALL,
    most_wanting,
    own_labels,
    parse_labels,
    pool_of,
    pool_of_labels,
    serves,
)


def test_labels_are_read_from_a_list_with_commas() -> None:
    assert parse_labels(" gpu, arm64,gpu ,") == ("gpu", "arm64")
    assert parse_labels("") == ()


@pytest.mark.parametrize("bad", ["a b", "$recall", "-x", "x" * 65, "ä", "a\n"])
def test_what_is_no_label_is_refused_by_name(bad: str) -> None:
    with pytest.raises(InvalidRequest, match="is not a label") as raised:
        parse_labels(f"gpu,{bad}x" if bad == "a\n" else f"gpu,{bad}")
    assert raised.value.field == "labels"


def test_there_may_be_no_more_than_a_few() -> None:
    with pytest.raises(InvalidRequest, match="17 labels: at most 16"):
        parse_labels(",".join(f"l{n}" for n in range(17)))


def test_every_worker_has_its_system_and_architecture() -> None:
    system, architecture, both = own_labels()
    assert both == f"{system}/{architecture}"
    assert parse_labels(",".join(own_labels())) == own_labels()


def test_a_worker_serves_the_pools_whose_labels_it_has() -> None:
    assert pool_of({"script": "x"}) == ""
    assert pool_of({"labels": ["gpu", "big", "gpu"]}) == "big gpu"
    assert pool_of({"labels": ["gpu"], "cache": {"inputs": []}}) == RECALL
    assert serves((), "") and serves(("gpu", "big"), "big gpu")
    assert not serves(("gpu",), "big gpu") and not serves(("gpu",), RECALL)
    assert most_wanting(["", "gpu", "big gpu", "arm"]) == ["big gpu", "arm", "gpu", ""]
    assert pool_of_labels(()) == ""
