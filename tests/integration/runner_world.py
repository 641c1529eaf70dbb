"""A runner over files given in the test, and a short way to run scripts in it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from obstore.store import LocalStore

from ci_platform.model import Json
from ci_platform.shell import CommandResult, CommandSpec, Runner, ServiceSpec

REPOSITORY, RUN, COMMIT = "repo_1", "run_1", "c" * 40


def nap(seconds: int) -> str:
    """An argument for `sleep` that no other test session on this machine uses."""
    return f"{seconds}.{os.getpid()}"


@dataclass
class GivenTrees:
    """Trees from a mapping of path to text; a `+x` in front of the text makes it executable."""

    files: Mapping[str, str] = field(default_factory=lambda: {"README": "read me\n"})
    exports: int = 0

    def export(self, repository_id: str, commit: str, into: Path) -> str:
        self.exports += 1
        for name, text in self.files.items():
            path = into / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text.removeprefix("+x"))
            path.chmod(0o755 if text.startswith("+x") else 0o644)
        return hashlib.sha1(repr(sorted(self.files.items())).encode()).hexdigest()

    def history(self, repository_id: str, commit: str, into: Path, *, depth: int) -> None:
        (into / ".git").mkdir()
        (into / ".git/HEAD").write_text(f"{commit}\n")
        (into / ".git/depth").write_text(f"{depth}\n")


@dataclass
class Bench:
    """Runs scripts and keeps what they said."""

    runner: Runner
    said: list[tuple[str, bytes]] = field(default_factory=list)

    def sh(
        self,
        script: str,
        *base: str,
        stop: Callable[[], bool] = lambda: False,
        run_id: str = RUN,
        shell: str = "sh",
        cwd: str = ".",
        env: Mapping[str, str] | None = None,
        timeout_ms: int = 30_000,
        network: Sequence[str] = (),
        allowed: Sequence[str] | None = None,
        trusted: bool = True,
        git_depth: int = 0,
        services: Sequence[Mapping[str, Json]] = (),
        output: Callable[[str, bytes], None] | None = None,
    ) -> CommandResult:
        self.said.clear()
        spec = CommandSpec(
            repository_id=REPOSITORY,
            run_id=run_id,
            step="sh:test",
            commit=COMMIT,
            base=base,
            script=script,
            shell=shell,
            cwd=cwd,
            env=env or {},
            timeout_ms=timeout_ms,
            network=network,
            allowed=allowed,
            trusted=trusted,
            git_depth=git_depth,
            services=services,
        )

        def hear(stream: str, data: bytes) -> None:
            self.said.append((stream, data))

        return self.runner.run(spec, output=output or hear, stop=stop)

    def text(self, stream: str) -> str:
        return b"".join(data for name, data in self.said if name == stream).decode()

    def layer(self, script: str, *base: str) -> str:
        """Run a script that must pass and change something; the digest of its layer."""
        result = self.sh(script, *base)
        assert result.exit_code == 0, (result, self.said)
        assert result.layer is not None
        return result.layer


def waiting_service() -> Mapping[str, Json]:
    """A service that does nothing, so that a command beside it shares a network."""
    script = f"exec sleep {nap(300)}"
    beside = CommandSpec(REPOSITORY, RUN, "service:idle", COMMIT, (), script)
    return asdict(ServiceSpec("idle", asdict(beside), None, 10_000))


def objects_in(directory: Path) -> LocalStore:
    return LocalStore(directory / "objects", mkdir=True)


def processes_of(uids: range) -> list[str]:
    """What runs on this machine under these uids, but for what only waits to be buried."""
    found = []
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid in uids:
                said = Path("/proc", name, "stat").read_text().split(" (")[1]
                if ") Z " not in said:
                    found.append(said)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def processes_that_say(mark: str) -> list[str]:
    """What runs on this machine with `mark` in its arguments."""
    found = []
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and mark.encode() in Path("/proc", name, "cmdline").read_bytes():
                found.append(name)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found
