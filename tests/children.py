"""The processes that tests start, and the children of a gateway for tests without processes."""

import ctypes
import signal

PR_SET_PDEATHSIG = 1  # prctl(2)
LIBC = ctypes.CDLL(None)


def end_with_the_tests() -> None:
    """Have the kernel kill this new process when pytest ends, however: by Ctrl-C or by a signal.

    A ``preexec_fn`` of commands that outlive their parent on purpose, such as ``dist-net serve``,
    when no fixture gets to end them. Their own children follow by the package's rules.
    """
    LIBC.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))


class KnownChildren:
    """Whoever has a credential is a child, or ``known`` ones; ``running``: their processes run."""

    def __init__(self) -> None:
        self.running: set[str] = set()
        self.known: set[str] | None = None

    def is_child(self, credential: str) -> bool:
        return bool(credential) if self.known is None else credential in self.known

    def is_running(self, credential: str) -> bool:
        return credential in self.running
