"""Indexing: against dulwich as the judge, and against packs that lie."""

from __future__ import annotations

import hashlib
import io
import zlib
from pathlib import Path

import pytest
from dulwich.object_format import SHA1
from dulwich.pack import PackData, PackIndex2, create_delta
from hypothesis import given, settings
from hypothesis import strategies as st

from git_store import columns
from git_store.errors import BadPack, OverLimit
from git_store.index import PackIndex, index_bytes, index_pack
from git_store.limits import Limits
from git_store.packfile import BLOB, OFS_DELTA, REF_DELTA, entry_header, pack_header
from tests.unit.git_store.made import Maker, opened


def sealed(*entries: bytes) -> bytes:
    content = pack_header(len(entries)) + b"".join(entries)
    return content + hashlib.sha1(content).digest()


def delta(base: bytes, target: bytes) -> bytes:
    return b"".join(create_delta(base, target))


def near(distance: int, text: bytes) -> bytes:
    return entry_header(OFS_DELTA, len(text), distance) + zlib.compress(text)


def named(base: bytes, text: bytes) -> bytes:
    return entry_header(REF_DELTA, len(text), base) + zlib.compress(text)


def whole(content: bytes) -> bytes:
    return entry_header(BLOB, len(content)) + zlib.compress(content)


def name_of(content: bytes) -> bytes:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).digest()


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=30, unique=True))
@settings(max_examples=50, deadline=None)
def test_an_index_is_what_dulwich_reads_and_makes(contents: list[bytes]) -> None:
    maker = Maker()
    for content in contents:
        maker.blob(content)
    data = maker.pack()
    indexed = index_pack(data, limits=Limits(), lookup=lambda name: None)
    raw = index_bytes(indexed.entries, data[-20:])
    ours = PackIndex(raw)
    assert ours.names() == sorted(maker.made)
    with PackIndex2("x", SHA1, file=io.BytesIO(raw), contents=raw, size=len(raw)) as theirs:
        theirs.check()
        for name, offset, _ in theirs.iterentries():
            assert ours.find(name) == offset
            assert ours.name_at(offset) == name
    assert ours.find(b"\xff" * 20) is None and ours.find(b"\0" * 20) is None


def test_chains_of_both_kinds_of_delta_are_resolved() -> None:
    texts = [b"some text that is long enough " * 20 + bytes([n]) * n for n in range(1, 6)]
    base = whole(texts[0])
    first = near(len(base), delta(texts[0], texts[1]))
    second = near(len(first), delta(texts[1], texts[2]))
    third = named(name_of(texts[1]), delta(texts[1], texts[3]))
    data = sealed(base, first, second, third)
    indexed = index_pack(data, limits=Limits(), lookup=lambda name: None)
    assert {name for name, _, _ in indexed.entries} == {name_of(text) for text in texts[:4]}
    assert indexed.bases == []


def test_a_thin_pack_names_the_bases_it_needs() -> None:
    old, new = b"the old text " * 50, b"the old text " * 49 + b"and more"
    data = sealed(named(name_of(old), delta(old, new)))
    known = {name_of(old): (BLOB, old)}
    indexed = index_pack(data, limits=Limits(), lookup=known.get)
    assert [base[0] for base in indexed.bases] == [name_of(old)]
    assert {name for name, _, _ in indexed.entries} == {name_of(new)}
    with pytest.raises(BadPack, match="1 delta bases are missing"):
        index_pack(data, limits=Limits(), lookup=lambda name: None)


def test_roots_and_what_is_missing_come_with_the_index() -> None:
    maker = Maker()
    tree = maker.tree((0o100644, b"a", b"\1" * 20), (0o160000, b"sub", b"\2" * 20))
    commit = maker.commit(tree, b"\3" * 20)
    indexed = index_pack(maker.pack(), limits=Limits(), lookup=lambda name: None)
    assert indexed.needs == {b"\1" * 20, b"\3" * 20}, "submodules are not looked for"
    assert indexed.roots == [commit]


@pytest.mark.parametrize(
    ("limit", "value"), [("blob_bytes", 10), ("push_objects", 1), ("inflated_bytes", 100)]
)
def test_limits_are_kept_and_named(limit: str, value: int) -> None:
    text = b"text " * 100
    base = whole(text)
    data = sealed(base, near(len(base), delta(text, text + b"!")))
    with pytest.raises(OverLimit) as refused:
        index_pack(data, limits=Limits(**{limit: value}), lookup=lambda name: None)
    assert refused.value.limit == limit


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_damaged_pack_is_refused_and_never_anything_else(chance: st.DataObject) -> None:
    maker = Maker()
    blob = maker.blob(b"content " * 40)
    maker.commit(maker.tree((0o100644, b"a", blob)))
    text = b"content " * 40
    data = bytearray(maker.pack()[:-20] + named(blob, delta(text, text + b"x")))
    data[8:12] = (4).to_bytes(4, "big")
    at = chance.draw(st.integers(0, len(data) - 1))
    data[at] ^= chance.draw(st.integers(1, 255))
    damaged = bytes(data) + hashlib.sha1(data).digest()
    try:
        opened(damaged)
    except (BadPack, OverLimit):
        return
    # What still reads well has been named by what it holds, so nothing is under a wrong name.


def test_an_offset_beyond_two_gigabytes_is_kept() -> None:
    entries = sorted([(b"\1" * 20, 12, 0), (b"\2" * 20, 5 << 30, 0), (b"\3" * 20, 3 << 30, 0)])
    index = PackIndex(index_bytes(entries, b"\0" * 20))
    for name, offset, _ in entries:
        assert index.find(name) == offset
        assert index.name_at(offset) == name
    assert index.offsets() == [offset for _, offset, _ in entries]


def test_dulwich_reads_a_completed_pack_as_we_do(tmp_path: Path) -> None:
    maker = Maker()
    blob = maker.blob(b"hello" * 100)
    maker.commit(maker.tree((0o100644, b"a", blob)))
    path = tmp_path / "x.pack"
    path.write_bytes(maker.pack())
    with PackData(str(path), SHA1) as theirs:
        theirs.check()
        assert {name for name, _, _ in theirs.iterentries()} == set(maker.made)


@pytest.fixture
def crowded(monkeypatch: pytest.MonkeyPatch) -> None:
    crowd(monkeypatch)


def crowd(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few entries count as many, and go to files."""
    for name, value in (("ROWS_IN_MEMORY", 3), ("NAMES_HELD", 5), ("RUN", 4)):
        monkeypatch.setattr(columns, name, value)


def history(files: int) -> bytes:
    """A pack of every kind of entry: deltas of both kinds, also on deltas, and thin ones."""
    maker = Maker()
    blobs = [maker.blob(b"%d " % number * 30) for number in range(files)]
    for number in range(files):
        entries = ((0o100644, b"f%d" % n, blobs[n]) for n in range(min(number + 1, 9)))
        maker.commit(maker.tree(*entries), bytes([number]) * 20)
    texts = [b"some text that is long enough " * 20 + bytes([n]) * n for n in range(1, 40)]
    data, first = maker.pack()[:-20], whole(texts[0])
    parts, before = [first], len(first)
    for number in range(1, len(texts)):
        text = delta(texts[number - 1], texts[number])
        parts.append(named(name_of(texts[number - 1]), text) if number % 3 else near(before, text))
        before = len(parts[-1])
    parts.append(named(name_of(b"old" * 40), delta(b"old" * 40, b"old" * 40 + b"new")))
    count = int.from_bytes(data[8:12], "big") + len(parts)
    return sealed_as(count, data[12:] + b"".join(parts))


def sealed_as(count: int, body: bytes) -> bytes:
    content = pack_header(count) + body
    return content + hashlib.sha1(content).digest()


def indexed_like(data: bytes, spill: Path | None) -> tuple[object, ...]:
    def lookup(name: bytes) -> tuple[int, bytes] | None:
        return (BLOB, b"old" * 40) if name == name_of(b"old" * 40) else None

    found = index_pack(data, limits=Limits(), lookup=lookup, spill=spill)
    index = index_bytes(found.entries, data[-20:])
    return index, found.needs, found.roots, found.bases


def test_what_goes_to_files_comes_out_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = history(60)
    expected = indexed_like(data, None)
    crowd(monkeypatch)
    assert indexed_like(data, tmp_path) == expected
    assert expected[3] and list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("crowded")
def test_one_of_many_objects_that_is_there_twice_is_found(tmp_path: Path) -> None:
    twice = sealed(*(whole(b"%d" % number) for number in (*range(50), 17)))
    with pytest.raises(BadPack, match=f"{name_of(b'17').hex()} twice"):
        index_pack(twice, limits=Limits(), lookup=lambda name: None, spill=tmp_path)


@pytest.mark.usefixtures("crowded")
def test_names_that_begin_alike_are_told_apart(tmp_path: Path) -> None:
    rows = columns.Columns(40, tmp_path)
    names = [bytes([number % 2]) * 12 + bytes([number * 37 % 256]) * 8 for number in range(40)]
    for number, name in enumerate(names):
        rows.identify(rows.add(100 + number, number), name, BLOB)
    expected = sorted((name, 100 + number, number) for number, name in enumerate(names))
    assert list(rows.sort()) == expected


def test_a_pack_that_claims_too_many_entries_is_cut_short() -> None:
    data = sealed_as(4_000_000, whole(b"one"))
    with pytest.raises(BadPack, match="truncated"):
        index_pack(data, limits=Limits(), lookup=lambda name: None)
