"""What a client is told before it asks: capabilities and refs, in protocol versions 0, 1 and 2."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from git_store.pktline import FLUSH, Out, packet
from git_store.refs import Ref

ZERO = "0" * 40
AGENT = b"agent=sluice"
_UPLOAD = (
    b"multi_ack_detailed no-done side-band-64k side-band thin-pack ofs-delta shallow deepen-since"
    b" deepen-not deepen-relative no-progress include-tag allow-tip-sha1-in-want"
    b" allow-reachable-sha1-in-want filter object-format=sha1 " + AGENT
)
_RECEIVE = (
    b"report-status report-status-v2 delete-refs side-band-64k quiet atomic ofs-delta push-options"
    b" object-format=sha1 " + AGENT
)
_VERSION_2 = (
    b"version 2",
    AGENT,
    b"ls-refs=unborn",
    b"fetch=shallow wait-for-done filter",
    b"server-option",
    b"object-format=sha1",
)
_PREFIXES_MAX = 200  # more are ignored: the client then gets all refs, and picks


def advertise_version_2(out: Out) -> None:
    out.write(packet(b"# service=git-upload-pack\n") + FLUSH)
    out.write(b"".join(packet(line + b"\n") for line in _VERSION_2) + FLUSH)


def advertise_upload(refs: Sequence[Ref], default_branch: str, version: int, out: Out) -> None:
    """Versions 0 and 1 of a fetch."""
    head = f"refs/heads/{default_branch}"
    lines = [_line(ref) for ref in refs for ref in (ref, *_peeled(ref))]
    capabilities = _UPLOAD
    for ref in refs:
        if ref.name == head:
            lines.insert(0, f"{ref.sha} HEAD".encode())
            capabilities += f" symref=HEAD:{head}".encode()
    _advertise(b"git-upload-pack", lines, capabilities, version, out)


def advertise_receive(refs: Sequence[Ref], version: int, out: Out) -> None:
    """Versions 0 and 1 of a push; there is no version 2 of it."""
    _advertise(b"git-receive-pack", [_line(ref) for ref in refs], _RECEIVE, version, out)


def _advertise(
    service: bytes, lines: Sequence[bytes], capabilities: bytes, version: int, out: Out
) -> None:
    out.write(packet(b"# service=" + service + b"\n") + FLUSH)
    if version == 1:
        out.write(packet(b"version 1\n"))
    first, *rest = lines or [f"{ZERO} capabilities^{{}}".encode()]
    out.write(packet(first + b"\0" + capabilities + b"\n"))
    for line in rest:
        out.write(packet(line + b"\n"))
    out.write(FLUSH)


def _line(ref: Ref) -> bytes:
    return f"{ref.sha} {ref.name}".encode()


def _peeled(ref: Ref) -> Iterable[Ref]:
    if ref.peeled is not None:
        yield Ref(f"{ref.name}^{{}}", ref.peeled, None)


def ref_prefixes(arguments: Sequence[bytes]) -> list[str]:
    """The prefixes an ls-refs command asks for; none: all refs. Those that no name can start with
    are left out, but stand for themselves if they are all there is."""
    prefixes = [a.removeprefix(b"ref-prefix ") for a in arguments if a.startswith(b"ref-prefix ")]
    if len(prefixes) > _PREFIXES_MAX:
        return []
    texts = [prefix.decode("utf-8", "replace") for prefix in prefixes]
    return [text if text.isprintable() else "?" for text in texts]


def list_refs(
    refs: Sequence[Ref], head: Ref | None, default_branch: str, arguments: Sequence[bytes], out: Out
) -> None:
    """The ls-refs command of version 2. `head` is the default branch, None while it is unborn."""
    prefixes = ref_prefixes(arguments)
    branch = f"refs/heads/{default_branch}"
    if not prefixes or any("HEAD".startswith(prefix) for prefix in prefixes):
        if head is not None:
            target = f" symref-target:{branch}" if b"symrefs" in arguments else ""
            out.write(packet(f"{head.sha} HEAD{target}\n".encode()))
        elif b"unborn" in arguments:
            out.write(packet(f"unborn HEAD symref-target:{branch}\n".encode()))
    peel = b"peel" in arguments
    for ref in refs:
        peeled = f" peeled:{ref.peeled}" if peel and ref.peeled else ""
        out.write(packet(f"{ref.sha} {ref.name}{peeled}\n".encode()))
    out.write(FLUSH)
