"""A whole platform in memory, driven by hand: one worker or several, one clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from textwrap import dedent, indent

from ci_platform.config import Config
from ci_platform.engine import (
    Answer,
    Decision,
    Limits,
    RunView,
    cancel,
    decided,
    event_sent,
    fold,
    new_id,
    pause,
    propose,
    resume,
    steps,
)
from ci_platform.envelope import Dispatch, wrap
from ci_platform.model import (
    Entry,
    EntryKind,
    Json,
    NewRun,
    RepositoryId,
    Resume,
    Run,
    RunId,
    RunState,
    StepKey,
    WorkerId,
)
from ci_platform.ports import Store
from ci_platform.ports.sandbox import Sandbox
from ci_platform.testing import DummyRunner, FakeClock, FakeSource, InMemoryStore, InProcessSandbox
from ci_platform.worker import Settings, Tools, Worker
from ci_platform.worker.settings import ChildStarter

REPOSITORY = RepositoryId("repo_1")
MAIN = "refs/heads/main"
COMMIT = "1" * 40
NEWER = "2" * 40
LIMITS = Limits()
EAGER = Settings(lease_ms=30_000)  # for tests of what is saved while a sandbox is kept
TURNS_MAX = 200
MADE: list[World] = []  # in the test that executes: nobody may be forgotten at its end


def pipeline(body: str, *, head: str = "") -> str:
    """A `.ci/pipeline.py` whose `run` has this body."""
    return (
        "import asyncio\nfrom pipelines import *\n"
        f"{dedent(head)}\n\nclass CI(Pipeline):\n    async def run(self, event, step):\n"
        + indent(dedent(body).strip("\n"), "        ")
        + "\n"
    )


@dataclass
class World:
    clock: FakeClock = field(default_factory=FakeClock)
    source: FakeSource = field(default_factory=FakeSource)
    runner: DummyRunner = field(default_factory=DummyRunner)
    sandbox: Sandbox = field(default_factory=InProcessSandbox)
    settings: Settings = field(
        default_factory=lambda: replace(EAGER, always_hibernate=Config().hibernate == "always")
    )
    make_store: Callable[[FakeClock], Store] = InMemoryStore
    store: Store = field(init=False)
    worker: Worker = field(init=False)

    def __post_init__(self) -> None:
        self.store = self.make_store(self.clock)
        MADE.append(self)
        self.worker = self.another("w1")

    def another(
        self,
        name: str,
        *,
        labels: tuple[str, ...] = (),
        start_child: ChildStarter | None = None,
    ) -> Worker:
        tools = Tools(
            id=WorkerId(name),
            store=self.store,
            sandbox=self.sandbox,
            runner=self.runner,
            source=self.source,
            clock=self.clock,
            settings=self.settings,
            labels=labels,
            start_child=start_child,
        )
        return Worker(tools)

    # --- runs ---

    def start(
        self,
        code: str | None = None,
        *,
        params: Json = None,
        resume: Resume = Resume.PINNED,
        commit: str = COMMIT,
        ref: str = MAIN,
        trusted: bool = True,
        timeout_ms: int | None = None,
        run_id: RunId | None = None,
        repository: RepositoryId = REPOSITORY,
    ) -> RunId:
        if code is not None:
            self.source.put(commit, code)
        run_id = run_id or RunId(new_id("run", self.clock.now_ms()))
        dispatch = Dispatch(repository, "CI", ref, commit, resume.value)
        new = NewRun(
            id=run_id,
            repository_id=repository,
            pipeline="CI",
            ref=ref,
            commit=commit,
            resume=resume,
            trigger="push",
            payload=wrap(dispatch, params),
            event={"before": None, "message": "a commit", "actor": "ada", "payload": {}},
            actor="ada",
            trusted=trusted,
            timeout_ms=timeout_ms,
        )
        self.store.runs.create([new])
        return run_id

    def work(self, worker: Worker | None = None) -> None:
        """Do all that is due now."""
        for _ in range(TURNS_MAX):
            if (worker or self.worker).run_once() == 0:
                return
        raise AssertionError(f"still busy after {TURNS_MAX} turns")

    def play(self, code: str, **given: Json) -> Run:
        """Start a run of this code and do all that is due."""
        run_id = self.start(pipeline(code), **given)
        self.work()
        return self.run(run_id)

    def later(self, seconds: float) -> None:
        """Let time pass, and do what falls due."""
        self.clock.advance(seconds)
        self.work()

    def run(self, run_id: RunId) -> Run:
        return self.store.runs.get(run_id)

    def state(self, run_id: RunId) -> RunState:
        return self.run(run_id).state

    def journal(self, run_id: RunId) -> Sequence[Entry]:
        return self.store.runs.journal(run_id)

    def kinds(self, run_id: RunId) -> list[str]:
        return [entry.kind.value for entry in self.journal(run_id)]

    def view(self, run_id: RunId) -> RunView:
        return fold(self.run(run_id), self.journal(run_id))

    def steps(self, run_id: RunId) -> Mapping[str, str]:
        return {str(step.key): step.state.value for step in steps(self.view(run_id))}

    def values(self, run_id: RunId, kind: EntryKind, name: str) -> list[Json]:
        return [e.data.get(name) for e in self.journal(run_id) if e.kind is kind]

    def log(self, run_id: RunId, step: str = "$run") -> list[str]:
        return [line.text for line in self.store.logs.read(run_id, step)]

    # --- what people do: commands.py in small ---

    def change(self, run_id: RunId, decide: Callable[[RunView, int], Decision]) -> None:
        while True:
            view = self.view(run_id)
            now_ms = self.clock.now_ms()
            decision = decide(view, now_ms)
            if not decision or self.store.runs.append(propose(view, decision, now_ms)).applied:
                return

    def send(self, run_id: RunId, type: str, payload: Json = None) -> None:
        self.change(
            run_id, lambda view, now: event_sent(view, type, payload, "ada", now, limits=LIMITS)
        )

    def answer(self, run_id: RunId, name: str, user: str, decision: str = "approve") -> None:
        given = Answer(f"usr_{user}", user, decision)
        key = StepKey.parse(f"approval:{name}")
        self.change(run_id, lambda view, now: decided(view, key, given, now))

    def pause(self, run_id: RunId) -> None:
        self.change(run_id, lambda view, now: pause(view, "ada", now))

    def resume(self, run_id: RunId) -> None:
        self.change(run_id, lambda view, now: resume(view, "ada", now))

    def cancel(self, run_id: RunId) -> None:
        self.change(run_id, lambda view, now: cancel(view, "ada", now))
