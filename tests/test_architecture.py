"""The layering of docs/architecture.md, read from the sources; and what may be absent."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "ganomaly_jax"


def imports(path):
    """(every module imported, those at module level that always run)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    checked = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }

    def names(node):
        if isinstance(node, ast.Import):
            return [alias.name for alias in node.names]
        if node.module == "ganomaly_jax":
            return [f"ganomaly_jax.{alias.name}" for alias in node.names]
        return [node.module]

    found = [(node, names(node)) for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    everything = {name for _, named in found for name in named}
    at_top = {name for node, named in found if node in tree.body and node not in checked for name in named}
    return everything, at_top


def table():
    """{module: modules of ours that it may import}, from the layout in docs/architecture.md."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)\.py` \|[^|]*\| ([^|]*) \|$", text, re.MULTILINE)
    return {name: set() if allowed == "nothing" else set(re.findall(r"\w+", allowed)) for name, allowed in rows}


def test_every_module_imports_what_the_layout_allows():
    allowed = table()
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert modules == set(allowed), "docs/architecture.md lists other modules than there are"
    for name in modules:
        ours = {m.split(".")[1] for m in imports(PACKAGE / f"{name}.py")[0] if m.startswith("ganomaly_jax.")}
        ours -= {"__version__"}
        if allowed[name] != {"anything"}:
            assert ours <= allowed[name], f"{name}.py imports {sorted(ours - allowed[name])}"


def test_the_layout_has_no_cycles():
    allowed = {name: below for name, below in table().items() if below != {"anything"}}
    order = list(allowed)
    for name, below in allowed.items():
        assert all(order.index(other) < order.index(name) for other in below), f"{name} imports upward"


def test_libraries_stay_where_they_belong():
    homes = {
        "flax.linen": {"networks", "sequences"},
        "orbax": {"checkpoint"},
        "matplotlib": {"report"},
        "argparse": {"cli"},
        "jax.sharding": {"sharding"},
    }
    for path in PACKAGE.glob("*.py"):
        for module in imports(path)[0]:
            for library, modules in homes.items():
                if module == library or module.startswith(library + "."):
                    assert path.stem in modules, f"{path.name} imports {module}"


def test_other_libraries_are_imported_where_they_are_used():
    core = {"jax", "flax", "optax", "orbax", "numpy", "chex", "ganomaly_jax", *sys.stdlib_module_names}
    for path in PACKAGE.glob("*.py"):
        top = {name.split(".")[0] for name in imports(path)[1]}
        assert top <= core, f"{path.name} imports {sorted(top - core)} at module level"


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["predict", "--workdir"]])
def test_help_does_not_wait_for_jax(arguments):
    script = (
        "import sys\nfrom ganomaly_jax.cli import main\n"
        "try:\n    main.main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "sys.exit('slow' if {'jax', 'PIL', 'matplotlib', 'flax'} & set(sys.modules) else 0)"
    )
    ran = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_training_and_scoring_need_jax_libraries_only(tmp_path):
    """On a machine with jax, flax, optax, orbax, chex and numpy, and nothing else of what setup.cfg asks for."""
    script = """
import sys
blocked = ("tensorflow_datasets", "tensorflow", "ml_collections", "matplotlib", "PIL", "tqdm", "mlxtend",
           "sklearn", "pandas", "importlib_resources", "torch", "flatbuffers")
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
