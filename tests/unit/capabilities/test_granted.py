from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from ci_platform.capabilities import FilesHandler, Granted
from ci_platform.errors import InvalidRequest, NotFound, TooLarge
from ci_platform.model import Json, RepositoryId
from ci_platform.ports.granting import Ask, Grant
from ci_platform.testing import FakeSource

GRANT = Grant(RepositoryId("repo_a"), "c" * 40)


class Repositories:
    """read_file of ports.Repositories: the only method that files need."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = files
        self.asked: list[Sequence[str]] = []

    def read_file(self, repository_id: RepositoryId, commit: str, path: str) -> bytes:
        self.asked.append((repository_id, commit, path))
        if path not in self.files:
            raise NotFound("not there")
        return self.files[path]


def files(**found: bytes) -> tuple[FilesHandler, Repositories]:
    repositories = Repositories(found)
    return FilesHandler(repositories, FakeSource()), repositories  # type: ignore[arg-type]


def ask(granted: Granted, capability: str, method: str, **arguments: Json) -> Mapping[str, Json]:
    return granted.ask(GRANT, Ask(capability, method, arguments))


def test_the_repository_and_commit_are_the_grants_and_not_the_codes() -> None:
    handler, repositories = files(a=b"text")
    granted = Granted({"files": handler})
    assert ask(granted, "files", "read_text", path="a") == {"value": "text"}
    odd = ask(granted, "files", "read_text", path="a", repository_id="repo_b")
    assert odd["error"]["type"] == "InvalidRequest"
    assert repositories.asked == [("repo_a", "c" * 40, "a")]


def test_an_unknown_capability_or_method_is_not_granted() -> None:
    granted = Granted({"files": files()[0]})
    assert ask(granted, "secrets", "get")["error"]["type"] == "NotGranted"
    assert ask(granted, "files", "write")["error"]["type"] == "NotGranted"


def test_a_missing_file_is_a_file_not_found_error() -> None:
    answer = ask(Granted({"files": files()[0]}), "files", "read_text", path="a")
    assert answer["error"]["type"] == "FileNotFoundError"
    assert "'a' is no file of the repository at cccccccccc" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [(b"\xff", InvalidRequest, "is not text"), (b"a" * 2_000_000, TooLarge, "1,048,576")],
)
def test_a_file_that_is_no_text_or_too_large_says_so(
    content: bytes, error: type[Exception], said: str
) -> None:
    handler, _ = files(a=content)
    with pytest.raises(error, match=said):
        handler(GRANT, "read_text", {"path": "a"})


@pytest.mark.parametrize("path", [None, 1, "", "a\0b", "x" * 5_000, ["a"]])
def test_a_path_that_is_none_is_refused(path: Json) -> None:
    answer = ask(Granted({"files": files()[0]}), "files", "read_text", path=path)
    assert answer["error"]["type"] in ("InvalidRequest", "TooLarge")


def test_an_answer_over_the_limit_is_refused() -> None:
    granted = Granted({"files": lambda grant, method, arguments: "x" * 3_000_000})
    assert ask(granted, "files", "any")["error"]["type"] == "TooLarge"
