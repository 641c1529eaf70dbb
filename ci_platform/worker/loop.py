"""The worker: its duties on threads, woken by the bell and by the clock, drained when it stops.

One thread claims and hands out; a pool executes activations, another one commands; three more
threads listen to the bell, renew leases, and write logs. A slot that falls free and a ring of the
bell set the same event, so the claiming thread waits in one place.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from ci_platform.errors import SluiceError
from ci_platform.model import Operation
from ci_platform.ports import Bell, Claim
from ci_platform.worker.activate import Activations
from ci_platform.worker.expire import Expiry
from ci_platform.worker.family import Families
from ci_platform.worker.forget import Forget
from ci_platform.worker.heartbeat import Heartbeat
from ci_platform.worker.holding import Holding
from ci_platform.worker.lines import FLUSH_MS, Spool
from ci_platform.worker.mirroring import Mirroring
from ci_platform.worker.operate import Operations
from ci_platform.worker.prune import Prune
from ci_platform.worker.pushes import PendingPushes
from ci_platform.worker.schedules import Firing
from ci_platform.worker.seal import LogSeal
from ci_platform.worker.settings import Tools
from ci_platform.worker.strays import Strays
from ci_platform.worker.superseding import Superseding
from ci_platform.worker.sweep import LayerSweep
from ci_platform.worker.upkeep import GitUpkeep

BLOCKED_MS = 50  # what is due and waits for a place, or for its repository's turn
GATHER_SECONDS = 0.030  # in a backlog: how long places may gather, for one claim to fill
DEAF_SECONDS = 0.002  # after a ring: the bell rings for every commit, and a burst is one
MIRROR_SECONDS = 2.0  # between two looks for a mirror that is due, or was told to look
TIDY_SECONDS = 10.0  # between two looks at whether a slow duty is due
QUIET_TURNS = 5  # housekeeping turns of which one is enough while the bell is silent
STOPPING_MS = 15_000  # for commands to end once they were told to: TERM, 10 s, KILL

_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(slots=True)
class Slots(Generic[T]):
    """A pool of threads with a known number of places, which rings when one falls free."""

    places: int
    name: str
    ring: Callable[[], None]
    _busy: set[Future[None]] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _pool: ThreadPoolExecutor = field(init=False)

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(self.places, thread_name_prefix=self.name)

    @property
    def free(self) -> int:
        with self._lock:
            return self.places - len(self._busy)

    def put(self, work: Callable[[T], None], item: T) -> None:
        future = self._pool.submit(work, item)
        with self._lock:
            self._busy.add(future)
        future.add_done_callback(self._done)

    def _done(self, future: Future[None]) -> None:
        with self._lock:
            self._busy.discard(future)
        self.ring()

    def idle(self) -> bool:
        return self.free == self.places

    def close(self) -> None:
        """Take no more work. Does not wait for what executes."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class Worker:
    """A process's worth of work. `run_once` for tests and tools, `run_forever` for servers."""

    def __init__(self, tools: Tools) -> None:
        settings = tools.settings
        self._tools = tools
        self._spool = Spool(tools.store.logs, tools.clock, bytes_max=settings.log_bytes)
        holding = Holding()
        self.strays = Strays(tools.clock, holding)
        self.activations = Activations(tools, self._spool, self.strays, holding)
        self.operations = Operations(tools, self._spool, self.strays, holding)
        self.expiry = Expiry(tools)
        self.heartbeat = Heartbeat(tools, holding)
        self.pushes = PendingPushes(tools)
        self.superseding = Superseding(tools)
        self.firing = Firing(tools)
        self.mirroring = Mirroring(tools)
        self.families = Families(tools)
        # What may take minutes, and is not urgent; apart, so that leases never wait for it.
        self.slow = (
            Prune(tools),
            Forget(tools),
            LogSeal(tools),
            GitUpkeep(tools),
            LayerSweep(tools),
        )
        self._wake = threading.Event()
        self._backlog = False  # the last claim left some: no place for them, or not for theirs
        self._claimed_s = 0.0  # when that was
        self._gathering = False  # places fall free, in a backlog, for one claim to fill
        self._news = True  # the bell rang since the last claim
        self._heard = True  # the bell rang since the last housekeeping
        self._quiet = 0  # housekeeping turns since it did

    def run_once(self) -> int:
        """Do everything that is due now, in this thread. Returns how many things that was."""
        self.heartbeat.obstacle = self.operations.obstacle
        self.heartbeat.run_once()
        done = self.expiry.run_once() + self.strays.run_once() + self.pushes.run_once()
        done += self.superseding.run_once() + self.families.run_once()
        done += self.activations.run_once()
        done += self.operations.run_once()
        self._spool.flush()
        return done

    def tidy(self) -> int:
        """Do the slow duties whose turn it is. Returns how many things were removed."""
        return sum(duty.run_once() for duty in self.slow)

    def hear(self) -> None:
        """The bell has rung: there may be something to do."""
        self._heard = True
        self._news = True
        self._wake.set()

    def housekeep(self) -> None:
        """One turn of the quick duties. What a commit makes due is looked for less often while no
        one commits, so that a deployment where all runs wait uses next to no processor time."""
        self._quiet = 0 if self._heard else self._quiet + 1
        self._heard = False
        self.strays.run_once()
        self.firing.run_once()
        if self._quiet % QUIET_TURNS == 0:
            self.expiry.run_once()
            self.pushes.run_once()
            self.superseding.run_once()
            self.families.run_once()

    def run_forever(self, stop: threading.Event) -> None:
        """Work until `stop` is set, then drain: claim nothing more, let activations end, give
        commands `drain_ms` and then hand them back, and let go of whatever is left."""
        settings = self._tools.settings
        runs: Slots[Claim] = Slots(
            settings.activations_max, "activation", lambda: self._freed(runs)
        )
        commands: Slots[Operation] = Slots(settings.operations_max, "operation", self._wake.set)
        recalls: Slots[Operation] = Slots(settings.recalls_max, "recall", self._wake.set)
        ended = threading.Event()
        bell = self._tools.store.bell(work=True)
        threads = self._start_threads(bell, stop, ended)
        try:
            self._say(self.heartbeat.show)
            while not stop.is_set():
                self._wake.clear()
                self._wake.wait(self._turn(runs, commands, recalls) / 1000)
        finally:
            self._drain(runs, commands, recalls)
            ended.set()
            self._spool.wake()
            bell.ring()
            for thread in threads:
                thread.join(timeout=settings.poll_ms / 1000 + 1)
            bell.close()
            self._spool.flush()
            self._say(self.heartbeat.stop)

    def _say(self, tell: Callable[[], None]) -> None:
        """Tell people; work does not depend on it."""
        try:
            tell()
        except SluiceError as error:
            _log.warning("the row of this worker is out of date: %s", error)

    def _turn(
        self, runs: Slots[Claim], commands: Slots[Operation], recalls: Slots[Operation]
    ) -> int:
        """Claim what is due for the places that are free. Returns how many milliseconds to wait
        for the bell, or for a place, before the next turn."""
        tools = self._tools
        poll_ms = tools.settings.poll_ms
        self._gathering = False
        if runs.free == 0 and commands.free == 0:
            return poll_ms
        try:
            gather_ms = self._gather_ms(runs)
            if gather_ms > 0:
                self._gathering = True
                return 0 if self._welcome(runs) else gather_ms
            if not self._backlog:
                # A look at an index costs less than a claim of nothing.
                next_ms = tools.store.runs.next_ready_ms(tools.labels)
                wait_ms = poll_ms if next_ms is None else next_ms - tools.clock.now_ms()
                if wait_ms > 0:
                    return min(wait_ms, poll_ms)
            claimed = self._hand_out(runs, commands, recalls)
            return 0 if claimed else min(BLOCKED_MS, poll_ms)
        except SluiceError as error:
            _log.warning("cannot claim: %s", error)
            return poll_ms

    def _gather_ms(self, runs: Slots[Claim]) -> int:
        """In a backlog: how long more places may fall free before the next claim."""
        each = self._tools.settings.activations_each  # the other places are not the backlog's
        if not self._backlog or (runs.free - runs.places + each) * 2 >= each:
            return 0
        return math.ceil((self._claimed_s + GATHER_SECONDS - time.monotonic()) * 1000)

    def _freed(self, runs: Slots[Claim]) -> None:
        """A run has left its place. While places gather, that is nothing to wake up for."""
        if not self._gathering or self._news or self._gather_ms(runs) <= 0:
            self._wake.set()

    def _welcome(self, runs: Slots[Claim]) -> bool:
        """Start at once what is new of repositories that have nothing in hand here. True if there
        was anything."""
        free = runs.free
        if not self._news or not free:
            return False
        self._news = False
        claims = self.activations.claim(free, self.activations.share().of_others())
        for claim in claims:
            runs.put(self.activations.execute, claim)
        return bool(claims)

    def _hand_out(
        self, runs: Slots[Claim], commands: Slots[Operation], recalls: Slots[Operation]
    ) -> bool:
        """Claim and start. True if there was anything."""
        claimed = 0
        self._news = False
        if free := runs.free:
            for claim in self.activations.claim(free, self.activations.share()):
                runs.put(self.activations.execute, claim)
                claimed += 1
            self._backlog = claimed == free or self.activations.share().crowded
        self._claimed_s = time.monotonic()
        if free := recalls.free:
            for operation in self.operations.claim(free, recall=True):
                recalls.put(self.operations.recall, operation)
                claimed += 1
        if free := commands.free:
            for operation in self.operations.claim(free):
                commands.put(self.operations.execute, operation)
                claimed += 1
        return claimed > 0

    def _start_threads(
        self, bell: Bell, stop: threading.Event, ended: threading.Event
    ) -> Sequence[threading.Thread]:
        settings = self._tools.settings

        def listen() -> None:
            if bell.wait(settings.poll_ms / 1000):
                self.hear()
                ended.wait(DEAF_SECONDS)

        def watch_stop() -> None:
            stop.wait()
            self._wake.set()

        def beat() -> None:
            self.heartbeat.obstacle = self.operations.obstacle
            self.heartbeat.run_once()
            if self.heartbeat.asked:
                stop.set()

        def write_logs() -> None:
            self._spool.wait()
            ended.wait(FLUSH_MS / 1000)
            self._spool.flush()

        beats = self.heartbeat.period_ms / 1000
        loops: Sequence[tuple[str, Callable[[], None]]] = (
            ("bell", lambda: _repeat(ended, 0, listen)),
            ("heartbeat", lambda: _repeat(ended, beats, beat)),
            ("logs", lambda: _repeat(ended, 0, write_logs)),
            ("housekeeping", lambda: _repeat(stop, settings.housekeep_ms / 1000, self.housekeep)),
            ("mirrors", lambda: _repeat(stop, MIRROR_SECONDS, self.mirroring.run_once)),
            ("tidying", lambda: _repeat(stop, TIDY_SECONDS, self.tidy)),
            ("stop", watch_stop),
        )
        threads = [threading.Thread(target=run, name=name, daemon=True) for name, run in loops]
        for thread in threads:
            thread.start()
        return threads

    def _drain(
        self, runs: Slots[Claim], commands: Slots[Operation], recalls: Slots[Operation]
    ) -> None:
        """Leases are renewed meanwhile; those that are left are given to other workers at once."""
        for places in (runs, commands, recalls):
            places.close()
        self.heartbeat.draining = True
        self._say(self.heartbeat.show)
        settings = self._tools.settings
        self._await(lambda: runs.idle() and commands.idle() and recalls.idle(), settings.drain_ms)
        if not commands.idle():
            self.operations.draining.set()
            self._await(commands.idle, STOPPING_MS)
        try:
            self._tools.store.runs.release(self._tools.id)
        except SluiceError as error:
            _log.warning("leases are left to run out: %s", error)

    def _await(self, done: Callable[[], bool], ms: int) -> None:
        """Wait for slots to fall free, which sets the wake event."""
        deadline_ms = self._tools.clock.now_ms() + ms
        self._wake.clear()
        while not done() and (left_ms := deadline_ms - self._tools.clock.now_ms()) > 0:
            self._wake.wait(left_ms / 1000)
            self._wake.clear()


def _repeat(ended: threading.Event, seconds: float, duty: Callable[[], object]) -> None:
    """Do a duty until the end, whatever becomes of a single turn."""
    while not ended.wait(seconds):
        try:
            duty()
        except SluiceError as error:
            _log.warning("a duty waits for its next turn: %s", error)
        except Exception:
            _log.exception("a duty failed")
