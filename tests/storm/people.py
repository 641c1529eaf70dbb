"""The users of a storm: they start runs, do what these wait for, and now and then stop one."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from typing import Any

import httpx

from ci_platform.model import TERMINAL_STATES
from tests.cluster import REPOSITORY, get
from tests.storm.drawing import draw, files

LIVE = 8  # runs at once, children not counted
ACTS = ["cancel", "undo", "pause"]
CHANCE_OF_AN_ACT = 0.2
ACT_SECONDS = 4.0
CHANCE_OF_AN_EARLY_EVENT = 0.5
PAUSE_SECONDS = 1.0
CONFLICT = 409


@dataclass(slots=True)
class Played:
    """A run that has been started, its code, and what its users do to it."""

    id: str
    pipeline: str
    code: dict[str, Any]
    parent: str | None = None
    act: str | None = None
    act_s: float = 0.0  # of the monotonic clock
    stopped: bool = False  # somebody was told that it is cancelled
    resume_s: float | None = None
    sent: set[str] = field(default_factory=set)


class People:
    """One thread of users. `live` are the runs that have not ended yet, by id."""

    def __init__(self, http: httpx.Client, lot: random.Random) -> None:
        self._http = http
        self._lot = lot
        self._count = 0
        self.live: dict[str, Played] = {}

    def start(self) -> None:
        """Commit other code, and run it."""
        self._count += 1
        code = draw(self._lot)
        changes = [{"path": path, "content": text} for path, text in files(code).items()]
        body = {"branch": "main", "message": f"storm {self._count}", "changes": changes}
        self._http.post(f"{REPOSITORY}/commits", json=body).raise_for_status()
        play = Played(f"storm-{self._count}", "Main", code)
        if self._lot.random() < CHANCE_OF_AN_ACT:
            play.act = self._lot.choice(ACTS)
            play.act_s = time.monotonic() + self._lot.uniform(0, ACT_SECONDS)
        told = {"id": play.id, "pipeline": "Main"}
        self._http.post(f"{REPOSITORY}/runs", json=told).raise_for_status()
        self.live[play.id] = play
        for part in code["main"]:
            if part[0] == "wait" and self._lot.random() < CHANCE_OF_AN_EARLY_EVENT:
                self._send(play, part[1])

    def look(self) -> list[tuple[Played, dict[str, Any]]]:
        """Do what runs wait for. Returns those that have ended."""
        ended = []
        for play in list(self.live.values()):
            run = get(self._http, f"/api/v1/runs/{play.id}")
            for child in run["children"]:
                self._adopt(play, child)
            if run["state"] in TERMINAL_STATES:
                del self.live[play.id]
                ended.append((play, run))
                continue
            for wait in run["waits"]:
                self._help(play, wait)
            self._interfere(play)
        return ended

    def _adopt(self, parent: Played, child: dict[str, Any]) -> None:
        id = child["id"]
        if id not in parent.sent and id not in self.live:
            parent.sent.add(id)
            self.live[id] = Played(id, "Child", parent.code, parent.id)

    def _help(self, play: Played, wait: dict[str, Any]) -> None:
        word = wait["name"].rstrip("0123456789")
        if word == "heard":
            self._send(play, wait["name"])
        elif word in ("yes", "no") and wait["kind"] == "approval":
            decision = "approve" if word == "yes" else "reject"
            path = f"/api/v1/runs/{play.id}/approvals/{wait['name']}"
            self._post(path, {"decision": decision})

    def _send(self, play: Played, name: str) -> None:
        """Once, and never to a wait that nobody answers."""
        if name.startswith("heard") and name not in play.sent:
            play.sent.add(name)
            self._post(f"/api/v1/runs/{play.id}/events/{name}", {"to": name})

    def _interfere(self, play: Played) -> None:
        now_s = time.monotonic()
        if play.resume_s is not None and now_s >= play.resume_s:
            play.resume_s = None
            self._post(f"/api/v1/runs/{play.id}/resume", {})
        if play.act is None or now_s < play.act_s:
            return
        act, play.act = play.act, None
        if act == "pause":
            if self._post(f"/api/v1/runs/{play.id}/pause", {}):
                play.resume_s = now_s + PAUSE_SECONDS
        else:
            body = {"rollback": act == "undo"}
            play.stopped = self._post(f"/api/v1/runs/{play.id}/cancel", body)

    def _post(self, path: str, body: Any) -> bool:
        """Whether it was done: a run may have ended, or another answer have come first."""
        answer = self._http.post(path, json=body)
        if answer.status_code != CONFLICT and not answer.is_success:
            raise RuntimeError(f"{path}: {answer.status_code} {answer.text}")
        return answer.is_success
