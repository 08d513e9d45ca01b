"""python workers/gateway.py MODEL..., from a checkout."""

import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
runpy.run_module("dist_net.serving.gateway.serving_run", run_name="__main__")
