"""How the modules of the package hang together: who may import whom, without circles; names.

The rules are read from the source, where each file is parsed once.
"""

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# What a room may import of this project, besides itself. The rooms stand in the design's order:
# each may import only rooms that stand before it, and the siblings never import each other.
MAY_IMPORT = {
    "errors": "",
    "ground": "errors",
    "autodiff": "errors ground",
    "nn": "errors ground autodiff",
    "optim": "errors ground",
    "images": "errors",
    "data": "errors ground images",
    "wire": "errors ground",
    "nets": "errors ground autodiff nn optim images data wire",
    "export": "errors ground autodiff nn nets",
    "processes": "errors ground data wire nets",
    "training": "errors ground autodiff nn optim images data wire nets processes",
    "serving": "errors ground autodiff nn images data wire nets export processes",
    "photos": "errors ground nn optim images data nets export processes training",
    "python": "errors ground nn optim images data nets export processes training photos",
    "adapters": "errors ground data nets",
    "cli": "errors ground images data wire nets export processes training serving photos python",
    "__main__": "cli",
    "dist_net": "ground autodiff nn optim images data nets training serving python",
}
SIBLINGS = {"training", "serving"}

# What the parts of a product may import of their own product, besides themselves.
PARTS = {
    "training.server": "",
    "training.worker": "",
    "serving.pool": "",
    "serving.client": "serving.pool",
    "serving.worker": "serving.pool",
}

# What decides does no input or output: all of these folders, but for the modules named.
PURE_FOLDERS = {
    "dist_net.serving.pool": "",
    "dist_net.training.server": "loop standby_loop server_files copy_desk",
    "dist_net.training.worker": "loop part_processes",
}
INPUT_AND_OUTPUT = {"asyncio", "socket", "subprocess", "threading", "time", "zmq"}
COMPUTING = {
    "autodiff",
    "nn",
    "optim",
    "images",
    "data",
    "nets",
}  # has threads

# Other people's packages. Some are of an extra, and belong to the folders or modules of a name:
# those that cannot do without are imported by others in functions only.
CORE = {"numpy", "zmq", "msgpack", "PIL", "safetensors", "rich", "platformdirs", "threadpoolctl"}
OF_CLIENTS = {"urllib3"}
NEEDS_AN_EXTRA = {
    "compiled": "numba llvmlite",
    "pytorch": "torch",
    "jax": "jax",
    "compiling": "numba",
    "onnx": "onnx",
    "run_metrics": "starlette prometheus_client",
    "run_http": "starlette",
    "run_page": "starlette",
    "grpc": "grpc grpc_health google",
    "http": "starlette uvicorn httptools prometheus_client python_multipart orjson",
}
CAN_DO_WITHOUT = {
    "join": "fsspec",
    "plots": "matplotlib",
    "image_report": "matplotlib",
    "request_log": "opentelemetry",
    "serving_run": "uvloop",
    "ray_cluster": "ray",
    "ray_keeper": "ray",
}
EXTRAS = {name: set(of.split()) for name, of in (NEEDS_AN_EXTRA | CAN_DO_WITHOUT).items()}

READS_THE_ENVIRONMENT = {"cli"}
UNSAFE_MODULES = {"dill", "marshal", "pickle", "shelve"}

# The same concept in two layers: all but one of the docstrings name another one's module.
SAME_CONCEPT = {"Concatenate", "Conv2D", "Dropout", "Task"}


@dataclass(frozen=True)
class Module:
    """A module, and what its source says."""

    name: str
    source: str

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(ast.parse(self.source)))

    @cached_property
    def imports(self) -> set[str]:
        """What it imports, anywhere in it; `from a import b` is `a.b`, whatever b is."""
        found = set()
        for node in self.nodes:
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                origin = "." * node.level + (node.module or "")
                found |= {f"{origin}.{alias.name}" for alias in node.names}
        return found

    @cached_property
    def names(self) -> set[str]:
        """Every name that is bound in it, by whatever statement."""
        found = {name.rpartition(".")[2] for name in self.imports}
        for node in self.nodes:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                found.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
        return found

    @property
    def room(self) -> str:
        return room(self.name)


Modules = dict[str, Module]


def room(module: str) -> str:
    """`autodiff` for `dist_net.autodiff.compiler.plan`."""
    first, _, rest = module.partition(".")
    return rest.partition(".")[0] or first


@cache
def package() -> Modules:
    """Every module of dist_net, by its name."""
    found = {}
    for path in sorted((ROOT / "dist_net").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found[name] = Module(name, path.read_text())
    return found


def imported(module: Module, modules: Modules) -> set[str]:
    """The modules that Python runs for a module's imports, and that do not run before it anyway.

    They are those that it names, and the packages around them that are not around itself.
    """
    named = {name if name in modules else name.rpartition(".")[0] for name in module.imports}
    named &= modules.keys()
    around = {package for name in named for package in packages_around(name)}
    return (named | around - packages_around(module.name)) - {module.name}


def packages_around(module: str) -> set[str]:
    parts = module.split(".")
    return {".".join(parts[:count]) for count in range(1, len(parts))}


def violations(module: Module) -> Iterator[str]:
    """Every import and every use of a name that the rules forbid to one module."""
    if module.room not in MAY_IMPORT:
        yield f"{module.room} has no place in the design's order"
        return
    own = {module.room, *MAY_IMPORT[module.room].split()}
    if module.name.startswith("dist_net.training.server."):
        own -= {"autodiff", "nn", "data"}  # it knows names, slices and arrays, never models
    foreign = foreign_packages(module.name)
    for name in sorted(module.imports):
        top = name.partition(".")[0]
        if top == "":
            yield f"imports {name}: a relative import hides its direction"
        elif top == "dist_net":
            if room(name) not in own:
                yield f"imports {name}: {module.room} may import only {', '.join(sorted(own))}"
        elif top in UNSAFE_MODULES:
            yield f"imports {name}: nothing is pickled"
        elif top not in foreign and top not in sys.stdlib_module_names:
            yield f"imports {name}: here only {', '.join(sorted(foreign))} may be imported"
    yield from unsafe_names(module)


def foreign_packages(module: str) -> set[str]:
    """Other people's packages that a module may import."""
    match room(module):
        case "autodiff":
            found = {"numpy", "threadpoolctl"}  # which says what BLAS does well
        case "wire":
            found = CORE
        case "serving" if module.startswith("dist_net.serving.client."):
            found = CORE - {"zmq"} | OF_CLIENTS
        case _:
            found = CORE - {"zmq"}
    return found.union(*(EXTRAS.get(part, ()) for part in module.split(".")))


def unsafe_names(module: Module) -> Iterator[str]:
    """Uses of eval and exec anywhere, and of the environment outside the outermost rooms."""
    for node in module.nodes:
        if isinstance(node, ast.Name) and node.id in ("eval", "exec"):
            yield f"line {node.lineno}: {node.id}"
        elif (
            isinstance(node, ast.Attribute | ast.alias)
            and (node.attr if isinstance(node, ast.Attribute) else node.name)
            in ("environ", "environb", "getenv")
            and module.room not in READS_THE_ENVIRONMENT
        ):
            yield f"line {node.lineno}: only the outermost rooms read the environment"


def is_pure(module: str) -> bool:
    """Whether its folder is one that does no input or output, and it is not excepted."""
    folder = next((each for each in PURE_FOLDERS if module.startswith(f"{each}.")), None)
    return folder is not None and module.rpartition(".")[2] not in PURE_FOLDERS[folder].split()


def reachable(
    module: str, modules: Modules, stop_at: frozenset[str] = frozenset()
) -> dict[str, str]:
    """All that a module imports, itself or through others, and by whom.

    What modules of the rooms `stop_at` import is left out.
    """
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        importer = modules[waiting.pop()]
        own = imported(importer, modules)
        waiting += [name for name in own if name not in found and room(name) not in stop_at]
        for name in own | {name.partition(".")[0] for name in importer.imports}:
            found.setdefault(name, importer.name)
    return found


def circle(modules: Modules) -> list[str]:
    """Modules of which each imports the next and the last the first; none if there is no circle."""
    graph = {name: imported(each, modules) for name, each in modules.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def types_of(module: Module) -> Iterator[tuple[str, str]]:
    """Each class and type alias of a module, with its docstring."""
    for node in module.nodes:
        if isinstance(node, ast.ClassDef):
            yield node.name, ast.get_docstring(node) or ""
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if re.fullmatch(r"[A-Z]\w*[a-z]\w*", name):
                yield name, ""


def names_nothing(text: str, modules: Modules) -> list[str]:
    """Each `dist_net.a.b` in a text that is neither a module nor a name in one."""
    found = []
    for name in re.findall(r"(?<![\w.])dist_net(?:\.[A-Za-z_]\w*)+", text):
        owner, _, last = name.rpartition(".")
        if name not in modules and (owner not in modules or last not in modules[owner].names):
            found.append(name)
    return found


def test_modules_keep_to_the_design() -> None:
    found = {name: list(violations(module)) for name, module in package().items()}
    assert not {name: of for name, of in found.items() if of}


def test_a_room_may_import_only_what_stands_before_it() -> None:
    before: set[str] = set()
    for name, allowed in MAY_IMPORT.items():
        assert set(allowed.split()) <= before, name
        assert not (name in SIBLINGS and SIBLINGS & set(allowed.split())), name
        before.add(name)


def test_each_permission_is_used() -> None:
    rooms: dict[str, set[str]] = defaultdict(set)
    foreign: dict[str, set[str]] = defaultdict(set)
    for module in package().values():
        rooms[module.room] |= {room(name) for name in module.imports if "dist_net." in name}
        tops = {name.partition(".")[0] for name in module.imports}
        for part in module.name.split("."):
            foreign[part] |= tops
    assert rooms.keys() == MAY_IMPORT.keys()
    assert not {name: of for name in rooms if (of := set(MAY_IMPORT[name].split()) - rooms[name])}
    assert not {name: of for name in EXTRAS if (of := EXTRAS[name] - foreign[name])}


def test_there_is_no_circle() -> None:
    assert not circle(package())


def test_what_decides_does_no_input_or_output() -> None:
    modules = package()
    for name in filter(is_pure, modules):
        found = reachable(name, modules, stop_at=frozenset(COMPUTING))
        assert not {to: by for to, by in found.items() if to in INPUT_AND_OUTPUT}, name
    for folder, excepted in PURE_FOLDERS.items():
        for name in excepted.split():
            found = reachable(f"{folder}.{name}", modules, stop_at=frozenset(COMPUTING))
            assert found.keys() & INPUT_AND_OUTPUT, f"{folder}.{name} is pure"


def test_the_parts_of_a_product_keep_apart() -> None:
    for name, module in package().items():
        for part, allowed in PARTS.items():
            if name.startswith(f"dist_net.{part}."):
                product = f"dist_net.{part.partition('.')[0]}."
                own = tuple(f"dist_net.{each}." for each in (part, *allowed.split()))
                found = [each for each in module.imports if each.startswith(product)]
                assert not [each for each in found if not each.startswith(own)], name


def test_the_prediction_of_capacity_does_no_input_or_output_itself() -> None:
    module = package()["dist_net.training.run.capacity"]
    assert not {each.partition(".")[0] for each in module.imports} & INPUT_AND_OUTPUT


def test_the_parameter_server_reaches_no_model() -> None:
    modules = package()
    for name in modules:
        if name.startswith("dist_net.training.server."):
            found = reachable(name, modules)
            assert not {to for to in found if room(to) in {"autodiff", "nn", "data", "nets"}}, name


def test_a_type_has_a_name_of_its_own() -> None:
    owners: dict[str, dict[str, str]] = defaultdict(dict)
    for module in package().values():
        for name, docstring in types_of(module):
            owners[name][module.name] = docstring
    shared = {name: of for name, of in owners.items() if len(of) > 1}
    assert {name: list(of) for name, of in shared.items() if name not in SAME_CONCEPT} == {}
    for name in SAME_CONCEPT:
        telling = [
            any(other in docstring for other in shared[name]) for docstring in shared[name].values()
        ]
        assert telling.count(False) <= 1, name


def test_a_name_of_a_module_names_one() -> None:
    paths = [path for folder in ("dist_net", "workers", "scripts") for path in files_in(folder)]
    found = {path: names_nothing(path.read_text(), package()) for path in paths}
    assert not {str(path): names for path, names in found.items() if names}


def files_in(folder: str) -> Iterator[Path]:
    return (ROOT / folder).rglob("*.py")


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("dist_net.autodiff.compiler.plan", "import dist_net.nn"),
        ("dist_net.autodiff.compiler.plan", "from dist_net import wire"),
        ("dist_net.autodiff.compiler.plan", "def f():\n    import scipy.linalg"),
        ("dist_net.autodiff.kernels.convolution.choice", "import numba"),
        ("dist_net.nn.inference", "def f():\n    import numba"),
        ("dist_net.nn.layers", "from . import losses"),
        ("dist_net.training.worker.cycle", "from dist_net.serving import pool"),
        ("dist_net.processes.local", "from dist_net.cli import main"),
        ("dist_net.processes.local", "import starlette"),
        ("dist_net.training.server.state", "from dist_net.autodiff import compile"),
        ("dist_net.training.worker.loop", "from zmq import Context"),
        ("dist_net.data.named_datasets", "import pickle"),
        ("dist_net.data.named_datasets", "x = eval('1')"),
        ("dist_net.data.named_datasets", "import os\nx = os.environ['HOME']"),
        ("dist_net.data.named_datasets", "from os import getenv"),
        ("dist_net.helpers", ""),
    ],
)
def test_the_rules_refuse(name: str, source: str) -> None:
    assert len(list(violations(Module(name, source)))) == 1


def of_sources(**sources: str) -> Modules:
    """Modules of a package `p`, by their names in it; its own is that of `p`."""
    named = {f"p.{name}".removesuffix(".p"): source for name, source in sources.items()}
    return {name: Module(name, source) for name, source in named.items()}


def test_what_is_imported_through_another_module_is_found() -> None:
    modules = of_sources(a="from p.b import x", b="from time import sleep")
    assert reachable("p.a", modules) == {"p": "p.a", "p.b": "p.a", "time": "p.b"}


def test_a_circle_is_found_in_functions_and_through_a_package_that_is_imported_first() -> None:
    assert not circle(of_sources(p="import p.a", a="from p.b import x", b=""))
    assert circle(of_sources(a="import p.b", b="def f():\n    from p import a"))
    sources = {"a": "import p.q.b", "q": "import p.a", "q.b": ""}
    assert circle(of_sources(**sources)) == ["p.a", "p.q", "p.a"]


def test_a_name_that_names_nothing_is_found() -> None:
    modules = of_sources(p="", a="def f(): ...")
    dist_net = {name.replace("p", "dist_net", 1): each for name, each in modules.items()}
    assert names_nothing("``dist_net.a``, dist_net.a.f; dist_net.b", dist_net) == ["dist_net.b"]


# In a process that has just begun: without circles, a module that imports here imports alone.
IMPORT_ALL = """
import importlib, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(json.dumps(sorted({module.partition(".")[0] for module in sys.modules})))
"""


def test_the_package_imports_without_an_extra() -> None:
    without = {
        name
        for name in package()
        if not name.endswith("__main__") and not NEEDS_AN_EXTRA.keys() & set(name.split("."))
    }
    command = [sys.executable, "-c", IMPORT_ALL, *sorted(without)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    extras = modules_of_extras()
    assert "hypothesis" in extras
    assert not extras & set(json.loads(printed))


@pytest.mark.parametrize(
    "statement",
    ["import dist_net", "from dist_net import cli; cli.parse(['--help'])"],
    ids=["import", "help"],
)
def test_a_start_imports_no_library_before_it_is_used(statement: str) -> None:
    program = f"""
import atexit, json, sys
atexit.register(lambda: print(json.dumps([*sys.modules]), file=sys.stderr))
{statement}
"""
    printed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert not CORE & set(json.loads(printed.stderr))


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
