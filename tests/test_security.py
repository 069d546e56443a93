"""What docs/security.md says about programs and pickles, held against the sources and a detector that is loaded."""

import ast
import sys
from pathlib import Path

import pytest

import ganomaly_jax

PACKAGE = Path(ganomaly_jax.__file__).parent
SOURCES = {str(path.relative_to(PACKAGE)): ast.parse(path.read_text("utf-8")) for path in PACKAGE.rglob("*.py")}
PROGRAMS = {
    "core/presets.py": {"exec_module"},  # configurations
    "deploy/ray_engine.py": {"pickle", "pickle.dumps", "pickle.loads"},  # between processes that trust each other
    "model/efficientnet.py": {"pickle", "pickle.UnpicklingError"},  # an unpickler that knows tensors alone
}
RISKY = {"eval", "exec", "compile", "__import__", "exec_module", "os.system", "os.popen", "yaml.load", "runpy.run_path"}
UNPICKLERS = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}


def risks(tree):
    """What in a module can run what is read: calls and imports by name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in RISKY or name.rpartition(".")[2] == "exec_module" or name.partition(".")[0] in UNPICKLERS:
                yield "exec_module" if name.endswith("exec_module") else name
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in UNPICKLERS)
        elif isinstance(node, ast.ImportFrom) and node.module in UNPICKLERS:
            yield node.module


def test_nothing_that_is_read_is_executed_but_configurations():
    found = {name: set(risks(tree)) for name, tree in SOURCES.items()}
    assert {name: risky for name, risky in found.items() if risky} == PROGRAMS


def test_arrays_and_weights_are_read_without_pickles():
    seen = set()
    for name, tree in SOURCES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("np.load", "numpy.load", "torch.load"):
                wanted = ("allow_pickle", False) if "np" in ast.unparse(node.func) else ("weights_only", True)
                values = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
                assert values.get(wanted[0]) is wanted[1], f"{name}:{node.lineno}"
                seen.add(ast.unparse(node.func))
    assert seen == {"np.load", "torch.load"}


class Events:
    """The audit events of Python during a block; a hook cannot be taken back, so that it is only silenced."""

    def __init__(self):
        self.on, self.found = False, []
        sys.addaudithook(self.hear)

    def hear(self, event, given):
        if not self.on:
            return
        written = event == "open" and isinstance(given[1], str) and set(given[1]) & set("wax+")
        if (
            written
            or event in ("exec", "compile", "pickle.find_class", "marshal.loads", "socket.connect")
            or event.startswith(("subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "ctypes.dlopen"))
        ):
            self.found.append((event, *map(str, given[:2])))


@pytest.fixture(scope="module")
def events():
    return Events()


def test_a_detector_is_read_without_running_writing_or_connecting(trained, events):
    ganomaly_jax.load(trained[0])  # imports what it needs
    events.on = True
    try:
        ganomaly_jax.load(trained[0])
    finally:
        events.on = False
    assert not events.found
