"""Leases nobody knows of run out, although their worker lives; those it works on do not."""

from __future__ import annotations

from typing import Any

import pytest

from ci_platform.errors import StoreUnavailable
from ci_platform.testing import FakeClock
from ci_platform.testing.store import InMemoryStore
from tests.unit.worker.world import World, pipeline

CODE = pipeline('return (await step.sh("a", "true")).exit_code')


class DeafStore(InMemoryStore):
    """Writes the first claim of a kind, and loses the answer with the connection."""

    def __init__(self, clock: FakeClock, of: str) -> None:
        super().__init__(clock)
        claims = getattr(self, of)
        claim = claims.claim

        def deaf(*asked: Any, **named: Any) -> Any:
            found = claim(*asked, **named)
            if found:
                claims.claim = claim
                raise StoreUnavailable("the connection is gone")
            return found

        claims.claim = deaf


@pytest.mark.parametrize("of", ["runs", "operations"])
def test_a_claim_whose_answer_was_lost_runs_out_and_is_claimed_again(of: str) -> None:
    world = World(make_store=lambda clock: DeafStore(clock, of))
    run_id = world.start(CODE)
    with pytest.raises(StoreUnavailable):
        world.work()
    world.work()
    assert not world.state(run_id).terminal
    for _ in range(4):  # the same worker goes on all the time, and its heart beats
        world.later(10)
    assert world.state(run_id) == "passed", world.kinds(run_id)


def test_what_a_worker_works_on_is_renewed() -> None:
    world = World()
    run_id = world.start(CODE)
    (claim,) = world.worker.activations.claim(1)
    for _ in range(5):
        world.clock.advance(20)
        world.worker.heartbeat.run_once()
        assert world.store.runs.expire() == 0
    world.worker.activations.execute(claim)
    world.work()
    assert world.state(run_id) == "passed"
