"""The event streams: the run panel and the log tail. Rendered on the server, resumed by event id.

A stream reads, sends, waits for the bell (`Live`) and reads again. It ends by itself after
STREAM_SECONDS: the browser reconnects, and so is asked anew who it is and what it may see.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.concurrency import iterate_in_threadpool

from ci_platform.errors import SluiceError
from ci_platform.model import LogLine, Run, RunId, RunState
from ci_platform.queries import RunView
from web.logs import LOG_LINES_ON_RUN, check_log_key, chosen_log, find_step, folded, log_view
from web.run_pages import run_context, standing, standing_of
from web.visit import Person, Visit

router = APIRouter()
STREAM_SECONDS = 240.0
PANEL_WAIT_S = 5.0  # the slow net below the bell
TAIL_WAIT_S = 0.25  # log lines need not ring it: they make nothing due
GAP_S = 0.08  # at most so often a second is a stream read, however busy the server is
PANEL_SHARE = 4  # times what it took: folding a run of 10,000 steps takes a third of a second
TAIL_BATCH = 500  # lines of one event
RETRY_MS = 1000  # the browser's pause before it reconnects

LastEventId = Annotated[str | None, Header()]


def resume_at(last_event_id: str | None, after: int) -> int:
    """Where the browser is: what it says now, or what its page said when it was made."""
    if last_event_id and last_event_id.isascii() and last_event_id.isdigit():
        return max(after, int(last_event_id[:18]))
    return after


async def _stream(
    visit: Visit,
    read: Callable[[], Iterator[ServerSentEvent]],
    *,
    wait_s: float,
    pause_share: float = 0.0,
) -> AsyncIterator[ServerSentEvent]:
    """Read and send until `end` or the stream's time is up. `read` blocks, so it has a thread, and
    may be given a pause for `pause_share` of the time that it took.

    A reader who may no longer see the run is let go: when it comes back, it is told why.
    """
    leave = time.monotonic() + STREAM_SECONDS
    with suppress(SluiceError), visit.site.live.listen() as listener:
        while True:
            took_s = 0.0
            began = time.monotonic()
            async for event in iterate_in_threadpool(read()):
                took_s += time.monotonic() - began
                yield event
                if event.event == "end":
                    return
                began = time.monotonic()
            took_s += time.monotonic() - began
            if time.monotonic() > leave:
                return
            await listener.wait(wait_s)
            await asyncio.sleep(max(GAP_S, pause_share * took_s))


# --- the run panel --------------------------------------------------------------------------------


def found_run(visit: Person, run_id: str) -> Run:
    """The run, before the stream begins: who may not see it gets a 404, not a stream."""
    return visit.site.queries.run(visit.actor, RunId(run_id))


@router.get("/runs/{run_id}/live", response_class=EventSourceResponse)
async def run_panel(
    visit: Person,
    run: Annotated[Run, Depends(found_run)],
    after: Annotated[int, Query(ge=0, le=2**53)] = 0,
    step: Annotated[str, Query(max_length=1000)] = "",
    queued: Annotated[int, Query(ge=0, le=2**32)] = 0,
    last_event_id: LastEventId = None,
) -> AsyncIterator[ServerSentEvent]:
    """Send the panel whenever the journal has grown, or commands have moved up, and a new log when
    it follows a new step. `queued`: how the page has its queued commands standing."""
    panel = _Panel(visit, run.id, step, seen=resume_at(last_event_id, after), queued=queued)
    reading = _stream(visit, panel.events, wait_s=PANEL_WAIT_S, pause_share=PANEL_SHARE)
    async for event in reading:
        yield event


class _Panel:
    """Renders the panel of one stream and remembers what its reader has."""

    def __init__(self, visit: Visit, run_id: RunId, pinned: str, *, seen: int, queued: int) -> None:
        self._visit = visit
        self._run_id = run_id
        self._pinned = pinned
        self._log_key: str | None = None
        self._seen = seen
        self._queued = queued

    def events(self) -> Iterator[ServerSentEvent]:
        """What is new; nothing when the journal has not grown, and no queued command has moved:
        that a worker takes it is no entry. `end` after a terminal state."""
        queries, actor = self._visit.site.queries, self._visit.actor
        run = queries.run(actor, self._run_id)
        running = run.state is RunState.RUNNING
        queued = standing(queries.queued(actor, self._run_id)) if running else 0
        grown = run.last_seq > self._seen or run.state.terminal
        if not grown and queued == self._queued:
            return
        view = queries.run_page(actor, self._run_id)
        self._seen, self._queued = view.run.last_seq, standing_of(view)
        key = self._pinned or chosen_log(view)
        frame = self._visit.frame()
        log = None if key is None else log_view(view, key, self._lines(view, key))
        page = run_context(view, actor, log=log, pinned=self._pinned, now_ms=frame.now_ms)
        render = self._visit.site.renderer.part
        html = render("run_panel", frame, page)
        yield ServerSentEvent(event="panel", id=str(self._seen), raw_data=html, retry=RETRY_MS)
        if log is not None and not self._pinned and key != self._log_key:
            self._log_key = key
            yield ServerSentEvent(event="log", raw_data=render("log_section", frame, log))
        if view.run.state.terminal:
            yield ServerSentEvent(event="end", raw_data="")

    def _lines(self, view: RunView, key: str) -> list[LogLine]:
        if self._pinned or key == self._log_key:
            return []
        queries, actor = self._visit.site.queries, self._visit.actor
        return queries.log_tail(actor, view.run.id, key, limit=LOG_LINES_ON_RUN)


# --- the log tail ---------------------------------------------------------------------------------


def found_log(visit: Person, run_id: str, step: str) -> str:
    view = visit.site.queries.run_page(visit.actor, RunId(run_id))
    return check_log_key(view, step)


@router.get("/runs/{run_id}/tail/{step:path}", response_class=EventSourceResponse)
async def log_tail(
    visit: Person,
    run_id: str,
    key: Annotated[str, Depends(found_log)],
    after: Annotated[int, Query(ge=0, le=2**53)] = 0,
    last_event_id: LastEventId = None,
) -> AsyncIterator[ServerSentEvent]:
    """Send new lines as rows; the id is the last line's number. `end` when the step is over."""
    tail = _Tail(visit, RunId(run_id), key, resume_at(last_event_id, after))
    async for event in _stream(visit, tail.events, wait_s=TAIL_WAIT_S):
        yield event


class _Tail:
    """Reads one log from where its reader is."""

    def __init__(self, visit: Visit, run_id: RunId, key: str, at: int) -> None:
        self._visit = visit
        self._run_id = run_id
        self._key = key
        self._seq = -1
        self._over = False
        self._at = at

    def events(self) -> Iterator[ServerSentEvent]:
        """New lines as rows, and `end` with the log's last line once the step is over."""
        # Whether it is over is asked before the lines are read: none can come in between.
        over = self._is_over()
        queries, actor = self._visit.site.queries, self._visit.actor
        while lines := queries.log(
            actor, self._run_id, self._key, after=self._at, limit=TAIL_BATCH
        ):
            self._at = lines[-1].number
            frame = self._visit.frame()
            html = self._visit.site.renderer.part("rows", frame, self._key, folded(lines))
            yield ServerSentEvent(id=str(self._at), raw_data=html, retry=RETRY_MS)
        if over:
            yield ServerSentEvent(event="end", raw_data=self._end())

    def _is_over(self) -> bool:
        """Folds the journal only when it has grown."""
        queries, actor = self._visit.site.queries, self._visit.actor
        run = queries.run(actor, self._run_id)
        if run.last_seq != self._seq:
            view = queries.run_page(actor, self._run_id)
            self._seq = view.run.last_seq
            self._over = _is_over(view, self._key)
        return self._over

    def _end(self) -> str:
        queries, actor = self._visit.site.queries, self._visit.actor
        view = queries.run_page(actor, self._run_id)
        log = log_view(view, self._key, queries.log_tail(actor, self._run_id, self._key, limit=1))
        return self._visit.site.renderer.part("log_end", self._visit.frame(), log)


def _is_over(view: RunView, key: str) -> bool:
    step = find_step(view, key)
    return view.run.state.terminal if step is None else step.ended_ms is not None
