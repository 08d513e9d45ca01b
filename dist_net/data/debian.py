"""Files from a Debian package that is installed, or is fetched and unpacked without installing."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from dist_net.data.cache import Cache, PublishedFile
from dist_net.data.fetch import CommandStarted, Progress
from dist_net.errors import DebianPackageError

QUERY_TIMEOUT_S = 10.0
FETCH_TIMEOUT_S = 600.0


class InstalledPackage:
    """The source of files that an installed Debian package placed somewhere."""

    def __init__(self, package: str) -> None:
        self.package = package
        self.name = f"installed Debian package {package}"

    def deliver(self, files: Sequence[PublishedFile], cache: Cache, progress: Progress) -> None:
        """Store each file, found by ``dpkg -L``; raises ``DebianPackageError``."""
        listing = _run(["dpkg", "-L", self.package], QUERY_TIMEOUT_S, None, progress)
        _store(files, [Path(line) for line in listing.splitlines()], cache, self.package)


class ArchivedPackage:
    """The source of files in a package that ``apt-get download`` fetches; nothing is installed."""

    def __init__(self, package: str) -> None:
        self.package = package
        self.name = f"apt-get download {package}"

    def deliver(self, files: Sequence[PublishedFile], cache: Cache, progress: Progress) -> None:
        """Store each file from a temporary directory; raises ``DebianPackageError``."""
        with tempfile.TemporaryDirectory(prefix="dist-net-") as name:
            directory = Path(name)
            try:
                _run(["apt-get", "download", self.package], FETCH_TIMEOUT_S, directory, progress)
            except DebianPackageError as error:
                raise DebianPackageError(
                    f"{error}; if apt's lists of packages are missing or old, as on a new machine, "
                    f"run as root: apt-get update"
                ) from error
            archives = [path.name for path in directory.glob("*.deb")]
            if len(archives) != 1:
                raise DebianPackageError(f"apt-get left {archives}, expected one .deb file")
            _run(["dpkg-deb", "-x", archives[0], "root"], FETCH_TIMEOUT_S, directory, progress)
            _store(files, (directory / "root").rglob("*"), cache, self.package)


def _store(
    files: Sequence[PublishedFile], paths: Iterable[Path], cache: Cache, package: str
) -> None:
    """Store each of ``files`` from the path of that name, compressed or not."""
    by_name = {path.name.removesuffix(".gz"): path for path in paths if path.is_file()}
    for file in files:
        if file.name not in by_name:
            raise DebianPackageError(f"{package} has no file {file.name}.gz")
        with by_name[file.name].open("rb") as content:
            cache.store(file, content)


def _run(command: list[str], timeout_s: float, directory: Path | None, progress: Progress) -> str:
    """Run a program of the system, in ``directory`` if given, and return what it printed."""
    if shutil.which(command[0]) is None:
        raise DebianPackageError(f"no program {command[0]} on this system")
    progress(CommandStarted(" ".join(command)))
    try:
        done = subprocess.run(
            command,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DebianPackageError(f"{command[0]} did not end within {timeout_s:g} s") from error
    if done.returncode != 0:
        raise DebianPackageError(_complaint(command[0], done))
    return done.stdout


def _complaint(program: str, done: subprocess.CompletedProcess[str]) -> str:
    """Return the line of the program's output that says what went wrong: apt marks it ``E:``."""
    lines = done.stderr.strip().splitlines()
    marked = [line for line in lines if line.startswith("E:")]
    return (marked or lines or [f"{program} ended with exit code {done.returncode}"])[0]
