"""Changes to valid files: of bytes, and such as keep checksums, archives and JSON whole, so that they get deeper."""

from __future__ import annotations

import gzip
import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

Bytes = Callable[[bytes], bytes]
"""Changes some bytes."""
Mutator = Callable[[bytes, random.Random, Bytes], bytes]
"""Changes a file of one format, using `Bytes` for the parts that have no structure."""

_PNG = b"\x89PNG\r\n\x1a\n"
_NUMBERS = (0, 1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**63)
_ODD: tuple[Any, ...] = (
    *(None, True, False, "", "x", "\x1b[2J", "\ud800", "nan", [], {}, [[]], [None], {"": None}, [0] * 300, "9" * 5000),
    *(0, -1, 1, 2**31, 2**63, 10**30, 10**400, 0.5, -0.0, 1e-320, 1e308, float("inf"), float("-inf"), float("nan")),
)


def mutated_bytes(data: bytes, chance: random.Random) -> bytes:
    """Returns data with one to four places flipped, overwritten, removed, repeated or cut."""
    found = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        # Half of them near the beginning, where headers are.
        end = len(found) if chance.random() < 0.5 else min(len(found), 64)
        at, size = chance.randint(0, end), chance.choice((1, 1, 2, 4, 8, 64))
        match chance.randrange(6):
            case 0 if at < len(found):
                found[at] ^= 1 << chance.randrange(8)
            case 1:
                width = chance.choice((1, 2, 4, 8))
                number = chance.choice(_NUMBERS) % 256**width
                found[at : at + width] = number.to_bytes(width, chance.choice(("little", "big")))
            case 2:
                found[at:at] = chance.randbytes(size)
            case 3:
                del found[at : at + size]
            case 4:
                found[at:at] = found[at : at + size] * chance.choice((1, 2, 50))
            case _:
                found[at:] = b"" if chance.random() < 0.2 else found[at:]
    return bytes(found)


def plain(data: bytes, chance: random.Random, change: Bytes) -> bytes:
    """Changes bytes, whatever they are."""
    return change(data)


def image(data: bytes, chance: random.Random, change: Bytes) -> bytes:
    """Returns a changed image; the checksums of a PNG are right again, and sometimes its pixels are packed anew."""
    if not data.startswith(_PNG):
        return change(data)
    chunks, at = [], len(_PNG)
    while at + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    if not chunks:
        return change(data)
    k = chance.randrange(len(chunks))
    kind, content = chunks[k]
    if kind == b"IDAT" and chance.random() < 0.5:
        try:
            content = zlib.compress(change(zlib.decompressobj().decompress(content, 2**20)))
        except zlib.error:
            content = change(content)
    else:
        content = change(content)
    chunks[k] = (kind, content)
    if chance.random() < 0.2:
        chunks.insert(chance.randrange(len(chunks)), chance.choice(chunks))
    parts = [struct.pack(">I", len(c)) + kind + c + struct.pack(">I", zlib.crc32(kind + c)) for kind, c in chunks]
    return _PNG + b"".join(parts)


def array(data: bytes, chance: random.Random, change: Bytes) -> bytes:
    """Returns a changed npy or npz file; the members of an npz file are changed and packed anew."""
    if not data.startswith(b"PK"):
        return change(data)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(info.filename, archive.open(info).read(2**16)) for info in archive.infolist()[:20]]
    except Exception:  # whatever is wrong with it, bytes can be changed
        return change(data)
    if not members:
        return change(data)
    k = chance.randrange(len(members))
    name, content = members[k]
    members[k] = (name, change(content))
    if chance.random() < 0.2:
        names = ("images", "rows", "waveforms", "x_test", "rate", "classes", "columns", "segments", "parts", "y_train")
        members[k] = (chance.choice(names) + chance.choice((".npy", ".npy", "")), chance.choice(members)[1])
    kept = io.BytesIO()
    kind = chance.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
    with zipfile.ZipFile(kept, "w", kind) as archive:
        for name, content in dict(members).items():
            archive.writestr(name, content)
    return kept.getvalue()


def zipped(data: bytes, chance: random.Random, change: Bytes) -> bytes:
    """Returns a changed file, compressed with gzip again if it was before."""
    if not data.startswith(b"\x1f\x8b"):
        return change(data)
    try:
        return gzip.compress(change(gzip.GzipFile(fileobj=io.BytesIO(data)).read(2**16)), mtime=0)
    except (OSError, EOFError, zlib.error):
        return change(data)


def document(data: bytes, chance: random.Random, change: Bytes) -> bytes:
    """Returns changed JSON: a value replaced, removed, moved or nested."""
    if chance.random() < 0.01:
        return chance.choice((b"[", b'{"format":')) * 10_000
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return change(data)
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        value = _changed(value, chance, 0)
    try:
        return json.dumps(value).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        return change(data)


def _changed(value: Any, chance: random.Random, depth: int) -> Any:
    """Returns a JSON value with one change somewhere in it."""
    inside = isinstance(value, (dict, list)) and value and depth < 20
    if inside and chance.random() < 0.85:
        if isinstance(value, dict):
            key = chance.choice(list(value))
            match chance.randrange(12):
                case 0:
                    return {name: one for name, one in value.items() if name != key}
                case 1:
                    return value | {chance.choice(("", "x", "__class__", key + " ")): value[key]}
                case _:
                    return value | {key: _changed(value[key], chance, depth + 1)}
        k = chance.randrange(len(value))
        match chance.randrange(8):
            case 0:
                return value[:k] + value[k + 1 :]
            case 1:
                return value[: k + 1] * 2
            case _:
                return [*value[:k], _changed(value[k], chance, depth + 1), *value[k + 1 :]]
    if isinstance(value, (int, float)) and chance.random() < 0.3:
        return chance.choice((-value, value + 1, value * 1000, str(value), [value]))
    return chance.choice(_ODD)
