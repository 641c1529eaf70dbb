"""One activation's conversation with a sandbox process, from the worker's side.

Serves the guest's calls and turns whatever comes of them into an answer or an Outcome. The process
is a servant that may lie: nothing it sends is used before decode.py has seen it, and nobody waits
for it without end. Called by pool.py.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import TypeAlias

from ci_platform.model import Broke, ErrorInfo, Json, Raised, StepKey, Suspended
from ci_platform.ports.sandbox import ActivationHost
from ci_platform.sandbox import decode
from ci_platform.sandbox.channel import (
    RSS,
    WAIT_SECONDS,
    Channel,
    ChannelClosed,
    Frame,
    Silence,
)
from ci_platform.sandbox.decode import BadMessage
from ci_platform.sandbox.limits import MIB, SandboxLimits
from ci_platform.sandbox.wiring import entries_json
from pipelines.wire import ASK_BYTES_MAX, ASKING

GRACE_SECONDS = WAIT_SECONDS  # beyond a limit that the process should have kept by itself
STOP_SECONDS = 5.0  # for a guest to end once it was told to suspend
STRANGE = "the code sent the platform what no pipeline sends"
LOG_STREAMS = ("stdout", "stderr", "note")

Answer: TypeAlias = Mapping[str, Json]


class Session:
    """See the module. Used once; afterwards `dead` and `trapped` tell what is left."""

    def __init__(self, channel: Channel, limits: SandboxLimits) -> None:
        self._channel = channel
        self._limits = limits
        self._host: ActivationHost | None = None
        self._sleep_seconds = 0.0  # the guest announced to be silent for so long
        self._held_seconds = 0.0  # how long the guest has had the process
        self.stopped = False  # the guest was told to suspend: what it says now counts no more
        self.resident_bytes = 0
        self.trapped = False  # the interpreter is gone
        self.dead = False  # the process is gone, or must be ended

    def converse(
        self, flags: int, message: str, host: ActivationHost | None
    ) -> Answer | Raised | Broke | Suspended:
        """Send one message to the guest and serve it until it answers. Raises what `host` raises;
        `describe` has no host."""
        self._host = host
        try:
            self._channel.send(
                Frame.ACTIVATE, bytes([flags]) + message.encode(), seconds=GRACE_SECONDS
            )
            while True:
                frame, payload = self._receive()
                ended = self._serve(frame, payload)
                if ended is not None:
                    return ended
        except BadMessage as error:
            self.dead = True
            return _raised("SandboxProtocol", f"{STRANGE}: {error}", None)
        except Silence:
            self.dead = True
            return Suspended() if self.stopped else self._too_long()
        except ChannelClosed as error:
            self.dead = True
            return Suspended() if self.stopped else Broke(f"the sandbox process died: {error}")
        except Exception:  # of the host: the guest waits for an answer that will not come
            self._dismiss()
            raise

    def _receive(self) -> tuple[Frame, bytes]:
        limits = self._limits
        left = limits.wall_seconds - self._held_seconds
        silence = 2 * limits.cpu_seconds + GRACE_SECONDS + self._sleep_seconds
        self._sleep_seconds = 0.0
        begun = time.monotonic()
        try:
            return self._channel.receive(
                seconds=STOP_SECONDS if self.stopped else max(0.0, min(left, silence))
            )
        finally:
            self._held_seconds += time.monotonic() - begun

    def _serve(self, frame: Frame, payload: bytes) -> Answer | Raised | Suspended | None:
        """Act on one frame. Anything but None ends the conversation."""
        if frame is Frame.LOG:
            self._log(payload)
        elif frame is Frame.NEXT:
            if self.stopped:
                self.dead = True
                return Suspended()
            self._channel.send(Frame.NEXT, self._next(payload), seconds=GRACE_SECONDS)
        elif frame is Frame.ASK:
            if self.stopped:
                self.dead = True
                return Suspended()
            self._channel.send(Frame.ASK, self._ask(payload), seconds=GRACE_SECONDS)
        elif frame is Frame.SLEEP:
            self._sleep_seconds = int(payload) / 1000
        elif frame is Frame.ANSWER:
            answer = decode.loads(_text(self._resident(payload)), "its answer")
            if not isinstance(answer, dict):
                raise BadMessage("an answer that is no object")
            return answer
        elif frame is Frame.TRAP:
            self.trapped = True
            kind, detail = json.loads(self._resident(payload))
            return Suspended() if self.stopped else self._trap(kind, detail)
        else:
            raise ChannelClosed(f"unexpected frame {frame}")
        return None

    def _resident(self, payload: bytes) -> bytes:
        self.resident_bytes = RSS.unpack_from(payload)[0]
        return payload[RSS.size :]

    def _next(self, payload: bytes) -> bytes:
        if self._host is None:
            raise BadMessage("a command while it was only asked to describe itself")
        commands = decode.commands(_text(payload), value_bytes=self._limits.value_bytes)
        entries = self._host.next(commands)
        self.stopped = not entries
        return entries_json(entries).encode()

    def _ask(self, payload: bytes) -> bytes:
        if self._host is None:
            raise BadMessage("a request while it was only asked to describe itself")
        if len(payload) > ASK_BYTES_MAX:
            raise BadMessage("a request is larger than the limit")
        return json.dumps(self._host.ask(decode.ask(_text(payload)))).encode()

    def _log(self, payload: bytes) -> None:
        step, stream, text = json.loads(payload)
        if self._host is not None:
            self._host.log(
                step, stream if stream in LOG_STREAMS else "stdout", decode.printable(text)
            )

    def _dismiss(self) -> None:
        """Let the guest end; if it does not at once, end its process."""
        until = time.monotonic() + STOP_SECONDS
        try:
            self._channel.send(Frame.NEXT, b'{"fatal":"the host gave up"}', seconds=STOP_SECONDS)
            while True:
                frame, payload = self._channel.receive(seconds=until - time.monotonic())
                if frame in (Frame.ANSWER, Frame.TRAP):
                    self._resident(payload)
                    self.trapped = frame is Frame.TRAP
                    return
                if frame is Frame.NEXT:
                    break
        except (Silence, ChannelClosed):
            self.dead = True
        self.dead = True

    # --- ends that are limits ---

    def _trap(self, kind: str, detail: str) -> Raised:
        if kind == "timeout":
            return _overran(detail)
        if kind == "cpu":
            return _raised(
                "LimitExceeded",
                f"the code used more than {self._limits.cpu_seconds:g} seconds of CPU time in one "
                "go (limit: cpu): let a command do the work (step.sh), or split it into steps",
                "cpu",
            )
        if kind == "recursion":
            return _raised(
                "LimitExceeded",
                "the code called itself too deeply: the sandbox's stack is used up (limit: "
                "recursion)",
                "recursion",
            )
        if kind == "output":
            return _raised("LimitExceeded", f"{detail} (limit: output)", "output")
        if kind == "exit":
            return _raised(
                "SystemExit",
                "the code ended its interpreter, as os._exit does: return from run(), or raise "
                "an exception",
                None,
            )
        return _raised(
            "SandboxCrash",
            f"the code crashed its interpreter ({detail}); often that is its memory limit of "
            f"{self._limits.memory_bytes // MIB} MiB",
            "crash",
        )

    def _too_long(self) -> Raised:
        return _raised(
            "LimitExceeded",
            f"the code held its sandbox for {self._held_seconds:.0f} seconds or more without "
            "waiting for a step (limit: wall): use `await step.sleep(…)` to wait, and step.sh for "
            "long work",
            "wall",
        )


def _raised(kind: str, message: str, limit: str | None) -> Raised:
    return Raised(ErrorInfo(kind, message), limit=limit)


def _overran(body: str) -> Raised:
    """A step's body, or its delay function, did not let go of its sandbox in time."""
    asking = body.startswith(ASKING)
    try:
        key = StepKey.parse(body.removeprefix(ASKING))
    except ValueError:
        key = None
    message = f"{decode.printable(body)} took too long and had to be stopped"
    return Raised(ErrorInfo("StepTimeout", message), overran=key, overran_asking=asking)


def _text(payload: bytes) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError:
        raise BadMessage("bytes that are no text") from None
