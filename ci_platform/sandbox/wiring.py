"""Between the platform's values and the guest's JSON: activations out, outcomes back."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from ci_platform.model import (
    Command,
    Entry,
    Json,
    Mismatch,
    Outcome,
    Raised,
    Returned,
    SourceFiles,
    Suspended,
)
from ci_platform.ports.granting import WebRequest
from ci_platform.ports.sandbox import Activation
from ci_platform.sandbox import decode
from ci_platform.sandbox.decode import BadMessage
from ci_platform.sandbox.limits import MIB, SandboxLimits
from pipelines.wire import VERSION

LABEL_MAX = 600  # characters of what a mismatch expected or got

_encode = json.JSONEncoder(separators=(",", ":")).encode  # made once


def entries_json(entries: Sequence[Entry]) -> str:
    """Journal entries as the guest reads them."""
    return _encode([_entry(entry) for entry in entries])


def _entry(entry: Entry) -> dict[str, Json]:
    key = entry.key
    return {
        "seq": entry.seq,
        "kind": entry.kind.value,
        "at_ms": entry.at_ms,
        "data": entry.data,
        "key": None if key is None else [key.kind.value, key.name, key.occurrence],
        "attempt": entry.attempt,
    }


def describe_message(source: SourceFiles) -> str:
    return json.dumps({"v": VERSION, "op": "describe", "files": dict(source.files)})


def run_message(activation: Activation, limits: SandboxLimits, *, loaded: bool, keep: bool) -> str:
    """The guest's order. `loaded`: its interpreter has the files already."""
    message = {
        "v": VERSION,
        "op": "run",
        "files": {} if loaded else dict(activation.source.files),
        "pipeline": activation.pipeline,
        "event": activation.event,
        "seed": activation.seed,
        "strict": activation.strict,
        "always_hibernate": activation.always_hibernate,
        "reuse": activation.source.digest if loaded or keep else None,
        "value_bytes": limits.value_bytes,
    }
    head = _encode(message)
    return f'{head[:-1]},"entries":{entries_json(activation.entries)}}}'


def fetch_message(source: SourceFiles, request: WebRequest, *, loaded: bool, keep: bool) -> str:
    """The guest's order to answer one request. `loaded`: its interpreter has the files already."""
    return json.dumps(
        {
            "v": VERSION,
            "op": "fetch",
            "files": {} if loaded else dict(source.files),
            "reuse": source.digest if loaded or keep else None,
            "request": {**asdict(request), "body": base64.b64encode(request.body).decode()},
        }
    )


def outcome(answer: Mapping[str, Json], activation: Activation, limits: SandboxLimits) -> Outcome:
    """Read how an activation ended, from a guest that was not told to suspend."""
    if "returned" in answer:
        output = decode.value(answer["returned"], limits.value_bytes)
        return Returned(output, commands=_ends(answer, limits))
    if "raised" in answer:
        return raised(answer, limits)
    if "mismatch" in answer:
        return _mismatch(answer["mismatch"])
    if "suspended" in answer and activation.always_hibernate:
        return Suspended()
    raise BadMessage("an answer that is none of those that exist")


def raised(answer: Mapping[str, Json], limits: SandboxLimits) -> Raised:
    error = decode.error(answer["raised"])
    limit = _LIMIT_OF.get(error.type)
    if limit == "memory":
        mib = limits.memory_bytes // MIB
        error = decode.replaced(error, f"the code used more than its {mib} MiB of memory")
    loading = answer.get("loading") is True
    return Raised(error, limit=limit, loading=loading, commands=_ends(answer, limits))


def _ends(answer: Mapping[str, Json], limits: SandboxLimits) -> Sequence[Command]:
    return tuple(decode.ends(answer.get("commands", []), value_bytes=limits.value_bytes))


_LIMIT_OF = {"MemoryError": "memory", "RecursionError": "recursion"}


def _mismatch(found: Json) -> Mismatch:
    if isinstance(found, dict):
        seq, expected, got = (found.get(name) for name in ("seq", "expected", "got"))
        if isinstance(seq, int) and isinstance(expected, str) and isinstance(got, str):
            texts = (decode.printable(text)[:LABEL_MAX] for text in (expected, got))
            return Mismatch(seq, *texts)
    raise BadMessage("a mismatch that does not say between what")
