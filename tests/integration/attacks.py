"""Attempts to get out of a command. Runs INSIDE it: `python3 attacks.py`, facts in facts.json.

Every attempt is a function that returns when the attack worked, saying how, and raises when it
was stopped. Prints one JSON object: name -> null if stopped, else how it worked. Needs nothing but
the standard library.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import platform
import pty
import resource
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

with open("facts.json") as _file:
    FACTS = json.load(_file)
NUMBERS = {
    "x86_64": {
        **{"mount": 165, "umount2": 166, "pivot_root": 155, "add_key": 248, "keyctl": 250},
        **{"request_key": 249, "perf_event_open": 298, "userfaultfd": 323, "bpf": 321},
        **{"open_by_handle_at": 304, "kexec_load": 246, "init_module": 175, "syslog": 103},
        **{"settimeofday": 164, "sethostname": 170, "swapoff": 168, "reboot": 169, "acct": 163},
        **{"unshare": 272, "setns": 308, "shmget": 29, "shmat": 30, "mknod": 133, "iopl": 172},
        **{"clone": 56, "ioctl": 16, "quotactl": 179, "kcmp": 312, "fanotify_init": 300},
    },
    "aarch64": {
        **{"mount": 40, "umount2": 39, "pivot_root": 41, "add_key": 217, "keyctl": 219},
        **{"request_key": 218, "perf_event_open": 241, "userfaultfd": 282, "bpf": 280},
        **{"open_by_handle_at": 265, "kexec_load": 104, "init_module": 105, "syslog": 116},
        **{"settimeofday": 170, "sethostname": 161, "swapoff": 225, "reboot": 142, "acct": 89},
        **{"unshare": 97, "setns": 268, "shmget": 194, "shmat": 196, "ioctl": 29, "clone": 220},
        **{"quotactl": 60, "kcmp": 272, "fanotify_init": 262},
    },
}[platform.machine()]
ANYWHERE = {"io_uring_setup": 425, "open_tree": 428, "fsopen": 430, "clone3": 435}
ANYWHERE |= {"mount_setattr": 442, "pidfd_open": 434, "pidfd_getfd": 438, "memfd_secret": 447}
NUMBERS |= ANYWHERE
NEWUSER, NEWNS, NEWNET, NEWPID = 0x10000000, 0x20000, 0x40000000, 0x20000000

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
ATTACKS: dict[str, Callable[[], str]] = {}


class Stopped(Exception):
    pass


def attack(name: str) -> Callable[[Callable[[], str]], Callable[[], str]]:
    def register(function: Callable[[], str]) -> Callable[[], str]:
        ATTACKS[name] = function
        return function

    return register


def call(name: str, *arguments: object) -> int:
    """A system call; raises OSError when it fails."""
    given = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    result: int = libc.syscall(ctypes.c_long(NUMBERS[name]), *given)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), name)
    return result


def reached(name: str, *arguments: object) -> str:
    """The call got past the filter: any error but a refusal means that the kernel looked at it."""
    try:
        call(name, *arguments)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOSYS, errno.EACCES):
            raise
        return f"the kernel answered {errno.errorcode[error.errno or 0]}"
    return "it worked"


def read(path: str) -> str:
    with open(path, "rb") as file:
        return f"read {len(file.read(64))} bytes of {path}"


def write(path: str, content: bytes = b"") -> str:
    fd = os.open(path, os.O_WRONLY)
    if content:
        os.write(fd, content)
    os.close(fd)
    return f"opened {path} for writing"


# --- files ---------------------------------------------------------------------------------------

for title, key in (
    ("read the server's key file", "key_file"),
    ("read the server's database", "database"),
    ("read another tenant's workspace", "other_workspace"),
    ("read a cached tree", "tree_cache"),
    ("read the layers in the object store", "objects"),
):

    def _read_fact(path: str = FACTS[key]) -> str:
        return f"saw {os.listdir(path)}" if os.path.isdir(path) else read(path)

    attack(title)(_read_fact)

    def _read_through_init(path: str = FACTS[key]) -> str:
        return _read_fact(f"/proc/1/root{path}")

    attack(f"{title} through /proc/1/root")(_read_through_init)


@attack("read /etc/shadow")
def _() -> str:
    return read("/etc/shadow")


@attack("read a disk")
def _() -> str:
    for name in os.listdir("/dev"):
        if name.startswith(("sd", "vd", "nvme", "xvd", "dm-", "loop")):
            return read(f"/dev/{name}")
    return read("/dev/vda")


for device in ("mem", "kmsg", "port", "kvm", "fuse", "net/tun"):

    def _open_device(path: str = f"/dev/{device}") -> str:
        return read(path)

    attack(f"open /dev/{device}")(_open_device)


@attack("make a device")
def _() -> str:
    os.mknod("disk", 0o60660, os.makedev(254, 0))
    return read("disk")


@attack("follow a link out of the workspace")
def _() -> str:
    os.symlink(FACTS["key_file"], "link")
    return read("link")


# --- environment and processes -------------------------------------------------------------------


@attack("the server's secrets are in the environment")
def _() -> str:
    return found_secret("\0".join(os.environ.values()))


@attack("the server's secrets are in some /proc/PID/environ")
def _() -> str:
    return found_secret(everything("environ"))


@attack("the step's own secrets are in /proc/1")
def _() -> str:
    said = "".join(Path(f"/proc/1/{name}").read_text() for name in ("environ", "cmdline"))
    if FACTS["step_secret"] not in said:
        raise Stopped
    return "found it"


@attack("host paths are in /proc/1/cmdline")
def _() -> str:
    if FACTS["work_dir"] not in Path("/proc/1/cmdline").read_text():
        raise Stopped
    return "found it"


@attack("see the server's processes")
def _() -> str:
    if str(FACTS["server_pid"]) in os.listdir("/proc") or FACTS["server_mark"] in everything(
        "cmdline"
    ):
        return "saw it"
    raise Stopped


def everything(name: str) -> str:
    said = ""
    for pid in os.listdir("/proc"):
        if pid.isdigit() and pid != str(os.getpid()):
            try:
                said += Path(f"/proc/{pid}/{name}").read_text()
            except OSError:
                continue
    return said


def found_secret(text: str) -> str:
    if FACTS["server_secret"] not in text:
        raise Stopped
    return "found it"


@attack("signal the server")
def _() -> str:
    os.kill(FACTS["server_pid"], 0)
    return "it is reachable"


@attack("trace the server")
def _() -> str:
    if libc.ptrace(16, FACTS["server_pid"], 0, 0):
        raise OSError(ctypes.get_errno(), "ptrace")
    libc.ptrace(17, FACTS["server_pid"], 0, 0)
    return "attached"


@attack("get a handle on the server")
def _() -> str:
    fd = call("pidfd_open", FACTS["server_pid"], 0)
    call("pidfd_getfd", fd, 0, 0)
    return "took its standard input"


@attack("kill the sandbox's first process")
def _() -> str:
    os.kill(1, signal.SIGKILL)
    signal.sigtimedwait([], 0.1)
    os.kill(1, 0)
    raise Stopped


@attack("the first process has no filter")
def _() -> str:
    if "Seccomp:\t2" in Path("/proc/1/status").read_text():
        raise Stopped
    return "unfiltered"


@attack("lower the score that decides who dies when memory is short")
def _() -> str:
    return write("/proc/self/oom_score_adj", b"-1000")


# --- network -------------------------------------------------------------------------------------


def connect(family: int, kind: int, address: object) -> str:
    with socket.socket(family, kind) as one:
        one.settimeout(2)
        one.connect(address)  # type: ignore[arg-type]
        one.send(b"x")
    return f"reached {address}"


@attack("reach the database on loopback")
def _() -> str:
    return connect(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", FACTS["loopback_port"]))


@attack("reach an abstract socket")
def _() -> str:
    return connect(socket.AF_UNIX, socket.SOCK_STREAM, "\0" + FACTS["abstract_socket"])


@attack("reach a socket file")
def _() -> str:
    return connect(socket.AF_UNIX, socket.SOCK_STREAM, FACTS["socket_file"])


@attack("send outside over UDP")
def _() -> str:
    return connect(socket.AF_INET, socket.SOCK_DGRAM, ("198.51.100.1", 53))


@attack("send outside over UDP, IPv6")
def _() -> str:
    return connect(socket.AF_INET6, socket.SOCK_DGRAM, ("2001:db8::1", 53))


@attack("reach the metadata address")
def _() -> str:
    return connect(socket.AF_INET, socket.SOCK_DGRAM, ("169.254.169.254", 80))


@attack("resolve a name")
def _() -> str:
    return str(socket.getaddrinfo("example.org", 80))


for title, family, kind, protocol in (
    ("vsock, to the hypervisor", 40, socket.SOCK_STREAM, 0),
    ("raw packets", 17, socket.SOCK_RAW, 0),
    ("kernel cryptography (AF_ALG)", 38, socket.SOCK_SEQPACKET, 0),
    ("raw IP", socket.AF_INET, socket.SOCK_RAW, 1),
    ("netlink netfilter", 16, socket.SOCK_RAW, 12),
    ("netlink audit", 16, socket.SOCK_RAW, 9),
    ("netlink uevents", 16, socket.SOCK_RAW, 15),
    ("CAN", 29, socket.SOCK_RAW, 1),
    ("bluetooth", 31, socket.SOCK_RAW, 1),
    ("packet radio", 3, socket.SOCK_SEQPACKET, 0),
    ("SCTP", socket.AF_INET, socket.SOCK_SEQPACKET, 132),
):

    def _open(family: int = family, kind: int = kind, protocol: int = protocol) -> str:
        socket.socket(family, kind, protocol).close()
        return "opened"

    if title != "SCTP" or os.path.exists("/proc/net/sctp"):
        attack(f"socket: {title}")(_open)


@attack("change the network")
def _() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        fcntl.ioctl(one, 0x8914, struct.pack("16sH14x", b"lo", 0))
    return "took loopback down"


# --- writing -------------------------------------------------------------------------------------

for path in ("/usr/bin/planted", "/etc/planted", "/planted", "/dev/planted", "/run/ci/planted"):

    def _create(path: str = path) -> str:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT))
        return f"made {path}"

    attack(f"create {path}")(_create)

for path in (
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/kernel/hostname",
    "/proc/sys/vm/drop_caches",
    "/proc/sys/net/ipv4/ip_forward",
    "/proc/sysrq-trigger",
    "/proc/kcore",
    "/sys/kernel/uevent_helper",
    "/sys/devices/system/cpu/cpu0/online",
    "/run/ci/script",
):

    def _write(path: str = path) -> str:
        return write(path)

    attack(f"write {path}")(_write)


@attack("change the toolchain")
def _() -> str:
    path = os.path.join(sys.base_prefix, "lib", "planted")
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT))
    return f"made {path}"


@attack("see control groups")
def _() -> str:
    return f"saw {os.listdir('/sys/fs/cgroup')}"


# --- privileges ----------------------------------------------------------------------------------


@attack("become root by a set-uid program")
def _() -> str:
    said = subprocess.run([FACTS["setuid_id"], "-u"], capture_output=True, text=True, check=True)
    if said.stdout.strip() == "1000":
        raise Stopped
    return f"became {said.stdout.strip()}"


@attack("become root by setuid")
def _() -> str:
    os.setuid(0)
    return "became root"


@attack("become another user")
def _() -> str:
    os.setresuid(1001, 1001, 1001)
    return "became 1001"


@attack("have groups of the server")
def _() -> str:
    if set(os.getgroups()) <= {1000}:
        raise Stopped
    return f"has {os.getgroups()}"


def status(key: str) -> str:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return line.split()[1]
    raise KeyError(key)


for key in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):

    def _capable(key: str = key) -> str:
        if int(status(key), 16) == 0:
            raise Stopped
        return status(key)

    attack(f"have capabilities ({key})")(_capable)


@attack("gain privileges by exec")
def _() -> str:
    if status("NoNewPrivs") == "1":
        raise Stopped
    return "no_new_privs is off"


@attack("run without a filter")
def _() -> str:
    if status("Seccomp") == "2":
        raise Stopped
    return "unfiltered"


@attack("raise a resource limit")
def _() -> str:
    _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    resource.setrlimit(resource.RLIMIT_NPROC, (hard + 1, hard + 1))
    return f"raised from {hard}"


# --- kernel --------------------------------------------------------------------------------------

attack("new user namespace")(lambda: reached("unshare", NEWUSER))
attack("new network namespace")(lambda: reached("unshare", NEWNET))
attack("new mount namespace with a user namespace")(lambda: reached("unshare", NEWUSER | NEWNS))
attack("new time namespace")(lambda: reached("unshare", 0x80))
attack("mount")(lambda: reached("mount", b"none", b"/tmp", b"tmpfs", 0, None))
attack("mount over /proc/sys")(lambda: reached("umount2", b"/proc/sys", 2))
attack("remount / for writing")(lambda: reached("mount", b"none", b"/", None, 32 | 4096, None))
attack("new mount interface")(lambda: reached("fsopen", b"tmpfs", 0))
attack("clone a mount")(lambda: reached("open_tree", -100, b"/", 1))
attack("change a mount")(lambda: reached("mount_setattr", -100, b"/", 0, None, 0))
attack("pivot_root")(lambda: reached("pivot_root", b".", b"."))
attack("add a key")(lambda: reached("add_key", b"user", b"x", b"y", 1, -4))
attack("read the server's key")(lambda: reached("keyctl", 11, FACTS["key_serial"], None, 0))
attack("request a key")(lambda: reached("request_key", b"user", b"sluice-test", None, -4))
attack("perf events")(
    lambda: reached("perf_event_open", ctypes.create_string_buffer(128), 0, -1, -1, 0)
)
attack("userfaultfd")(lambda: reached("userfaultfd", 1))
attack("io_uring")(lambda: reached("io_uring_setup", 8, ctypes.create_string_buffer(128)))
attack("bpf")(lambda: reached("bpf", 0, ctypes.create_string_buffer(128), 128))
attack("open by handle")(
    lambda: reached("open_by_handle_at", -100, ctypes.create_string_buffer(64), 0)
)
attack("load a kernel")(lambda: reached("kexec_load", 0, 0, None, 0))
attack("load a module")(lambda: reached("init_module", b"", 0, b""))
attack("read the kernel's log")(lambda: reached("syslog", 3, ctypes.create_string_buffer(64), 64))
attack("set the clock")(lambda: reached("settimeofday", ctypes.create_string_buffer(16), None))
attack("set the host's name")(lambda: reached("sethostname", b"x", 1))
attack("stop swapping")(lambda: reached("swapoff", b"/nowhere"))
attack("restart the machine")(lambda: reached("reboot", 0, 0, 0, None))
attack("process accounting")(lambda: reached("acct", b"/tmp/acct"))
attack("secret memory")(lambda: reached("memfd_secret", 0))
attack("watch the file system")(lambda: reached("fanotify_init", 0, 0))
attack("compare kernel objects")(lambda: reached("kcmp", 1, os.getpid(), 0, 0, 0))
attack("quotas")(lambda: reached("quotactl", 0, None, 0, None))
if "iopl" in NUMBERS:
    attack("input and output ports")(lambda: reached("iopl", 3))


@attack("new user namespace by clone")
def _() -> str:
    pid = call("clone", NEWUSER | signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return "made one"


@attack("new user namespace by clone3")
def _() -> str:
    arguments = struct.pack("<11Q", NEWUSER, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, 0)
    pid = call("clone3", arguments, len(arguments))
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return "made one"


@attack("join the namespaces of the first process")
def _() -> str:
    fd = os.open("/proc/1/ns/mnt", os.O_RDONLY)
    call("setns", fd, 0)
    return "joined"


@attack("shared memory of the host")
def _() -> str:
    identifier = call("shmget", FACTS["shm_key"], 0, 0)
    return f"found {identifier}"


@attack("a message queue of the host")
def _() -> str:
    return f"saw {os.listdir('/dev/mqueue')}"


def terminal(request: int) -> str:
    """Typing into a terminal of one's own: what matters is whether the request passes."""
    leader, follower = pty.openpty()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        fcntl.ioctl(follower, 0x540E, 0)  # make it the controlling terminal
        try:
            call("ioctl", follower, request, b"x")
        except OSError:
            os._exit(1)
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        raise Stopped
    return "typed"


attack("type into a terminal")(lambda: terminal(0x5412))
attack("type into a terminal, with upper bits set")(lambda: terminal(0x5412 | 1 << 32))


@attack("have a controlling terminal")
def _() -> str:
    os.close(os.open("/dev/tty", os.O_RDWR))
    return "opened it"


@attack("keep file descriptors of the server")
def _() -> str:
    for fd in os.listdir("/proc/self/fd"):
        if int(fd) > 2:
            try:
                target = os.readlink(f"/proc/self/fd/{fd}")
            except OSError:
                continue  # the listing's own
            if not target.startswith("pipe:"):  # the attack's own
                return f"{fd} is {target}"
    raise Stopped


def in_a_child(function: Callable[[], str]) -> str | None:
    """How an attack worked, None if it was stopped; what it does to its process ends with it."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write_end, function().encode())
        except (OSError, ValueError, Stopped, subprocess.SubprocessError):
            os._exit(1)
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as said:
        how = said.read().decode()
    return how if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0 else None


def main() -> None:
    attempted = {name: one for name, one in ATTACKS.items() if name not in FACTS["left_out"]}
    print(json.dumps({name: in_a_child(function) for name, function in attempted.items()}))


main()
