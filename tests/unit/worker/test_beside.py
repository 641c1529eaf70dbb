"""Logs of services, which every machine that runs one writes."""

from __future__ import annotations

from ci_platform.worker.beside import StoreDesk
from tests.unit.worker.world import World, pipeline


def test_a_service_that_runs_on_two_machines_has_one_log_with_all_lines() -> None:
    world = World()
    run_id = world.start(pipeline("return 1"))
    desks = [StoreDesk(world.store, world.clock, log_bytes=1 << 20) for _ in "ab"]
    logs = [desk.log(run_id, "service:db") for desk in desks]
    for number in range(3):
        for machine, log in zip("ab", logs, strict=True):
            log.write("stdout", f"{machine}{number}\n".encode())
            log.flush()
    for log in logs:
        log.close()
    assert world.log(run_id, "service:db") == ["a0", "b0", "a1", "b1", "a2", "b2"]
