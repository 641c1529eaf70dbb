"""Services beside commands, against every runner: shared, watched, and gone at the end."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import pytest

from ci_platform.model import Json
from ci_platform.runner import SandboxRunner, UnsandboxedRunner, service_host
from ci_platform.shell import CommandResult, CommandSpec, ServiceSpec
from tests.contract.test_runner import LIMITS
from tests.integration.ordinary_user import ROOT, run_as_user
from tests.integration.runner_world import (
    COMMIT,
    REPOSITORY,
    RUN,
    GivenTrees,
    nap,
    objects_in,
    processes_that_say,
)

RUNNERS: dict[str, Callable[..., SandboxRunner | UnsandboxedRunner]] = {
    "sandboxed": SandboxRunner,
    "unsandboxed": UnsandboxedRunner,
}
STANDING_IN = "standing in"  # for bubblewrap
SERVER = """
import http.server, os, sys
class Counter(http.server.BaseHTTPRequestHandler):
    seen = 0
    def do_GET(self):
        Counter.seen += 1
        if self.path == "/die":
            os._exit(3)
        self.send_response(404 if self.path == "/missing" else 200)
        self.end_headers()
        self.wfile.write(f"{Counter.seen} {sys.argv[2]}".encode())
    def log_message(self, *args):
        print("asked for", self.path, flush=True)
server = http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Counter)
print("listening", flush=True)
server.serve_forever()
"""
FILES = {"server.py": SERVER, "get.py": "", "README": "read me\n"}
FILES["get.py"] = """
import sys, urllib.request
print(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())
"""
PORT = 20_000 + os.getpid() % 10_000  # the unsandboxed runner's are the machine's own
OWN = f"svc{os.getpid()}"
SCRIPT = f"exec python3 server.py {PORT} {OWN}"
GET = f"python3 get.py http://127.0.0.1:{PORT}/"


@dataclass
class Desk:
    """Keeps the logs of services, and knows which blocks have ended."""

    over: set[str] = field(default_factory=set)
    logs: dict[str, list[str]] = field(default_factory=dict)

    def log(self, run_id: str, step: str) -> _Log:
        return _Log(self.logs.setdefault(step, []))

    def ended(self, run_id: str, step: str) -> bool:
        return step in self.over


@dataclass
class _Log:
    lines: list[str]

    def write(self, stream: str, data: bytes) -> None:
        self.lines += data.decode().splitlines()

    def note(self, text: str) -> None:
        self.lines.append(f"note: {text}")

    def flush(self) -> None:
        """Nothing waits here."""

    def close(self) -> None:
        self.lines.append("closed")


@dataclass
class World:
    kind: str
    directory: Path
    desk: Desk = field(default_factory=Desk)
    runners: list[SandboxRunner | UnsandboxedRunner] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def worker(self) -> SandboxRunner | UnsandboxedRunner:
        """One of several on the same machine."""
        runner = (RUNNERS | {STANDING_IN: partial(SandboxRunner, launcher="python")})[self.kind](
            trees=GivenTrees(FILES),
            objects=objects_in(self.directory),
            work_dir=self.directory / "work",
            limits=LIMITS,
            desk=self.desk,
        )
        self.runners.append(runner)
        return runner

    def sh(
        self,
        script: str,
        *services: Mapping[str, Json],
        on: SandboxRunner | UnsandboxedRunner | None = None,
        base: Sequence[str] = (),
        stop: threading.Event | None = None,
    ) -> CommandResult:
        runner = on or (self.runners[0] if self.runners else self.worker())
        spec = CommandSpec(
            **command("sh:test", script, base=base),
            services=services,
        )
        stop = stop or threading.Event()
        return runner.run(
            spec, output=lambda stream, data: self.said.append(data.decode()), stop=stop.is_set
        )


def command(step: str, script: str, *, base: Sequence[str] = ()) -> dict[str, Json]:
    return {
        "repository_id": REPOSITORY,
        "run_id": RUN,
        "step": step,
        "commit": COMMIT,
        "base": base,
        "script": script,
    }


def service(
    script: str = SCRIPT, *, name: str = "db", ready: Json = None, ready_ms: int = 20_000
) -> Mapping[str, Json]:
    spec = CommandSpec(**command(f"service:{name}", script))
    return asdict(ServiceSpec(name, asdict(spec), ready, ready_ms))


@pytest.fixture(params=sorted(RUNNERS))
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    world = World(request.param, tmp_path)
    yield world
    for runner in world.runners:
        runner.close()
    assert not processes_that_say(OWN)


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for other processes, for which time does pass."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


@pytest.mark.parametrize(
    "ready",
    [
        {"port": PORT},
        {"http": f"http://127.0.0.1:{PORT}/ready"},
        {"command": GET},
        {"log": "listening"},
    ],
    ids=lambda ready: next(iter(ready)),
)
def test_a_command_finds_its_service_ready(world: World, ready: Json) -> None:
    result = world.sh(GET, service(ready=ready))
    assert (result.exit_code, result.ended) == (0, None), world.said
    assert OWN in result.output_tail
    assert "listening" in world.desk.logs["service:db"]


def test_commands_of_all_workers_of_a_machine_share_a_service(world: World) -> None:
    first, second = world.worker(), world.worker()
    beside = service(ready={"port": PORT})
    counts = [world.sh(GET, beside, on=on).output_tail.split()[0] for on in (first, second, first)]
    assert counts == ["1", "2", "3"]


def test_commands_that_run_at_once_share_a_service(world: World) -> None:
    workers = [world.worker(), world.worker()]
    beside = service(ready={"port": PORT})
    results: list[CommandResult] = []

    def run(on: SandboxRunner | UnsandboxedRunner) -> None:
        results.append(world.sh(GET, beside, on=on))

    threads = [threading.Thread(target=run, args=(on,)) for on in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(one.output_tail.split()[0] for one in results) == ["1", "2"]


def test_a_service_is_gone_when_its_block_has_ended(world: World) -> None:
    world.sh(GET, service(ready={"port": PORT}))
    assert processes_that_say(OWN)
    world.desk.over.add("service:db")
    until(lambda: not processes_that_say(OWN))
    until(lambda: world.desk.logs["service:db"][-1] == "closed")
    assert "note: service db was stopped" in world.desk.logs["service:db"]
    until(lambda: not list((world.directory / "work" / "services").iterdir()))


def test_a_service_that_idles_is_stopped_and_started_again_when_it_is_needed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_host, "IDLE_SECONDS", 0.0)
    beside = service(ready={"port": PORT})
    assert world.sh(GET, beside).output_tail.startswith("1 ")
    until(lambda: not processes_that_say(OWN))
    assert world.sh(GET, beside).output_tail.startswith("1 ")
    assert world.desk.logs["service:db"].count("note: service db starts") == 2


def test_a_service_that_ends_before_it_is_ready_fails_the_command_and_says_why(
    world: World,
) -> None:
    result = world.sh("true", service("echo no disk >&2; exit 4", ready={"port": PORT}))
    assert (result.exit_code, result.ended) == (None, "service")
    assert result.detail == "Service 'db' exited with code 4. Its last output: no disk"


def test_a_service_that_does_not_become_ready_in_time_fails_the_command(world: World) -> None:
    result = world.sh("true", service(f"sleep {nap(50)}", ready={"port": PORT}, ready_ms=1_000))
    assert result.ended == "service"
    assert "was not ready within 1 s (timeout=): port" in result.detail
    assert "Connection refused" in result.detail and "It said nothing." in result.detail
    until(lambda: not processes_that_say(f"sleep {nap(50)}"))


def test_an_address_that_answers_an_error_is_not_ready(world: World) -> None:
    ready = {"http": f"http://127.0.0.1:{PORT}/missing"}
    result = world.sh("true", service(ready=ready, ready_ms=5_000))
    assert "/missing answers 404" in result.detail


def test_a_check_that_fails_shows_what_it_said(world: World) -> None:
    ready = {"command": "echo still warming up; exit 7"}
    result = world.sh("true", service(ready=ready, ready_ms=1_500))
    assert "its check exited with code 7: still warming up" in result.detail


def test_after_a_failure_the_next_command_starts_the_service_anew(world: World) -> None:
    bad = service("exit 1", ready={"port": PORT})
    assert world.sh("true", bad).ended == "service"
    assert world.sh(GET, service(ready={"port": PORT})).exit_code == 0


def test_a_command_is_told_that_its_service_has_ended(world: World) -> None:
    script = f"python3 get.py http://127.0.0.1:{PORT}/die || true; sleep 1"
    result = world.sh(script, service(ready={"port": PORT}))
    assert result.exit_code == 0
    assert "service db exited with code 3\n" in world.said


def test_a_cancelled_command_does_not_wait_for_its_service(world: World) -> None:
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    began = time.monotonic()
    result = world.sh("true", service(f"sleep {nap(60)}", ready={"port": PORT}), stop=stop)
    assert result.ended == "cancelled" and time.monotonic() - began < 5


def test_files_of_a_service_are_its_own_copy(world: World) -> None:
    script = f"echo mine > README; {SCRIPT}"
    result = world.sh(f"{GET}; cat README", service(script, ready={"port": PORT}))
    assert "read me" in result.output_tail and result.layer is None


def test_services_of_blocks_inside_one_another_reach_each_other(world: World) -> None:
    outer = service(ready={"port": PORT})
    inner = service(f"{GET}; exec sleep {nap(70)}", name="web", ready={"log": OWN})
    assert world.sh("true", outer, inner).exit_code == 0, world.said


def test_too_many_services_are_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_host, "SERVICES_ALIVE_MAX", 1)
    outer = service(ready={"port": PORT})
    with pytest.raises(Exception, match="1 services run already"):
        world.sh("true", outer, service("sleep 1", name="web"))


@pytest.mark.parametrize("world", ["sandboxed", STANDING_IN], indirect=True)
def test_commands_find_services_by_name_and_nothing_else(world: World) -> None:
    here = service(ready={"port": PORT})
    by_name = f"python3 get.py http://db:{PORT}/"
    assert world.sh(by_name, here).exit_code == 0, world.said
    assert world.sh(GET).exit_code != 0  # a command without it is alone in its network


@pytest.mark.parametrize("world", ["sandboxed"], indirect=True)
def test_services_of_blocks_beside_one_another_do_not_meet(world: World) -> None:
    one, other = service(ready={"port": PORT}), service(name="other", ready={"port": PORT})
    assert world.sh(GET, one).output_tail.startswith("1 ")
    assert world.sh(GET, other).output_tail.startswith("1 ")


@pytest.mark.parametrize("world", ["sandboxed"], indirect=True)
def test_a_service_is_under_the_limits_of_commands(world: World) -> None:
    script = "head -c 3000000 /dev/zero; sleep 5"  # more output than LIMITS allow
    result = world.sh("true", service(script, ready={"port": PORT}))
    assert "was ended: The command used" in result.detail and "of output" in result.detail


def test_what_a_dead_worker_left_is_removed_and_what_a_living_one_holds_is_not(
    world: World,
) -> None:
    first = world.worker()
    world.sh("true", service(ready={"port": PORT}), on=first)
    directory = world.directory / "work" / "services"
    held = set(directory.iterdir())
    for name in ("dead", "dead.lock"):
        (directory / name).touch()
    world.worker()
    assert set(directory.iterdir()) == held and len(held) == 2


@pytest.mark.slow
def test_an_ordinary_user_has_services_too(tmp_path: Path) -> None:
    """When the tests do not run as root, they show it anyway."""
    if os.geteuid() != 0:
        return
    which = "not unsandboxed and (by_name or at_once or is_gone)"
    arguments = f"['{__file__}', '-q', '-p', 'no:cacheprovider', '-k', '{which}']"
    program = (
        "import os, sys, pytest, tests; os.chdir(os.path.dirname(tests.__path__[0])); "
        f"sys.exit(pytest.main({arguments}))".replace(str(ROOT) + "/", "")
    )
    assert " passed" in run_as_user(program, scratch=tmp_path)


@pytest.mark.parametrize("world", ["sandboxed"], indirect=True)
def test_no_service_outlives_its_worker(world: World) -> None:
    """The worker is killed in the middle of a command; another one goes on."""
    pid = os.fork()
    if pid == 0:
        world.worker()
        world.sh(f"{GET}; sleep 60", service(ready={"port": PORT}))
        os._exit(0)
    until(lambda: bool(processes_that_say(OWN)))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    until(lambda: not processes_that_say(OWN))
    assert world.sh(GET, service(ready={"port": PORT})).output_tail.startswith("1 ")
