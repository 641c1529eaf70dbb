"""Commands whose worker, whose machine or whose object store is lost in the middle of them.

Real processes. Whatever is lost, and wherever: the run ends with the same files, each step finished
once, and nobody writes what is not theirs any more.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import httpx
import psutil
import pytest

from tests.cluster import REPOSITORY, Cluster, Member, cluster, commit, ended, get, journal, until

LEASE_SECONDS = 2
MARK = f"31.{os.getpid():07}"  # by which the processes of this session's commands are known
pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

BUILD = """
from pipelines import *

class Build(Pipeline):
    async def run(self, event, step):
        await step.sh("one", "echo 1 > one.txt; mkdir -p d; echo x > d/y")
        await step.sh("two", "cat one.txt d/y > two.txt; rm one.txt; echo begun; "
                      "[ $CI_STEP_ATTEMPT != 1 ] || sleep $PAUSE",
                      env={"PAUSE": str(event.params.get("pause", 0))})
        return (await step.sh("look", "cat two.txt; find . -type f | sort")).output_tail

class Frozen(Pipeline):
    async def run(self, event, step):
        script = "echo begun $CI_STEP_ATTEMPT; echo $CI_STEP_ATTEMPT > who; "
        script += "[ $CI_STEP_ATTEMPT = 2 ] || { sleep $PAUSE; echo late; }"
        made = await step.sh("make", script, cache=True, env={"PAUSE": event.params["pause"]})
        return [(await step.sh("look", "cat who")).output_tail, made.from_run]

class Labelled(Pipeline):
    async def run(self, event, step):
        return (await step.sh("one", "echo begun; sleep $PAUSE", labels=["gpu"],
                              env={"PAUSE": event.params["pause"]})).exit_code
"""
OUTPUT = "1\nx\n./.ci/pipeline.py\n./d/y\n./two.txt\n"


@contextlib.contextmanager
def workers(
    root: Path, cache: Path, url: str | None = None, *names: str
) -> Iterator[tuple[Cluster, httpx.Client]]:
    with (
        cluster(root, cache=cache, database_url=url, lease_seconds=LEASE_SECONDS) as made,
        made.client(made.web("web")) as http,
    ):
        commit(http, BUILD)
        for name in names:
            made.worker(name)
        yield made, http


def start(http: httpx.Client, run_id: str, pipeline: str = "Build", **params: Any) -> None:
    body = {"id": run_id, "pipeline": pipeline, "params": params}
    http.post(f"{REPOSITORY}/runs", json=body).raise_for_status()


def log(http: httpx.Client, run_id: str, step: str) -> list[str]:
    answer = http.get(f"/api/v1/runs/{run_id}/logs", params={"step": step})
    return [line["text"] for line in answer.json()["lines"]] if answer.is_success else []


def begun(http: httpx.Client, run_id: str, step: str, line: str = "begun") -> None:
    until(lambda: line in log(http, run_id, step), f"{step} begins")


def busy(http: httpx.Client, made: Cluster) -> Member:
    """The worker that runs a command."""
    name = busy_row(http)["worker"]
    (member,) = [one for one in made.members if name.endswith(f":{one.name}")]
    return member


def check(http: httpx.Client, run_id: str, *, lost: int = 1) -> None:
    run = ended(http, run_id)
    assert (run["state"], run["output"]) == ("passed", OUTPUT), run["error"]
    kinds = Counter((e["kind"], e["key"]["name"]) for e in journal(http, run_id) if e["key"])
    for name in ("one", "two", "look"):
        assert kinds["step_passed", name] == 1
    assert sum(count for (kind, _), count in kinds.items() if kind == "attempt_failed") == lost


def processes(mark: str) -> list[psutil.Process]:
    found = []
    for one in psutil.process_iter(["cmdline"]):
        if mark in (one.info["cmdline"] or ()):
            found.append(one)
    return found


def test_a_worker_that_slept_past_its_lease_has_lost_its_command(
    deployment_url: str | None, tmp_path: Path, guest_cache: Path
) -> None:
    """One that goes on is killed, one that has ended meanwhile is refused with all it left."""
    with workers(tmp_path, guest_cache, deployment_url, "a", "b") as (made, http):
        start(http, "calm", "Frozen", pause="0")
        assert ended(http, "calm")["output"] == ["1\n", None]
        for name, pause in (("long", MARK), ("short", "1")):
            frozen = _freeze(made, http, name, pause)
            start(http, f"after-{name}", "Frozen", pause=pause)
            taken = ended(http, f"after-{name}")["output"]
            number = get(http, f"/api/v1/runs/{name}")["number"]
            assert taken == ["2\n", number]  # the memo is of attempt 2
            assert frozen.alive


def _freeze(made: Cluster, http: httpx.Client, run_id: str, pause: str) -> Member:
    """Let another worker do what one has begun; the first one wakes up and is refused."""
    start(http, run_id, "Frozen", pause=pause)
    begun(http, run_id, "sh:make", "begun 1")
    frozen = busy(http, made)
    refused = frozen.log.read_text().count(": let go: ")
    frozen.signal(signal.SIGSTOP)
    assert ended(http, run_id)["output"] == ["2\n", None]
    entries, lines = journal(http, run_id), log(http, run_id, "sh:make")
    (failed,) = [e["data"]["error"] for e in entries if e["kind"] == "attempt_failed"]
    assert failed["type"] == "LostWorker"
    assert f":{frozen.name} was lost during attempt 1" in failed["message"]
    assert failed["message"] in lines
    assert bool(processes(MARK)) is (pause == MARK)
    frozen.signal(signal.SIGCONT)
    until(lambda: frozen.log.read_text().count(": let go: ") > refused, "it sees that it has lost")
    until(lambda: not processes(MARK), "what it ran is gone", seconds=5)
    assert journal(http, run_id) == entries
    assert log(http, run_id, "sh:make") == lines
    assert "late" not in lines
    return frozen


@pytest.mark.parametrize(
    ("what", "places"),
    [("kill", ("running", "stored", "restored")), ("power", ("running", "packed"))],
)
def test_a_worker_or_its_machine_that_dies_in_the_middle(
    what: str, places: Sequence[str], tmp_path: Path, guest_cache: Path
) -> None:
    with workers(tmp_path, guest_cache) as (made, http):
        worker = made.worker("worker")
        for where in places:
            if where in ("packed", "stored"):
                made.will_at_layer(what, where)
                start(http, where)
            else:
                start(http, where, pause=MARK)
                begun(http, where, "sh:two")
                end(worker, all_of_it=what == "power")
            buried(made, worker)
            if where == "restored":
                made.will_at_layer(what, where)
                buried(made, made.worker("worker"))
            # Its replacement knows that what it held is free.
            worker = made.worker("worker")
            check(http, where, lost=2 if where == "restored" else 1)
            until(lambda: not processes(MARK), "what the dead worker ran is gone", seconds=5)


def end(worker: Member, *, all_of_it: bool) -> None:
    """Kill a worker, or everything on its machine."""
    root = psutil.Process(worker.process.pid)
    for victim in [root, *(root.children(recursive=True) if all_of_it else ())]:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()


def buried(made: Cluster, worker: Member) -> None:
    until(lambda: not worker.alive, "it dies")
    assert worker.process.returncode == -9
    made.members.remove(worker)
    worker.process.communicate()


def test_an_object_store_that_is_away_while_layers_are_sealed_and_restored(
    tmp_path: Path, guest_cache: Path
) -> None:
    with workers(tmp_path, guest_cache) as (made, http):
        worker = made.worker("worker")
        for where in ("sealed", "restored"):
            start(http, where, pause="1" if where == "sealed" else MARK)
            begun(http, where, "sh:two")
            with away(tmp_path / "data/objects/layers"):
                if where == "restored":
                    end(worker, all_of_it=False)
                    buried(made, worker)
                    made.worker("worker")
                cannot_be_run(http, where)
            check(http, where, lost=1 if where == "sealed" else 2)


def cannot_be_run(http: httpx.Client, run_id: str) -> None:
    until(lambda: "could not be run" in str(journal(http, run_id)), "it cannot be run")


@contextlib.contextmanager
def away(directory: Path) -> Iterator[None]:
    """No request for what is in it is answered."""
    aside = directory.with_name("aside")
    directory.rename(aside)
    directory.touch()
    yield
    directory.unlink()
    aside.rename(directory)


def test_a_command_waits_for_a_worker_with_its_labels_and_has_time_when_that_one_drains(
    tmp_path: Path, guest_cache: Path
) -> None:
    with workers(tmp_path, guest_cache, None, "plain") as (made, http):
        start(http, "run", "Labelled", pause="5")
        until(lambda: bool(get(http, "/api/v1/runs/run")["stuck"]), "nobody can take it")
        assert "gpu" in get(http, "/api/v1/runs/run")["stuck"][0]["reason"]
        able = made.worker("able", "--labels", "gpu,big", "--capacity", "1")
        begun(http, "run", "sh:one")
        before = busy_row(http)
        assert {"gpu", "big", "linux"} < set(before["labels"])
        assert (before["capacity"], before["draining"]) == (1, False)
        http.post("/api/v1/system/workers/able/drain").raise_for_status()
        assert busy_row(http) == {**before, "draining": True, "last_seen_at": ANY}
        until(lambda: not able.alive, "it ends")
        assert able.process.returncode == 0
        assert ended(http, "run")["output"] == 0
        names = [one["worker"] for one in get(http, "/api/v1/system")["workers"]]
        assert not any(name.endswith(":able") for name in names)


def busy_row(http: httpx.Client) -> dict[str, Any]:
    (found,) = [one for one in get(http, "/api/v1/system")["workers"] if one["operations"]]
    row: dict[str, Any] = found
    return row
