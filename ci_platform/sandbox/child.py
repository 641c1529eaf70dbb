"""The sandbox process: executes activations for a worker, and holds nothing worth stealing.

Entered as `python -m ci_platform.sandbox.child`, with one end of a socket pair as its only
descriptor and a JSON of limits as its argument. After loading the guest it confines itself, says
hello with what it got, and serves until the worker hangs up. It parses nothing that guests say.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from pathlib import Path

from ci_platform.sandbox.channel import (
    KEEP,
    PREPARE,
    RSS,
    USE_WARM,
    Channel,
    ChannelClosed,
    Frame,
)
from ci_platform.sandbox.confine import confine, leave_network, volunteer_for_oom
from ci_platform.sandbox.host import UNANSWERED, Instance, Machine, Trap
from pipelines.wire import ASK_BYTES_MAX, VERSION

LOG_CALL_BYTES = 64  # what a call costs of the log's limit, however little it says
LOG_PIECE = 64 * 1024  # characters of one frame
SLEEP_MS_MAX = 3_600_000  # of one call
ASK_TOO_LARGE = f"what is given to self.env is larger than {ASK_BYTES_MAX:,} bytes"


class Serving:
    """The host's side of one activation: forwards to the worker, within limits."""

    def __init__(self, channel: Channel, *, log_bytes: int, next_bytes: int) -> None:
        self._channel = channel
        self._log_left = log_bytes
        self._next_bytes = next_bytes
        self.failed: ChannelClosed | None = None

    def next(self, commands: str) -> str:
        payload = commands.encode("utf-8", "replace")
        if len(payload) > self._next_bytes:
            payload = json.dumps({"too_large": len(payload), "limit": self._next_bytes}).encode()
        try:
            self._channel.send(Frame.NEXT, payload)
            frame, answer = self._channel.receive()
        except ChannelClosed as error:
            self.failed = error
            return '{"fatal":"the worker is gone"}'
        return answer.decode() if frame is Frame.NEXT else '{"fatal":"out of step"}'

    def ask(self, request: str) -> str:
        payload = request.encode("utf-8", "replace")
        if len(payload) > ASK_BYTES_MAX:
            return json.dumps({"error": {"type": "TooLarge", "message": ASK_TOO_LARGE}})
        try:
            self._channel.send(Frame.ASK, payload)
            frame, answer = self._channel.receive()
        except ChannelClosed as error:
            self.failed = error
            return UNANSWERED
        return answer.decode() if frame is Frame.ASK else UNANSWERED

    def log(self, step: str, stream: str, text: str) -> None:
        if self._log_left <= 0:
            return
        step, stream = step[:600], stream[:20]
        for start in range(0, len(text), LOG_PIECE):
            piece = text[start : start + LOG_PIECE]
            self._send_log(step, stream, piece)
            self._log_left -= len(piece) + LOG_CALL_BYTES
            if self._log_left <= 0:
                self._send_log(step, "note", "\nthe log's limit is reached: the rest is left out\n")
                return

    def _send_log(self, step: str, stream: str, text: str) -> None:
        try:
            self._channel.send(Frame.LOG, json.dumps([step, stream, text]).encode())
        except ChannelClosed as error:
            self.failed = error
            self._log_left = 0

    def sleep(self, ms: int) -> None:
        ms = min(ms, SLEEP_MS_MAX)
        try:
            self._channel.send(Frame.SLEEP, str(ms).encode())
        except ChannelClosed as error:
            self.failed = error
            return
        self._channel.wait(ms / 1000)


class Child:
    def __init__(self, channel: Channel, machine: Machine, limits: dict[str, int]) -> None:
        self._channel = channel
        self._machine = machine
        self._limits = limits
        self._warm: Instance | None = None  # has run activations of one code, may run more
        self._may_prepare = True
        self._spare: Instance | None = None  # fresh: only the platform's own code has run in it
        self._statm = os.open("/proc/self/statm", os.O_RDONLY)
        self._page = os.sysconf("SC_PAGE_SIZE")

    def serve(self) -> None:
        """Until the worker hangs up."""
        while True:
            if self._may_prepare and self._spare is None and not self._channel.readable():
                self._spare = fresh_instance(self._machine)
            try:
                frame, payload = self._channel.receive()
            except ChannelClosed:
                return
            if frame is Frame.ACTIVATE:
                self._activate(payload[0], payload[1:].decode())

    def _activate(self, flags: int, message: str) -> None:
        self._may_prepare = bool(flags & PREPARE)
        instance, self._warm = self._warm, None
        if instance is not None and not flags & USE_WARM:
            instance.close()
            instance = None
        if instance is None:
            instance, self._spare = self._spare, None
        calls = Serving(
            self._channel,
            log_bytes=self._limits["log_bytes"],
            next_bytes=self._limits["next_bytes"],
        )
        try:
            instance = instance or self._machine.instance()
            answer = self._machine.activate(instance, message, calls)
        except Trap as trap:
            self._end(Frame.TRAP, json.dumps([trap.kind, trap.detail]).encode())
        else:
            self._end(Frame.ANSWER, answer.encode("utf-8", "replace"))
            if flags & KEEP:
                self._warm, instance = instance, None
        if instance is not None:
            instance.close()

    def _end(self, frame: Frame, payload: bytes) -> None:
        if len(payload) > self._limits["next_bytes"]:
            frame = Frame.TRAP
            payload = json.dumps(["output", f"its answer has {len(payload)} bytes"]).encode()
        resident = int(os.pread(self._statm, 100, 0).split()[1]) * self._page
        with contextlib.suppress(ChannelClosed):
            self._channel.send(frame, RSS.pack(resident) + payload)


class _Nobody:
    """The host of the warm-up."""

    def next(self, commands: str) -> str:
        return "[]"

    def log(self, step: str, stream: str, text: str) -> None:
        """Nobody reads it."""

    def sleep(self, ms: int) -> None:
        """Nobody sleeps."""

    def ask(self, request: str) -> str:
        return UNANSWERED


_WARM_UP = """
from pipelines import Pipeline

class Warm(Pipeline):
    async def run(self, event, step):
        await step.do("a", lambda: 1)
"""
_WAITING = (
    """
import os, select
os.write(2, b"")
select.select([], [], [], 0.001)
"""
    + _WARM_UP
)


def _order(code: str, op: str) -> str:
    files = {".ci/pipeline.py": code}
    run = {"pipeline": "Warm", "event": {}, "seed": "", "strict": True, "entries": []}
    return json.dumps({"v": VERSION, "op": op, "files": files, **run})


def warm_up(machine: Machine) -> None:
    """Let wasmtime open and start what it ever will (its runtime for waiting), before the doors
    shut. Raises RuntimeError if the guest does not work."""
    instance = machine.instance()
    answer = machine.activate(instance, _order(_WAITING, "describe"), _Nobody())
    instance.close()
    if "described" not in json.loads(answer):
        raise RuntimeError(f"the guest cannot describe a pipeline: {answer[:2000]}")


_WARM_ORDER = _order(_WARM_UP, "run")


def fresh_instance(machine: Machine) -> Instance:
    """An interpreter that no author's code has run in. A small pipeline of ours has: it makes the
    interpreter touch its memory, which is most of what a first activation costs."""
    instance = machine.instance()
    machine.activate(instance, _WARM_ORDER, _Nobody())
    return instance


def main() -> None:
    setup = json.loads(sys.argv[1])
    channel = Channel(socket.socket(fileno=setup["fd"]))
    volunteer_for_oom()
    got = leave_network()
    machine = Machine(
        Path(setup["guest"]),
        memory_bytes=setup["memory_bytes"],
        cpu_seconds=setup["cpu_seconds"],
    )
    child = Child(channel, machine, setup)
    warm_up(machine)
    channel.send(Frame.HELLO, json.dumps(got + confine()).encode())
    child.serve()


if __name__ == "__main__":
    main()
