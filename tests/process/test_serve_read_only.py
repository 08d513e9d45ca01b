"""``dist-net serve`` as a container runs it: not as root, with nothing to write to but memory."""

import json
import os
import shutil
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("grpc", reason="grpcio is not installed (the extra `grpc`)")

import grpc

from dist_net.serving.grpc.grpc_messages import MESSAGES
from process import test_serve
from selection import few

net, serve = test_serve.net, test_serve.serve
# Like ``--read-only --tmpfs /tmp``, with the temporary directory of the test for /tmp. The process
# may read the checkout in any directory, as it could in an image.
READ_ONLY = [
    *("unshare", "--mount", "sh", "-ec"),
    'mount -o remount,bind,ro "$(stat -c %m "$TMPDIR")"; mount -o remount,bind,ro /; '
    'mount -t tmpfs tmpfs /dev/shm; mount -t tmpfs -o mode=1777 tmpfs "$TMPDIR"; exec "$@"',
    *("sh", "setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--no-new-privs"),
    *("--inh-caps", "-all,+dac_read_search", "--ambient-caps", "+dac_read_search"),
]


def is_permitted() -> bool:
    if os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "setpriv"))):
        return False
    trial = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/tmp"]
    return subprocess.run(trial, capture_output=True, timeout=60, check=False).returncode == 0


pytestmark = pytest.mark.skipif(
    not is_permitted(), reason="only root may mount, and not in each container"
)


def test_both_doors_and_the_page_on_a_read_only_root(serve: Any, net: Any, tmp_path: Path) -> None:
    where = "--grpc", "127.0.0.1:0"
    pool = serve(net.source, "--workers", "1", *where, prefix=READ_ONLY)
    process = Path(f"/proc/{pool.command.process.pid}")
    assert "\nUid:\t65534" in (process / "status").read_text()
    with pytest.raises(OSError, match="Read-only"):
        (process / "root" / tmp_path.relative_to("/") / "file").touch()

    rows = test_serve.ROWS[:1]
    tensor = {"name": "input", "datatype": "FP32", "shape": list(rows.shape)}
    body = {"inputs": [tensor | {"data": rows.ravel().tolist()}]}
    status, answer = pool.post("/v2/models/tiny/infer", json.dumps(body).encode())
    assert status == 200, answer
    with urllib.request.urlopen(f"{pool.address}/", timeout=60) as page:
        assert page.status == 200
    message = MESSAGES["ModelInferRequest"](
        model_name="tiny", inputs=[tensor], raw_input_contents=[rows.tobytes()]
    )
    with grpc.insecure_channel(pool.command.stdout.split("grpc=")[1].split()[0]) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        response = infer(message.SerializeToString(), timeout=60)
    (output,) = MESSAGES["ModelInferResponse"].FromString(response).outputs
    assert list(output.shape) == answer["outputs"][0]["shape"]
    pool.command.process.terminate()
    assert pool.command.process.wait(60) == 0


@pytest.mark.parametrize("option", few(["--teach", "--log-dir", "--inbox"]))
def test_what_must_write_is_refused_on_a_read_only_root(
    start: Any, base: Path, tmp_path: Path, option: str
) -> None:
    values = () if option == "--teach" else (str(tmp_path),)
    where = "--http", "127.0.0.1:0", "--workers", "1"
    command = start("serve", f"s={base}", *where, option, *values, prefix=READ_ONLY)
    assert command.ends() == 2
    (line,) = command.stderr.splitlines()
    assert option in line
    assert str(values[0] if values else base) in line
