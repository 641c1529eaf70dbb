"""The launcher process: starts sandboxes for a worker, and dies with it.

Runs as a script of its own (`python -I -S launcher.py FD`) and imports nothing of ours. It exists
because four things cannot be done in a worker with threads: dropping to another uid, joining a
namespace, mounting, and outliving the thread that asked (bubblewrap's --die-with-parent follows
the thread). One message per request on a SOCK_SEQPACKET socket, JSON with file
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
import struct
import sys

MESSAGE_BYTES_MAX = 1 << 16
FDS_MAX = 32
LISTEN_BACKLOG = 128
NICE = 10  # of commands that are not as important as the platform: who waits for it comes first
NORMAL, LOW, IDLE = "normal", "low", "idle"  # priorities
OVERLAYS = "overlays"  # the directory in the area that holds them

_CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWNET = 0x20000, 0x10000000, 0x40000000
_MS_BIND, _MS_REC, _MS_SLAVE, _MS_NOSUID, _MS_NODEV = 4096, 16384, 1 << 19, 2, 4
_MNT_DETACH = 2
# The same numbers on all architectures.
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_OPEN_TREE_CLONE, _MOVE_MOUNT_F_EMPTY_PATH, _AT_EMPTY_PATH, _AT_FDCWD = 1, 4, 0x1000, -100
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_IDMAP = 1, 0x100000
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_NS_GET_USERNS = 0xB701
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
_IGNORED = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)
_FREE_FD = 64  # above all targets of a child's descriptors

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class Launcher:
    """One socket, one thread, any number of children."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        control.set_inheritable(False)  # it was, to get here; a command must never hold it
        self._children: dict[int, socket.socket] = {}
        self._mappings: dict[int, int] = {}  # uid -> user namespace in which our uid is that one
        self._area = ""
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
            elif request["do"] == "network":
                self._network(request, answer)
            elif request["do"] == "socket":
                self._socket(answer, fds[1:])
            elif request["do"] == "overlay":
                self._overlay(request, answer)
            elif request["do"] == "uncover":
                _uncover(f"{self._area}/{OVERLAYS}/{request['name']}")
                _say(answer, {})
            else:
                self._area = prepare(request, answer)
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

    def _network(self, request: dict[str, object], answer: socket.socket) -> None:
        """Make a network of its own, and hand over the namespaces that sandboxes join for it."""
        uids = request["uids"]
        found = _network_namespaces(uids if isinstance(uids, list) else None)
        try:
            socket.send_fds(answer, [b"{}"], found)
        finally:
            for fd in found:
                os.close(fd)

    def _socket(self, answer: socket.socket, fds: list[int]) -> None:
        """Hand over a socket that connects inside a network."""
        if os.fork() == 0:
            try:
                _join(fds)
                made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
                socket.send_fds(answer, [b"{}"], [made.fileno()])
            except OSError as error:
                _say(answer, {"error": f"{error.strerror}: {error.filename or 'socket'}"})
            finally:
                os._exit(0)

    def _overlay(self, request: dict[str, object], answer: socket.socket) -> None:
        """Mount a workspace over a cached tree, and hand over its root directory."""
        place = f"{self._area}/{OVERLAYS}/{request['name']}"
        os.mkdir(place)
        try:
            uid = request["uid"]
            mapping = self._mapping(uid) if isinstance(uid, int) else None
            _cover(place, request, mapping)
            root = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            _uncover(place)
            raise
        try:
            socket.send_fds(answer, [b"{}"], [root])
        finally:
            os.close(root)

    def _mapping(self, uid: int) -> int:
        """A user namespace in which our files are those of `uid`. As many as uids, at most."""
        if uid not in self._mappings:
            self._mappings[uid] = _user_namespace(uid)
        return self._mappings[uid]

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
        if request["join"]:
            *fds, user, network = fds
            _join([user, network])
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
        _yield(str(request["priority"]))
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


def _yield(priority: str) -> None:
    """Let others come first. Beside a hundred processes that are only nice, one that is not still
    waits for tens of them; those that are idle are pushed aside the moment it wakes, and their
    reads and writes come last as well. What is started inside cannot undo it."""
    if priority != NORMAL:
        os.nice(NICE)
    if priority == IDLE:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _close_on_exec(first: int) -> None:
    """Let nothing from this descriptor on through to the program, whatever its flag was."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) >= first:
            with contextlib.suppress(OSError):  # the listing's own
                os.set_inheritable(int(name), False)


def _join(fds: list[int]) -> None:
    """Enter a user namespace and the network namespace in it."""
    _call(_libc.setns(fds[0], _CLONE_NEWUSER), "user namespace")
    _call(_libc.setns(fds[1], _CLONE_NEWNET), "network namespace")


def _network_namespaces(uids: list[int] | None) -> list[int]:
    """A user namespace that maps these uids (the first one, and how many) or just ours to
    themselves, and a network namespace in it with nothing but a loopback. They need no process."""
    ready, made = os.pipe()
    done, finish = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(finish)
        os.write(made, b"x" if _made_network() else b"-")
        os.read(done, 1)
        os._exit(0)
    try:
        if os.read(ready, 1) != b"x":
            raise OSError(1, "namespaces cannot be made", "network")
        if uids is None:
            _write(f"/proc/{pid}/setgroups", "deny")
            ours = (f"{os.getuid()} {os.getuid()} 1", f"{os.getgid()} {os.getgid()} 1")
        else:
            ours = (f"{uids[0]} {uids[0]} {uids[1]}", f"{uids[0]} {uids[0]} {uids[1]}")
        _write(f"/proc/{pid}/uid_map", ours[0])
        _write(f"/proc/{pid}/gid_map", ours[1])
        flags = os.O_RDONLY | os.O_CLOEXEC
        return [os.open(f"/proc/{pid}/ns/{kind}", flags) for kind in ("user", "net")]
    finally:
        for fd in (ready, made, done, finish):
            os.close(fd)


def _made_network() -> bool:
    """In a child: leave the user and network namespaces for new ones."""
    if _libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        up = struct.pack("16sH14x", b"lo", _IFF_UP)
        try:
            fcntl.ioctl(any_socket, _SIOCSIFFLAGS, up)
        except OSError:
            return False
    return True


def _listener_in(pid: int, port: int) -> socket.socket:
    network = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    # Not /proc/PID/ns/user: bubblewrap moves its child to a second user namespace at some point.
    owner = fcntl.ioctl(network, _NS_GET_USERNS)
    if os.fstat(owner).st_ino != os.stat("/proc/self/ns/user").st_ino:  # as containers of root's
        _call(_libc.setns(owner, _CLONE_NEWUSER), "user namespace")
    _call(_libc.setns(network, _CLONE_NEWNET), "network namespace")
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(LISTEN_BACKLOG)
    return listener


def prepare(request: dict[str, object], answer: socket.socket) -> str:
    """Make directories reachable for job uids, in a mount namespace of the launcher; where.

    The server's own directories, /root for instance, are closed to other uids. A tmpfs over an
    ordinary directory that sandboxes do not need holds a bind mount of each. An ordinary user has
    no other uids, but may mount nothing outside a user namespace either.
    """
    binds, area = request["binds"], request["area"]
    assert isinstance(binds, dict) and isinstance(area, str), "the worker sends both"
    uid, gid = os.getuid(), os.getgid()
    _call(_libc.unshare(_CLONE_NEWNS | (_CLONE_NEWUSER if uid else 0)), "unshare")
    if uid:
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{uid} {uid} 1")
        _write("/proc/self/gid_map", f"{gid} {gid} 1")
    _mount("none", "/", None, _MS_REC | _MS_SLAVE)
    sources = {name: os.open(path, os.O_PATH) for name, path in binds.items()}
    _mount("tmpfs", area, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=0755,size=1m")
    for name, fd in sources.items():
        target = os.path.join(area, name)
        os.makedirs(target, mode=0o755)
        _mount(f"/proc/self/fd/{fd}", target, None, _MS_BIND | _MS_REC)
        os.close(fd)
    os.mkdir(os.path.join(area, OVERLAYS))
    _say(answer, {})
    return area


def _cover(place: str, request: dict[str, object], mapping: int | None) -> None:
    """An overlay of the directories named in the request. Nothing is ever written to the lower
    one. What is written need not survive a crash of the machine, so no sync is waited for."""
    lower = str(request["lower"])
    if mapping is not None:
        lower = place  # the clone lies where the overlay goes, and stays alive below it
        _clone_owned(str(request["lower"]), place, mapping)
    paths = f"lowerdir={lower},upperdir={request['upper']},workdir={request['work']}"
    private = "redirect_dir=nofollow,metacopy=off" if mapping is not None else "userxattr"
    flags = _MS_NOSUID | _MS_NODEV
    _mount("overlay", place, "overlay", flags, f"{paths},index=off,volatile,{private}")


def _uncover(place: str) -> None:
    while _libc.umount2(os.fsencode(place), _MNT_DETACH) == 0:
        continue  # the overlay, and the clone below it
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(place)


def _clone_owned(source: str, place: str, mapping: int) -> None:
    """Mount a directory once more, read-only, where what is ours appears as another user's."""
    tree = _syscall(_OPEN_TREE, _AT_FDCWD, source, _OPEN_TREE_CLONE | os.O_CLOEXEC)
    try:
        wanted = _MOUNT_ATTR_IDMAP | _MOUNT_ATTR_RDONLY
        attributes = struct.pack("<QQQQ", wanted, 0, 0, mapping)
        _syscall(_MOUNT_SETATTR, tree, "", _AT_EMPTY_PATH, attributes, len(attributes))
        _syscall(_MOVE_MOUNT, tree, "", _AT_FDCWD, place, _MOVE_MOUNT_F_EMPTY_PATH)
    finally:
        os.close(tree)


def _user_namespace(uid: int) -> int:
    """A descriptor of a user namespace that maps our uid to `uid`. It needs no process."""
    ready, made = os.pipe()
    done, finish = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(finish)
        code = _libc.unshare(_CLONE_NEWUSER)
        os.write(made, b"x" if code == 0 else b"-")
        os.read(done, 1)
        os._exit(0)
    try:
        if os.read(ready, 1) != b"x":
            raise OSError(1, "user namespaces cannot be made", "idmap")
        _write(f"/proc/{pid}/uid_map", f"{os.getuid()} {uid} 1")
        _write(f"/proc/{pid}/gid_map", f"{os.getgid()} {uid} 1")
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        for fd in (ready, made, done, finish):
            os.close(fd)


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _syscall(number: int, *arguments: int | str | bytes) -> int:
    values = [
        ctypes.c_long(one) if isinstance(one, int) else ctypes.c_char_p(_encoded(one))
        for one in arguments
    ]
    result: int = _libc.syscall(ctypes.c_long(number), *values)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), f"system call {number}")
    return result


def _encoded(text: str | bytes) -> bytes:
    return os.fsencode(text) if isinstance(text, str) else text


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
    os.umask(0o022)  # what is made here, and by jobs, is not only for us, whatever the server's is
    Launcher(socket.socket(fileno=int(sys.argv[1]))).serve()
