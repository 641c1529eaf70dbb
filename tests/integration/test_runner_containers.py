"""Commands in containers: what an engine is told, by one that is played, and by podman if it works.

The played one keeps its arguments and runs the command as a plain child, so what is held to account
here is our side: arguments, refusals, images, the sweep.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from ci_platform.errors import RunnerUnavailable
from ci_platform.runner import RunnerLimits, SandboxRunner
from ci_platform.runner.container import ContainerRunner
from ci_platform.runner.container_process import Container, Engine, arguments
from ci_platform.runner.limits import MIB
from ci_platform.runner.seccomp import narrowed
from ci_platform.runner.services import Services
from ci_platform.shell import CommandResult, CommandSpec, ServiceSpec
from tests.integration.container_image import IMAGE, engine
from tests.integration.ordinary_user import ROOT
from tests.integration.runner_world import GivenTrees, nap, objects_in, processes_that_say
from tests.integration.site import HOST, answering

LIMITS = RunnerLimits(memory_bytes=128 * MIB, tmp_bytes=MIB, pids=50, open_files=99)
_PLAYED = """#!{python}
import json, os, re, subprocess, sys
told = sys.argv[1:]
here = {here!r}
with open(here + "/calls", "a") as calls:
    calls.write(json.dumps(told) + "\\n")
if "inspect" in told:
    sys.exit(0 if told[-1] in open(here + "/images").read().split() else 1)
if told[0] == "pull":
    if "missing" in told[-1]:
        sys.exit("Error: manifest unknown")
    open(here + "/images", "a").write(told[-1] + "\\n")
    sys.exit(0)
if told[0] == "ps":
    print(open(here + "/containers").read())
    sys.exit(0)
if told[0] != "run":
    sys.exit(0)
if "broken" in told[-3]:
    sys.stderr.write("Error: no such runtime\\n")
    sys.exit(125)
mounts = re.findall(r"source=([^,]*),target=([^, ]*)", " ".join(told))
places = {{inside: outside for outside, inside in mounts}}
script = told[-1]
for inside in sorted(places, key=len, reverse=True):
    script = script.replace(inside, places[inside])
given = open(places["/run/ci"] + "/env").read()
script = script.replace(". " + places["/run/ci"] + "/env;", "eval $GIVEN;")
script = script.replace(places["/run/ci"] + "/code", places["/run/ci/code"])
shell = ["/bin/sh", "-c", script]
sys.exit(subprocess.call(shell, pass_fds=(3, 4), cwd=places["/workspace"], env={{
    "GIVEN": given.replace("/run/ci/output", places["/run/ci/output"]).replace("\\n", ";"),
    "PATH": "/usr/bin:/bin"}}))
"""


@dataclass
class Played:
    """A runner, the engine it is given, and what that was told."""

    runner: ContainerRunner
    directory: Path

    def run(
        self, script: str, image: str = "docker.io/library/python:3", **given: object
    ) -> tuple[CommandResult, str]:
        said: list[tuple[str, bytes]] = []
        spec = CommandSpec("repo_1", "run_1", "sh:x", "c" * 40, (), script, image=image)
        result = self.runner.run(
            replace(spec, **given),  # type: ignore[arg-type]
            output=lambda stream, data: said.append((stream, data)),
            stop=lambda: False,
        )
        return result, b"".join(data for _, data in said).decode()

    def calls(self, verb: str) -> list[list[str]]:
        found = (self.directory / "calls").read_text().splitlines()
        return [told for one in found if (told := json.loads(one))[0] == verb]


@pytest.fixture
def played(tmp_path: Path) -> Iterator[Played]:
    program = tmp_path / "podman"
    program.write_text(_PLAYED.format(python=sys.executable, here=str(tmp_path)))
    program.chmod(0o755)
    (tmp_path / "images").write_text("docker.io/library/python:3\n")
    (tmp_path / "containers").write_text("")
    runner = ContainerRunner(
        trees=GivenTrees(),
        objects=objects_in(tmp_path),
        work_dir=tmp_path / "work",
        engine=Engine(program, rootless=False, control_groups=True, seccomp=Path("/p.json")),
        images=["docker.io/library/*", "localhost/*"],
        limits=LIMITS,
    )
    yield Played(runner, tmp_path)
    runner.close()


def pairs(told: list[str], name: str) -> list[str]:
    return [told[index + 1] for index, one in enumerate(told) if one == name]


def test_a_container_is_given_nothing_but_its_workspace(played: Played) -> None:
    result, said = played.run("echo $A; cat README; echo x > made", env={"A": "b c"})
    assert (result.exit_code, said) == (0, "b c\nread me\n")
    assert result.layer is not None
    told = played.calls("run")[0]
    assert pairs(told, "--network") == ["none"]
    assert pairs(told, "--cap-drop") == ["all"]
    assert pairs(told, "--security-opt") == ["no-new-privileges", "seccomp=/p.json"]
    assert pairs(told, "--ulimit")[0] == "nofile=99:99"
    assert (pairs(told, "--memory"), pairs(told, "--pids-limit")) == ([str(128 * MIB)], ["51"])
    assert {"--read-only", "--rm", "--read-only-tmpfs=false"} <= set(told)
    assert not {"--privileged", "-v", "--env", "-e"} & set(told)
    assert [one.split("target=")[1] for one in pairs(told, "--mount")] == [
        "/workspace",
        "/run/ci,readonly",
        "/run/ci/output",
        "/run/ci/code",
    ]
    if os.geteuid() == 0:
        uid = pairs(told, "--user")[0].split(":")[0]
        assert int(uid) >= 200_000, "never the server's own"


@pytest.mark.parametrize(
    ("one_id", "user", "userns"), [(True, "0:0", []), (False, "1001:1002", ["keep-id"])]
)
def test_without_root_a_command_is_the_user_of_the_server(
    tmp_path: Path, one_id: bool, user: str, userns: list[str]
) -> None:
    """Where /etc/subuid gives that user no ids, podman knows it as 0 only and refuses keep-id."""
    engine = Engine(Path("podman"), True, control_groups=False, seccomp=None, one_id=one_id)
    one = Container(
        *("name", "label", "image", "1001:1002", tmp_path, tmp_path, tmp_path),
        caches={},
        cwd=".",
        shell=["/bin/sh"],
        timeout_seconds=1,
    )
    told = arguments(engine, one, LIMITS)
    assert (pairs(told, "--user"), pairs(told, "--userns")) == ([user], userns)


def test_variables_and_the_script_are_not_on_the_command_line_and_do_not_stay(
    played: Played,
) -> None:
    _, said = played.run("echo $TOKEN-in-script", env={"TOKEN": "s3cret"})
    assert said == "s3cret-in-script\n"
    assert "s3cret" not in (played.directory / "calls").read_text()
    assert "in-script" not in (played.directory / "calls").read_text()
    left = [path for path in (played.directory / "work").rglob("*") if path.name == "env"]
    assert left == []


def test_an_image_that_is_not_here_is_pulled_once(played: Played) -> None:
    for _ in range(2):
        result, _ = played.run("true", image="docker.io/library/node:22")
        assert result.exit_code == 0
    assert [told[-1] for told in played.calls("pull")] == ["docker.io/library/node:22"]


@pytest.mark.parametrize(
    ("image", "given", "says"),
    [
        ("evil.example/x:1", {}, "does not allow (SLUICE_COMMAND_IMAGES: docker.io/library/*"),
        ("docker.io/library/missing:1", {}, "cannot be had: podman pull: Error: manifest unknown"),
        ("docker.io/library/x y", {}, "is not the name of an image"),
        ("docker.io/library/python:3", {"network": ["pypi.org"]}, "(SLUICE_COMMAND_NETWORK)"),
        (
            "docker.io/library/python:3",
            {"services": [{"name": "db"}]},
            "nothing here that runs",
        ),
    ],
)
def test_what_cannot_be_run_says_why(
    played: Played, image: str, given: dict[str, object], says: str
) -> None:
    result, said = played.run("echo ran", image=image, **given)
    assert result.exit_code is None
    assert says in result.detail
    assert "ran" not in said.splitlines()
    assert played.directory.joinpath("calls").exists() is False or not played.calls("run")


def test_a_failure_of_the_engine_is_not_the_command_s(played: Played) -> None:
    (played.directory / "images").write_text("localhost/broken")
    with pytest.raises(RunnerUnavailable, match="no such runtime"):
        played.run("true", image="localhost/broken")
    result, _ = played.run("exit 125")
    assert result.exit_code == 125


def test_containers_of_workers_that_died_are_ended(played: Played) -> None:
    (played.directory / "work/jobs/job-alive").mkdir()
    (played.directory / "containers").write_text("sluice-job-alive\nsluice-job-gone\n")
    played.run("true")
    assert [told[-1] for told in played.calls("rm")] == ["sluice-job-gone"]


def test_the_filter_of_an_engine_is_narrowed_to_ours(tmp_path: Path) -> None:
    profile = tmp_path / "seccomp.json"
    rules = [{"names": ["read", "socket", "unshare", "keyctl"], "action": "SCMP_ACT_ALLOW"}]
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules}))
    found = json.loads(str(narrowed(profile)))
    assert found["syscalls"][0]["names"] == ["read"]
    families = [rule["args"][0]["value"] for rule in found["syscalls"][1:]]
    assert families == [1, 2, 10, 16]
    assert narrowed(tmp_path / "none") is None


def real(
    directory: Path, script: str, *, beside: Services | None = None, **given: object
) -> tuple[CommandResult, str] | None:
    """A command in podman's hands, where that works."""
    podman = engine()
    if podman is None:
        return None
    directory.mkdir(exist_ok=True)
    profile = directory / "seccomp.json"
    known = narrowed(Path("/usr/share/containers/seccomp.json"))
    profile.write_text(known or "{}")
    runner = ContainerRunner(
        trees=GivenTrees(),
        objects=objects_in(directory),
        work_dir=directory / "work",
        engine=replace(podman, seccomp=profile if known else None),
        images=["localhost/*"],
        limits=LIMITS,
        network=True,
        private_networks=["127.0.0.0/8"],
        services=beside,
    )
    try:
        return Played(runner, directory).run(script, image=IMAGE, **given)
    finally:
        runner.close()


@pytest.fixture
def site() -> Iterator[int]:
    with answering() as port:
        yield port


def asked(site: int, host: str = HOST) -> str:
    """A script that asks the proxy for a page: the image has nothing better than bash for it."""
    request = f"GET http://{host}:{site}/page HTTP/1.1\\r\\nHost: {host}:{site}\\r\\n\\r\\n"
    return (
        'exec 5<>"/dev/tcp/127.0.0.1/${HTTP_PROXY#http://127.0.0.1:}"\n'
        f"printf '{request}' >&5; cat <&5\n"
    )


def test_a_container_reaches_the_hosts_it_names_and_no_other(tmp_path: Path, site: int) -> None:
    given: dict[str, Any] = {"network": [f"{HOST}:{site}"], "shell": "bash"}
    found = real(tmp_path / "a", asked(site), **given)
    other = real(tmp_path / "b", asked(site, "127.0.0.3"), **given)
    past = real(tmp_path / "c", f"exec 5<>/dev/tcp/{HOST}/{site}", **given)
    if found is not None and other is not None and past is not None:
        assert "GET /page" in found[1], found
        assert f"network: allowed {HOST}:{site} ({HOST})" in found[1]
        assert "403" in other[1] and "the step does not name it" in other[1]
        assert past[0].exit_code == 1, past


def test_a_container_reaches_the_services_beside_it_and_the_hosts_it_names(
    tmp_path: Path, site: int
) -> None:
    sandbox = SandboxRunner(
        trees=GivenTrees(), objects=objects_in(tmp_path), work_dir=tmp_path / "sandbox"
    )
    server = "exec python3 -m http.server 8123 --bind 127.0.0.1"
    beside = CommandSpec("repo_1", "run_1", "service:web", "c" * 40, (), server)
    web = asdict(ServiceSpec("web", asdict(beside), {"port": 8123}, 30_000))
    request = "GET /README HTTP/1.0\\r\\n\\r\\n"
    script = f"exec 6<>/dev/tcp/web/8123; printf '{request}' >&6; cat <&6\n{asked(site)}"
    try:
        found = real(
            tmp_path,
            script,
            beside=sandbox.services,
            network=[f"{HOST}:{site}"],
            shell="bash",
            services=[web],
        )
    finally:
        sandbox.close()
    if found is not None:
        result, said = found
        if os.getuid() == 0:
            assert result.exit_code == 0, said
            assert "read me" in said and "GET /page" in said
        else:
            assert "only a server that runs as root" in result.detail


def test_a_container_ends_with_a_worker_that_is_killed(tmp_path: Path) -> None:
    length = nap(600)
    worker = subprocess.Popen(
        [
            *(sys.executable, "-c"),
            "import sys; from pathlib import Path; from tests.integration import "
            "test_runner_containers as ours; "
            "ours.real(Path(sys.argv[1]), 'sleep ' + sys.argv[2][::-1])",
            *(str(tmp_path), length[::-1]),  # or it would look like the command itself
        ],
        cwd=ROOT,
    )
    try:
        while worker.poll() is None and not processes_that_say(length):
            time.sleep(0.05)
        if worker.poll() is not None:  # podman does not work here
            assert engine() is None
            return
        worker.send_signal(signal.SIGKILL)
    finally:
        worker.kill()
        worker.wait()
    deadline = time.monotonic() + 60
    while left := processes_that_say(length):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def test_podman_holds_a_command_as_the_sandbox_does(tmp_path: Path) -> None:
    script = (
        "grep -E 'Cap|NoNewPrivs|Seccomp:' /proc/self/status; id -u; ls /sys/class/net; "
        "touch /x /etc/x 2>/dev/null || echo read-only; echo x > made"
    )
    found = real(tmp_path, script)
    if found is not None:
        result, said = found
        assert (result.exit_code, result.layer is not None) == (0, True), said
        for one in ("CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1"):
            assert one in said
        assert "Seccomp:\t2" in said
        assert "read-only" in said
        assert "lo\n" in said
        assert "eth0" not in said
    profile = tmp_path / "seccomp.json"
    assert found is None or stat.S_ISREG(profile.stat().st_mode)


def test_podman_ends_a_command_that_takes_too_much_memory(tmp_path: Path) -> None:
    found = real(tmp_path, "yes | tr -d '\\n' | sort")
    if found is not None:
        assert (found[0].exit_code, found[0].ended) == (None, "memory"), found
        assert "128 MiB (SLUICE_COMMAND_MEMORY_BYTES)" in found[0].detail
