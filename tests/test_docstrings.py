"""Docstrings: public functions and classes have one, and those of functions begin with a verb in the third person."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "ganomaly_jax"
# Words that end in s as such verbs do.
NOT_VERBS = {"As", "Images", "Is", "Its", "Rows", "Steps", "These", "This", "Those", "Values", "Was", "Windows"}
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def faults(source):
    """(line, name, what is wrong) of each docstring that is missing where it must be, or begins otherwise."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        text = ast.get_docstring(node)
        if text is None:
            if node in tree.body and not node.name.startswith("_"):
                yield node.lineno, node.name, "no docstring"
        elif not isinstance(node, ast.ClassDef):
            first = re.split(r"[\s:,.(]", text, maxsplit=1)[0]
            if not re.fullmatch(r"[A-Z][a-z-]*s", first) or first in NOT_VERBS:
                yield node.lineno, node.name, f"begins with {text.splitlines()[0]!r}"


@pytest.mark.parametrize("module", MODULES)
def test_docstrings_begin_with_a_verb(module):
    assert not list(faults((PACKAGE / module).read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ('def f():\n    """Returns 1."""\n', 0),
        ('def f():\n    """Of 1."""\n', 1),
        ('def f():\n    """This returns 1."""\n', 1),
        ("def f():\n    pass\n", 1),
        ("def _f():\n    pass\n", 0),
        ("class A:\n    pass\n", 1),
        ('class A:\n    """A thing."""\n    def f(self):\n        """The thing."""\n', 1),
    ],
)
def test_the_check_sees_what_is_wrong(source, count):
    assert len(list(faults(source))) == count
