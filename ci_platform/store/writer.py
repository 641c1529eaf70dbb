"""Group commit: requests of many threads share a transaction, each applied or refused on its own.

There is no writer thread to hand over to. The first thread that comes leads: it takes what is
queued, commits it and answers everyone in it; those that came meanwhile form the next batch, led
by the first of them. So a lone caller pays for no change of threads, and a crowd shares its syncs.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from sqlalchemy import Connection

from ci_platform.errors import Conflict, InvalidRequest, SluiceError, StoreUnavailable
from ci_platform.store.database import Database

BATCH_MAX = 128  # requests in one transaction
BATCH_BYTES_MAX = 8 << 20  # of their JSON; one request may be larger
QUEUED_MAX = 10_000  # requests of one process; each has a thread that waits

Request = TypeVar("Request")
Answer = TypeVar("Answer")


class _Ticket(Generic[Request, Answer]):
    """A request in the queue, and the thread that waits for its answer."""

    __slots__ = ("request", "size", "answer", "error", "done", "woken")

    def __init__(self, request: Request, size: int) -> None:
        self.request = request
        self.size = size
        self.answer: Answer | None = None
        self.error: BaseException | None = None
        self.done = False
        self.woken = threading.Lock()  # taken; released to wake the waiter
        self.woken.acquire()


class GroupCommit(Generic[Request, Answer]):
    """Runs `handle(connection, requests)` in one transaction per batch.

    `handle` answers each request with a value or an error of ours; it writes nothing for those it
    answers with an error. If it raises, or the database refuses the whole, each request is tried
    in a transaction of its own, so that an error reaches only the caller whose request has it.
    """

    def __init__(
        self,
        database: Database,
        handle: Callable[[Connection, Sequence[Request]], Sequence[Answer | SluiceError]],
        *,
        committed: Callable[[Sequence[Answer | SluiceError]], None],
        durable: bool = True,
    ) -> None:
        """`durable`: see Database.write."""
        self._database = database
        self._durable = durable
        self._handle = handle
        self._committed = committed
        self._lock = threading.Lock()
        self._queue: deque[_Ticket[Request, Answer]] = deque()
        self._led = False

    def submit(self, request: Request, *, size: int = 0) -> Answer:
        """Wait until the request is committed, or raise what refused it."""
        ticket = _Ticket[Request, Answer](request, size)
        with self._lock:
            if len(self._queue) >= QUEUED_MAX:
                raise StoreUnavailable(f"{QUEUED_MAX} writes of this process are waiting already")
            self._queue.append(ticket)
            leads, self._led = not self._led, True
        if not leads:
            ticket.woken.acquire()
        if not ticket.done:  # first in the queue, and nobody leads
            self._lead()
        if ticket.error is not None:
            raise ticket.error
        return ticket.answer  # type: ignore[return-value]  # None only where Answer is None

    def _lead(self) -> None:
        batch = self._take()
        try:
            self._commit(batch)
        finally:
            # Also when this thread is interrupted: the others must neither wait for ever nor
            # think that their request was written.
            with self._lock:
                heir = self._queue[0] if self._queue else None
                self._led = heir is not None
            if heir is not None:
                heir.woken.release()
            for ticket in batch:
                if not ticket.done:
                    ticket.error = StoreUnavailable("the write was interrupted")
                    ticket.done = True
                ticket.woken.release()

    def _take(self) -> list[_Ticket[Request, Answer]]:
        with self._lock:
            batch = [self._queue.popleft()]
            size = batch[0].size
            while self._queue and len(batch) < BATCH_MAX:
                size += self._queue[0].size
                if size > BATCH_BYTES_MAX:
                    break
                batch.append(self._queue.popleft())
        return batch

    def _commit(self, batch: Sequence[_Ticket[Request, Answer]], *, again: bool = True) -> None:
        requests = [ticket.request for ticket in batch]
        try:
            answers = self._database.write(
                lambda connection: self._handle(connection, requests), durable=self._durable
            )
        except (Conflict, InvalidRequest) as error:
            # A second try sees what another process wrote meanwhile, and can say so better.
            if again:
                for ticket in batch:
                    self._commit([ticket], again=False)
            else:
                _refuse(batch, error)
            return
        except Exception as error:  # handed to every caller of the batch
            _refuse(batch, error)
            return
        for ticket, answer in zip(batch, answers, strict=True):
            if isinstance(answer, SluiceError):
                ticket.error = answer
            else:
                ticket.answer = answer
            ticket.done = True
        self._committed(answers)


def _refuse(batch: Sequence[_Ticket[Request, Answer]], error: Exception) -> None:
    for ticket in batch:
        ticket.error = error
        ticket.done = True
