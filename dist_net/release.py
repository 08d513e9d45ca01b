"""The release of dist_net: its version, and a digest of the sources that affect results."""

import hashlib
from functools import cache
from pathlib import Path

VERSION = "0.1.0"

COMPUTING = (
    "autodiff",
    "nn",
    "optim",
    "pictures",
    "darknet",
    "data",
    "training",
    "parameter_server",
)


@cache
def release() -> str:
    """Such as ``0.1.0+5f2c9a01b3d4``; hosts with the same release compute the same.

    After the version come 12 hexadecimal digits of the SHA-256 of the sources.
    """
    digest = hashlib.sha256()
    package = Path(__file__).parent
    for path in sorted(path for room in COMPUTING for path in (package / room).rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\0".encode())
        digest.update(path.read_bytes())
    return f"{VERSION}+{digest.hexdigest()[:12]}"
