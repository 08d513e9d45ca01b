"""The release of dist_net: its version, and a digest of the computation in its sources.

The digest covers syntax trees without comments and docstrings: hosts that differ only in these may
train together. Parsing takes half a second, so the user's cache keeps the digest, together with the
SHA-256 of the parsed bytes.
"""

import ast
import hashlib
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

from dist_net.ground.files import replacing

VERSION = "0.2.0"

COMPUTING = "autodiff", "nn", "optim", "images", "data", "nets", "training"
"""The packages that affect results."""


@cache
def release() -> str:
    """Return the release, such as ``0.2.0+5f2c9a01b3d4``; equal releases compute equal results.

    The version is followed by 12 hexadecimal digits of the computation's SHA-256.
    """
    import platformdirs  # for which --version should not wait

    package = Path(__file__).parents[1]
    place = hashlib.sha256(bytes(package)).hexdigest()[:16]
    kept = platformdirs.user_cache_path("dist-net", appauthor=False) / f"release-{place}"
    paths = [path for room in COMPUTING for path in (package / room).rglob("*.py")]
    sources = {str(path.relative_to(package)): path.read_bytes() for path in paths}
    return f"{VERSION}+{digest_of(sources, kept)[:12]}"


def digest_of(sources: Mapping[str, bytes], kept: Path) -> str:
    """Return the SHA-256 of the computation in these sources, by path.

    ``kept`` is a cache: a file with the last result and the SHA-256 of its sources' bytes. Sources
    are parsed only if their bytes have changed. If the file cannot be written, it is ignored.
    """
    raw = _sha256(sources)
    with suppress(OSError, ValueError):
        known, computed = kept.read_text(encoding="ascii").split()
        if known == raw and len(computed) == len(raw):
            return computed
    computed = _sha256({path: _outline(ast.parse(each)).encode() for path, each in sources.items()})
    with suppress(OSError):  # as on a disk that is read-only
        kept.parent.mkdir(parents=True, exist_ok=True)
        with replacing(kept) as partial:
            partial.write_text(f"{raw} {computed}", encoding="ascii")
    return computed


def _sha256(contents: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for path, content in sorted(contents.items()):
        digest.update(f"{path}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def _outline(node: object) -> str:
    """Describe a syntax tree, alike in every Python: without absent fields and docstrings."""
    if isinstance(node, list):
        return f"[{','.join([_outline(each) for each in node if not _is_text_alone(each)])}]"
    if not isinstance(node, ast.AST):
        return ascii(node)
    values = [(name, getattr(node, name, None)) for name in node._fields if name != "ctx"]
    fields = [f"{name}={_outline(each)}" for name, each in values if each not in (None, [])]
    return f"{type(node).__name__}({','.join(fields)})"


def _is_text_alone(node: object) -> bool:
    value = node.value if isinstance(node, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)
