"""``python -m dist_net`` is ``dist-net``."""

import sys

from dist_net.cli import main

sys.exit(main())
