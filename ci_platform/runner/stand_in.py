"""A stand-in for bubblewrap, in Python: the part of it that `bubblewrap.py` asks for.

Runs as a program of its own, where no bubblewrap is installed; `bubblewrap.py` only reads this
file. Takes the same options, tells its state on the same descriptors, and builds the same sandbox,
so everything around it is the same. Imports nothing of ours and as little as it can: it is started
for every command. Must be a fresh process with one thread.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import signal
import socket
import struct
import sys

_NEWNS, _NEWCGROUP, _NEWUTS, _NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
_NEWUSER, _NEWPID, _NEWNET = 0x10000000, 0x20000000, 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_MS_BIND, _MS_REC, _MS_SLAVE = 4096, 16384, 1 << 19
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV = 1, 2, 4
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_MNT_DETACH = 2
_MOUNT_SETATTR = 442  # on all architectures
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP = 1, 4, 22
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 24, 38, 47
_PR_CAP_AMBIENT_CLEAR_ALL, _SECCOMP_MODE_FILTER = 4, 2
_CAP_VERSION_3 = 0x20080522
_CAPS_MAX = 64
_SIOCSIFFLAGS, _IFF_UP_RUNNING = 0x8914, 0x49
_STAGE = "/tmp"  # any directory that exists
_OLD, _NEW = "/old", "/new"
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_DEV_BYTES, _ROOT_BYTES = 1 << 20, 4 << 20
_KERNEL_FILES = ("sys", "sysrq-trigger", "irq", "bus", "fs")  # of /proc, never to be written

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class Options:
    """What was asked for, in order. Unknown options are errors: nothing is left out silently."""

    def __init__(self, arguments: list[str]) -> None:
        self.mounts: list[tuple[str, str, str]] = []  # how, source, target
        self.sizes: dict[int, str] = {}  # of a tmpfs, by its place in `mounts`
        self.modes: dict[int, str] = {}
        self.env: dict[str, str] = {}
        self.namespaces = 0
        self.hostname = ""
        self.uid = self.gid = 0
        self.directory = "/"
        self.block = self.status = self.filter = -1
        self.command: list[str] = []
        self._left = list(arguments)
        while self._left:
            self._take(self._left.pop(0))

    def _take(self, name: str) -> None:
        value = self._left.pop
        if name == "--args":
            self._left[:] = (
                _read_all(int(value(0)))
                .decode(sys.getfilesystemencoding(), "surrogateescape")
                .split("\0")[:-1]
                + self._left
            )
        elif name == "--":
            self.command, self._left = self._left, []
        elif name in _FLAGS:
            self.namespaces |= _FLAGS[name]
        elif name in ("--perms", "--size"):
            (self.modes if name == "--perms" else self.sizes)[len(self.mounts)] = value(0)
        elif name in ("--ro-bind", "--ro-bind-try", "--bind", "--symlink", "--file"):
            self.mounts.append((name[2:], value(0), value(0)))
        elif name in ("--tmpfs", "--proc", "--dev", "--remount-ro"):
            self.mounts.append((name[2:], "", value(0)))
        elif name == "--setenv":
            variable = value(0)
            self.env[variable] = value(0)
        elif name == "--cap-drop" and self._left[0] == "ALL":
            value(0)
        elif name in ("--uid", "--gid", "--block-fd", "--json-status-fd", "--seccomp"):
            setattr(self, _NUMBERS[name], int(value(0)))
        elif name in ("--hostname", "--chdir"):
            setattr(self, "hostname" if name == "--hostname" else "directory", value(0))
        else:
            raise OSError(errno.EINVAL, "not an option of the stand-in", name)


_FLAGS = {
    "--unshare-user": _NEWUSER,
    "--unshare-pid": _NEWPID,
    "--unshare-ipc": _NEWIPC,
    "--unshare-uts": _NEWUTS,
    "--unshare-cgroup-try": _NEWCGROUP,
    "--unshare-net": _NEWNET,
    "--disable-userns": 0,  # these three are always so
    "--die-with-parent": 0,
    "--new-session": 0,
}
_NUMBERS = {
    "--uid": "uid",
    "--gid": "gid",
    "--block-fd": "block",
    "--json-status-fd": "status",
    "--seccomp": "filter",
}


def run(options: Options) -> int:
    """Make the namespaces, hold the command until told, and wait for its end."""
    outer_uid, outer_gid = os.getuid(), os.getgid()
    seccomp = _read_all(options.filter)
    sources = [_real(how, source) for how, source, _ in options.mounts]
    _unshare(options.namespaces | _NEWNS)
    _map(outer_uid, outer_gid, 0, 0, deny=True)
    ready, made = os.pipe()
    alive, life = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(life)
        os.close(ready)
        os.close(options.status)
        _first_process(options, sources, seccomp, made, alive)
    os.close(made)
    os.close(alive)
    if not os.read(ready, 1):  # it has said why
        os.waitpid(pid, 0)
        return 1
    os.write(options.status, b'{ "child-pid": %d }\n' % pid)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = code if code >= 0 else 128 - code
    os.write(options.status, b'{ "exit-code": %d }\n' % code)
    os.close(life)
    return code


def _first_process(
    options: Options, sources: list[str | None], seccomp: bytes, made: int, alive: int
) -> None:
    """Process 1 of the sandbox. Never returns."""
    code = 1
    try:
        _build(options, sources)
        if options.namespaces & _NEWNET:
            _loopback_up()
        if options.hostname:
            name = options.hostname.encode()
            _call(_libc.sethostname(name, ctypes.c_size_t(len(name))), "sethostname")
        _forbid_namespaces()
        _unshare(_NEWUSER)  # the mounts belong to the first one, in which nobody is any more
        _map(0, 0, options.uid, options.gid, deny=False)
        _drop_capabilities()
        _call(_libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0), "prctl")
        # Or its files in /proc would be closed to the server, where that is an ordinary user.
        _call(_libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0), "prctl")
        os.write(made, b"x")
        os.close(made)
        os.set_blocking(alive, False)
        if os.read(options.block, 1) != b"x" or _ended(alive):
            os._exit(1)
        os.closerange(3, 256)
        _install(seccomp)
        code = _serve(options)
    except OSError as error:
        sys.stderr.write(f"stand-in: {error.filename or 'start'}: {error.strerror}\n")
        sys.stderr.flush()
    finally:
        os._exit(code)


def _serve(options: Options) -> int:
    """Start the command, and bury the dead until it has ended."""
    main = os.fork()
    if main == 0:
        try:
            for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            os.setsid()
            os.chdir(options.directory)
            os.execvpe(options.command[0], options.command, options.env)
        except OSError as error:
            sys.stderr.write(f"stand-in: {error.filename or 'exec'}: {error.strerror}\n")
            sys.stderr.flush()
        finally:
            os._exit(127)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):  # so that output ends when the command's own processes have
        os.dup2(null, fd)
    os.close(null)
    while True:
        pid, status = os.wait()
        if pid == main:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


# --- files ----------------------------------------------------------------------------------------


def _real(how: str, source: str) -> str | None:
    """Where a source is, while links still lead there; None for one that may be missing."""
    if how == "ro-bind-try" and not os.path.exists(source):
        return None
    return os.path.realpath(source) if how in ("bind", "ro-bind", "ro-bind-try") else source


def _build(options: Options, sources: list[str | None]) -> None:
    """The root directory of the sandbox, and nothing else left to see."""
    _mount("none", "/", None, _MS_REC | _MS_SLAVE)
    _mount("tmpfs", _STAGE, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=755,size=1m")
    os.mkdir(_STAGE + _OLD)
    os.mkdir(_STAGE + _NEW)
    _pivot(_STAGE, _STAGE + _OLD)
    _mount("tmpfs", _NEW, "tmpfs", _MS_NOSUID | _MS_NODEV, f"mode=755,size={_ROOT_BYTES}")
    for index, (how, _, target) in enumerate(options.mounts):
        source, place = sources[index], _NEW + target
        if source is None:
            continue
        if how in ("bind", "ro-bind", "ro-bind-try"):
            _bind(_OLD + source, place, readonly=how != "bind")
        elif how == "symlink":
            os.makedirs(os.path.dirname(place), exist_ok=True)
            os.symlink(source, place)
        elif how == "file":
            _file(place, _read_all(int(source)), options.modes.get(index, "0600"))
        elif how == "tmpfs":
            os.makedirs(place, exist_ok=True)
            data = f"mode={options.modes.get(index, '0755')},size={options.sizes[index]}"
            _mount("tmpfs", place, "tmpfs", _MS_NOSUID | _MS_NODEV, data)
        elif how == "proc":
            _proc(place)
        elif how == "dev":
            _devices(place)
        else:
            _attributes(place, _ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NODEV, recursive=False)
    _call(_libc.umount2(os.fsencode(_OLD), _MNT_DETACH), "umount the host's root")
    os.chdir(_NEW)
    _pivot(".", ".")
    _call(_libc.umount2(b".", _MNT_DETACH), "umount the stage")
    os.chdir("/")


def _bind(source: str, place: str, *, readonly: bool) -> None:
    if os.path.isdir(source):
        os.makedirs(place, exist_ok=True)
    elif not os.path.exists(place):
        _file(place, b"", "0600")
    _mount(source, place, None, _MS_BIND | _MS_REC)
    wanted = _ATTR_NOSUID | _ATTR_NODEV | (_ATTR_RDONLY if readonly else 0)
    _attributes(place, wanted, recursive=True)


def _file(place: str, content: bytes, mode: str) -> None:
    os.makedirs(os.path.dirname(place), exist_ok=True)
    fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, int(mode, 8))
    with os.fdopen(fd, "wb") as file:
        file.write(content)


def _proc(place: str) -> None:
    os.makedirs(place, exist_ok=True)
    _mount("proc", place, "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    for name in _KERNEL_FILES:
        path = f"{place}/{name}"
        if os.path.exists(path):
            _mount(path, path, None, _MS_BIND | _MS_REC)
            _attributes(path, _ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NODEV, recursive=True)


def _devices(place: str) -> None:
    os.makedirs(place, exist_ok=True)
    _mount("tmpfs", place, "tmpfs", _MS_NOSUID, f"mode=755,size={_DEV_BYTES}")
    for name in _DEVICES:
        _file(f"{place}/{name}", b"", "0600")
        _mount(f"{_OLD}/dev/{name}", f"{place}/{name}", None, _MS_BIND)
    for index, name in enumerate(("stdin", "stdout", "stderr")):
        os.symlink(f"/proc/self/fd/{index}", f"{place}/{name}")
    os.symlink("/proc/self/fd", f"{place}/fd")
    os.mkdir(f"{place}/pts")
    data = "newinstance,ptmxmode=0666,mode=620"
    _mount("devpts", f"{place}/pts", "devpts", _MS_NOSUID | _MS_NOEXEC, data)
    os.symlink("pts/ptmx", f"{place}/ptmx")


# --- the kernel -----------------------------------------------------------------------------------


def _unshare(flags: int) -> None:
    if _libc.unshare(flags) != 0:
        code = ctypes.get_errno()
        # The words of bubblewrap, for which there is advice (probe.py).
        sign = "No permissions to create new namespace"
        if code == errno.ENOSPC:
            sign = "user.max_user_namespaces is too low"
        raise OSError(code, os.strerror(code), sign)


def _map(uid: int, gid: int, inside_uid: int, inside_gid: int, *, deny: bool) -> None:
    try:
        if deny:
            _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{inside_uid} {uid} 1")
        _write("/proc/self/gid_map", f"{inside_gid} {gid} 1")
    except OSError as error:
        raise OSError(error.errno, error.strerror, "setting up uid map") from error


def _forbid_namespaces() -> None:
    """The filter refuses them too, and is all there is where /proc/sys cannot be written."""
    try:
        _write("/proc/sys/user/max_user_namespaces", "1")
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT):
            raise


def _drop_capabilities() -> None:
    _call(_libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "ambient capabilities")
    for number in range(_CAPS_MAX):
        if _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0) != 0:
            break  # the last one of this kernel was the one before
    header = struct.pack("<Ii", _CAP_VERSION_3, 0)
    _call(_libc.capset(header, struct.pack("<6I", *[0] * 6)), "capabilities")
    _call(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def _install(program: bytes) -> None:
    """Filter this process and all that it starts."""
    code = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog, with the padding of a 64-bit machine
    head = struct.pack("<HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
    given = ctypes.create_string_buffer(head, len(head))
    _call(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, given, 0, 0), "filter")


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        fcntl.ioctl(one, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _IFF_UP_RUNNING))


def _mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    result = _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        kind.encode() if kind else None,
        ctypes.c_ulong(flags),
        data.encode() or None,
    )
    _call(result, f"mount {kind or source}")


def _attributes(path: str, wanted: int, *, recursive: bool) -> None:
    data = struct.pack("<QQQQ", wanted, 0, 0, 0)
    result = _libc.syscall(
        ctypes.c_long(_MOUNT_SETATTR),
        ctypes.c_long(_AT_FDCWD),
        ctypes.c_char_p(os.fsencode(path)),
        ctypes.c_long(_AT_RECURSIVE if recursive else 0),
        ctypes.c_char_p(data),
        ctypes.c_long(len(data)),
    )
    _call(result, f"mount_setattr {path}")


def _pivot(new: str, old: str) -> None:
    result = _libc.syscall(
        ctypes.c_long(_PIVOT_ROOT[platform.machine()]),
        ctypes.c_char_p(os.fsencode(new)),
        ctypes.c_char_p(os.fsencode(old)),
    )
    _call(result, "pivot_root")
    if old != new:
        os.chdir("/")


def _call(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _read_all(fd: int) -> bytes:
    found = b""
    while data := os.read(fd, 1 << 16):
        found += data
    os.close(fd)
    return found


def _ended(pipe: int) -> bool:
    """Whether the other side of a pipe that nobody writes to is closed."""
    try:
        return os.read(pipe, 1) == b""
    except BlockingIOError:
        return False


def main(arguments: list[str]) -> int:
    try:
        return run(Options(arguments))
    except (OSError, IndexError, ValueError) as error:
        name = error.filename if isinstance(error, OSError) else None
        said = error.strerror if isinstance(error, OSError) else str(error)
        sys.stderr.write(f"stand-in: {name or 'start'}: {said}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
