"""Loading pipeline code from a real git store: everything `.ci` may turn out to be."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ci_platform.errors import InvalidRequest, NotFound, SourceError
from ci_platform.model import SYSTEM, Repository
from ci_platform.ports.repositories import FileChange
from ci_platform.source import GitSource, GitTrees, _digest
from tests.integration.api.front import PUSHED, Front

FINE = {".ci/pipeline.py": PUSHED}


@pytest.fixture
def repository(front: Front) -> Repository:
    return front.repository(pipeline=None)


def load(front: Front, repository: Repository, files: dict[str, bytes]) -> dict[str, str]:
    commit = front.commands.repositories.commit_files(
        SYSTEM,
        repository.owner,
        repository.name,
        branch="main",
        changes=[FileChange(path, data) for path, data in files.items()],
        message="x [skip ci]",
    )
    return dict(front.parts.source.load(repository.id, commit).files)


def test_all_python_files_below_the_folder_are_loaded(front: Front, repository: Repository) -> None:
    files = {
        ".ci/pipeline.py": b"a = 1\n",
        ".ci/lib/tools.py": "b = 'ü'\n".encode(),
        ".ci/notes.txt": b"\xff",
        "pipeline.py": b"no",
        "src/.ci/x.py": b"no",
    }
    assert load(front, repository, files) == {
        ".ci/pipeline.py": "a = 1\n",
        ".ci/lib/tools.py": "b = 'ü'\n",
    }


def test_a_byte_order_mark_is_no_part_of_the_code(front: Front, repository: Repository) -> None:
    assert load(front, repository, {".ci/pipeline.py": b"\xef\xbb\xbfa = 1"}) == {
        ".ci/pipeline.py": "a = 1"
    }


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"README": b"x"}, "there is no .ci/pipeline.py in commit"),
        ({".ci/pipeline.py": b" \n\t"}, ".ci/pipeline.py is empty"),
        ({".ci/pipeline.py/a.py": b"x"}, ".ci/pipeline.py is a directory, not a file"),
        ({".ci": b"x"}, ".ci is a file, not a directory"),
        ({".ci/pipeline.py": b"a\nb\xffc"}, ".ci/pipeline.py is not UTF-8: byte 0xff in line 2"),
        (
            {".ci/pipeline.py": b"x", ".ci/b.py": b"\x80"},
            ".ci/b.py is not UTF-8: byte 0x80 in line 1",
        ),
        ({".ci/pipeline.py": b"x" * 100_001}, ".ci/pipeline.py is too large"),
        ({".ci/pipeline.py": b"x" * 60_000, ".ci/z.py": b"x" * 60_000}, ".ci/z.py is too large"),
    ],
)
def test_what_is_no_pipeline_file_is_named(
    front: Front, repository: Repository, files: dict[str, bytes], says: str
) -> None:
    with pytest.raises(SourceError) as caught:
        load(front, repository, files)
    assert says in caught.value.detail


def test_a_commit_that_is_gone_is_said_so(front: Front, repository: Repository) -> None:
    with pytest.raises(SourceError, match="not in the repository"):
        front.parts.source.load(repository.id, "1" * 40)
    assert not front.parts.source.has_pipeline(repository.id, "1" * 40)


@pytest.mark.parametrize(
    ("links", "says"),
    [
        ({".ci/pipeline.py": "../secret.py"}, ".ci/pipeline.py is a symbolic link, not a file"),
        ({".ci/pipeline.py": "/etc/passwd"}, ".ci/pipeline.py is a symbolic link, not a file"),
        ({".ci": "elsewhere"}, ".ci is a link, not a directory"),
        ({".ci/tools.py": "/etc/passwd"}, ".ci/tools.py is a link, not a file"),
    ],
)
def test_a_symbolic_link_is_never_followed(
    front: Front, repository: Repository, tmp_path: Path, links: dict[str, str], says: str
) -> None:
    commit = fetched(front, repository, tmp_path / "elsewhere", links)
    with pytest.raises(SourceError) as caught:
        front.parts.source.load(repository.id, commit)
    assert says in caught.value.detail


def fetched(front: Front, repository: Repository, directory: Path, links: dict[str, str]) -> str:
    """A commit with symbolic links, made by git itself."""
    directory.mkdir()

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(directory), "-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run([*command, *arguments], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "-q", "-b", "main")
    (directory / "secret.py").write_text("x = 1\n")
    if ".ci" not in links:
        (directory / ".ci").mkdir()
        if ".ci/pipeline.py" not in links:
            (directory / ".ci/pipeline.py").write_text(PUSHED)
    for path, target in links.items():
        (directory / path).symlink_to(target)
    git("add", "-A", "-f")
    git("commit", "-q", "-m", "links")
    commit = git("rev-parse", "HEAD")
    GitSource(front.git, allow_private_remotes=True).fetch(
        repository.id, directory.as_uri(), commit, "refs/heads/main"
    )
    return commit


def test_equal_code_has_an_equal_digest_in_any_commit(front: Front, repository: Repository) -> None:
    first = front.push(repository, FINE)
    second = front.push(repository, {"README": "x"})
    third = front.push(repository, {".ci/more.py": "x"})
    digests = [front.parts.source.load(repository.id, one).digest for one in (first, second, third)]
    assert digests[0] == digests[1] != digests[2]


def test_a_path_is_not_confused_with_a_content() -> None:
    assert _digest({"a": "bc"}) != _digest({"ab": "c"}) != _digest({"a": "b", "c": ""})


def test_errors_of_the_git_store_become_ours(front: Front, repository: Repository) -> None:
    commit = front.push(repository, FINE)
    repositories = front.parts.repositories
    with pytest.raises(NotFound):
        repositories.read_file(repository.id, commit, "nope")
    with pytest.raises(NotFound):
        repositories.list_tree(repository.id, commit, "nope")
    with pytest.raises(InvalidRequest) as caught:
        repositories.create("a b", "x")
    assert caught.value.field == "owner"
    assert front.parts.source.resolve(repository.id, "refs/heads/nope") is None


def test_a_tree_is_exported_whole(front: Front, repository: Repository, tmp_path: Path) -> None:
    commit = front.push(repository, {**FINE, "a/b": "c"})
    (tmp_path / "out").mkdir()
    tree = GitTrees(front.git).export(repository.id, commit, tmp_path / "out")
    assert tree == front.parts.source.commit(repository.id, commit).tree
    assert (tmp_path / "out/a/b").read_text() == "c"
