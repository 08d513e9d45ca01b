"""A fake of a system without Linux's prctl and /proc, such as macOS, for processes that find it."""

import ctypes
import errno
import os
import sys


class _Library(ctypes.CDLL):
    def __getattr__(self, name):
        if name == "prctl":
            raise AttributeError(name)
        return super().__getattr__(name)


def _refuse_proc(event, arguments):
    """Refuse all but the list of libraries, which threadpoolctl gets elsewhere on such a system."""
    path = str(arguments[0]) if event in ("open", "os.listdir", "os.scandir") else ""
    if path.startswith("/proc") and not path.endswith("/maps"):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)


ctypes.CDLL = _Library
sys.addaudithook(_refuse_proc)
