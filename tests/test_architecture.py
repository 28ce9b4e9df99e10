"""Imports point one way, as docs/architecture.md draws them. Nothing is executed: the sources are parsed.

The page's table says which modules make a layer, and its diagram which layer may import which. A new module or arrow
is made by writing it there. What the page can't allow is asserted here on its own.
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
LIBRARY = "mobileo_mlx"
COMMAND = "mobileo_cli"
# Importing one of these from the library would turn the dependency around, whatever the page says.
OUTSIDE = (COMMAND, "benchmarks", "tests", "examples")


def read_modules(folder: Path) -> dict[str, Path]:
    """All modules of the package in a folder, by dotted name; a package itself is its `__init__`."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = read_modules(ROOT / LIBRARY) | read_modules(ROOT / "cli" / COMMAND)


def resolve(module: str, path: Path, node: ast.Import | ast.ImportFrom) -> set[str]:
    """The absolute names that one import statement imports: of modules where it can be told, else of their package."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    base = node.module or ""
    if node.level:
        package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
        parents = package[: len(package) - node.level + 1]
        base = ".".join([*parents, *([node.module] if node.module else [])])
    return {name if (name := f"{base}.{alias.name}") in MODULES else base for alias in node.names}


def imports_of(module: str) -> set[str]:
    """Everything that a module imports, anywhere in it: in functions and under TYPE_CHECKING, too."""
    path = MODULES[module]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom))
    return {name for node in nodes for name in resolve(module, path, node)}


IMPORTS = {module: imports_of(module) for module in MODULES}
OURS = {module: {name for name in names if name in MODULES} - {module} for module, names in IMPORTS.items()}


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The groups of nodes that reach each other (strongly connected components of two or more)."""
    reached = {node: reachable(graph, node) for node in graph}
    groups = {frozenset(other for other in reached[node] if node in reached.get(other, ())) for node in graph}
    return sorted(sorted(group) for group in groups if len(group) > 1)


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """All nodes that a path leads to from `start`; itself only where it is on a cycle."""
    seen: set[str] = set()
    todo = [start]
    while todo:
        for node in graph.get(todo.pop(), set()) - seen:
            seen.add(node)
            todo.append(node)
    return seen


def read_layers() -> dict[str, list[str]]:
    """The page's table of layers: name to modules and packages, as dotted names."""
    section = PAGE[PAGE.index("\n## Imports\n") :]
    rows = re.findall(r"^\| `([a-z]+)` \| (.+?) \|", section, re.MULTILINE)
    return {name: re.findall(r"`([\w.]+)`", modules) for name, modules in rows}


def read_arrows() -> dict[str, set[str]]:
    """The page's diagram: which layer imports which, directly."""
    (diagram,) = re.findall(r"```mermaid\n(.*?)```", PAGE, re.DOTALL)
    arrows: dict[str, set[str]] = {}
    lines = re.findall(r"^ *(\w+) --> (\w+(?: & \w+)*)$", diagram, re.MULTILINE)
    assert len(diagram.strip().splitlines()) == 1 + len(lines)  # all but the first say arrows
    for source, targets in lines:
        arrows.setdefault(source, set()).update(targets.split(" & "))
    return arrows


LAYERS = read_layers()
ARROWS = read_arrows()


def layer_of(module: str) -> str | None:
    """The layer of a module: that of the longest name in the table that it is or is inside of."""
    names = {name: layer for layer, inside in LAYERS.items() for name in inside if f"{module}.".startswith(f"{name}.")}
    return names[max(names, key=len)] if names else None


def listed(edges: list[tuple[str, str]]) -> str:
    return "\n".join(f"{source} -> {target}" for source, target in edges)


def test_parser_sees_all_kinds_of_imports():
    """On sources whose imports are known: relative ones, of names, of modules, in functions and for types."""
    samples = {
        "from ..errors import OptionError": {"mobileo_mlx.errors"},
        "from .. import errors, __version__": {"mobileo_mlx.errors", "mobileo_mlx"},
        "from . import sana": {"mobileo_mlx.models.sana"},
        "import mobileo_mlx.pipeline as p": {"mobileo_mlx.pipeline"},
        "def f():\n from .sana import SanaConfig": {"mobileo_mlx.models.sana"},
        "if TYPE_CHECKING:\n from .qwen2 import KVCache": {"mobileo_mlx.models.qwen2"},
    }
    module = "mobileo_mlx.models.dc_ae"
    for source, expected in samples.items():
        nodes = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Import | ast.ImportFrom)]
        assert {name for node in nodes for name in resolve(module, MODULES[module], node)} == expected


def test_cycles_are_found():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a", "d"}}
    assert cycles(graph) == [["b", "c"]]


def test_no_import_cycles():
    found = cycles(OURS)
    edges = [(source, target) for group in found for source in group for target in sorted(OURS[source] & set(group))]
    assert not found, f"modules that import each other:\n{listed(edges)}"


def test_every_module_has_its_layer():
    assert [module for module in MODULES if layer_of(module) is None and module != LIBRARY] == []


def test_page_names_only_what_exists():
    names = [name for layer in LAYERS.values() for name in layer]
    assert [name for name in names if name not in MODULES] == []
    assert len(names) == len(set(names))


def test_table_and_diagram_have_the_same_layers():
    assert ARROWS.keys() | set().union(*ARROWS.values()) == LAYERS.keys()


def test_page_names_every_package():
    packages = [module for module, path in MODULES.items() if path.name == "__init__.py"]
    assert [package for package in packages if f"`{package}`" not in PAGE] == []
    folders = [path.name for path in ROOT.iterdir() if path.is_dir() and any(path.rglob("*.py"))]
    folders = [name for name in folders if not name.startswith(".") and name not in ("build", "dist", "outputs")]
    assert [folder for folder in folders if f"`{folder}/`" not in PAGE] == []


def test_arrows_make_no_circle():
    assert cycles(ARROWS) == []


def test_imports_follow_the_arrows():
    allowed = {layer: reachable(ARROWS, layer) | {layer} for layer in LAYERS}
    against = [
        (source, target)
        for source, targets in OURS.items()
        if source != LIBRARY
        for target in sorted(targets)
        if target != LIBRARY and layer_of(target) not in allowed[layer_of(source) or ""]
    ]
    assert not against, f"imports against the arrows of docs/architecture.md:\n{listed(against)}"


def test_library_takes_nothing_from_its_own_front():
    """`mobileo_mlx/__init__.py` exports what the modules define; a module that imports it back makes a circle."""
    assert [m for m, targets in OURS.items() if LIBRARY in targets and not m.startswith(COMMAND)] == []


def imported(inside: str, *forbidden: str) -> str:
    """The imports of a package that are, or are inside of, what it must not import."""
    return listed(
        [
            (source, target)
            for source, targets in IMPORTS.items()
            if f"{source}.".startswith(f"{inside}.")
            for target in sorted(targets)
            if any(f"{target}.".startswith(f"{name}.") for name in forbidden)
        ]
    )


def test_library_never_imports_its_callers():
    # But for `python -m mobileo_mlx`, which is the command and which nothing imports.
    assert imported(LIBRARY, *OUTSIDE).splitlines() == [f"{LIBRARY}.__main__ -> {COMMAND}.main"]
    assert [module for module, names in IMPORTS.items() if f"{LIBRARY}.__main__" in names] == []


def test_models_know_no_checkpoints_and_ops_know_no_models():
    assert imported(f"{LIBRARY}.models", f"{LIBRARY}.checkpoints", f"{LIBRARY}.pipeline") == ""
    assert imported(f"{LIBRARY}.ops", f"{LIBRARY}.models", f"{LIBRARY}.checkpoints", f"{LIBRARY}.pipeline") == ""


def test_one_file_asks_for_the_device():
    asking = [
        path.relative_to(ROOT).as_posix()
        for module, path in MODULES.items()
        if "default_device" in path.read_text(encoding="utf-8")
    ]
    assert asking == [f"{LIBRARY}/ops/backend.py"]


# What asks about a path or parses text that others wrote raises in ways that only `files.py` turns into a sentence.
BARE_QUESTIONS = {"is_file", "is_dir", "exists", "expanduser", "read_text", "read_bytes"}
BARE_CALLS = {"json.load", "json.loads", "os.path.isdir", "os.path.isfile", "os.path.getsize"}
ASK_THEMSELVES = {
    "mobileo_mlx.files": "the place for it",
    "mobileo_mlx.atomic": "inside of what turns OSErrors into a sentence",
    "mobileo_mlx.threads": "the system's own table of threads",
    "mobileo_mlx.mlx_library": "files that pip installed",
    "mobileo_mlx.doctor.machine": "what the system says about itself",
    "mobileo_mlx.doctor.goldens": "a bundled file",
    "mobileo_mlx.datasets.review": "bundled files",
    "mobileo_mlx.serving.picture_stores": "a folder of its own, inside of what turns OSErrors into a sentence",
    "mobileo_mlx.training.run_state": "a folder that this run holds the lock of; and JSON of its own",
    "mobileo_mlx.checkpoints.hub_adapters": "files that were just downloaded",
    "mobileo_mlx.checkpoints.hub_download": "the cache, inside of what turns OSErrors into a sentence",
    "mobileo_mlx.checkpoints.model_cache": "the cache, inside of what turns OSErrors into a sentence",
}


def bare_calls(module: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            whole = ast.unparse(node.func)
            of_ours = whole.startswith(("inputs.", "files."))
            if whole in BARE_CALLS or (node.func.attr in BARE_QUESTIONS and not of_ours):
                found.add(whole)
    return found


def test_only_one_module_asks_about_paths_of_others_and_parses_their_json():
    found = {module: calls for module in MODULES if (calls := bare_calls(module))}
    assert {module: calls for module, calls in found.items() if module not in ASK_THEMSELVES} == {}
    assert set(ASK_THEMSELVES) <= set(found)  # none that needs no exception any more
