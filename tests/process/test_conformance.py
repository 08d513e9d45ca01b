"""``dist-net serve`` passes the conformance suite, with nets of its own and ONNX files."""

import subprocess
from pathlib import Path

from benchmarks.served import TINY
from foreign_files import sum_and_product, written
from process import test_serve

net, serve = test_serve.net, test_serve.serve
SCRIPT = Path(__file__).parents[2] / "scripts" / "conformance"


def test_dist_net_passes_the_conformance_suite(serve, net, tmp_path: Path) -> None:
    several = written(sum_and_product(), tmp_path / "several.onnx")
    pool = serve(net.source, f"several={several}", "--workers", "1")
    for model in (TINY, "several"):
        done = subprocess.run(
            [SCRIPT, pool.address, "--model", model], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
