"""python workers/inference_worker.py --connect ADDRESS, from a checkout."""

import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
runpy.run_module("dist_net.serving.worker.inference_worker_process", run_name="__main__")
