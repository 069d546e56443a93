"""Small faults in a Python source, one at a time: what a mutation run changes.

Nothing is changed in docstrings, messages (strings, f-strings, what is raised), annotations, `__all__`, blocks for type
checkers, or calls of a log.
"""

from __future__ import annotations

import ast
import copy
import dataclasses

_COMPARISONS = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq}
_COMPARISONS |= {ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In}
_ARITHMETIC = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult}
_ARITHMETIC |= {ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd}
_OPPOSITE = {"min": "max", "minimum": "maximum", "argmin": "argmax", "ceil": "floor", "any": "all"}
_OPPOSITE |= {after: before for before, after in _OPPOSITE.items()}
_BOUNDS = ("range", "arange")
_SILENT = ("log", "print", "warn", "debug", "info", "warning")
_NOT_SWAPPED = ("isinstance", "getattr", "hasattr", "setattr", "issubclass", "zip", "cast", "print")

Place = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One change of a source.

    Attributes:
      operator: the kind of change.
      place: first line, column, last line and column, in bytes, of what is replaced; lines from 1.
      before: the source there.
      after: what stands there instead.
      statement: first and last line of the statement around it, without the statements inside.
      function: first and last line of the outermost function around it; None outside, where it acts on import.
      source: the line where it begins, without its indentation.
      column: where it begins in `source`.
    """

    operator: str
    place: Place
    before: str
    after: str
    statement: tuple[int, int]
    function: tuple[int, int] | None
    source: str
    column: int

    @property
    def line(self) -> int:
        """Returns the line where the change begins."""
        return self.place[0]


def applied(source: str, mutant: Mutant) -> str:
    """Returns the source with the change."""
    lines = source.encode().splitlines(keepends=True)
    first, begin, last, end = mutant.place
    inside = mutant.after.encode()
    lines[first - 1 : last] = [lines[first - 1][:begin] + inside + lines[last - 1][end:]]
    return b"".join(lines).decode()


def every(source: str) -> list[Mutant]:
    """Returns every mutant of a source, in the order of their places."""
    found = _Finder(source).run()
    distinct = {(one.place, one.after): one for one in found if one.before != one.after}
    return sorted(distinct.values(), key=lambda one: (one.place, one.operator, one.after))


class _Finder:
    """Walks over a module; it goes nowhere where nothing may be changed."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._tree = ast.parse(source)
        self._function: tuple[int, int] | None = None
        self._lines = (0, 0)
        self._found: list[Mutant] = []

    def run(self) -> list[Mutant]:
        """Returns what is found."""
        self._block(self._tree.body, frozenset())
        return self._found

    def _add(self, operator: str, node: ast.expr | ast.stmt, after: str) -> None:
        assert node.end_lineno is not None and node.end_col_offset is not None
        place = (node.lineno, node.col_offset, node.end_lineno, node.end_col_offset)
        before = ast.get_source_segment(self._source, node) or ""
        line = self._source.splitlines()[node.lineno - 1]
        where = line.strip(), node.col_offset - (len(line) - len(line.lstrip()))
        self._found.append(Mutant(operator, place, before, after, self._lines, self._function, *where))

    def _replace(self, operator: str, node: ast.expr, new: ast.expr) -> None:
        self._add(operator, node, f"({ast.unparse(ast.fix_missing_locations(new))})")

    # Statements

    def _block(self, body: list[ast.stmt], assigned: frozenset[str], conditional: bool = False) -> None:
        for node in body:
            text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            if text or isinstance(node, (ast.Import, ast.ImportFrom, ast.Global, ast.Nonlocal, ast.Pass)):
                continue
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
                continue
            last = body_lines[0] - 1 if (body_lines := _inner(node)) else node.end_lineno or node.lineno
            self._lines = (node.lineno, max(last, node.lineno))
            self._statement(node, assigned, conditional)
            assigned |= _names(node)

    def _statement(self, node: ast.stmt, assigned: frozenset[str], conditional: bool) -> None:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            self._definition(node)
            return
        if _removable(node, assigned, self._function is not None, conditional):
            self._add("removed statement", node, "pass")
        if isinstance(node, ast.Raise) or (isinstance(node, ast.Expr) and _silent(node.value)):
            return
        if isinstance(node, (ast.If, ast.While)) and not isinstance(node.test, (ast.Compare, ast.BoolOp, ast.UnaryOp)):
            self._replace("negation", node.test, ast.UnaryOp(ast.Not(), node.test))
        if isinstance(node, ast.AugAssign) and type(node.op) in _ARITHMETIC:
            new = copy.deepcopy(node)
            new.op = _ARITHMETIC[type(node.op)]()
            self._add("arithmetic", node, ast.unparse(new))
        for name, value in ast.iter_fields(node):
            if name == "annotation" or (name in ("targets", "target") and isinstance(node, ast.Assign)):
                continue
            for part in value if isinstance(value, list) else [value]:
                if isinstance(part, ast.expr):
                    self._expression(part)
                elif isinstance(part, ast.withitem):
                    self._expression(part.context_expr)
                elif isinstance(part, (ast.ExceptHandler, ast.match_case)):
                    self._block(part.body, assigned)
            if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
                self._block(value, assigned, isinstance(node, ast.If))

    def _definition(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> None:
        if isinstance(node, ast.ClassDef):  # fields are of the module, methods of themselves
            self._block(node.body, frozenset())
            return
        for default in [*node.args.defaults, *filter(None, node.args.kw_defaults)]:
            self._expression(default)
        outside = self._function
        self._function = outside or (node.lineno, node.end_lineno or node.lineno)
        self._block(node.body, frozenset(arg.arg for arg in [*node.args.args, *node.args.kwonlyargs]))
        self._function = outside

    # Expressions

    def _expression(self, node: ast.expr) -> None:
        if isinstance(node, (ast.JoinedStr, ast.Constant)) and not _number(node):
            if isinstance(node, ast.Constant) and isinstance(node.value, bool):
                self._add("negation", node, str(not node.value))
            return
        if isinstance(node, ast.BinOp) and _words(node):
            return
        if isinstance(node, ast.Call) and (_silent(node) or _name(node).endswith(("Error", "Warning"))):
            return
        self._change(node)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self._expression(child)
            elif isinstance(child, ast.keyword):
                self._expression(child.value)
            elif isinstance(child, ast.comprehension):
                self._expression(child.iter)
                for test in child.ifs:
                    if not isinstance(test, (ast.Compare, ast.BoolOp, ast.UnaryOp)):
                        self._replace("negation", test, ast.UnaryOp(ast.Not(), test))
                    self._expression(test)

    def _change(self, node: ast.expr) -> None:
        if isinstance(node, ast.Compare):
            for i, op in enumerate(node.ops):
                new = copy.deepcopy(node)
                new.ops[i] = _COMPARISONS[type(op)]()
                self._replace("comparison", node, new)
        elif isinstance(node, ast.BoolOp):
            new = copy.deepcopy(node)
            new.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
            self._replace("and, or", node, new)
        elif isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
            new = copy.deepcopy(node)
            new.op = _ARITHMETIC[type(node.op)]()
            self._replace("arithmetic", node, new)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub, ast.Invert)):
            self._replace("negation" if isinstance(node.op, ast.Not) else "unary minus", node, node.operand)
        elif isinstance(node, ast.IfExp):
            if not isinstance(node.test, (ast.Compare, ast.BoolOp, ast.UnaryOp)):
                self._replace("negation", node.test, ast.UnaryOp(ast.Not(), node.test))
        elif _number(node):
            assert isinstance(node, ast.Constant)
            self._add("constant", node, f"{node.value + 1!r}")
            if node.value:
                self._add("constant", node, f"{type(node.value)(0)!r}")
        elif isinstance(node, ast.Slice):
            for bound in (node.lower, node.upper):
                if bound is not None and not isinstance(bound, ast.Constant):
                    self._replace("off by one", bound, ast.BinOp(bound, ast.Add(), ast.Constant(1)))
        elif isinstance(node, ast.Call):
            self._call(node)

    def _call(self, node: ast.Call) -> None:
        name = _name(node)
        if name in _OPPOSITE:
            new = copy.deepcopy(node)
            if isinstance(new.func, ast.Attribute):
                new.func.attr = _OPPOSITE[name]
            elif isinstance(new.func, ast.Name):
                new.func.id = _OPPOSITE[name]
            self._replace("min, max", node, new)
        if name in _BOUNDS and len(node.args) == 1 and not isinstance(node.args[0], ast.Constant):
            self._replace("off by one", node.args[0], ast.BinOp(node.args[0], ast.Add(), ast.Constant(1)))
        pair = node.args[:2]
        plain = len(pair) == 2 and all(isinstance(part, (ast.Name, ast.Attribute, ast.Subscript)) for part in pair)
        if plain and name not in (*_NOT_SWAPPED, *_OPPOSITE):
            new = copy.deepcopy(node)
            new.args[:2] = new.args[1::-1]
            self._replace("swapped arguments", node, new)


def _inner(node: ast.stmt) -> list[int]:
    """Returns the first lines of the statements inside a statement."""
    return sorted(part.lineno for part in ast.walk(node) if isinstance(part, ast.stmt) and part is not node)


def _name(node: ast.Call) -> str:
    """Returns the last name of what is called."""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _silent(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and _name(node) in _SILENT


def _number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) in (int, float)


def _words(node: ast.BinOp) -> bool:
    """Returns whether strings are joined or repeated."""
    sides = [part for part in ast.walk(node) if isinstance(part, (ast.BinOp, ast.IfExp))] + [node]
    ends = [end for side in sides if isinstance(side, ast.BinOp) for end in (side.left, side.right)]
    return any(isinstance(end, ast.JoinedStr) or isinstance(getattr(end, "value", None), str) for end in ends)


def _names(node: ast.stmt) -> frozenset[str]:
    """Returns the names that an assignment sets."""
    return frozenset(
        part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
    )


def _removable(node: ast.stmt, assigned: frozenset[str], inside: bool, conditional: bool) -> bool:
    """Returns whether a function runs on without this statement, so that a test has to notice."""
    if not inside:
        return False
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Call) and not _silent(node.value)
    if isinstance(node, ast.Assign):
        kept = all(isinstance(target, (ast.Attribute, ast.Subscript)) for target in node.targets)
        return kept or _names(node) <= assigned
    return isinstance(node, (ast.AugAssign, ast.Raise, ast.Continue, ast.Break, ast.Delete)) or (
        isinstance(node, ast.Return) and conditional
    )
