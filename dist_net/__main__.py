"""``python -m dist_net`` is ``dist-net``."""

import atexit
import gc
import os
import signal
import sys

INTERRUPTED = 130  # as `dist_net.errors.INTERRUPTED`, which is not imported yet


def main() -> int:
    """Run the command line; an interrupt while its modules are imported prints no traceback."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    atexit.register(gc.freeze)  # a last collection of all that was imported takes 60 ms
    from dist_net.cli import main as run_command

    return run_command()


if __name__ == "__main__":
    sys.exit(main())
