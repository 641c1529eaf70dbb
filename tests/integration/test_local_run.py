"""`sluice run`: the working tree's pipeline on this machine, with real sandboxes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ci_platform.cli.local import LocalRun, run, working_tree
from ci_platform.errors import InvalidRequest

PIPELINE = """
import asyncio
from pipelines import Pipeline, on_manual

class CI(Pipeline):
    triggers = [on_manual()]

    async def run(self, event, step):
        word = (event.params or {}).get("word", "nothing")
        a, b = await asyncio.gather(
            step.sh("list", "ls; test ! -e ignored"), step.do("double", lambda: word * 2)
        )
        await step.approval("go on", timeout="1 minute")
        return {"branch": event.branch, "double": b}
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "my project"
    (top / ".ci").mkdir(parents=True)
    (top / ".ci" / "pipeline.py").write_text(PIPELINE)
    (top / "tracked").write_text("as committed")
    (top / "gone").write_text("will be removed")
    (top / ".gitignore").write_text("ignored\n")
    for command in (
        "init -q -b topic",
        "add .",
        "-c user.name=A -c user.email=a@b commit -q -m one",
    ):
        subprocess.run(["git", *command.split()], cwd=top, check=True)
    (top / "tracked").write_text("as it is now")
    (top / "gone").unlink()
    (top / "new").write_text("not added yet")
    (top / "new").chmod(0o755)
    (top / "ignored").write_text("left out")
    (top / "nowhere").symlink_to("missing")
    return top


def test_the_tree_is_taken_as_it_is_now(tree: Path) -> None:
    found = working_tree(tree)
    files = {one.path: one for one in found.files}
    assert set(files) == {".ci/pipeline.py", ".gitignore", "new", "tracked"}
    assert files["tracked"].content == b"as it is now"
    assert files["new"].executable and not files["tracked"].executable
    assert (found.branch, found.left_out) == ("topic", ("nowhere",))


def test_a_directory_below_means_the_whole_tree_unless_it_has_a_pipeline(tree: Path) -> None:
    (tree / "src").mkdir()
    assert working_tree(tree / "src").top == tree
    (tree / "example" / ".ci").mkdir(parents=True)
    (tree / "example" / ".ci" / "pipeline.py").write_text(PIPELINE)
    inner = working_tree(tree / "example")
    assert inner.top == tree / "example"
    assert [one.path for one in inner.files] == [".ci/pipeline.py"]


def test_what_is_no_working_tree_with_a_pipeline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="not a git repository"):
        working_tree(tmp_path)
    with pytest.raises(InvalidRequest, match="git cannot be run in"):
        working_tree(tmp_path / "missing")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    with pytest.raises(InvalidRequest, match=r"there is no .ci/pipeline.py"):
        working_tree(tmp_path)


def test_a_tree_over_the_limit_is_refused_before_it_is_read(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ci_platform.cli.local.TREE_BYTES_MAX", 100)
    with pytest.raises(InvalidRequest, match="the limit of `sluice run` is 100"):
        working_tree(tree)


@pytest.mark.slow
def test_it_runs_to_its_end_with_logs_and_a_verdict(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(LocalRun(tree, params={"word": "ha"}, approve=True)) == 0
    out = capsys.readouterr().out
    assert "list │ tracked" in out
    assert "list │ new" in out
    assert "run #1 ✓ passed" in out
    assert 'output {"branch": "topic", "double": "haha"}' in out


@pytest.mark.slow
def test_a_run_that_fails_exits_with_1_and_shows_why(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tree / ".ci" / "pipeline.py").write_text(PIPELINE.replace('"ls; test', '"exit 3; test'))
    assert run(LocalRun(tree, approve=True, unsandboxed=True)) == 1
    assert "exited with code 3" in capsys.readouterr().out


@pytest.mark.slow
def test_a_gate_that_nobody_can_answer_ends_the_run(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(LocalRun(tree)) == 2
    assert "use --approve, or a terminal" in capsys.readouterr().out
