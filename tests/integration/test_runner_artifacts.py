"""Artifacts of commands: what is kept, of which command, and what is over a limit."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ci_platform.errors import NotFound
from ci_platform.runner import RunnerLimits, SandboxRunner
from ci_platform.runner.artifacts import StoredArtifacts
from ci_platform.shell import CommandResult, CommandSpec
from tests.integration.runner_world import GivenTrees, objects_in

LIMITS = RunnerLimits(artifacts=3, artifact_bytes=1 << 20)
Sh = Callable[..., CommandResult]


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def sh(tmp_path: Path, notes: list[str]) -> Iterator[Sh]:
    runner = SandboxRunner(
        trees=GivenTrees(), objects=objects_in(tmp_path), work_dir=tmp_path / "w", limits=LIMITS
    )

    def run(script: str, *artifacts: str, reports: tuple[str, ...] = ()) -> CommandResult:
        spec = CommandSpec(
            "repo_1",
            "run_1",
            "sh:x",
            "c" * 40,
            (),
            script,
            artifacts=artifacts,
            reports=reports,
        )
        return runner.run(
            spec,
            output=lambda stream, data: notes.append(data.decode()) if stream == "note" else None,
            stop=lambda: False,
        )

    yield run
    runner.close()


def kept(result: CommandResult) -> list[str]:
    return [one["path"] for one in result.artifacts]


def test_files_are_kept_with_their_size_and_hash(sh: Sh, tmp_path: Path) -> None:
    result = sh("mkdir dist; echo wheel > dist/a.whl; echo no > other", "dist/*")
    digest = hashlib.sha256(b"wheel\n").hexdigest()
    assert result.artifacts == [
        {"path": "dist/a.whl", "size": 6, "sha256": digest, "report": False}
    ]
    stored = StoredArtifacts(objects_in(tmp_path))
    assert b"".join(stored.read(digest)) == b"wheel\n"
    with pytest.raises(NotFound, match="not stored any more"):
        stored.read("0" * 64)


def test_files_that_were_there_before_are_kept_too(sh: Sh) -> None:
    assert kept(sh("true", "README")) == ["README"]


def test_of_a_command_that_failed_only_the_reports_are_kept(sh: Sh) -> None:
    failed = sh("echo 1 > a; echo 2 > junit.xml; exit 3", "a", reports=("*.xml",))
    assert (failed.exit_code, failed.layer, kept(failed)) == (3, None, ["junit.xml"])
    assert failed.artifacts[0]["report"] is True


def test_links_and_pipes_are_no_artifacts(sh: Sh) -> None:
    result = sh("mkdir d; ln -s /etc/passwd d/link; mkfifo d/pipe; echo 1 > d/file", "d")
    assert kept(result) == ["d/file"]


def test_a_pattern_that_nothing_matches_is_said(sh: Sh, notes: list[str]) -> None:
    assert sh("true", "dist/*").exit_code == 0
    assert "artifacts: nothing matches dist/*\n" in notes


@pytest.mark.parametrize(
    ("script", "ended", "said"),
    [
        ("mkdir d; touch d/1 d/2 d/3 d/4", "artifacts", "SLUICE_COMMAND_ARTIFACTS)"),
        ("mkdir d; head -c 2000000 /dev/zero > d/1", "artifact", "SLUICE_COMMAND_ARTIFACT_BYTES)"),
    ],
)
def test_too_many_or_too_large_ones_end_the_step_with_a_reason(
    sh: Sh, script: str, ended: str, said: str
) -> None:
    result = sh(script, "d")
    assert (result.exit_code, result.ended, result.layer) == (None, ended, None)
    assert said in result.detail


def test_too_many_reports_of_a_failure_leave_it_a_failure(sh: Sh, notes: list[str]) -> None:
    result = sh("touch 1.xml 2.xml 3.xml 4.xml; exit 3", reports=("*.xml",))
    assert (result.exit_code, kept(result)) == (3, [])
    assert any("SLUICE_COMMAND_ARTIFACTS" in note for note in notes)


def test_a_name_that_is_no_text_is_left_out(sh: Sh, notes: list[str]) -> None:
    assert kept(sh("touch \"$(printf 'a\\377')\" b", "*")) == ["README", "b"]
    assert any("not UTF-8" in note for note in notes)
