"""Absurd: a queue in PostgreSQL, two worker processes with its SDK. Nothing isolates its code."""

from __future__ import annotations

import multiprocessing
import threading
import time
import uuid

import absurdctl
import psycopg
from absurd_sdk import Absurd
from common import NAP_SECONDS, arguments, resident_mib, tell, until

QUEUE = "bench"
WORKERS = 2
CONNECTIONS = 4
POLL_SECONDS = 0.25  # its SDK's default
_COUNTS = f"SELECT state, count(*) FROM absurd.t_{QUEUE} GROUP BY 1"
_STATE = f"SELECT state FROM absurd.t_{QUEUE} WHERE task_id = %s"


def connect(url: str) -> Absurd:
    app = Absurd(psycopg.connect(url, autocommit=True), queue_name=QUEUE)

    @app.register_task(name="three", queue=QUEUE)
    def three(params, ctx):
        for number in range(3):
            ctx.step(f"s{number}", lambda: 1)

    @app.register_task(name="nap", queue=QUEUE)
    def nap(params, ctx):
        ctx.step("before", lambda: 1)
        ctx.sleep_until("nap", params["due"])
        ctx.step("after", lambda: 1)

    @app.register_task(name="wait", queue=QUEUE)
    def wait(params, ctx):
        return ctx.await_event(params["event"])

    return app


def work(url: str) -> None:
    connect(url).start_worker(
        concurrency=1, batch_size=10, claim_timeout=60, poll_interval=POLL_SECONDS
    )


class Peer:
    def __init__(self, url: str) -> None:
        self.url = url
        self.sql = psycopg.connect(url, autocommit=True)
        self.sql.execute(absurdctl.BUNDLED_SCHEMA_SQL)
        self.app = connect(url)
        self.app.create_queue(QUEUE)
        context = multiprocessing.get_context("spawn")
        self.workers = [
            context.Process(target=work, args=(url,), daemon=True) for _ in range(WORKERS)
        ]

    def start(self) -> None:
        for worker in self.workers:
            worker.start()
        time.sleep(2)

    def stop(self) -> None:
        for worker in self.workers:
            if worker.pid:
                worker.terminate()

    def spawn(self, name: str, n: int, **params: object) -> float:
        def some(first: int) -> None:
            app = connect(self.url)
            for _ in range(first, n, CONNECTIONS):
                app.spawn(name, params, queue=QUEUE)

        threads = [threading.Thread(target=some, args=(k,)) for k in range(CONNECTIONS)]
        begun = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - begun

    def reach(self, state: str, n: int) -> None:
        until(lambda: dict(self.sql.execute(_COUNTS).fetchall()).get(state, 0) >= n)

    def finish(self, task_id: object) -> None:
        until(lambda: self.sql.execute(_STATE, (task_id,)).fetchone()[0] == "completed", look=0.001)

    # --- measures ---

    def completed(self, n: int) -> None:
        self.start()
        begun = time.perf_counter()
        self.spawn("three", n)
        self.reach("completed", n)
        tell(n=n, seconds=time.perf_counter() - begun)

    def create_to_done(self, n: int) -> None:
        self.start()
        each = []
        for _ in range(n):
            begun = time.perf_counter()
            self.finish(self.app.spawn("three", {}, queue=QUEUE)["task_id"])
            each.append(time.perf_counter() - begun)
        tell(each=each)

    def created(self, n: int) -> None:
        tell(n=n, seconds=self.spawn("three", n))

    def event_to_done(self, n: int) -> None:
        self.start()
        each = []
        for number in range(n):
            event = str(uuid.uuid4())
            task = self.app.spawn("wait", {"event": event}, queue=QUEUE)
            self.reach("sleeping", 1)
            time.sleep(0.037 * (number % 11))
            begun = time.perf_counter()
            self.app.emit_event(event, {"x": 1}, queue_name=QUEUE)
            self.finish(task["task_id"])
            each.append(time.perf_counter() - begun)
        tell(each=each)

    def timers(self, n: int) -> None:
        self.start()
        due = time.time() + 10 + n / 100
        self.spawn("nap", n, due=due)
        self.reach("sleeping", n)
        time.sleep(max(0.0, due - time.time()))
        self.reach("completed", n)
        tell(n=n, seconds=time.time() - due)

    def waiting(self, n: int) -> None:
        self.start()
        self.spawn("nap", 50, due=time.time() + NAP_SECONDS)
        self.reach("sleeping", 50)
        before = sum(resident_mib(worker.pid) for worker in self.workers)
        self.spawn("nap", n, due=time.time() + NAP_SECONDS)
        self.reach("sleeping", n + 50)
        tell(n=n, mib=sum(resident_mib(worker.pid) for worker in self.workers) - before)


def main() -> None:
    given = arguments()
    peer = Peer(given.url)
    try:
        getattr(peer, given.measure)(given.n)
    finally:
        peer.stop()


if __name__ == "__main__":
    main()
