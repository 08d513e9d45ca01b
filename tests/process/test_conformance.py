"""``dist-net serve`` passes the conformance suite, with nets of its own and ONNX files."""

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.served import TINY
from foreign_files import sum_and_product, written
from process import test_serve

net, serve = test_serve.net, test_serve.serve
SCRIPT = Path(__file__).parents[2] / "scripts" / "conformance"


def test_dist_net_passes_the_conformance_suite(serve, net, tmp_path: Path) -> None:
    several = written(sum_and_product(), tmp_path / "several.onnx")
    more = "--workers", "1", "--grpc", "127.0.0.1:0"
    pool = serve(net.source, f"several={several}", *more)
    grpc = pool.command.stdout.split("grpc=")[1].split()[0]
    # The script runs the first python3, which must have grpcio.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for model in (TINY, "several"):
        command = [SCRIPT, pool.address, "--grpc", grpc, "--model", model]
        done = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | {"PATH": path}
        )
        assert done.returncode == 0, done.stdout + done.stderr
