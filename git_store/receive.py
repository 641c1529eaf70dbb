"""The wire side of a push: git-receive-pack, protocol versions 0 and 1.

Reads commands, options and the pack from a client and writes the report; push.py does the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from git_store.advertise import ZERO
from git_store.errors import ProtocolError
from git_store.limits import Limits
from git_store.names import is_sha
from git_store.pktline import FLUSH, Out, PacketReader, SideBand, packet
from git_store.push import Pusher, Pushes, RefChange, Report, Request
from git_store.repos import Repository

_COMMAND_BYTES = 4096  # of a command line, above the ref: two ids and the capabilities


@dataclass(slots=True)
class _Commands:
    changes: list[RefChange]
    capabilities: frozenset[bytes]
    options: list[str]


class Receiver:
    def __init__(self, pushes: Pushes, limits: Limits) -> None:
        self._pushes = pushes
        self._limits = limits

    def serve(self, repository: Repository, pusher: Pusher, reader: PacketReader, out: Out) -> None:
        """Carry out one push. Raises ProtocolError before anything was done."""
        commands = self._read(reader)
        if not commands.changes:
            return
        capabilities = commands.capabilities
        side = SideBand(out, large=b"side-band-64k" in capabilities, quiet=b"quiet" in capabilities)
        chunks = reader.rest()
        report = self._pushes.receive(
            Request(
                repository=repository,
                pusher=pusher,
                changes=commands.changes,
                options=commands.options,
                chunks=chunks if any(change.new for change in commands.changes) else None,
                atomic=b"atomic" in capabilities,
            ),
            say=lambda text: side.say(text.rstrip("\n") + "\n"),
            progress=lambda text: side.progress(text) if text else side.keep_alive(),
        )
        if report.message:
            side.say(report.message.rstrip("\n") + "\n")
        if {b"report-status", b"report-status-v2"} & capabilities:
            _write_report(report, side)
        if side.on:
            out.write(FLUSH)
        out.flush()
        self._drain(chunks)

    def _read(self, reader: PacketReader) -> _Commands:
        commands = _Commands([], frozenset(), [])
        for number, line in enumerate(reader.lines()):
            if line.startswith((b"shallow ", b"push-cert")):
                continue  # the connectivity check does not depend on what the client lacks
            if len(line) > self._limits.ref_bytes + _COMMAND_BYTES:
                raise ProtocolError("a push command is too long")
            if number > self._limits.push_commands:
                raise ProtocolError(
                    f"more than {self._limits.push_commands} refs in one push (push_commands)"
                )
            if not commands.changes:
                line, _, capabilities = line.partition(b"\0")
                commands.capabilities = frozenset(capabilities.split())
            commands.changes.append(_change(line))
        if b"object-format=sha256" in commands.capabilities:
            raise ProtocolError("this server keeps sha1 repositories only")
        if b"push-options" in commands.capabilities:
            commands.options = self._options(reader)
        return commands

    def _options(self, reader: PacketReader) -> list[str]:
        options: list[str] = []
        for line in reader.lines():
            if len(options) >= self._limits.push_options:
                raise ProtocolError(f"more than {self._limits.push_options} push options")
            if len(line) > self._limits.push_option_bytes:
                raise ProtocolError(
                    f"a push option is longer than {self._limits.push_option_bytes} bytes"
                )
            options.append(line.decode("utf-8", "replace").replace("\0", "\ufffd"))
        return options

    def _drain(self, chunks: Iterator[bytes]) -> None:
        """Read what the client still sends after its push was refused, so that it reads the answer:
        a connection closed on it shows the person a network error instead."""
        left = self._limits.drain_bytes
        for chunk in chunks:
            left -= len(chunk)
            if left < 0:
                return


def _change(line: bytes) -> RefChange:
    words = line.split(b" ", 2)
    if len(words) != 3:
        raise ProtocolError("a push command is not of the form 'old new ref'")
    old, new = (word.decode("ascii", "replace") for word in words[:2])
    if not is_sha(old) or not is_sha(new):
        raise ProtocolError("a push command names something that is no sha1 object id")
    return RefChange(
        ref=words[2].decode("utf-8", "surrogateescape"),
        old=None if old == ZERO else old,
        new=None if new == ZERO else new,
    )


def _write_report(report: Report, side: SideBand) -> None:
    lines = [f"unpack {_one_line(report.unpack) if report.unpack else 'ok'}"]
    for ref, problem in report.refs.items():
        lines.append(f"ng {ref} {_one_line(problem)}" if problem else f"ok {ref}")
    encoded = (line.encode("utf-8", "surrogateescape") + b"\n" for line in lines)
    side.data(b"".join(packet(line) for line in encoded) + FLUSH)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:1000]
