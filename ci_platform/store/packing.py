"""JSON for columns, small: as ASCII text, compressed when that helps.

Short JSON of a known kind compresses only with a dictionary that holds its usual words, and then
to about half, in a microsecond or two. Journals are most of a database, so they are written and
read back twice as fast. ASCII, so that NUL characters and lone surrogates, which PostgreSQL
cannot hold in text, pass through unharmed.

A packed value is JSON text, which never begins with a control character, or the number of a
dictionary and a zstandard frame made with it. Dictionaries are kept for ever: databases hold
frames made with them.
"""

from __future__ import annotations

import json
import threading

import zstandard

from ci_platform.errors import InternalError, InvalidRequest
from ci_platform.model import Json

PACKED_MIN = 24  # bytes; less is not worth it
_DICTIONARY = 1
_LEVEL = 1

# Number 1: what the platform writes most, the most usual at the end. Do not change a byte.
_WORDS = (
    b'{"error":{"type":"CommandFailed","message":"","traceback":"","data":{"exit_code":1,'
    b'"output_tail":"","ended":null}},"retry_at_ms":null}{"commit":"","change":"inserted"}'
    b'{"actor":"","reason":"user","rollback":false}{"reason":"superseded","detail":""}'
    b'{"decision":"approve","actor":"","comment":"","way":"page","form":{}}'
    b'{"repository_id":"repo_","run_id":"run_","step":"sh:build","commit":"","base":[],"script":"",'
    b'"shell":"sh","cwd":".","env":{},"secrets":[],"timeout_ms":3600000,"network":[],'
    b'"artifacts":[],"reports":[],"labels":[],"image":null}'
    b'{"config":{"script":"","env":{},"secrets":[],"cwd":".","shell":"sh","timeout_ms":3600000,'
    b'"retries":{"limit":0,"delay_ms":10000,"backoff":"exponential"},"labels":[],"image":null,'
    b'"network":[],"artifacts":[],"reports":[],"cache":[],"allow_failure":false,'
    b'"rollback":false},"base":0}'
    b'{"value":{"exit_code":0,"outputs":{},"output_tail":"","layer":null,"duration_ms":'
    b'{"value":{"payload":null,"timestamp":"2026-","type":""},"event":'
    b'{"config":{"approvers":["role:maintainer"],"required":1,"allow_self":false,"form":null,'
    b'"timeout_ms":604800000,"environment":null},"until_ms":17'
    b'{"config":{"type":"","timeout_ms":86400000},"until_ms":17'
    b'{"config":{"retries":{"limit":5,"delay_ms":10000,"backoff":"exponential"},'
    b'"timeout_ms":600000,"sensitive":false,"rollback":false}}'
    b'{"type":"","payload":null,"actor":""}{"waits":[""]}{"worker":"localhost:1:worker","fence":1}'
    b'{"before":null,"message":"","actor":"","payload":{"inputs":{}}}'
    b'{"trigger":"push","actor":"","pipeline":"CI","ref":"refs/heads/main","commit":"'
    b'{"__dispatch":{"repository_id":"repo_01","pipeline":"CI","ref":"refs/heads/main",'
    b'"commit":"","resume":"pinned"},"params":{}}'
)
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
_decode = json.JSONDecoder().decode


class _Coder(threading.local):
    """One thread's compressor and decompressor, which cannot be shared."""

    def __init__(self) -> None:
        words = zstandard.ZstdCompressionDict(_WORDS, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
        parameters = zstandard.ZstdCompressionParameters.from_level(
            _LEVEL,
            format=zstandard.FORMAT_ZSTD1_MAGICLESS,
            write_content_size=True,
            write_checksum=False,
            write_dict_id=False,
        )
        self.compress = zstandard.ZstdCompressor(
            dict_data=words, compression_params=parameters
        ).compress
        self.decompress = zstandard.ZstdDecompressor(
            dict_data=words, format=zstandard.FORMAT_ZSTD1_MAGICLESS
        ).decompress


_coder = _Coder()
_PREFIX = bytes([_DICTIONARY])


def dump(value: Json, field: str) -> str:
    """JSON text. Raises InvalidRequest naming the field for what JSON cannot say."""
    try:
        return _encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"{field} is not JSON: {error}", field=field) from error


def pack(value: Json, field: str) -> bytes:
    """Raises InvalidRequest naming the field for what JSON cannot say."""
    text = dump(value, field).encode("ascii")
    if len(text) < PACKED_MIN:
        return text
    packed = _PREFIX + _coder.compress(text)
    return packed if len(packed) < len(text) else text


def unpack(data: bytes) -> Json:
    """Raises InternalError for what `pack` never made."""
    try:
        text = _coder.decompress(data[1:]) if data[:1] == _PREFIX else data
        return _decode(text.decode("ascii"))
    except (zstandard.ZstdError, ValueError) as error:
        raise InternalError(f"a value in the database is damaged: {error}") from error
