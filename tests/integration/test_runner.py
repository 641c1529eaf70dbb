"""What only the sandboxed runner promises: toolchains, uids, and what a command can see."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ci_platform.errors import RunnerUnavailable
from ci_platform.runner import RunnerLimits, SandboxRunner
from ci_platform.runner.sandboxed import server_python
from tests.integration.ordinary_user import run_as_user
from tests.integration.runner_world import Bench, GivenTrees, objects_in

UID = 313_000 + os.getpid() % 1000 * 10  # of this session's own


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    runner = SandboxRunner(
        trees=GivenTrees(), objects=objects_in(tmp_path), work_dir=tmp_path / "w", first_uid=UID
    )
    yield Bench(runner)
    runner.close()


def test_a_step_has_the_server_s_python_with_venv_and_pip(bench: Bench) -> None:
    version = ".".join(str(part) for part in sys.version_info[:3])
    venv = bench.layer("python3 -m venv .venv\n.venv/bin/python --version\n.venv/bin/pip --version")
    said = bench.text("stdout")
    assert said.startswith(f"Python {version}\npip ")
    bench.sh(". .venv/bin/activate; pip list --format=freeze; python -m pip check", venv)
    assert "pip==" in bench.text("stdout")


def test_a_venv_of_one_step_works_in_the_next_on_another_machine(
    bench: Bench, tmp_path: Path
) -> None:
    venv = bench.layer("python3 -m venv --without-pip .venv; echo 'x = 41 + 1' > made.py")
    other = SandboxRunner(
        trees=GivenTrees(), objects=objects_in(tmp_path), work_dir=tmp_path / "other"
    )
    try:
        there = Bench(other)
        there.sh(".venv/bin/python -c 'import made; print(made.x)'", venv)
        assert there.text("stdout") == "42\n"
    finally:
        other.close()


def test_a_server_that_keeps_its_files_to_itself_runs_commands_too(tmp_path: Path) -> None:
    """Its umask is not that of commands, nor of what is laid out for them."""
    before = os.umask(0o077)
    runner = SandboxRunner(
        trees=GivenTrees(), objects=objects_in(tmp_path), work_dir=tmp_path / "w", first_uid=UID
    )
    try:
        bench = Bench(runner)
        made = bench.layer("umask; touch made; python3 -c 'print(1)'")
        assert bench.text("stdout") == "0022\n1\n"
        bench.sh("stat -c %a made", made)
        assert bench.text("stdout") == "644\n"
    finally:
        os.umask(before)
        runner.close()


def test_directories_can_be_lent_to_commands(tmp_path: Path) -> None:
    tools = tmp_path / "closed" / "tools"
    (tools / "bin").mkdir(parents=True)
    (tools / "bin/greet").write_text("#!/bin/sh\necho hello from $0\n")
    for path in (tools / "bin/greet", tools / "bin", tools):
        path.chmod(0o755)
    (tmp_path / "closed").chmod(0o700)
    runner = SandboxRunner(
        trees=GivenTrees(),
        objects=objects_in(tmp_path),
        work_dir=tmp_path / "w",
        extra_ro=[*server_python(), tools],
    )
    try:
        bench = Bench(runner)
        bench.sh("greet; python3 -c 'print(1)'")
        assert bench.text("stdout") == f"hello from {tools}/bin/greet\n1\n"
        assert bench.sh(f"touch {tools}/bin/planted").exit_code == 1
    finally:
        runner.close()


@pytest.mark.parametrize("path", ["relative", "/workspace/tools", "/proc/x", "/"])
def test_directories_that_cannot_be_lent_are_refused_at_once(tmp_path: Path, path: str) -> None:
    with pytest.raises(RunnerUnavailable, match="extra_ro"):
        SandboxRunner(
            trees=GivenTrees(),
            objects=objects_in(tmp_path),
            work_dir=tmp_path / "w",
            extra_ro=[Path(path)],
        )


def test_variables_of_the_step_do_not_reach_the_sandbox_s_own_program(bench: Bench) -> None:
    """Bubblewrap starts outside: LD_PRELOAD there would run the author's code outside too."""
    result = bench.sh("echo $LD_PRELOAD", env={"LD_PRELOAD": "/nowhere.so", "LD_DEBUG": "files"})
    assert result.exit_code == 0
    assert bench.text("stdout") == "/nowhere.so\n"
    assert "bwrap" not in bench.text("stderr")
    assert "libcap" not in bench.text("stderr")


def test_secrets_are_not_on_the_command_line(bench: Bench) -> None:
    """Not of any process, as the whole machine can read those."""
    seen: list[bytes] = []

    def look(stream: str, data: bytes) -> None:
        for name in os.listdir("/proc"):
            if name.isdigit() and os.path.exists(f"/proc/{name}/cmdline"):
                seen.append(Path(f"/proc/{name}/cmdline").read_bytes())

    bench.sh("echo now; sleep 0.3", env={"TOKEN": "only-in-the-environment"}, output=look)
    assert any(b"/run/ci/script" in line for line in seen)
    assert not any(b"only-in-the-environment" in line for line in seen)


def test_a_long_script_and_many_variables_go_in(bench: Bench) -> None:
    env = {f"VARIABLE_{number}": "x" * 500 for number in range(900)}
    script = "# padding\n" * 60_000 + "env | grep -c ^VARIABLE_"
    bench.sh(script, env=env)
    assert bench.text("stdout") == "900\n"


def test_names_that_are_not_ascii_or_not_even_text_survive_a_restore(bench: Bench) -> None:
    made = bench.layer("mkdir 'dïr ü'; echo x > 'dïr ü/ñ'; echo y > $(printf 'b\\377d')")
    gone = bench.layer("rm $(printf 'b\\377d')", made)  # takes the workspace of the first
    bench.sh("cat dïr*/* b*; ls | wc -l", made)
    assert bench.text("stdout") == "x\ny\n3\n"
    bench.sh("ls | wc -l", made, gone, run_id="another")
    assert bench.text("stdout") == "2\n"


def test_as_root_every_command_has_its_own_uid_and_a_closed_directory(
    bench: Bench, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []

    def look(stream: str, data: bytes) -> None:
        for job in (tmp_path / "w/jobs").iterdir():
            found = job.stat()
            seen.append((found.st_uid, stat.S_IMODE(found.st_mode)))
        Bench(bench.runner).sh("echo nested", run_id="other", output=look_again)

    def look_again(stream: str, data: bytes) -> None:
        seen.extend(
            (job.stat().st_uid, stat.S_IMODE(job.stat().st_mode))
            for job in (tmp_path / "w/jobs").iterdir()
        )

    bench.sh("echo now", output=look)
    uids = {UID, UID + 1} if os.geteuid() == 0 else {os.geteuid()}
    assert {uid for uid, _ in seen} == uids
    assert {mode for _, mode in seen} == {0o700}


def test_what_cannot_be_run_says_what_to_do(bench: Bench) -> None:
    result = bench.sh("true", network=["pypi.org"])
    assert (result.exit_code, result.ended) == (None, "network")
    assert "SLUICE_COMMAND_NETWORK" in result.detail


@pytest.mark.slow
def test_an_ordinary_user_gets_the_same_runner(tmp_path: Path) -> None:
    """The whole contract again; when the tests do not run as root, it is held to it anyway."""
    if os.geteuid() != 0:
        return
    arguments = (
        "['tests/contract/test_runner.py', '-q', '-p', 'no:cacheprovider', '-k', 'not copying']"
    )
    program = (
        "import os, sys, pytest, tests; os.chdir(os.path.dirname(tests.__path__[0])); "
        f"sys.exit(pytest.main({arguments}))"
    )
    assert " passed" in run_as_user(program, scratch=tmp_path)


def test_a_probe_says_that_sandboxes_work_here_and_what_they_are_made_of(bench: Bench) -> None:
    assert isinstance(bench.runner, SandboxRunner)
    found = bench.runner.probe()
    assert (found.works, found.detail) == (True, "Commands run in a sandbox.")
    assert "bwrap" in found.facts["launcher"]


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("echo 'bwrap: setting up uid map: Permission denied' >&2; exit 1", "AppArmor"),
        ("echo 'bwrap: No permissions to create new namespace' >&2; exit 1", "seccomp profile"),
        ("exit 1", "bubblewrap ended without a word"),
        ("echo '{ \"child-pid\": 999999999 }' >&6", "bubblewrap ended without a word"),
        ('shift 3; exec "$@"', "Commands cannot be run in a sandbox"),
    ],
)
def test_a_sandbox_that_does_not_start_is_never_replaced_by_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, says: str
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/bwrap").write_text(f"#!/bin/sh\n{program}\n")
    for path in (tmp_path / "bin/bwrap", tmp_path / "bin"):
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    runner = SandboxRunner(
        trees=GivenTrees(), objects=objects_in(tmp_path), work_dir=tmp_path / "w"
    )
    try:
        with pytest.raises(RunnerUnavailable) as caught:
            Bench(runner).sh("touch ran")
        assert says in caught.value.detail
        found = runner.probe()
        assert not found.works
        assert says in found.detail
    finally:
        runner.close()


def test_commands_are_nice_to_the_platform(bench: Bench) -> None:
    bench.sh("nice; sleep 0.4; cat /proc/self/autogroup 2>/dev/null || true")
    own, *session = bench.text("stdout").split("\n")
    assert int(own) == _nice() + 10
    assert session[0] == "" or session[0].endswith("nice 10")


def _nice() -> int:
    """How nice this session is: what it starts is no less so."""
    return os.getpriority(os.PRIO_PROCESS, 0)


POLICY = """import os
print(os.sched_getscheduler(0) == os.SCHED_IDLE)
try: os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
except PermissionError: print("and stays so")
"""


@pytest.mark.parametrize(
    ("priority", "nice", "policy"),
    [
        ("idle", 10, "True\nand stays so\n"),
        ("low", 10, "False\n"),
        ("normal", 0, "False\n"),
    ],
)
def test_the_operator_says_how_much_commands_yield(
    tmp_path: Path, priority: str, nice: int, policy: str
) -> None:
    runner = SandboxRunner(
        trees=GivenTrees(),
        objects=objects_in(tmp_path),
        work_dir=tmp_path / "work",
        limits=RunnerLimits(priority=priority),
    )
    found = Bench(runner)
    try:
        found.sh(f"nice; python3 -c '{POLICY}'")
    finally:
        runner.close()
    assert found.text("stdout") == f"{_nice() + nice}\n{policy}"
