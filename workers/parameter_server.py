"""python workers/parameter_server.py RUN_DIRECTORY LISTEN_ADDRESS..., from a checkout."""

import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
runpy.run_module("dist_net.training.run.parameter_server_process", run_name="__main__")
