"""Output of steps on its way to the log: bytes and text in, numbered lines in batches out.

A StepLog splits, decodes, numbers and bounds the output of one step. The Spool flushes all of them
at least every FLUSH_MS, so that a line is on its way to the reader while the step still runs.
"""

from __future__ import annotations

import codecs
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ci_platform.errors import LeaseLost, SluiceError, StoreUnavailable
from ci_platform.model import LogLine, RunId
from ci_platform.ports import Clock
from ci_platform.ports.logs import Held, LogStore
from ci_platform.shell import LINE_BYTES_MIN

FLUSH_MS = 100  # a line waits no longer than this for others to share its write
BATCH_LINES_MAX = 500  # a batch is written at once when it has so many lines
BATCH_CHARS_MAX = 256 << 10  # … or so much text
WRITE_LINES_MAX = 5_000  # in one write to the store: a read of short lines holds many more
LINE_CHARS_MAX = 16 << 10  # a longer line goes on in the next one
FLOOD_LINES = 1000  # in one piece of output, all short: a flood, and its command is slowed down …
FLOOD_LINES_PER_SECOND = 500_000  # … so that the worker's other threads have their turn
HELD_LINES_MAX = 100_000  # of one log, while the store is away
HELD_CHARS_MAX = 16 << 20
AWAY_SECONDS = 0.25  # a write takes so long then: the command is slowed down, not stopped
NOTE = "note"  # the stream of what the platform itself says
GROUP, END_GROUP = "group", "endgroup"  # the streams of lines that begin and end a group
_GROUP, _END_GROUP = "::group::", "::endgroup::"  # as commands write them

_log = logging.getLogger(__name__)
_UNWRITABLE = ("\0", "\N{REPLACEMENT CHARACTER}")  # no database takes a NUL


@dataclass(slots=True)
class _Stream:
    decoder: codecs.IncrementalDecoder
    rest: str = ""  # of a line that has not ended


@dataclass(slots=True)
class StepLog:
    """The log of one step, written by one worker. Safe to call from several threads."""

    store: LogStore
    clock: Clock
    run_id: RunId
    step: str
    bytes_max: int
    held: Held | None = None  # the lease it is written under, of a command
    shared: bool = False  # others write it too, on other machines
    pause: Callable[[float], None] = time.sleep
    _number: int | None = None  # of the last line; asked of the store at the first one
    _bytes: int = 0
    _streams: dict[str, _Stream] = field(default_factory=dict)
    _pending: list[LogLine] = field(default_factory=list)
    _chars: int = 0
    _missing: int = 0  # bytes that were thrown away while the store was away
    _gone: LeaseLost | None = None  # another worker writes this log now
    _lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def last(self) -> int:
        """The number of the last line."""
        with self._lock:
            if self._number is None:
                self._number = self.store.last(self.run_id, self.step)
            return self._number

    def write(self, stream: str, data: bytes | str) -> None:
        """Add output, in pieces of any size. Blocks while a full batch is written; while the store
        is away, it is held back and slowed down, and in the end thrown away, but never blocked.
        Raises LeaseLost."""
        with self._lock:
            if self._gone is not None:
                raise self._gone
            room = self.bytes_max - self._bytes
            if room <= 0:
                return
            raw = data if isinstance(data, bytes) else data.encode("utf-8", "replace")
            self._bytes += len(raw)
            if self._full():
                self._missing += len(raw)
            else:
                self._take(stream, raw[:room])
            if len(raw) >= room:
                self._end_streams()
                self._add(NOTE, f"output over {self.bytes_max:,} bytes is not kept (log_bytes)")
            away = not self._flush_batch()
        if away:
            self.pause(AWAY_SECONDS)
        elif seconds := _flood_seconds(raw):
            self.pause(seconds)

    def _full(self) -> bool:
        """Whether so much waits for the store that no more is taken."""
        return len(self._pending) >= HELD_LINES_MAX or self._chars >= HELD_CHARS_MAX

    def _flush_batch(self) -> bool:
        """Write if there is enough for it. False if the store is away."""
        if len(self._pending) < BATCH_LINES_MAX and self._chars < BATCH_CHARS_MAX:
            return True
        try:
            self.flush()
        except StoreUnavailable as error:
            _log.warning("the log of %s %s waits: %s", self.run_id, self.step, error)
            return False
        return True

    def note(self, text: str) -> None:
        """Say something as the platform."""
        with self._lock:
            self._end_streams()
            self._add(NOTE, text)

    def flush(self) -> None:
        """Write the lines that have ended. After an error they stay, to be written again; those
        of a command that has gone to another worker never are (LeaseLost)."""
        with self._lock:
            self._write_pending()
            self._chars = 0
            if self._missing:
                missing, self._missing = self._missing, 0
                self._add(NOTE, f"{missing:,} bytes are missing here: the store was away")

    def _write_pending(self) -> None:
        while self._pending:
            lines = tuple(self._pending[:WRITE_LINES_MAX])
            try:
                self.store.append(self.run_id, self.step, lines, held=self.held, shared=self.shared)
            except LeaseLost as lost:
                self._gone = lost
                self._pending.clear()
                raise
            del self._pending[: len(lines)]

    def close(self) -> None:
        """End the last line and write everything."""
        with self._lock:
            self._end_streams()
            self.flush()
            self.flush()  # what the first one had to say

    def _take(self, name: str, raw: bytes) -> None:
        stream = self._streams.get(name)
        if stream is None:
            stream = self._streams[name] = _Stream(codecs.getincrementaldecoder("utf-8")("replace"))
        text = stream.decoder.decode(raw).replace(*_UNWRITABLE)
        *lines, rest = (stream.rest + text).split("\n")
        self._add_lines(name, lines)
        while len(rest) > LINE_CHARS_MAX:
            self._add(name, rest[:LINE_CHARS_MAX])
            rest = rest[LINE_CHARS_MAX:]
        stream.rest = rest

    def _end_streams(self) -> None:
        for name, stream in self._streams.items():
            rest = stream.rest + stream.decoder.decode(b"", True)
            stream.decoder.reset()
            stream.rest = ""
            if rest:
                self._add(name, rest.removesuffix("\r"))

    def _add_lines(self, stream: str, lines: Sequence[str]) -> None:
        """Whole lines. Floods of short ones are why they are not looked at one by one."""
        if self._gone is not None or not lines:
            return
        text = "\n".join(lines)
        if "::" in text or "\r" in text or max(map(len, lines)) > LINE_CHARS_MAX:
            for line in lines:
                self._add_line(stream, line.removesuffix("\r"))
            return
        first, at_ms = self.last + 1, self.clock.now_ms()
        self._pending += [
            LogLine(number, at_ms, stream, line) for number, line in enumerate(lines, first)
        ]
        self._number = self._pending[-1].number
        self._chars += len(text)

    def _add_line(self, stream: str, text: str) -> None:
        """A whole line: one that begins or ends a group is marked as that, once and for all."""
        if text.startswith("::"):
            if text.startswith(_GROUP):
                stream, text = GROUP, text.removeprefix(_GROUP)
            elif text.rstrip() == _END_GROUP:
                stream, text = END_GROUP, ""
        self._add(stream, text)

    def _add(self, stream: str, text: str) -> None:
        if self._gone is not None:
            return
        number, at_ms = self.last, self.clock.now_ms()
        for start in range(0, max(len(text), 1), LINE_CHARS_MAX):
            piece = text[start : start + LINE_CHARS_MAX].replace(*_UNWRITABLE)
            number += 1
            self._pending.append(LogLine(number, at_ms, stream, piece))
            self._chars += len(piece)
        self._number = number


def _flood_seconds(raw: bytes) -> float:
    """How long whoever wrote so many short lines at once is kept waiting."""
    lines = raw.count(b"\n")
    if lines < FLOOD_LINES or len(raw) >= lines * LINE_BYTES_MIN:
        return 0.0
    return lines / FLOOD_LINES_PER_SECOND


class Spool:
    """All open logs of a worker. `flush` is called by a thread of the worker's loop."""

    def __init__(self, store: LogStore, clock: Clock, *, bytes_max: int) -> None:
        self._store = store
        self._clock = clock
        self._bytes_max = bytes_max
        self._logs: dict[int, StepLog] = {}
        self._lock = threading.Lock()
        self._any = threading.Event()  # there is an open log, or the end has come

    @property
    def open_logs(self) -> int:
        with self._lock:
            return len(self._logs)

    def open(self, run_id: RunId, step: str, *, held: Held | None = None) -> StepLog:
        log = StepLog(self._store, self._clock, run_id, step, self._bytes_max, held)
        with self._lock:
            self._logs[id(log)] = log
            self._any.set()
        return log

    def wait(self) -> None:
        """Return when there may be something to flush: nobody looks while no step has a log."""
        self._any.wait()

    def wake(self) -> None:
        """Let `wait` return."""
        self._any.set()

    def close(self, log: StepLog) -> None:
        """Write the rest of a log and forget it."""
        with self._lock:
            self._logs.pop(id(log), None)
            if not self._logs:
                self._any.clear()
        log.close()

    def flush(self) -> None:
        """Write what waits in any log. A log that cannot be written now is tried again later."""
        with self._lock:
            logs = list(self._logs.values())
        for log in logs:
            try:
                log.flush()
            except LeaseLost:
                continue  # whoever writes to it is told
            except SluiceError as error:
                _log.warning("the log of %s %s waits: %s", log.run_id, log.step, error)
