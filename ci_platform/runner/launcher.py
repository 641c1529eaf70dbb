"""The launcher process: starts sandboxes for a worker, and dies with it.

Runs as a script of its own (`python -I -S launcher.py FD`) and imports nothing of ours. It exists
because four things cannot be done in a worker with threads: dropping to another uid, joining a
namespace, preparing mounts, and outliving the thread that asked (bubblewrap's --die-with-parent
follows the thread). One message per request on a SOCK_SEQPACKET socket, JSON with file
descriptors, the first of which is where the answer goes; see `launch.py` for the other side.
When that socket closes, because the worker closed it or died, everything it started is killed.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import fcntl
import json
import os
import resource
import select
import signal
import socket
import sys

MESSAGE_BYTES_MAX = 1 << 16
FDS_MAX = 32
LISTEN_BACKLOG = 128

_CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWNET = 0x20000, 0x10000000, 0x40000000
_MS_BIND, _MS_REC, _MS_SLAVE, _MS_NOSUID, _MS_NODEV = 4096, 16384, 1 << 19, 2, 4
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_NS_GET_USERNS = 0xB701
_IGNORED = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)
_FREE_FD = 64  # above all targets of a child's descriptors

_libc = ctypes.CDLL(None, use_errno=True)


class Launcher:
    """One socket, one thread, any number of children."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        control.set_inheritable(False)  # it was, to get here; a command must never hold it
        self._children: dict[int, socket.socket] = {}
        self._wake, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        # What a child of ours leaves behind is ours to collect, not the machine's first process'.
        _call(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl")

    def serve(self) -> None:
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if self._wake in ready:
                self._reap()
            if self._control.fileno() in ready and not self._request():
                break
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)

    def _request(self) -> bool:
        """Carry out one request; False when the worker is gone."""
        data, fds = receive(self._control)
        if not data:
            return False
        request = json.loads(data)
        answer = socket.socket(fileno=fds[0])
        try:
            if request["do"] == "start":
                self._start(request, answer, fds[1:])
            elif request["do"] == "listen":
                self._listen(request, answer)
            else:
                prepare(request, answer)
        except OSError as error:
            _say(answer, {"error": f"{error.strerror}: {error.filename or request['do']}"})
        finally:
            for fd in fds[1:]:
                os.close(fd)
            if answer not in self._children.values():
                answer.close()
        return True

    def _start(self, request: dict[str, object], answer: socket.socket, fds: list[int]) -> None:
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            _child(request, answer, fds, parent)
        self._children[pid] = answer
        pidfd = os.pidfd_open(pid)
        try:
            socket.send_fds(answer, [json.dumps({"pid": pid}).encode()], [pidfd])
        finally:
            os.close(pidfd)

    def _listen(self, request: dict[str, object], answer: socket.socket) -> None:
        """Open a listener in the network namespace of a sandbox and hand it over."""
        if os.fork() == 0:
            try:
                listener = _listener_in(int(str(request["pid"])), int(str(request["port"])))
                socket.send_fds(answer, [b"{}"], [listener.fileno()])
            except OSError as error:
                _say(answer, {"error": f"{error.strerror}: {error.filename or 'listen'}"})
            finally:
                os._exit(0)

    def _reap(self) -> None:
        os.read(self._wake, 4096)
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            answer = self._children.pop(pid, None)
            if answer is None:
                continue
            _say(answer, _exit_report(status, usage))
            answer.close()


def receive(channel: socket.socket) -> tuple[bytes, list[int]]:
    """A message and its descriptors, closed on exec. `socket.recv_fds` drops its flags (3.11), so
    that descriptors would leak into whatever is started meanwhile."""
    fds = array.array("i")
    space = socket.CMSG_LEN(FDS_MAX * fds.itemsize)
    data, ancillary, _, _ = channel.recvmsg(MESSAGE_BYTES_MAX, space, socket.MSG_CMSG_CLOEXEC)
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return data, list(fds)


def _exit_report(status: int, usage: resource.struct_rusage) -> dict[str, object]:
    return {
        "exit": os.waitstatus_to_exitcode(status),
        "rss_bytes": usage.ru_maxrss * 1024,  # of the largest process
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
    }


def _child(request: dict[str, object], answer: socket.socket, fds: list[int], parent: int) -> None:
    """Become the program. Never returns."""
    try:
        for number in _IGNORED:  # by Python and by us; a shell could not even trap them
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FREE_FD) for fd in fds]
        for target, fd in enumerate(high):
            os.dup2(fd, target)
        _close_on_exec(len(fds))
        uid = request["uid"]
        if isinstance(uid, int):
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        # After the change of uid, which would clear it.
        _call(_libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0), "prctl")
        if os.getppid() != parent:
            os._exit(1)
        os.umask(0o022)
        os.chdir("/")
        argv, limits = request["argv"], request["limits"]
        assert isinstance(argv, list) and isinstance(limits, list), "the worker sends both"
        for kind, value in limits:
            _, hard = resource.getrlimit(kind)
            bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (bound, bound))
        os.execve(argv[0], argv, {})
    except OSError as error:
        _say(answer, {"error": f"{error.strerror}: {error.filename or 'start'}"})
    finally:
        os._exit(127)


def _close_on_exec(first: int) -> None:
    """Let nothing from this descriptor on through to the program, whatever its flag was."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) >= first:
            with contextlib.suppress(OSError):  # the listing's own
                os.set_inheritable(int(name), False)


def _listener_in(pid: int, port: int) -> socket.socket:
    network = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    # Not /proc/PID/ns/user: bubblewrap moves its child to a second user namespace at some point.
    owner = fcntl.ioctl(network, _NS_GET_USERNS)
    _call(_libc.setns(owner, _CLONE_NEWUSER), "user namespace")
    _call(_libc.setns(network, _CLONE_NEWNET), "network namespace")
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(LISTEN_BACKLOG)
    return listener


def prepare(request: dict[str, object], answer: socket.socket) -> None:
    """As root: make directories reachable for job uids, in a mount namespace of the launcher.

    The server's own directories, /root for instance, are closed to other uids. A tmpfs over an
    ordinary directory that sandboxes do not need holds a bind mount of each.
    """
    binds, area = request["binds"], request["area"]
    assert isinstance(binds, dict) and isinstance(area, str), "the worker sends both"
    _call(_libc.unshare(_CLONE_NEWNS), "unshare")
    _mount("none", "/", None, _MS_REC | _MS_SLAVE)
    sources = {name: os.open(path, os.O_PATH) for name, path in binds.items()}
    _mount("tmpfs", area, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=0755,size=1m")
    for name, fd in sources.items():
        target = os.path.join(area, name)
        os.makedirs(target, mode=0o755)
        _mount(f"/proc/self/fd/{fd}", target, None, _MS_BIND | _MS_REC)
        os.close(fd)
    _say(answer, {})


def _mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    result = _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        kind.encode() if kind else None,
        ctypes.c_ulong(flags),
        data.encode() or None,
    )
    _call(result, f"mount {target}")


def _call(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)


def _say(answer: socket.socket, message: dict[str, object]) -> None:
    """Answer, unless nobody listens any more."""
    try:
        answer.send(json.dumps(message).encode())
    except (BrokenPipeError, ConnectionResetError):
        return


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which will say so
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Launcher(socket.socket(fileno=int(sys.argv[1]))).serve()
