"""What every runner promises, against every runner."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest

from ci_platform.errors import RunnerUnavailable
from ci_platform.model import Json
from ci_platform.runner import RunnerLimits, SandboxRunner, UnsandboxedRunner, execution
from ci_platform.runner.container import ContainerRunner
from ci_platform.shell import CommandResult, CommandSpec
from tests.integration.container_image import IMAGE, engine
from tests.integration.runner_world import (
    Bench,
    GivenTrees,
    nap,
    objects_in,
    processes_that_say,
)

LIMITS = RunnerLimits(
    disk_bytes=64 << 20, output_bytes=1 << 20, files=500, outputs=10, grace_seconds=1.0
)


class InImage(ContainerRunner):
    """A runner of containers whose commands all name the same image."""

    def run(
        self,
        spec: CommandSpec,
        *,
        output: Callable[[str, bytes], None],
        stop: Callable[[], bool],
    ) -> CommandResult:
        return super().run(replace(spec, image=IMAGE), output=output, stop=stop)

    def fingerprint(self, spec: CommandSpec) -> str:
        return super().fingerprint(replace(spec, image=IMAGE))


RUNNERS: dict[str, Callable[..., SandboxRunner | UnsandboxedRunner | ContainerRunner]] = {
    "sandboxed": SandboxRunner,
    "sandboxed, copying": partial(SandboxRunner, overlay=False),
    "sandboxed, by Python": partial(SandboxRunner, launcher="python"),
    "unsandboxed": UnsandboxedRunner,
}
if (podman := engine()) is not None:  # elsewhere, test_runner_containers.py has one that plays it
    RUNNERS["container"] = partial(InImage, engine=podman, images=["localhost/*"])


@dataclass
class World:
    """A machine: its work directory, and an object store shared with other machines."""

    kind: str
    directory: Path
    trees: GivenTrees = field(default_factory=GivenTrees)
    runners: list[SandboxRunner | UnsandboxedRunner | ContainerRunner] = field(default_factory=list)

    def machine(self, name: str = "first") -> Bench:
        runner = RUNNERS[self.kind](
            trees=self.trees,
            objects=objects_in(self.directory),
            work_dir=self.directory / name,
            limits=LIMITS,
        )
        self.runners.append(runner)
        return Bench(runner)


@pytest.fixture(params=sorted(RUNNERS))
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    world = World(request.param, tmp_path)
    yield world
    for runner in world.runners:
        runner.close()


@pytest.fixture
def bench(world: World) -> Bench:
    return world.machine()


def test_the_exit_code_is_the_script_s(bench: Bench) -> None:
    for code in (0, 1, 2, 77, 255):
        result = bench.sh(f"exit {code}")
        assert (result.exit_code, result.ended) == (code, None)


def test_a_script_ends_at_its_first_failure(bench: Bench) -> None:
    result = bench.sh("false\necho not reached")
    assert (result.exit_code, bench.text("stdout")) == (1, "")


def test_bash_also_fails_inside_a_pipe(bench: Bench) -> None:
    assert bench.sh("false | true", shell="bash").exit_code == 1
    assert bench.sh("false | true", shell="sh").exit_code == 0


def test_a_signal_is_told_as_shells_do(bench: Bench) -> None:
    assert bench.sh("sh -c 'kill -SEGV $$'").exit_code == 139


def test_the_commit_s_files_are_there_with_their_modes(world: World) -> None:
    world.trees.files = {"a/tool": "+x#!/bin/sh\necho ran\n", "data": "d\n"}
    bench = world.machine()
    result = bench.sh("a/tool; cat data; test ! -x data")
    assert (result.exit_code, bench.text("stdout")) == (0, "ran\nd\n")


def test_both_streams_come_as_they_are_written(bench: Bench) -> None:
    heard: list[tuple[str, bytes, float]] = []
    bench.sh(
        "echo one; sleep 0.3; echo two >&2; sleep 0.3; printf three",
        output=lambda stream, data: heard.append((stream, data, time.monotonic())),
    )
    assert [(stream, data) for stream, data, _ in heard] == [
        ("stdout", b"one\n"),
        ("stderr", b"two\n"),
        ("stdout", b"three"),
    ]
    assert heard[1][2] - heard[0][2] > 0.2
    assert heard[2][2] - heard[1][2] > 0.2


def test_the_tail_of_the_output_is_kept(bench: Bench) -> None:
    result = bench.sh("seq 1 5000; echo oops >&2; exit 1")
    assert len(result.output_tail) == 4096
    assert result.output_tail.endswith("5000\noops\n") or "oops" in result.output_tail


def test_bytes_that_are_not_text_pass_through(bench: Bench) -> None:
    result = bench.sh(r"printf '\377\0\33[31mred'")
    assert b"".join(data for _, data in bench.said) == b"\xff\0\x1b[31mred"
    assert "red" in result.output_tail


def test_outputs_are_read(bench: Bench) -> None:
    result = bench.sh(
        'echo version=1.2 >> "$CI_OUTPUT"; printf "n<<E\\na\\nb\\nE\\n" >> $CI_OUTPUT'
    )
    assert result.outputs == {"version": "1.2", "n": "a\nb"}
    assert bench.sh("true").outputs == {}


def test_outputs_that_cannot_be_read_end_the_step_with_a_reason(bench: Bench) -> None:
    result = bench.sh("echo nonsense > $CI_OUTPUT; echo x > file")
    assert (result.exit_code, result.ended, result.layer) == (None, "outputs", None)
    assert "line 1" in result.detail
    assert "line 1" in bench.text("note")


def test_the_environment_is_the_step_s_and_ci_cannot_be_overridden(bench: Bench) -> None:
    bench.sh(
        'echo "$GREETING|$CI|$CI_WORKSPACE" ; pwd',
        env={"GREETING": "hello 'world' \n$x", "CI": "no", "CI_WORKSPACE": "/"},
    )
    greeting, workspace = bench.text("stdout").rsplit("|true|", 1)
    assert greeting == "hello 'world' \n$x"
    assert workspace.split()[0] == workspace.split()[1]


def test_a_step_sees_the_files_of_the_steps_before_it(bench: Bench) -> None:
    first = bench.layer("echo 1 > made; rm README; mkdir -p d/e; echo 2 > d/e/f")
    second = bench.layer("cat made d/e/f; test ! -e README; rm -r d; echo 3 >> made", first)
    assert bench.text("stdout") == "1\n2\n"
    bench.sh("cat made; ls -A", first, second)
    assert bench.text("stdout") == "1\n3\nmade\n"


def test_git_is_there_only_when_asked_and_nothing_of_it_is_kept(bench: Bench) -> None:
    planted = bench.layer("ln -s /etc .git; echo 1 > made")
    result = bench.sh("cat .git/depth; echo x > .git/x; echo 2 > made", planted, git_depth=7)
    assert (result.exit_code, bench.text("stdout")) == (0, "7\n")
    assert result.layer is not None
    bench.sh("cat made; readlink .git; test ! -e .git/x", planted, result.layer)
    assert bench.text("stdout") == "2\n/etc\n"
    assert bench.sh("touch .git/x", git_depth=1).layer is None
    assert bench.sh("test ! -e .git").exit_code == 0


def test_another_machine_sees_them_too(world: World) -> None:
    bench = world.machine()
    first = bench.layer("echo 1 > made; chmod 700 made; ln -s made link; rm README")
    second = bench.layer("echo 2 >> made; mkdir empty", first)
    other = world.machine("second")
    other.sh("cat made; readlink link; ls -A | sort; stat -c %a made", first, second)
    assert other.text("stdout").split() == ["1", "2", "made", "empty", "link", "made", "700"]


def test_a_retry_starts_clean_and_a_failed_attempt_leaves_no_trace(bench: Bench) -> None:
    base = bench.layer("echo good > file")
    failed = bench.sh("echo bad > file; echo x > new; exit 1", base)
    assert (failed.exit_code, failed.layer) == (1, None)
    bench.sh("cat file; ls -A", base)
    assert bench.text("stdout") == "good\nREADME\nfile\n"


def test_changing_nothing_makes_no_layer(bench: Bench) -> None:
    assert bench.sh("cat README").layer is None
    assert bench.sh("echo x > t; rm t").layer is None


def test_parallel_steps_do_not_see_each_other_and_their_layers_join(bench: Bench) -> None:
    left = bench.layer("echo l > left")
    right = bench.layer("ls -A; echo r > right")
    assert bench.text("stdout") == "README\n"
    bench.sh("cat left right", left, right)
    assert bench.text("stdout") == "l\nr\n"


def test_layers_collide_in_a_file_that_both_changed_differently(world: World) -> None:
    bench = world.machine()
    tool = "mkdir -p .tool; echo x > .tool/CACHEDIR.TAG; echo $RANDOM$$ > .tool/state\n"
    left = bench.layer(f"{tool}echo same > same; echo l > README; ln -s a link")
    right = bench.layer(f"{tool}echo same > same; echo r > README; ln -s a link")
    other = bench.layer("echo same > same; echo own > own; mkdir -p .tool; echo 1 > .tool/more")
    judge = world.machine("second").runner
    assert judge.collision(left, right) == judge.collision(right, left) == "README"
    assert judge.collision(left, other) is None
    assert judge.collision(right, bench.layer("rm README")) == "README"
    with pytest.raises(RunnerUnavailable, match="not in the object store"):
        judge.collision(left, "0" * 64)


def test_runs_of_the_same_commit_share_nothing(bench: Bench) -> None:
    bench.layer("echo 1 > private")
    bench.sh("ls -A", run_id="run_2")
    assert bench.text("stdout") == "README\n"


def test_unchanged_files_keep_their_times_across_machines(world: World) -> None:
    """So that make, and Python's bytecode, see what is up to date as up to date."""
    bench, other = world.machine(), world.machine("second")
    base = bench.layer("touch -r README before; echo new > built")
    other.sh("test built -nt README; test ! README -nt before; test ! README -ot before", base)
    assert other.sh("test built -nt README", base).exit_code == 0


def test_the_tree_is_exported_once_per_machine(world: World) -> None:
    bench = world.machine()
    for number in range(3):
        bench.sh("echo x >> README; cat README", run_id=f"run_{number}")
        assert bench.text("stdout") == "read me\nx\n"
    assert world.trees.exports == 1


def test_a_command_starts_in_its_directory(world: World) -> None:
    world.trees.files = {"docs/index": "i"}
    bench = world.machine()
    bench.sh("ls", cwd="docs")
    assert bench.text("stdout") == "index\n"
    result = bench.sh("ls", cwd="nowhere")
    assert (result.exit_code, result.ended) == (None, "invalid")
    assert "'nowhere' is not a directory" in result.detail


def test_a_timeout_ends_the_command_and_says_so(world: World, bench: Bench) -> None:
    began = time.monotonic()
    result = bench.sh(f"echo begun; exec sleep {nap(61)}", timeout_ms=300)
    assert (result.exit_code, result.ended) == (None, "timeout")
    assert "0.3 s" in result.detail
    said = result.output_tail
    if world.kind == "container":  # the shell around it may live long enough to say what befell it
        said = said.removesuffix("Terminated\n")
    assert said == "begun\n"
    assert time.monotonic() - began < 5
    assert processes_that_say(nap(61)) == []


def test_stop_asks_first_and_lets_the_command_clean_up(bench: Bench) -> None:
    result = bench.sh(
        "trap 'echo cleaned; exit 5' TERM; echo ready; while true; do sleep 0.05; done",
        stop=lambda: bool(bench.said),
    )
    assert (result.exit_code, result.ended) == (None, "cancelled")
    assert "cleaned" in bench.text("stdout")


def test_stop_kills_what_does_not_listen(bench: Bench) -> None:
    asked = threading.Event()
    began = time.monotonic()
    result = bench.sh(
        "trap '' TERM; echo ready; while true; do sleep 0.05; done",
        stop=asked.is_set,
        output=lambda stream, data: asked.set(),
    )
    assert result.ended == "cancelled"
    assert 1.0 <= time.monotonic() - began < 6


def test_a_command_stopped_before_it_starts_is_never_run(bench: Bench) -> None:
    result = bench.sh("echo ran", stop=lambda: True)
    assert (result.exit_code, result.ended) == (None, "cancelled")
    assert bench.text("stdout") == ""


def test_too_much_output_ends_the_command(bench: Bench) -> None:
    result = bench.sh(f"yes {'x' * 99}")
    assert (result.exit_code, result.ended) == (None, "output")
    assert "1 MiB (SLUICE_COMMAND_OUTPUT_BYTES)" in result.detail
    assert len(bench.text("stdout")) == 1 << 20


def test_too_much_disk_ends_the_command(bench: Bench) -> None:
    began = time.monotonic()
    result = bench.sh(
        "i=0; while true; do head -c 8000000 /dev/zero > f$i; i=$((i+1)); sleep 0.1; done"
    )
    assert (result.exit_code, result.ended) == (None, "disk")
    assert "64 MiB (SLUICE_COMMAND_DISK_BYTES)" in result.detail
    assert time.monotonic() - began < 15


def test_growth_that_nobody_saw_while_it_ran_is_refused_at_the_end(bench: Bench) -> None:
    result = bench.sh("for i in 1 2 3 4 5 6 7 8 9; do head -c 8000000 /dev/zero > f$i; done")
    assert (result.exit_code, result.ended, result.layer) == (None, "disk", None)


def test_too_many_files_end_the_command(bench: Bench) -> None:
    result = bench.sh("seq 1 800 | xargs touch; sleep 30")
    assert (result.exit_code, result.ended) == (None, "files")


def test_commands_run_at_the_same_time(bench: Bench) -> None:
    results, together = [], threading.Barrier(4, timeout=60)

    def meet(stream: str, data: bytes) -> None:
        together.wait()  # each is held here until all have come

    def one(number: int) -> None:
        spare = Bench(bench.runner)
        script = f"echo here; echo {number} > mine"
        results.append((spare.sh(script, output=meet, timeout_ms=90_000), number))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    layers = [result.layer for result, _ in results]
    assert len(set(layers)) == 4 and None not in layers


def test_an_error_of_the_listener_ends_the_command(bench: Bench) -> None:
    def broken(stream: str, data: bytes) -> None:
        raise RuntimeError("the database is gone")

    with pytest.raises(RuntimeError, match="the database is gone"):
        bench.sh(f"echo x; exec sleep {nap(62)}", output=broken)
    deadline = time.monotonic() + 5
    while processes_that_say(nap(62)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert processes_that_say(nap(62)) == []


def test_nothing_is_left_on_disk_but_the_cache(world: World) -> None:
    bench = world.machine()
    bench.layer("mkdir -p a/b; chmod 000 a; echo x > y")
    bench.sh("mkdir -p c/d; touch c/d/e; chmod -R 000 c; exit 1")
    world.runners[0].close()
    assert os.listdir(world.directory / "first/jobs") == []
    assert os.listdir(world.directory / "first/scratch") == []
    assert os.listdir(world.directory / "first/trash") == []


def test_workspaces_of_a_worker_that_died_are_swept(world: World) -> None:
    left = world.directory / "first/jobs/job-left/files"
    left.mkdir(parents=True)
    (left / "x").touch()
    world.machine()
    world.runners[0].close()
    assert os.listdir(world.directory / "first/jobs") == []
    assert os.listdir(world.directory / "first/trash") == []


def test_with_little_space_left_no_command_is_started_and_caches_are_given_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = world.machine()
    bench.layer("echo x > made")
    trees = world.directory / "first/trees"
    assert bench.runner.obstacle() is None
    assert any(path.name != "commits" for path in trees.iterdir())
    space = [LIMITS.free_bytes - 1, LIMITS.free_bytes]
    monkeypatch.setattr(execution, "free_bytes", lambda place: space.pop(0))
    assert bench.runner.obstacle() is None, "giving up the caches was enough"
    assert [path.name for path in trees.iterdir()] == ["commits"]
    monkeypatch.setattr(execution, "free_bytes", lambda place: 1 << 20)
    assert "1 MiB free" in str(bench.runner.obstacle())
    assert "512 MiB (SLUICE_COMMAND_FREE_BYTES)" in str(bench.runner.obstacle())


def test_a_fingerprint_is_the_same_on_every_machine_and_follows_the_files(world: World) -> None:
    world.trees.files = {"src/a": "1", "tool": "+x2", "README": "read me\n"}
    bench = world.machine()
    cache: dict[str, Json] = {"inputs": ["src", "tool"], "key": "", "env": {}, "ref": "r"}

    def taken(runner: Bench, *base: str) -> str:
        spec = CommandSpec("repo_1", "run_1", "sh:x", "c" * 40, base, "make", cache=cache)
        return runner.runner.fingerprint(spec)

    plain = taken(bench)
    same = bench.layer("cp -p src/a b; mv b src/a; echo new > README")
    added, moded = bench.layer("echo 2 > src/b"), bench.layer("chmod -x tool")
    gone = bench.layer("rm -r src")
    second = world.machine("second")
    assert taken(second) == taken(second, same) == plain
    assert len({plain, taken(second, added), taken(second, moded), taken(second, gone)}) == 4
    assert taken(second, added, gone) == taken(second, gone)
