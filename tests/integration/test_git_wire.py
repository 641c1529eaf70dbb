"""The wire spoken raw: clients other than git, and clients that lie, break off or attack."""

from __future__ import annotations

import gzip
import hashlib
import re
import socket
import struct
import subprocess
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import pytest
from dulwich.client import HttpGitClient
from dulwich.objects import Blob, Commit, ShaFile, Tree
from dulwich.repo import MemoryRepo

from git_store import Limits
from git_store.packfile import BLOB, COMMIT, OFS_DELTA, TREE, entry_header, pack_header
from git_store.pktline import packet
from tests.integration.git_world import GitWorld, Recorder

ZERO = "0" * 40
LIMITS = Limits(request_bytes=200_000, idle_seconds=3.0, delta_result_bytes=1 << 20)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitWorld]:
    world = GitWorld(tmp_path_factory.mktemp("git"), limits=LIMITS)
    world.store.listen(Recorder())
    yield world
    world.close()


@pytest.fixture
def url(world: GitWorld, request: pytest.FixtureRequest) -> str:
    name = re.sub(r"[^A-Za-z0-9]+", "-", request.node.name)[:80].strip("-")
    name += f"-{zlib.crc32(request.node.name.encode()):x}"
    return world.create(f"acme/{name}")


def commit_of(files: dict[bytes, bytes], parents: Sequence[bytes] = ()) -> list[ShaFile]:
    """A commit with its tree and files, the commit last."""
    blobs = {name: Blob.from_string(content) for name, content in files.items()}
    tree = Tree()
    for name, blob in blobs.items():
        tree.add(name, 0o100644, blob.id)
    commit = Commit()
    commit.tree = tree.id
    commit.parents = list(parents)  # type: ignore[arg-type]
    commit.author = commit.committer = b"A <a@example.org>"
    commit.author_time = commit.commit_time = 1_700_000_000
    commit.author_timezone = commit.commit_timezone = 0
    commit.message = b"m"
    return [*blobs.values(), tree, commit]


def pack_of(objects: Sequence[ShaFile]) -> bytes:
    return raw_pack(*(entry(one.type_num, one.as_raw_string()) for one in objects))


def raw_pack(*entries: bytes) -> bytes:
    """Entries as they are, with an honest header and trailer."""
    content = pack_header(len(entries)) + b"".join(entries)
    return content + hashlib.sha1(content).digest()


def entry(kind: int, content: bytes, *, claim: int | None = None) -> bytes:
    size = len(content) if claim is None else claim
    return entry_header(kind, size) + zlib.compress(content)


def push(
    url: str,
    pack: bytes,
    *commands: tuple[str, str, str],
    capabilities: str = "report-status",
    encoding: str | None = None,
) -> bytes:
    lines = [f"{old} {new} {ref}" for old, new, ref in commands]
    lines[0] += f"\0 {capabilities}"
    body = b"".join(packet(line.encode()) for line in lines) + b"0000" + pack
    headers = {"content-type": "application/x-git-receive-pack-request"}
    if encoding == "gzip":
        headers["content-encoding"] = "gzip"
        body = gzip.compress(body)
    answer = httpx.post(f"{url}/git-receive-pack", content=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.content


def fetch(url: str, body: bytes, **headers: str) -> bytes:
    answer = httpx.post(
        f"{url}/git-upload-pack",
        content=body,
        headers={"content-type": "application/x-git-upload-pack-request", **headers},
    )
    assert answer.status_code == 200, answer.text
    return answer.content


def refs(world: GitWorld, url: str) -> list[str]:
    return [line.split("\t")[1] for line in world.git("ls-remote", url).splitlines()]


def sha(objects: Sequence[ShaFile]) -> str:
    return objects[-1].id.decode()


MAIN = "refs/heads/main"


def test_a_push_spoken_raw_is_reported_without_side_band(world: GitWorld, url: str) -> None:
    objects = commit_of({b"a": b"hello"})
    answer = push(url, pack_of(objects), (ZERO, sha(objects), MAIN))
    assert answer == packet(b"unpack ok\n") + packet(b"ok refs/heads/main\n") + b"0000"
    world.fsck(world.clone(url, "raw"))


def test_a_compressed_push_is_understood(world: GitWorld, url: str) -> None:
    objects = commit_of({b"a": b"hello"})
    answer = push(url, pack_of(objects), (ZERO, sha(objects), MAIN), encoding="gzip")
    assert b"ok refs/heads/main" in answer


def broken_packs() -> dict[str, tuple[bytes, str, str]]:
    """name -> (pack, the commit claimed, what the answer must say)."""
    whole = commit_of({b"a": b"hello"})
    pack = pack_of(whole)
    flipped = bytearray(pack)
    flipped[len(pack) // 2] ^= 0x55
    reseal = bytes(flipped[:-20]) + hashlib.sha1(flipped[:-20]).digest()
    without_blob = commit_of({b"a": b"not sent"})
    child = commit_of({b"a": b"x"}, parents=[b"1" * 40])
    twice = entry(BLOB, b"same")
    big_delta = b"\x01" + bytes([0xFF, 0xFF, 0xFF, 0x7F]) + b"\x01x"
    base = entry(BLOB, b"x")
    delta = entry_header(OFS_DELTA, len(big_delta), len(base)) + zlib.compress(big_delta)
    bomb = entry_header(BLOB, 1000) + zlib.compress(b"0" * 10_000_000)
    count = bytearray(pack_header(1) + entry(BLOB, b"x"))
    count[8:12] = struct.pack(">L", 0xFFFFFFFF)
    evil_tree = b"100644 .GIT\0" + whole[0].sha().digest()
    dots = b"40000 ..\0" + b"\1" * 20
    mode = b"777777 a\0" + whole[0].sha().digest()
    commit = sha(whole)
    return {
        "flipped": (bytes(flipped), commit, "damaged or was cut short"),
        "resealed": (reseal, commit, "unpack"),
        "truncated": (pack[:-30], commit, "damaged or was cut short"),
        "empty": (b"", commit, "damaged or was cut short"),
        "no pack": (b"x" * 100, commit, "damaged or was cut short"),
        "hole": (pack_of(without_blob[1:]), sha(without_blob), "missing necessary objects"),
        "no parent": (pack_of(child), sha(child), "missing necessary objects"),
        "other": (pack, "2" * 40, "missing necessary objects"),
        "twice": (raw_pack(twice, twice), commit, "twice"),
        "delta bomb": (raw_pack(base, delta), commit, "delta"),
        "longer": (raw_pack(bomb), commit, "not of the size it claims"),
        "shorter": (raw_pack(entry(BLOB, b"x", claim=50)), commit, "not of the size it claims"),
        "huge": (raw_pack(entry(TREE, b"", claim=1 << 40)), commit, "tree_bytes"),
        "many": (
            bytes(count) + hashlib.sha1(count).digest(),
            commit,
            "push_objects",
        ),
        "dot git": (raw_pack(entry(TREE, evil_tree)), commit, "named '.', '..' or '.git'"),
        "dot dot": (raw_pack(entry(TREE, dots)), commit, "named '.', '..' or '.git'"),
        "mode": (raw_pack(entry(TREE, mode)), commit, "mode git does not know"),
        "bad tree": (raw_pack(entry(TREE, b"100644 a")), commit, "cannot be parsed"),
        "bad commit": (raw_pack(entry(COMMIT, b"tree xyz")), commit, "commit without a tree"),
        "far base": (
            raw_pack(entry_header(OFS_DELTA, 2, 1 << 30) + zlib.compress(b"\1\1")),
            commit,
            "no base",
        ),
    }


@pytest.mark.parametrize("kind", list(broken_packs()))
def test_a_broken_pack_is_refused_and_leaves_nothing(world: GitWorld, url: str, kind: str) -> None:
    pack, commit, reason = broken_packs()[kind]
    answer = push(url, pack, (ZERO, commit, MAIN)).decode()
    assert reason in answer, answer
    assert "ng refs/heads/main" in answer
    assert refs(world, url) == []
    quarantine = world.directory / "cache/quarantine"
    assert not quarantine.exists() or not list(quarantine.iterdir())


def test_a_stale_old_value_is_refused(world: GitWorld, url: str) -> None:
    first = commit_of({b"a": b"1"})
    push(url, pack_of(first), (ZERO, sha(first), MAIN))
    second = commit_of({b"a": b"2"}, parents=[first[-1].id])
    answer = push(url, pack_of(second), ("3" * 40, sha(second), MAIN))
    assert b"ng refs/heads/main fetch first" in answer
    answer = push(url, pack_of(second), (ZERO, sha(second), MAIN))
    assert b"ng refs/heads/main the ref exists already" in answer
    other = "refs/heads/other"
    answer = push(url, pack_of(second), (sha(first), sha(second), other))
    assert b"ng refs/heads/other the ref has been deleted meanwhile" in answer


@pytest.mark.parametrize(
    "ref", ["refs/heads/a..b", "HEAD", "refs/heads/", "refs/heads/x.lock", "main", "refs/heads/a~b"]
)
def test_bad_ref_names_are_refused(world: GitWorld, url: str, ref: str) -> None:
    objects = commit_of({b"a": b"hello"})
    answer = push(url, pack_of(objects), (ZERO, sha(objects), ref))
    assert b"funny refname" in answer
    assert refs(world, url) == []


def test_two_commands_for_one_ref_are_refused(world: GitWorld, url: str) -> None:
    objects = commit_of({b"a": b"hello"})
    command = (ZERO, sha(objects), MAIN)
    assert b"named twice" in push(url, pack_of(objects), command, command)


def test_an_object_that_differs_from_one_of_its_name_is_refused(
    world: GitWorld, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = commit_of({b"a": b"hello"})
    push(url, pack_of(first), (ZERO, sha(first), MAIN))
    # No two files of one SHA-1 are at hand small enough; a name that lies does as well.
    import git_store.index as index

    honest = index._name
    blob = first[0].sha().digest()
    monkeypatch.setattr(
        index, "_name", lambda kind, content: blob if content == b"evil" else honest(kind, content)
    )
    second = commit_of({b"b": b"x"}, parents=[first[-1].id])
    pack = raw_pack(
        entry(BLOB, b"evil"),
        *(entry(one.type_num, one.as_raw_string()) for one in second),
    )
    answer = push(url, pack, (sha(first), sha(second), MAIN))
    assert b"here already with another content" in answer


@pytest.mark.parametrize("body", [b"zzzz", b"0003", b"00ff", b"0009abcde", b"0032" + b"x" * 46])
def test_nonsense_is_answered_in_the_protocol(world: GitWorld, url: str, body: bytes) -> None:
    assert b"ERR " in fetch(url, body)
    answer = httpx.post(
        f"{url}/git-receive-pack",
        content=body,
        headers={"content-type": "application/x-git-receive-pack-request"},
    )
    assert b"ERR " in answer.content


def test_compressed_requests_are_bounded(world: GitWorld, url: str) -> None:
    bomb = gzip.compress(packet(b"want " + b"1" * 40 + b"\n") * 100_000)
    assert len(bomb) < 50_000
    answer = fetch(url, bomb, **{"content-encoding": "gzip"})
    assert b"ERR the request is longer than 200000 bytes (request_bytes)" in answer
    assert b"ERR " in fetch(url, b"no gzip at all", **{"content-encoding": "gzip"})
    cut = gzip.compress(packet(b"want " + b"1" * 40 + b"\n"))[:-12]
    assert b"ERR " in fetch(url, cut, **{"content-encoding": "gzip"})


def test_sha256_is_refused_in_words(world: GitWorld, url: str) -> None:
    objects = commit_of({b"a": b"hello"})
    answer = push(
        url,
        pack_of(objects),
        (ZERO, sha(objects), MAIN),
        capabilities="report-status object-format=sha256",
    )
    assert b"sha1 repositories only" in answer
    world.git("init", "-q", "--object-format=sha256", "sha256")
    world.commit("sha256", {"a": "a"})
    world.git("push", url, "HEAD:main", cwd="sha256", ok=False)
    assert refs(world, url) == []


@pytest.mark.parametrize("capabilities", ["", "ofs-delta", "side-band", "thin-pack side-band-64k"])
def test_clients_with_few_capabilities_get_a_whole_pack(
    world: GitWorld, url: str, capabilities: str, tmp_path: Path
) -> None:
    """go-git asks without thin packs and side bands; JGit without deltas by distance."""
    work = world.work(f"few-{abs(hash(capabilities))}", url)
    lines = "\n".join(f"line {number}" for number in range(2000))
    for number in range(4):
        world.commit(work, {"a.txt": lines.replace(f"line 10{number}", "changed")})
        world.git("push", "-q", "origin", "main", cwd=work)
    world.git("push", "-q", "origin", f"{world.head(work, 'HEAD~1')}:refs/heads/old", cwd=work)
    want = world.head(work)
    first = packet(f"want {want} {capabilities}\n".encode())
    have = packet(f"have {world.head(work, 'HEAD~2')}\n".encode())
    for haves in (b"", have):
        answer = fetch(url, first + b"0000" + haves + packet(b"done\n"))
        pack = _pack_in(answer, side_band="side-band" in capabilities)
        alone = tmp_path / f"{len(haves)}.pack"
        alone.write_bytes(pack)
        if haves and "thin-pack" in capabilities:
            command = ["git", "index-pack", "--stdin", "--fix-thin"]
            subprocess.run(command, cwd=work, input=pack, check=True)
        else:  # outside of any repository: the pack has to stand on its own
            world.git("index-pack", str(alone), cwd=tmp_path)


def _pack_in(answer: bytes, *, side_band: bool) -> bytes:
    position, pack = 0, b""
    while position < len(answer):
        length = int(answer[position : position + 4], 16)
        line = answer[position + 4 : position + max(4, length)]
        position += max(4, length)
        if line.startswith((b"NAK", b"ACK")):
            if not side_band and answer[position : position + 4] == b"PACK":
                return answer[position:]
        elif line[:1] == b"\1":
            pack += line[1:]
    return pack


def test_dulwichs_own_client_clones_and_pushes(world: GitWorld, url: str, tmp_path: Path) -> None:
    objects = commit_of({b"a": b"hello"})
    push(url, pack_of(objects), (ZERO, sha(objects), MAIN))
    base, path = url.rsplit("/", 2)[0], "/" + "/".join(url.rsplit("/", 2)[1:])
    client = HttpGitClient(base.replace("any:s3cret@", ""), username="any", password="s3cret")
    repo = MemoryRepo()
    result = client.fetch(path, repo)
    assert result.refs[b"refs/heads/main"] == objects[-1].id  # type: ignore[index]
    new = commit_of({b"a": b"again"}, parents=[objects[-1].id])
    for one in new:
        repo.object_store.add_object(one)
    client.send_pack(
        path,
        lambda theirs: {b"refs/heads/main": new[-1].id},  # type: ignore[dict-item]
        repo.object_store.generate_pack_data,
    )
    assert world.git("ls-remote", url, MAIN).split()[0] == sha(new)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/info/refs", 403),
        ("GET", "/info/refs?service=git-evil", 403),
        ("POST", "/info/refs?service=git-upload-pack", 405),
        ("GET", "/git-upload-pack", 405),
        ("POST", "/git-upload-pack", 415),
        ("GET", "/HEAD", 404),
        ("GET", "/objects/info/packs", 404),
        ("GET", "/../../etc/info/refs?service=git-upload-pack", 404),
    ],
)
def test_other_requests_are_refused(
    world: GitWorld, url: str, method: str, path: str, status: int
) -> None:
    assert httpx.request(method, f"{url}{path}").status_code == status


def test_without_credentials_the_client_is_asked_for_them(world: GitWorld, url: str) -> None:
    bare = url.replace("any:s3cret@", "")
    answer = httpx.get(f"{bare}/info/refs?service=git-upload-pack")
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == 'Basic realm="sluice"'
    post = httpx.post(f"{bare}/git-receive-pack", content=b"0000")
    assert post.status_code in (401, 415)


def test_a_client_that_dies_or_stalls_in_a_push_leaves_nothing(world: GitWorld, url: str) -> None:
    objects = commit_of({b"a": b"x" * 300_000})
    body = packet(f"{ZERO} {sha(objects)} {MAIN}\0 report-status".encode()) + b"0000"
    body += raw_pack(*[entry(BLOB, bytes([n]) * 1000 + b"q" * n) for n in range(200)])
    token = "YW55OnMzY3JldA=="
    head = (
        f"POST {httpx.URL(url).path}/git-receive-pack HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: Basic {token}\r\nContent-Length: 1000000\r\n"
        "Content-Type: application/x-git-receive-pack-request\r\n\r\n"
    )
    quarantine = world.directory / "cache/quarantine"
    for stall in (False, True):
        with socket.create_connection(("127.0.0.1", world.port)) as connection:
            connection.sendall(head.encode() + body + b"\0" * 80_000)
            if stall:
                connection.settimeout(20)
                assert connection.recv(12) == b"HTTP/1.1 408"
        deadline = time.monotonic() + 5
        while quarantine.exists() and list(quarantine.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not quarantine.exists() or not list(quarantine.iterdir())
    assert refs(world, url) == []


def test_more_stalled_clients_than_threads_keep_nobody_out(tmp_path: Path) -> None:
    world = GitWorld(tmp_path, limits=Limits(threads=2, idle_seconds=30.0))
    try:
        url = world.create()
        head = (
            f"POST {httpx.URL(url).path}/git-receive-pack HTTP/1.1\r\nHost: x\r\n"
            "Authorization: Basic YW55OnMzY3JldA==\r\nContent-Length: 1000\r\n"
            "Content-Type: application/x-git-receive-pack-request\r\n\r\n0032"
        )
        stalled = [socket.create_connection(("127.0.0.1", world.port)) for _ in range(4)]
        for connection in stalled:
            connection.sendall(head.encode())
        before = time.monotonic()
        assert world.git("ls-remote", url) == ""
        assert time.monotonic() - before < 10
        for connection in stalled:
            connection.close()
    finally:
        world.close()
