"""The public API: `import ganomaly_jax as gj` is all a program needs, and it loads nothing until a name is used."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import ganomaly_jax

SCRIPT = """
import json, sys
import ganomaly_jax as gj
heavy = {"jax", "numpy", "flax", "PIL"} & set(sys.modules)
assert not heavy, heavy
found = {name: getattr(gj, name) for name in gj.__all__}
space = {}
exec("from ganomaly_jax import *", space)
space.pop("__builtins__")
assert space == found
assert set(dir(gj)) == {*gj.__all__, "__version__"}
print(json.dumps({name: [callable(one), one.__module__, bool(one.__doc__)] for name, one in found.items()}))
"""


def test_every_name_works_in_a_fresh_process():
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert list(found) == ganomaly_jax.__all__
    assert {name for name, (is_callable, _, has_text) in found.items() if not (is_callable and has_text)} == set()
    for name, (_, module, _) in found.items():
        assert module == f"ganomaly_jax.{ganomaly_jax._MODULE_OF[name]}", name


def test_type_checkers_read_the_same_names():
    tree = ast.parse(Path(ganomaly_jax.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    read = {
        alias.asname: (node.module, alias.name)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert read == {name: (f"ganomaly_jax.{module}", name) for name, module in ganomaly_jax._MODULE_OF.items()}


def test_other_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="'ganomaly_jax' has no attribute 'trian'"):
        ganomaly_jax.trian  # noqa: B018
