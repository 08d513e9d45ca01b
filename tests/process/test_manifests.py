"""The examples for Kubernetes and systemd, by the validators of both."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dist_net.cli import parse

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="is not installed")

EXAMPLES = Path(__file__).parents[2] / "examples"
KUBERNETES = "1.37"
UNITS = sorted((EXAMPLES / "systemd").glob("*.service"))


def objects(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((EXAMPLES / "kubernetes" / name).read_text()))


def assert_valid(each: dict[str, Any]) -> None:
    kubernetes_validate.validate(each, KUBERNETES, strict=True)


def pods(ray_job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The pods of a RayJob, of which Kubernetes itself has no schema."""
    cluster = ray_job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield {"apiVersion": "v1", "kind": "Pod", "metadata": {}} | group["template"]


def assert_parsed(command: str) -> None:
    """Ends the process if dist-net does not take it."""
    program, *words = command.split()
    assert program.endswith("dist-net")
    parse(words)


def test_what_is_typed_on_clusters_is_what_dist_net_takes() -> None:
    page = (EXAMPLES.parent / "docs" / "cluster.md").read_text()
    blocks = re.findall(r"^```text\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    commands = re.findall(r"^ *(?:echo \S+ \| )?(dist-net .*)$", "\n".join(blocks), re.MULTILINE)
    assert len(commands) > 3
    for command in commands:
        assert_parsed(command)


def test_a_pool_is_a_deployment_with_probes() -> None:
    deployment, service = objects("pool.yaml")
    assert_valid(deployment)
    assert_valid(service)
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    probes = [container[f"{each}Probe"]["httpGet"]["path"] for each in ("readiness", "liveness")]
    assert probes == ["/v2/health/ready", "/v2/health/live"]
    assert_parsed(" ".join([*container["command"], *container["args"]]))


def test_a_run_is_a_ray_job() -> None:
    claim, job = objects("rayjob.yaml")
    assert_valid(claim)
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    for pod in pods(job):
        assert_valid(pod)
    assert_parsed(job["spec"]["entrypoint"])


def test_one_release_of_ray_is_in_the_image_and_in_the_job() -> None:
    image = (EXAMPLES / "kubernetes" / "Containerfile").read_text()
    release = re.search(r"^FROM rayproject/ray:([\d.]+)-", image, re.MULTILINE)
    assert release
    assert objects("rayjob.yaml")[1]["spec"]["rayClusterSpec"]["rayVersion"] == release[1]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_is_what_systemd_takes(unit: Path, tmp_path: Path) -> None:
    text = unit.read_text()
    (command,) = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    assert_parsed(command)
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here")
    checked = tmp_path / unit.name
    checked.write_text(text.replace(command.split()[0], "/bin/true"))
    verified = subprocess.run(
        ["systemd-analyze", "verify", str(checked)], capture_output=True, text=True, check=False
    )
    assert (verified.returncode, verified.stderr) == (0, "")
