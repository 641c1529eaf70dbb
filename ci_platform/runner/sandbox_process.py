"""One command in bubblewrap: the start sequence, its limits, and its end.

Bubblewrap tells the pid of the sandbox's first process and waits; what can be set only inside the
new namespaces is set on that process; then the command is let go. Used by `sandboxed.py`.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress

from ci_platform.errors import RunnerUnavailable
from ci_platform.runner.cgroups import Cgroup
from ci_platform.runner.egress import PORT, Egress, Rules
from ci_platform.runner.launch import Exit, Launch, Network
from ci_platform.runner.launcher import NICE, NORMAL
from ci_platform.runner.limits import Excess, RunnerLimits
from ci_platform.runner.watch import Disk, Namespace, catches_term

_START_MILLISECONDS_MAX = 30_000
_END_MILLISECONDS_MAX = 30_000
_STATUS_BYTES_MAX = 1 << 16
_ERROR_BYTES_MAX = 4096
_OWN_TASKS = 4  # bubblewrap's: outside, inside, and while it starts
_CPU_SPARE_SECONDS = 5
_STACK_BYTES = 8 << 20
_OOM_SCORE = b"500"  # short of memory, the kernel takes commands before the server


class SandboxProcess:
    """A command that is held before its first instruction until `go`."""

    def __init__(
        self,
        argv: Sequence[str],
        files: Sequence[bytes],
        *,
        launch: Launch,
        uid: int | None,
        limits: RunnerLimits,
        network: Network | None = None,
        terminal: int | None = None,
    ) -> None:
        """`files`: the contents of descriptors 3, 4, and from 7 on; see bubblewrap.py.
        `network`: to share, instead of having one of its own. `terminal`: to speak through,
        instead of pipes and no input."""
        self._ours = ExitStack()
        self._launch = launch
        self._cgroup: Cgroup | None = None
        self._egress: Egress | None = None
        self._own_uid = uid is not None
        self._limits = limits
        self._status_text = b""
        self._killed = False
        self._asked: set[int] = set()
        self._yields = limits.priority == NORMAL  # or has been made to
        self._disk: Disk | None = None
        with ExitStack() as theirs:
            self.stdout, stdout = self._pipe(theirs)
            self.stderr, stderr = self._pipe(theirs)
            self._status, status = self._pipe(theirs)
            block, self._release = os.pipe2(os.O_CLOEXEC)
            theirs.callback(os.close, block)
            null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            theirs.callback(os.close, null)
            given = [_memory_file(theirs, content) for content in files]
            streams = [null, stdout, stderr] if terminal is None else [terminal] * 3
            fds = [*streams, *given[:2], block, status, *given[2:]]
            try:
                self._launched = launch.start(
                    argv,
                    uid=uid,
                    fds=fds,
                    limits=resource_limits(limits, own_uid=uid is not None),
                    priority=limits.priority,
                    network=network,
                )
            except BaseException:
                os.close(self._release)
                self._ours.close()
                raise
        self._ours.callback(self._launched.close)
        try:
            self._namespace = Namespace(self._first_pid())
            self._init = os.pidfd_open(self._namespace.init)
        except BaseException as error:
            failure = self._failure() if isinstance(error, OSError) else ""
            self.close()
            if failure:  # its process had ended already
                raise RunnerUnavailable(failure) from error
            raise
        self._ours.callback(os.close, self._init)

    @property
    def init(self) -> int:
        """The first process of the sandbox, as the host numbers it."""
        return self._namespace.init

    def open_network(self, rules: Rules, *, port: int = PORT) -> None:
        """Give the sandbox a way out, as far as the rules allow."""
        listener = self._launch.listen(self.init, port)
        self._egress = Egress(listener, rules, self._limits)

    def enter(self, cgroup: Cgroup) -> None:
        """Put the sandbox under a control group, which ends with it."""
        self._cgroup = cgroup
        cgroup.add(self.init)

    def go(self, disk: Disk) -> None:
        """Let the command run."""
        self._disk = disk
        try:
            if not self._own_uid:
                _limit_tasks(self.init, self._limits)
            with open(f"/proc/{self.init}/oom_score_adj", "wb", buffering=0) as file:
                file.write(_OOM_SCORE)
            os.write(self._release, b"x")
        except OSError as error:
            raise RunnerUnavailable(self._failure()) from error
        os.close(self._release)
        self._release = -1

    def fileno(self) -> int:
        return self._launched.fileno()

    def excess(self) -> Excess | None:
        assert self._disk is not None, "the command was let go"
        enforced = self._cgroup.excess() if self._cgroup else None
        if enforced is not None:
            self._killed = True  # by the kernel, maybe
            return enforced
        if not self._yields:
            self._yields = True
            _weigh(self.init, NICE)  # its session exists only after it was let go
        try:
            found = self._namespace.excess(self._limits)
        except FileNotFoundError:  # ended meanwhile
            return None
        return found or self._disk.excess(self._namespace)

    def notes(self) -> Iterable[str]:
        return () if self._egress is None else self._egress.verdicts()

    def terminate(self) -> None:
        terminate_tree(self._namespace, self._asked)

    def kill(self) -> None:
        if _readable(self._launched.fileno(), 0):
            return
        self._killed = True
        _weigh(self.init, 0)  # hundreds of processes need their turn to end
        # Not the outer process: it ends with the inner one, whose remains it has to collect.
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._init, signal.SIGKILL)

    def wait(self) -> Exit:
        """Wait until nothing of the sandbox is left. Raises RunnerUnavailable if it broke."""
        found = self._launched.wait()
        if not _readable(self._init, _END_MILLISECONDS_MAX):
            raise RunnerUnavailable("a killed command does not end: it is stuck in the kernel")
        while data := os.read(self._status, _STATUS_BYTES_MAX):
            self._status_text += data
        if b'"exit-code"' not in self._status_text and not self._killed:
            raise RunnerUnavailable(
                f"the sandbox broke before the command could run or end (bubblewrap {found.code})"
            )
        return found

    def close(self) -> None:
        """End what still runs and close everything."""
        if self._release != -1:
            os.close(self._release)
            self._release = -1
        if self._egress is not None:
            self._egress.close()
        self._launched.kill()
        if self._cgroup is not None:
            self._cgroup.close()
        self._ours.close()

    def _pipe(self, theirs: ExitStack) -> tuple[int, int]:
        read, write = os.pipe2(os.O_CLOEXEC)
        self._ours.callback(os.close, read)
        theirs.callback(os.close, write)
        return read, write

    def _first_pid(self) -> int:
        while b"\n" not in self._status_text:
            if not _readable(self._status, _START_MILLISECONDS_MAX):
                raise RunnerUnavailable("bubblewrap does not answer")
            data = os.read(self._status, _STATUS_BYTES_MAX)
            if not data:
                raise RunnerUnavailable(self._failure())
            self._status_text += data
        line, _, self._status_text = self._status_text.partition(b"\n")
        return int(json.loads(line)["child-pid"])

    def _failure(self) -> str:
        """What bubblewrap said before it gave up."""
        said = b""
        while _readable(self.stderr, 1000) and len(said) < _ERROR_BYTES_MAX:
            data = os.read(self.stderr, _ERROR_BYTES_MAX)
            if not data:
                break
            said += data
        return said.decode(errors="replace").strip() or "bubblewrap ended without a word"


def terminate_tree(namespace: Namespace, asked: set[int]) -> None:
    """TERM everything, but a shell that would just die, taking the rest along, comes last.
    `asked` are those that were sent it before."""
    pids = namespace.pids()
    main = _first_child(namespace.init)
    others = [pid for pid in pids if pid != main]
    if main is not None and main not in asked:
        waited_for = any(pid in asked for pid in others) or (others and not asked)
        if catches_term(main) or not waited_for:
            asked.add(main)
            namespace.signal(main, signal.SIGTERM)
    for pid in others:
        if pid not in asked:
            asked.add(pid)
            namespace.signal(pid, signal.SIGTERM)


def resource_limits(limits: RunnerLimits, *, own_uid: bool) -> dict[int, int]:
    """What bubblewrap is started with, and with it everything in the sandbox."""
    found = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: limits.open_files,
        resource.RLIMIT_FSIZE: limits.disk_bytes,
        # These two are nets below the watch, which comes first because it can say why. Stacks of
        # threads count as data though hardly used. RLIMIT_AS would not do: WebAssembly in node
        # reserves far more addresses than it uses.
        resource.RLIMIT_CPU: limits.cpu_seconds + _CPU_SPARE_SECONDS,
        resource.RLIMIT_DATA: 2 * limits.memory_bytes + limits.pids * _STACK_BYTES,
    }
    if own_uid:
        found[resource.RLIMIT_NPROC] = _tasks_max(limits)
    return found


def _tasks_max(limits: RunnerLimits) -> int:
    """A net above the watch: were it at the limit, a fork bomb would flicker just below it."""
    return limits.pids + limits.pids // 4 + _OWN_TASKS


def _limit_tasks(pid: int, limits: RunnerLimits) -> None:
    """Limit a held process under our own uid, which runs other things too: until bubblewrap has
    made its user namespace, all of them would count."""
    _, hard = resource.prlimit(pid, resource.RLIMIT_NPROC)
    bound = _tasks_max(limits)
    if hard != resource.RLIM_INFINITY:
        bound = min(bound, hard)
    resource.prlimit(pid, resource.RLIMIT_NPROC, (bound, bound))


def _memory_file(theirs: ExitStack, content: bytes) -> int:
    fd = os.memfd_create("sluice", os.MFD_CLOEXEC)
    theirs.callback(os.close, fd)
    left = memoryview(content)
    while left:
        left = left[os.write(fd, left) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _weigh(init: int, nice: int) -> None:
    """Make a command's session as nice as that. Kernels that share the processor out by session
    look at it before they look at the processes."""
    main = _first_child(init)
    # No such kernel, not ours to lower, or over already.
    with suppress(OSError), open(f"/proc/{main}/autogroup", "w") as file:
        file.write(str(nice))


def _first_child(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/task/{pid}/children", "rb") as file:
            return min((int(word) for word in file.read().split()), default=None)
    except (FileNotFoundError, ProcessLookupError):
        return None


def _readable(fd: int, milliseconds: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(milliseconds))
