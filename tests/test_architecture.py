"""The rules of docs/architecture.md, checked against the sources; and what may be missing at run time."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "ganomaly_jax"
DOCUMENT = ROOT / "docs" / "architecture.md"
CORE = {"jax", "flax", "optax", "orbax", "numpy", "chex"}
"""Libraries that are always installed, and may be imported at module level."""


def modules():
    """{dotted name below the package: file} of every module inside a room."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if len(parts) > 1:
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(path):
    """Yields (imported name, whether the import is at module level, whether it is for type checkers alone).

    Imports of the form `from a import b` are yielded as `a.b`; imports inside functions and calls of
    `importlib.import_module` with a literal name count too.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    inside = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno} is a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        else:
            continue
        for name in names:
            yield name, node not in inside, node in typing


def ours(path):
    """The modules of the package that a file imports, types for type checkers included."""
    for name, _, _ in imports(path):
        if name.partition(".")[0] != "ganomaly_jax" or name == "ganomaly_jax.__version__":
            continue
        below = name.removeprefix("ganomaly_jax").lstrip(".")
        while below and below not in MODULES:
            below = below.rpartition(".")[0]
        assert below, f"{path.relative_to(ROOT)} imports {name}: expected the module that defines it"
        yield below


def table(title):
    """The rows of the table below a heading of the document, cells stripped."""
    section = DOCUMENT.read_text(encoding="utf-8").partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    return rows[2:]


def words(cell):
    return re.findall(r"`([^`]+)`", cell)


def rooms():
    """{room: rooms that it may import from}, in the order of the document."""
    return {words(name)[0]: set(words(below)) for name, _, below in table("Rooms")}


def test_the_document_lists_the_rooms_in_order():
    found = rooms()
    assert set(found) == {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert len(found) == 12
    for i, (name, below) in enumerate(found.items()):
        assert below == set(list(found)[:i]), f"{name}: {sorted(below)}"


@pytest.mark.parametrize("room", list(rooms()))
def test_a_room_imports_from_the_rooms_before_it(room):
    allowed = rooms()[room] | {room}
    for name, path in MODULES.items():
        if name.partition(".")[0] == room:
            climbs = sorted(other for other in ours(path) if other.partition(".")[0] not in allowed)
            assert not climbs, f"{name} imports {', '.join(climbs)}"


@pytest.mark.parametrize("room", list(rooms()))
def test_a_room_has_no_cycle(room):
    inside = {name: path for name, path in MODULES.items() if name.partition(".")[0] == room}
    left = {name: {other for other in ours(path) if other in inside} - {name} for name, path in inside.items()}
    while left:
        free = [name for name, below in left.items() if not below & set(left)]
        assert free, f"these modules import each other in a circle: {', '.join(left)}"
        for name in free:
            del left[name]


def libraries():
    """{library, or a part of one: rooms and modules that may import it}."""
    return {name: set(words(where)) for names, where in table("Libraries") for name in words(names)}


def test_a_library_is_imported_where_the_document_says():
    homes = libraries()
    for module, path in MODULES.items():
        for name, _, _ in imports(path):
            top = name.partition(".")[0]
            if top == "ganomaly_jax" or (top in sys.stdlib_module_names and top not in homes):
                continue
            home = max((known for known in homes if f"{name}.".startswith(f"{known}.")), key=len, default=None)
            assert home, f"{module} imports {name}, which is not in the table of {DOCUMENT.name}"
            places = {module, module.partition(".")[0]}
            assert places & homes[home], f"{module} imports {name}: {home} belongs to {', '.join(sorted(homes[home]))}"


def test_the_document_names_no_library_that_nobody_imports():
    used = {name for path in MODULES.values() for name, _, _ in imports(path)}
    named_elsewhere = "\n".join(path.read_text(encoding="utf-8") for path in MODULES.values())
    for library, where in libraries().items():
        found = any(f"{name}.".startswith(f"{library}.") for name in used) or f'"{library}' in named_elsewhere
        assert found and where, f"{library} is imported nowhere"


def test_other_libraries_are_imported_where_they_are_used():
    """Beyond the core, so that the package imports, trains from arrays and scores without them."""
    for module, path in MODULES.items():
        for name, at_top, typed in imports(path):
            top = name.partition(".")[0]
            if at_top and not typed and top not in CORE | {"ganomaly_jax"} | sys.stdlib_module_names:
                pytest.fail(f"{module} imports {name} at module level")


def methods(tree):
    """The methods of the class Detector, without its properties."""
    [found] = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == "Detector"]
    return [node.name for node in found.body if isinstance(node, ast.FunctionDef) and not node.decorator_list]


def test_the_interface_of_detectors_is_the_one_shown():
    [shown] = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert methods(ast.parse(shown)) == methods(ast.parse(MODULES["model.protocol"].read_text(encoding="utf-8")))


def test_the_functions_of_the_walks_exist():
    section = DOCUMENT.read_text(encoding="utf-8").partition("\n## Two walks\n")[2].partition("\n## ")[0]
    found = re.findall(r"^((?:\w+\.)+\w+)", section, re.MULTILINE) + re.findall(r"`((?:\w+\.){2,}\w+)`", section)
    assert len(found) > 30
    for name in found:
        module = max((known for known in MODULES if f"{name}.".startswith(f"{known}.")), key=len, default="")
        nodes = [ast.parse(MODULES[module].read_text(encoding="utf-8"))] if module else []
        for part in name.removeprefix(module).strip(".").split("."):
            nodes = [inner for node in nodes for inner in ast.walk(node) if getattr(inner, "name", "") == part]
        assert nodes, f"{name}: no such function"


def test_training_and_scoring_need_jax_libraries_only(tmp_path):
    """On a machine with jax, flax, optax, orbax, chex and numpy, and nothing else of what setup.cfg asks for."""
    script = """
import sys
blocked = ("tensorflow_datasets", "tensorflow", "ml_collections", "matplotlib", "PIL", "tqdm", "mlxtend",
           "sklearn", "pandas", "importlib_resources", "torch", "flatbuffers", "jinja2", "markupsafe")
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in blocked else self.finder.find_spec(name, path, target)
sys.meta_path[:] = map(Without, sys.meta_path)
sys.path.insert(0, sys.argv[1])
import support, numpy as np, ganomaly_jax as gj
gj.train(support.tiny_config(steps=2), sys.argv[2], support.blobs(40, 0))
scores = gj.load(sys.argv[2])(support.blobs(3, 1))
assert scores.shape == (3,) and np.isfinite(scores).all()
"""
    call = [sys.executable, "-W", "ignore", "-c", script, str(ROOT / "tests"), str(tmp_path / "run")]
    ran = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
