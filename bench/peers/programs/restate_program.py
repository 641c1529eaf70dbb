"""Restate: its server with its own log and store, and a service process that it calls over HTTP/2.

Asked over HTTP by so many connections at once as were quickest. Nothing isolates its code.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import aiohttp
import httpx
from common import NAP_SECONDS, arguments, resident_mib, tell, until

AT_ONCE = 32
HERE = Path(__file__).parent


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Peer:
    def __init__(self, server: str, directory: Path) -> None:
        ingress, admin, node, service = (free_port() for _ in range(4))
        self.admin = httpx.Client(base_url=f"http://127.0.0.1:{admin}", timeout=60)
        self.address = f"http://127.0.0.1:{ingress}"
        log = (directory / "restate.log").open("ab")
        settings = {
            "RESTATE_BASE_DIR": str(directory / "data"),
            "RESTATE_NODE_NAME": "n1",
            "RESTATE_LISTEN_MODE": "tcp",
            "RESTATE_BIND_IP": "127.0.0.1",
            "RESTATE_BIND_PORT": str(node),
            "RESTATE_ADVERTISED_HOST": "127.0.0.1",
            "RESTATE_DISABLE_TELEMETRY": "true",
            "RESTATE_INGRESS__BIND_PORT": str(ingress),
            "RESTATE_ADMIN__BIND_PORT": str(admin),
            "RESTATE_LOG_FILTER": "error",
        }
        self.server = subprocess.Popen(
            [server, "--no-logo"], env={**os.environ, **settings}, stdout=log, stderr=log
        )
        hypercorn = Path(sys.executable).parent / "hypercorn"
        self.service = subprocess.Popen(
            [hypercorn, "--workers", "0", "--bind", f"127.0.0.1:{service}", "restate_service:app"],
            cwd=HERE,
            stdout=log,
            stderr=log,
        )
        until(lambda: self._registered(service), look=0.3)

    def _registered(self, port: int) -> bool:
        try:
            answer = self.admin.post("/deployments", json={"uri": f"http://127.0.0.1:{port}"})
        except httpx.TransportError:
            return False
        return answer.is_success

    def stop(self) -> None:
        for process in (self.server, self.service):
            process.kill()
            process.wait()

    def count(self, question: str) -> int:
        head = {"accept": "application/json"}
        answer = self.admin.post("/query", json={"query": question}, headers=head)
        answer.raise_for_status()
        return int(answer.json()["rows"][0]["n"])

    def done(self) -> int:
        return self.count("select count(*) as n from sys_invocation where status = 'completed'")

    def asleep(self) -> int:
        return self.count("select count(*) as n from sys_journal where entry_type like '%Sleep%'")

    def mib(self) -> float:
        return resident_mib(self.server.pid) + resident_mib(self.service.pid)

    async def ask(self, path: str, bodies: Iterable[object]) -> float:
        left = iter(bodies)
        async with aiohttp.ClientSession(self.address, raise_for_status=True) as client:

            async def some() -> None:
                for body in left:
                    async with client.post(path, json=body) as answer:
                        await answer.read()

            begun = time.perf_counter()
            await asyncio.gather(*(some() for _ in range(AT_ONCE)))
            return time.perf_counter() - begun

    # --- measures ---

    async def completed(self, n: int) -> None:
        await self.ask("/bench/three", range(100))
        tell(n=n, seconds=await self.ask("/bench/three", range(n)))

    async def create_to_done(self, n: int) -> None:
        each = []
        with httpx.Client(base_url=self.address, timeout=60) as client:
            for number in range(n + 10):
                begun = time.perf_counter()
                client.post("/bench/three", json=number).raise_for_status()
                each.append(time.perf_counter() - begun)
        tell(each=each[10:])

    async def created(self, n: int) -> None:
        await self.ask("/bench/three", range(50))
        tell(n=n, seconds=await self.ask("/bench/three/send", range(n)))

    async def event_to_done(self, n: int) -> None:
        each = []
        with httpx.Client(base_url=self.address, timeout=60) as client:
            for number in range(n):
                client.post(f"/flow/k{number}/run/send", json=number).raise_for_status()
                time.sleep(0.1)
                begun = time.perf_counter()
                client.post(f"/flow/k{number}/go", json=number).raise_for_status()
                client.get(f"/restate/workflow/flow/k{number}/attach").raise_for_status()
                each.append(time.perf_counter() - begun)
        tell(each=each)

    async def timers(self, n: int) -> None:
        due = time.time() + 10 + n / 300
        await self.ask("/bench/nap/send", (due - time.time() for _ in range(n)))
        before = self.done()
        time.sleep(max(0.0, due - time.time()))
        until(lambda: self.done() >= n, look=0.1)
        if before >= n:
            raise TimeoutError("it took too long until all slept")
        tell(n=n, seconds=time.time() - due)

    async def waiting(self, n: int) -> None:
        await self.ask("/bench/nap/send", [NAP_SECONDS] * 50)
        until(lambda: self.asleep() >= 50, look=0.2)
        before = self.mib()
        await self.ask("/bench/nap/send", [NAP_SECONDS] * n)
        until(lambda: self.asleep() >= n + 50, look=0.5)
        time.sleep(3)
        tell(n=n, mib=self.mib() - before)


def main() -> None:
    given = arguments()
    peer = Peer(given.url, Path(given.dir))
    try:
        asyncio.run(getattr(peer, given.measure)(given.n))
    finally:
        peer.stop()


if __name__ == "__main__":
    main()
