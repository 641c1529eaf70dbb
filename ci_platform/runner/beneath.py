"""Opening files that a stranger may have arranged: never outside, never through a link.

A path in a workspace may be a link to /etc/shadow, or a FIFO that blocks for ever. Everything
that reads or writes below a workspace opens it here. Links are refused wherever they stand: the
manifest lists links as links, so no path of it ever leads through one.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct

_OPENAT2 = 437  # on every architecture
_RESOLVE_NO_MAGICLINKS, _RESOLVE_NO_SYMLINKS, _RESOLVE_BENEATH = 0x02, 0x04, 0x08
_RESOLVE = _RESOLVE_NO_MAGICLINKS | _RESOLVE_NO_SYMLINKS | _RESOLVE_BENEATH
_RETRIES = 16  # EAGAIN means that a directory moved meanwhile

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def open_beneath(root: int, path: str, flags: int, mode: int = 0) -> int:
    """Open `path` below the directory `root`; raises OSError, ELOOP or EXDEV if it leads away."""
    flags |= os.O_CLOEXEC if flags & os.O_PATH else os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    how = struct.pack("<QQQ", flags, mode, _RESOLVE)
    for _ in range(_RETRIES):
        result: int = _libc.syscall(
            ctypes.c_long(_OPENAT2),
            ctypes.c_int(root),
            ctypes.c_char_p(os.fsencode(path)),
            ctypes.c_char_p(how),
            ctypes.c_size_t(len(how)),
        )
        if result >= 0:
            return result
        code = ctypes.get_errno()
        if code not in (errno.EAGAIN, errno.EINTR):
            raise OSError(code, os.strerror(code), path)
    raise OSError(errno.EAGAIN, "the workspace keeps changing", path)


def open_file(root: int, path: str) -> int:
    """Open a regular file for reading. Raises OSError for anything else."""
    fd = open_beneath(root, path, os.O_RDONLY)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return fd


def open_directory(root: int, path: str) -> int:
    """Open a directory, to work in it by `dir_fd`."""
    return open_beneath(root, path or ".", os.O_RDONLY | os.O_DIRECTORY)
