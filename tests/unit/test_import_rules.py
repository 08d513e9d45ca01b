"""Who may import whom, read from the source; and every module imports alone, without an extra."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LONGEST_MODULE = 500
CATALOGUES = {"dist_net.errors"}  # as long as there are causes, each a leaf of three lines

# Direction: left never imports right, and the three in the middle never each other. What stands
# on a line is all that the room may import of this project; a room that is not here has no place
# in the design yet.
MODELS = (
    "errors clock files vector compiling spelling autodiff nn optim pictures data darknet recipes"
)
SIBLING = f"{MODELS} release wire"
ALL_BUT_COMMANDS = f"{SIBLING} parameter_server training serving models cluster simulation"
MAY_IMPORT = {
    "errors": "",
    "clock": "",
    "files": "",
    "vector": "",
    "spelling": "",
    "release": "",
    "compiling": "",
    "autodiff": "errors compiling",
    "nn": "errors files vector autodiff",
    "optim": "errors vector compiling",
    "pictures": "errors autodiff nn",
    "data": "errors clock spelling",
    "darknet": "errors files vector spelling autodiff nn data pictures",
    "recipes": f"{MODELS} release",
    "wire": "errors clock vector release",
    "parameter_server": "errors clock files vector optim wire",
    "training": SIBLING,
    "serving": SIBLING,
    "models": f"{SIBLING} parameter_server training serving",
    "cluster": f"{SIBLING} parameter_server training serving models",
    "simulation": f"{SIBLING} parameter_server training serving",
    "cli": ALL_BUT_COMMANDS,
    "__main__": "cli",
    "dist_net": f"{MODELS} serving",
}
SPEAKS_ZEROMQ = {"wire"}
READS_THE_ENVIRONMENT = {"cli"}
STATE_MACHINES = [
    "dist_net.parameter_server.state",
    "dist_net.parameter_server.leases",
    "dist_net.parameter_server.members",
    "dist_net.parameter_server.store",
    "dist_net.serving.pool.pool",
    "dist_net.training.state",
]
INPUT_AND_OUTPUT = {"asyncio", "socket", "subprocess", "threading", "time", "zmq"}
# What only these modules may import of an extra; whoever needs them imports them in a function.
NUMBA = "numba llvmlite"
NEEDS_AN_EXTRA = {
    "dist_net.compiling": NUMBA,
    "dist_net.optim.compiled": NUMBA,
    "dist_net.autodiff.kernels.compiled.vectors": NUMBA,
    "dist_net.autodiff.kernels.compiled.im2row": NUMBA,
    "dist_net.autodiff.kernels.compiled.strided_tiles": NUMBA,
    "dist_net.autodiff.kernels.compiled.line_transforms": NUMBA,
    "dist_net.autodiff.kernels.compiled.tiles": NUMBA,
    "dist_net.autodiff.kernels.compiled.winograd": NUMBA,
    "dist_net.serving.http.open_inference.codec": "orjson",
    **dict.fromkeys(
        (
            "dist_net.serving.http.application",
            "dist_net.serving.http.asking",
            "dist_net.serving.http.bodies",
            "dist_net.serving.http.classify",
            "dist_net.serving.http.connection",
            "dist_net.serving.http.metrics",
            "dist_net.serving.http.open_inference.infer",
            "dist_net.serving.http.open_inference.models",
            "dist_net.serving.http.openapi",
            "dist_net.serving.http.replies",
            "dist_net.serving.http.security",
            "dist_net.serving.http.server",
        ),
        "starlette uvicorn prometheus_client orjson",
    ),
}
UNSAFE_MODULES = {"dill", "marshal", "pickle", "shelve"}

Sources = dict[str, str]


def sources() -> Sources:
    """The text of every module of dist_net, by its name."""
    found = {}
    for package in ("dist_net",):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts).removesuffix(".__init__")] = path.read_text()
    return found


def imports(source: str) -> set[str]:
    """What a module imports, anywhere in it; `from a import b` is `a.b`, whatever b is."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            found |= {f"{origin}.{alias.name}" for alias in node.names}
    return found


def room(module: str) -> str:
    """`autodiff` for `dist_net.autodiff.compiler.plan`, and `workers` for all of those."""
    first, _, rest = module.partition(".")
    return (rest.partition(".")[0] or first) if first == "dist_net" else first


def violations(module: str, source: str) -> Iterator[str]:
    """Every rule that one module breaks."""
    place = room(module)
    if place not in MAY_IMPORT:
        yield f"{place} has no place in the design's order"
        return
    own = {place, *MAY_IMPORT[place].split()}
    foreign = {"dist_net", "numpy", *NEEDS_AN_EXTRA.get(module, "").split()}
    for name in sorted(imports(source)):
        top = name.partition(".")[0]
        if top == "":
            yield f"imports {name}: a relative import hides its direction"
        elif top == "dist_net" and room(name) not in own:
            yield f"imports {name}: {place} may import only {', '.join(sorted(own))}"
        elif top == "zmq" and place not in SPEAKS_ZEROMQ:
            yield f"imports {name}: only wire speaks ZeroMQ"
        elif top in UNSAFE_MODULES:
            yield f"imports {name}: nothing is pickled"
        elif place == "autodiff" and top not in {*foreign, *sys.stdlib_module_names}:
            yield f"imports {name}: autodiff needs NumPy only"
        elif top in NUMBA.split() and top not in foreign:
            yield f"imports {name}: only modules that need an extra do"
    yield from unsafe_names(place, source)
    lines = source.count("\n")
    if lines > LONGEST_MODULE and module not in CATALOGUES:
        yield f"has {lines} lines, more than {LONGEST_MODULE}"


def unsafe_names(place: str, source: str) -> Iterator[str]:
    """Uses of eval and exec anywhere, and of the environment outside the outermost rooms."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and node.id in ("eval", "exec"):
            yield f"line {node.lineno}: {node.id}"
        elif (
            isinstance(node, ast.Attribute | ast.alias)
            and (node.attr if isinstance(node, ast.Attribute) else node.name)
            in ("environ", "environb", "getenv")
            and place not in READS_THE_ENVIRONMENT
        ):
            yield f"line {node.lineno}: only the outermost rooms read the environment"


def reachable(module: str, modules: Sources) -> dict[str, str]:
    """Everything that `module` imports, itself or through this project's modules, and by whom."""
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        importer = waiting.pop()
        for name in imports(modules[importer]):
            known = name if name in modules else name.rpartition(".")[0]
            if known in modules and known not in found:
                waiting.append(known)
            found.setdefault(known if known in modules else name, importer)
    return found


@pytest.mark.parametrize("module", sources())
def test_a_module_keeps_to_the_design(module: str) -> None:
    assert not list(violations(module, sources()[module]))


@pytest.mark.parametrize("module", STATE_MACHINES)
def test_a_state_machine_does_no_input_or_output(module: str) -> None:
    found = reachable(module, sources())
    assert not {name: by for name, by in found.items() if name.split(".")[0] in INPUT_AND_OUTPUT}


def test_the_parameter_server_reaches_no_model() -> None:
    modules = sources()
    for module in modules:
        if room(module) == "parameter_server":
            found = reachable(module, modules)
            models = {"autodiff", "nn", "data", "darknet", "recipes"}
            assert not {name: by for name, by in found.items() if room(name) in models}, module


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("dist_net.autodiff.compiler.plan", "import dist_net.nn"),
        ("dist_net.autodiff.compiler.plan", "from dist_net import clock"),
        ("dist_net.autodiff.compiler.plan", "def f():\n    import scipy.linalg"),
        ("dist_net.autodiff.kernels.convolution.choice", "import numba"),
        ("dist_net.nn.inference", "def f():\n    import numba"),
        ("dist_net.nn.layers", "from . import losses"),
        ("dist_net.training.state", "from dist_net.parameter_server import leases"),
        ("dist_net.cluster.local", "from dist_net.cli import main"),
        ("dist_net.parameter_server.store", "from dist_net.autodiff import compile"),
        ("dist_net.training.loop", "from zmq import Context"),
        ("dist_net.data.cache", "import pickle"),
        ("dist_net.data.cache", "x = eval('1')"),
        ("dist_net.data.cache", "import os\nx = os.environ['HOME']"),
        ("dist_net.data.cache", "from os import getenv"),
        ("dist_net.data.cache", "\n" * (LONGEST_MODULE + 1)),
        ("dist_net.helpers", ""),
    ],
)
def test_the_rules_refuse(module: str, source: str) -> None:
    assert len(list(violations(module, source))) == 1


@pytest.mark.parametrize("module", NEEDS_AN_EXTRA)
def test_a_module_that_needs_an_extra_is_here(module: str) -> None:
    assert module in sources()


def test_what_is_imported_through_another_module_is_found() -> None:
    modules = {"dist_net.a": "from dist_net.b import x", "dist_net.b": "import time"}
    assert reachable("dist_net.a", modules) == {"dist_net.b": "dist_net.a", "time": "dist_net.b"}


# Whatever is imported of dist_net, Python imports dist_net itself first: so a fork of an
# interpreter that has done no more than that is as good as a fresh one, and quick.
IMPORT_ALONE = """
import importlib, json, os, sys, traceback
import dist_net
for name in sys.argv[1:]:
    if os.fork():
        os.wait()
        continue
    try:
        importlib.import_module(name)
        answer = sorted({module.partition(".")[0] for module in sys.modules})
    except BaseException:
        answer = traceback.format_exc()
    print(json.dumps([name, answer]), flush=True)
    os._exit(0)
"""


def test_every_module_imports_alone_and_without_an_extra() -> None:
    modules = [
        name for name in sources() if not name.endswith("__main__") and name not in NEEDS_AN_EXTRA
    ]
    command = [sys.executable, "-c", IMPORT_ALONE, *modules]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    answers = dict(json.loads(line) for line in printed.splitlines())
    assert list(answers) == modules
    assert not [answer for answer in answers.values() if isinstance(answer, str)]
    extras = modules_of_extras()
    assert "hypothesis" in extras
    assert not {name: found for name, had in answers.items() if (found := extras & set(had))}


def modules_of_extras() -> set[str]:
    """The importable names of what is installed for an extra and is no dependency."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    core = {distribution(line) for line in project["dependencies"]}
    optional = project["optional-dependencies"].values()
    extra = {distribution(line) for lines in optional for line in lines} - core
    return {
        name
        for name, owners in packages_distributions().items()
        if extra & {distribution(owner) for owner in owners}
    }


def distribution(requirement: str) -> str:
    """The name that a requirement begins with, in the one spelling that compares."""
    name = re.match(r"[\w.-]+", requirement)
    assert name is not None, requirement
    return re.sub(r"[-_.]+", "-", name[0]).lower()
