"""`self.env.files`: the repository's files at the commit whose code executes.

The commit is the platform's to say, so an answer is the same in every replay of a pinned run; a run
that follows its branch reads the files of the code it executes. Read only, and nothing of it is
kept here.
"""

from __future__ import annotations

from collections.abc import Mapping

from ci_platform.capabilities import arguments as read
from ci_platform.errors import FileMissing, InvalidRequest, NotFound, TooLarge
from ci_platform.model import Json
from ci_platform.ports.granting import Grant
from ci_platform.ports.repositories import Repositories, Source

PATH_MAX = 4_096
TEXT_BYTES_MAX = 1 << 20
CHANGED_MAX = 10_000  # paths


class FilesHandler:
    def __init__(self, repositories: Repositories, source: Source) -> None:
        self._repositories = repositories
        self._source = source

    def __call__(self, grant: Grant, method: str, arguments: Mapping[str, Json]) -> Json:
        if method == "read_text":
            read.only(arguments, "path")
            return self._read_text(grant, read.text(arguments, "path", most=PATH_MAX))
        if method == "changed":
            read.only(arguments)
            return self._changed(grant)
        raise read.no_method("files", method)

    def _read_text(self, grant: Grant, path: str) -> str:
        try:
            data = self._repositories.read_file(grant.repository_id, grant.commit, path)
        except (NotFound, InvalidRequest) as error:
            if isinstance(error, TooLarge):
                raise
            at = grant.commit[:10]
            raise FileMissing(f"{path[:200]!r} is no file of the repository at {at}") from error
        if len(data) > TEXT_BYTES_MAX:
            raise TooLarge(
                f"{path[:200]} has {len(data):,} bytes; the limit of read_text is "
                f"{TEXT_BYTES_MAX:,} (a command, step.sh, has all files)"
            )
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"{path[:200]} is not text (UTF-8): use step.sh") from error

    def _changed(self, grant: Grant) -> Json:
        paths = self._source.changed_paths(grant.repository_id, grant.before, grant.commit)
        if len(paths) > CHANGED_MAX:
            raise TooLarge(f"{len(paths):,} files changed; files.changed() tells {CHANGED_MAX:,}")
        return paths
