"""The limits of the git store: one frozen value, every limit with its unit in its name.

Handed to GitStore by whoever builds it; nothing here reads a file or the environment.
"""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Limits:
    push_bytes: int = 2 * GIB  # one pack as sent
    blob_bytes: int = 1 * GIB  # one file, inflated
    tree_bytes: int = 64 * MIB  # one tree, commit or tag, inflated: these are held in memory
    delta_result_bytes: int = 512 * MIB  # git itself makes no deltas of larger files
    repository_bytes: int = 10 * GIB  # all packs of one repository: its quota
    push_objects: int = 5_000_000  # in one pack
    inflated_bytes: int = 256 * GIB  # made by all deltas of one push together
    push_commands: int = 20_000  # refs in one push
    push_options: int = 100
    push_option_bytes: int = 1024
    ref_bytes: int = 512  # the name of one ref
    repository_refs: int = 200_000
    repository_packs: int = 50  # of one repository; more are joined by the next `maintain`
    inline_pack_bytes: int = 64 * KIB  # smaller packs are rows, larger ones objects
    request_bytes: int = 64 * MIB  # a fetch request after gunzip: wants and haves
    fetch_wants: int = 100_000
    fetch_haves: int = 100_000
    drain_bytes: int = 256 * MIB  # read and thrown away after a push was refused half-way
    open_packs: int = 200  # large packs kept open in this process, two descriptors each
    open_inline_bytes: int = 64 * MIB  # small packs kept at hand in this process
    cache_bytes: int = 4 * GIB  # local copies of packs of a remote object store
    file_bytes: int = 32 * MIB  # one file read into memory through `Files.read`
    export_bytes: int = 4 * GIB  # a whole exported tree
    export_files: int = 500_000
    changed_paths: int = 10_000  # reported between two commits
    diff_files: int = 1000  # of one comparison as text
    diff_file_bytes: int = 1 * MIB  # one side of one file; larger ones are listed without text
    diff_file_lines: int = 10_000  # of both sides between the first and the last that differ
    diff_lines: int = 100_000  # the same, of all files of one comparison
    diff_bytes: int = 8 * MIB  # text of one comparison
    log_skip: int = 100_000  # commits a page of the log may begin after
    remote_imports: int = 4  # at once in this process
    remote_seconds: float = 300.0  # a fetch from a remote, start to end
    threads: int = 64  # of GitHttp: requests in work at once
    heavy_threads: int = 2  # of those: packing and indexing at once
    process_bytes: int = 2 * MIB  # pushes from this size on are indexed in a process of their own
    git_objects_min: int = 5_000  # in packs that git indexes: large files we hash faster ourselves
    git_objects_max: int = 250_000  # git takes 130 bytes of memory for each, and we none
    process_objects: int = 2000  # fetches of more are put together in a process of their own
    processes: int = 8  # of pushes and fetches together, at once
    process_memory_bytes: int = 1 * GIB  # of one such process
    process_seconds: int = 3600  # processor time of one
    keepalive_seconds: float = 5.0  # a client that waits hears something so often
    idle_seconds: float = 120.0  # a client that neither sends nor takes a byte for so long is cut
