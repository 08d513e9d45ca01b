"""Published files from a Debian package, installed or downloaded and unpacked by apt."""

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from dist_net.data.published_files import FetchEvent, Progress, PublishedFile
from dist_net.errors import SourceError

TIMEOUT_S = 600.0


def copy_from_directory(
    source: Path, files: Sequence[PublishedFile], directory: Path, _: Progress
) -> None:
    """Store each file from ``source/NAME.gz``; raise ``SourceError``."""
    for file in files:
        path = source / f"{file.name}.gz"
        try:
            content = path.open("rb")
        except OSError as error:
            raise SourceError(f"{path}: {error.strerror}") from error
        with content:
            file.store(content, directory)


def copy_from_archive(
    package: str,
    package_directory: Path,
    files: Sequence[PublishedFile],
    directory: Path,
    progress: Progress,
) -> None:
    """Download the package, unpack it without installing it, and store each file.

    ``package_directory`` is the absolute path at which the installed package has the files. Raises
    ``SourceError``.
    """
    with tempfile.TemporaryDirectory(prefix="dist-net-") as name:
        root = Path(name)
        _run(
            ["apt-get", "download", package],
            root,
            progress,
            "if apt's package lists are missing or old, run as root: apt-get update",
        )
        archives = [path.name for path in root.glob("*.deb")]
        _run(["dpkg-deb", "-x", *archives, "."], root, progress)
        source = root / package_directory.relative_to("/")
        copy_from_directory(source, files, directory, progress)


def _run(command: list[str], directory: Path, progress: Progress, advice: str = "") -> None:
    """Run a command of the system in ``directory``; raise ``SourceError`` if it fails."""
    progress(FetchEvent(f"  running {' '.join(command)}"))
    try:
        done = subprocess.run(
            command,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise SourceError(f"{command[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise SourceError(f"{command[0]} did not finish within {TIMEOUT_S:g} s") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        errors = [line for line in lines if line.startswith("E:")]  # apt marks its errors
        reason = (errors or lines or [f"{command[0]} exited with code {done.returncode}"])[0]
        raise SourceError("; ".join(filter(None, (reason, advice))))
