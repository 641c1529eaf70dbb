from __future__ import annotations

import re

from ci_platform.engine import derived_id, new_id, seed_of, stable_id


def test_new_ids_sort_by_time_and_differ_within_a_millisecond() -> None:
    ids = [new_id("run", ms) for ms in (1, 2, 1_700_000_000_000, 1_700_000_000_001)]
    assert ids == sorted(ids)
    assert len({new_id("run", 5) for _ in range(1000)}) == 1000


def test_ids_are_a_prefix_and_26_crockford_characters() -> None:
    for made in (new_id("op", 1_700_000_000_000), stable_id("run", "a"), derived_id("op", 3, "b")):
        assert re.fullmatch(r"(op|run)_[0-9a-hjkmnp-tv-z]{26}", made)


def test_a_stable_id_is_the_same_for_the_same_parts_and_no_others() -> None:
    assert stable_id("run", "hook", "delivery-1") == stable_id("run", "hook", "delivery-1")
    assert stable_id("run", "ab", "c") != stable_id("run", "a", "bc")
    assert stable_id("run", "a") != stable_id("run", "a", "")


def test_a_derived_id_sorts_by_time_and_repeats_for_equal_parts() -> None:
    assert derived_id("op", 9, "x") == derived_id("op", 9, "x")
    assert derived_id("op", 9, "x") < derived_id("op", 10, "a")


def test_a_seed_belongs_to_its_run() -> None:
    assert seed_of("run_1") == seed_of("run_1") != seed_of("run_2")
