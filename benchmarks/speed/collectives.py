"""What devices send one another in a step, read from the compiled program, and what a simple model makes of it.

The model: a step on N accelerators takes

    t(N) = t(1) + sent(N) / link + latency * operations * ceil(log2 N)

`sent` is what each device sends: of an all-reduce 2 (N - 1) / N of its operand, as around a ring. `operations` wait for
one another, each for as many exchanges as a tree over N is deep, and nothing is hidden behind computation.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping

# Times its operand that a device sends among n.
_SENT = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: n - 1,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
    "collective-broadcast": lambda n: 1,
}
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)")
_COMPUTATION = re.compile(r"(?:ENTRY )?%?([\w.\-]+) .*\{$")
_CALLED = re.compile(r"\b(?:body|condition|to_apply|calls|\w+_computations?)=\{?((?:%?[\w.\-]+(?:, )?)+)")

Moved = dict[str, dict[str, int]]


@dataclasses.dataclass(frozen=True)
class Link:
    """A link between accelerators that connects at most `most` of them, 0: any number."""

    name: str
    gb_s: float
    """10^9 bytes a second in one direction."""
    latency_us: float
    """Microseconds of one exchange."""
    most: int = 0


# Assumptions, none of them measured: half of the bandwidth in both directions that makers name; latencies guessed.
LINKS = (
    Link("NVLink 4 in one host", 450, 5, 8),
    Link("InfiniBand NDR, an adapter each", 50, 10),
    Link("ICI of a TPU v5p, all links", 600, 5),
)


def moved(text: str) -> Moved:
    """Counts collectives in XLA's HLO text of one step: {operation: {"operations", "bytes", "largest"}}.

    Bytes are those of the operands on one device. Only what is in a loop counts, and once, since the loop is that over
    steps; operations within groups of one device, which send nothing, do not.

    Raises:
      ValueError: the text is not as expected.
    """
    lines: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        line = re.sub(r"/\*.*?\*/", "", line)
        if line[:1] not in ("", " ", "}") and (found := _COMPUTATION.match(line)):
            name = found[1]
        lines.setdefault(name, []).append(line)
    calls = {name: {called for line in own for called in _called(line)} for name, own in lines.items()}
    waiting = [body for own in lines.values() for line in own for body in re.findall(r"\bbody=%?([\w.\-]+)", line)]
    inside: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in lines and name not in inside:
            inside.add(name)
            waiting += calls[name]
    sums: Moved = {}
    for name in sorted(inside):
        for operation, size in _collectives(lines[name]):
            found = sums.setdefault(operation, {"operations": 0, "bytes": 0, "largest": 0})
            found["operations"] += 1
            found["bytes"] += size
            found["largest"] = max(found["largest"], size)
    return sums


def _called(line: str) -> list[str]:
    return [name.strip(" %") for names in _CALLED.findall(line) for name in names.split(",")]


def _collectives(lines: list[str]) -> list[tuple[str, int]]:
    """Lists (operation, bytes of its operands) of a computation."""
    instructions = [found.groups() for line in lines if (found := _INSTRUCTION.match(line))]
    shapes = {name: shape for name, shape, _, _ in instructions}
    collectives = []
    for _, _, operation, rest in instructions:
        # A GPU's or TPU's come in two halves, of which the first has the operands.
        operation = operation.removesuffix("-start")
        if operation not in _SENT or _group(rest) == 1:
            continue
        names = [operand.split()[-1].lstrip("%") for operand in rest[: _closing(rest)].split(", ")]
        if not all(name in shapes for name in names):
            raise ValueError(f"the compiled program cannot be read: {operation}({rest[:100]}")
        collectives.append((operation, sum(_bytes(shapes[name]) for name in names)))
    return collectives


def _group(rest: str) -> int:
    """Returns the number of devices in a group of an operation; 0 if it names none, which means all."""
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", rest)
    counted = re.search(r"replica_groups=\[\d+,(\d+)\]<=", rest)
    return listed[1].count(",") + 1 if listed else int(counted[1]) if counted else 0


def _closing(rest: str) -> int:
    """Returns the index of the closing parenthesis."""
    depth = 1
    for at, letter in enumerate(rest):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return at
    raise ValueError(f"the compiled program cannot be read: {rest[:100]}")


def _bytes(shape: str) -> int:
    """Returns the bytes of a shape such as `f32[4,4]{1,0}`, or of a tuple of shapes."""
    total = 0
    for kind, sides in re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", shape):
        bits = re.search(r"\d+", kind)
        total += math.ceil(math.prod(map(int, filter(None, sides.split(",")))) * (int(bits[0]) if bits else 8) / 8)
    return total


def sent(moved: Moved, devices: int) -> float:
    """Computes the bytes that each device sends in a step."""
    return sum(_SENT[operation](devices) * found["bytes"] for operation, found in moved.items())


def added_s(moved: Moved, devices: int, link: Link) -> float:
    """Computes, by the model, the seconds by which a step on several accelerators is longer than on one."""
    operations = sum(found["operations"] for found in moved.values())
    waiting = link.latency_us * 1e-6 * operations * math.ceil(math.log2(devices))
    return sent(moved, devices) / (link.gb_s * 1e9) + waiting


def predict(ways: Mapping[str, Moved], step_s: float, links: tuple[Link, ...], counts: list[int]) -> list[dict]:
    """Predicts `added_ms` and `efficiency`, t(1) / t(N) at equal images per device, by way, link and device count."""
    rows = []
    for way, found in ways.items():
        for link in links:
            for devices in counts:
                if not link.most or devices <= link.most:
                    added = added_s(found, devices, link)
                    figures = {"added_ms": 1000 * added, "efficiency": step_s / (step_s + added)}
                    rows.append({"way": way, "link": link.name, "devices": devices, **figures})
    return rows
