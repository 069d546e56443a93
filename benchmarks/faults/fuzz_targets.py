"""The targets of fuzzing: every parser of untrusted input in the package."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.faults import fuzz_corpus, fuzz_http, fuzz_mutators
from benchmarks.faults.fuzz_mutators import plain
from benchmarks.faults.fuzz_target import Opened, Place, Target, written
from ganomaly_jax.core.errors import UserError

# Data


def _image_files(place: Place) -> Opened:
    import io

    from ganomaly_jax.data.images import decode, files

    def parse(data: bytes) -> Any:
        decode.image_header(written(place.scratch / "image", data))
        for fit in ("stretch", "letterbox"):
            found = files.decode_file(io.BytesIO(data), 16, 32, fit)
            if isinstance(found, str):
                raise UserError(found)
        return found

    return Opened(fuzz_corpus.images(), parse)


def _source(name: Callable[[bytes], str], **settings: Any) -> Callable[[Place, Sequence[bytes]], Opened]:
    """Returns how a file is opened as a source of data, by a name that depends on its content."""

    def opened(place: Place, seeds: Sequence[bytes]) -> Opened:
        from ganomaly_jax.core import config
        from ganomaly_jax.data import sources

        def parse(data: bytes) -> Any:
            path = written(place.scratch / name(data), data)
            try:
                found = sources.load(dataclasses.replace(config.Data(), source=str(path), **settings))
                return found, found.images[np.arange(min(len(found.images), 4))]
            finally:
                path.unlink()

        return Opened(seeds, parse)

    return opened


def _idx(place: Place) -> Opened:
    opened = _source(lambda data: "train-images-idx3-ubyte" + ".gz" * data.startswith(b"\x1f\x8b"))
    return opened(place, fuzz_corpus.idx())


def _arrays(place: Place) -> Opened:
    return _source(lambda data: "x.npz" if data.startswith(b"PK") else "x.npy")(place, fuzz_corpus.arrays())


def _tables(place: Place) -> Opened:
    return _source(lambda data: "x.csv", missing="last")(place, fuzz_corpus.tables())


def _recordings(place: Place) -> Opened:
    return _source(lambda data: "x.wav")(place, fuzz_corpus.recordings())


def _packed(place: Place) -> Opened:
    from ganomaly_jax.core import config
    from ganomaly_jax.data import pack, sources
    from ganomaly_jax.data.formats import array_record

    np.savez(place.scratch / "given.npz", **{"images": np.arange(75, dtype=np.uint8).reshape(3, 5, 5)})
    path = place.scratch / "x.array_record"
    pack.pack(config.Data(source=str(place.scratch / "given.npz"), height=16, width=16), path)
    shard, beside = path.read_bytes(), array_record.metadata_path(path)
    metadata = json.loads(beside.read_bytes())

    def parse(data: bytes) -> Any:
        """Parses metadata as a stranger may write them, with the right checksum; or a damaged shard."""
        content = shard
        try:
            held = dict(json.loads(data))
            held.pop("sha256", None)
            beside.write_text(array_record.encode_metadata(held))
        except (ValueError, TypeError, RecursionError):
            beside.write_text(array_record.encode_metadata(metadata | {"bytes": len(data)}))
            content = data
        path.write_bytes(content)
        found = sources.load(config.Data(source=str(path)))
        return found.images[np.arange(min(len(found.images), 4))]

    metadata.pop("sha256")
    return Opened([*fuzz_corpus.documents(metadata), shard], parse)


def _mixture(place: Place) -> Opened:
    from ganomaly_jax.core import config
    from ganomaly_jax.data import datasets, sources
    from ganomaly_jax.data.formats import mixture

    given = place.scratch / "given.npz"
    np.savez(given, **{"images": np.arange(75, dtype=np.uint8).reshape(3, 5, 5)})
    settings = config.Data(source=str(given), height=16, width=16, channels=1)
    part = mixture.Part(
        settings, datasets.content_hash(sources.load(settings)), frozenset({"normal"}), *map(np.array, ([0], [1], [2]))
    )

    def parse(data: bytes) -> Any:
        return sources.load(config.Data(source=str(written(place.scratch / mixture.NAME, data))))

    return Opened(list(fuzz_corpus.documents(mixture.to_dict([part]))), parse)


# Settings


def _commands(place: Place) -> Opened:
    from ganomaly_jax.cli import arguments, main
    from ganomaly_jax.core import validation

    def parse(data: bytes) -> Any:
        words = data.decode("utf-8", "surrogateescape").replace("\0", "").split("\n")
        try:
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
                args, overrides = main.parse(words)
        except SystemExit as ended:
            if ended.code:
                raise
            return None
        if not hasattr(args, "run") or "config" not in args or "folder" not in args:
            return args
        settings = arguments.settings(args, overrides)
        validation.check(settings)
        return settings

    return Opened(fuzz_corpus.commands(), parse)


def _stored_config(place: Place) -> Opened:
    from ganomaly_jax.core import config_values, validation
    from ganomaly_jax.core.config import Config
    from ganomaly_jax.runs import layout, run_folder

    def parse(data: bytes) -> Any:
        written(place.scratch / layout.CONFIG, data)
        found = run_folder.stored_config(place.scratch)
        assert found is not None
        validation.check(found)
        return found

    return Opened(list(fuzz_corpus.documents(config_values.to_dict(Config()))), parse)


def _token(place: Place) -> Opened:
    from ganomaly_jax.deploy import http_gate

    path = place.scratch / "token"
    path.touch(0o600)
    return Opened(
        [b"0123456789abcdef-_0123456789ABCDEF\n"], lambda data: http_gate.read_token(str(written(path, data)))
    )


# Runs


def _history(place: Place) -> Opened:
    from ganomaly_jax.runs import history, layout

    content = (place.images / layout.HISTORY).read_bytes()
    path = place.scratch / layout.HISTORY

    def parse(data: bytes) -> Any:
        found = list(history.read(written(path, data)))
        with history.History(path, 3, 4, 2, ["contextual"]) as resumed:
            resumed.add(np.ones((3, 1)), 1.0)
        return found

    return Opened([content], parse)


def _predictions(place: Place) -> Opened:
    from ganomaly_jax.evaluation import comparison

    text = "path,label,score,p_value,verdict,reason\n"
    text += "".join(f"{i}.png,{i % 2},{i / 9},0.{i + 1},normal,\n" for i in range(8))
    first, second = (written(place.scratch / name, text.encode()) for name in ("first.csv", "second.csv"))
    return Opened([text.encode()], lambda data: comparison.compare(first, written(second, data)))


# Detectors


def _resealed(place: Place, name: str, seal: bool) -> tuple[bytes, Callable[[bytes], Path]]:
    """Returns a file of a detector folder, and what puts another in its place, with the right hashes if `seal`."""
    from ganomaly_jax.core import sealed_folder
    from ganomaly_jax.runs import layout

    folder = shutil.copytree(place.images / layout.DETECTOR, place.scratch / "detector")

    def put(data: bytes) -> Path:
        (folder / name).write_bytes(data)
        if seal:
            sealed_folder.seal(folder)
        return folder

    return (folder / name).read_bytes(), put


def _manifest(place: Place) -> Opened:
    from ganomaly_jax.core import sealed_folder

    content, put = _resealed(place, sealed_folder.MANIFEST, seal=False)
    return Opened([content], lambda data: sealed_folder.verify(put(data)))


def _meta(place: Place) -> Opened:
    from ganomaly_jax.runs import sealed_pytree
    from ganomaly_jax.scoring import scorer

    content, put = _resealed(place, sealed_pytree.META, seal=True)
    return Opened([content], lambda data: scorer.load(put(data)))


def _exported(place: Place) -> Opened:
    from ganomaly_jax.deploy import export, export_runtime
    from ganomaly_jax.scoring import scorer

    folder = place.scratch / "export"
    export.export(scorer.load(place.images), folder)
    path = folder / "manifest.json"
    manifest = path.read_bytes()

    def parse(data: bytes) -> Any:
        """Parses the manifest as it is, or as a stranger may write it, with the right checksum."""
        with contextlib.suppress(ValueError, TypeError, RecursionError):
            held = dict(json.loads(data))
            given = held.pop("sha256", None)
            right = export_runtime._hash(json.dumps(held, sort_keys=True).encode())
            data = json.dumps(held | {"sha256": right if isinstance(given, str) else given}).encode()
        path.write_bytes(data)
        try:
            return export_runtime.load(folder)
        except ValueError as error:  # an export knows no UserError: it needs nothing of this package
            if type(error) is not ValueError:
                raise
            raise UserError(str(error)) from None

    return Opened([manifest, json.dumps(json.loads(manifest)).encode()], parse)


# Streams and requests


def _stream(place: Place) -> Opened:
    from ganomaly_jax.scoring import scorer as scoring_scorer
    from ganomaly_jax.streaming import alarms, compiled_step, inputs, sensor_checks, watch

    scorer = scoring_scorer.load(place.rows)
    d = len(scorer.feature_names)
    normal = sensor_checks.NormalRanges(np.full(d, -9.0), np.full(d, 9.0), np.zeros(d, np.int64))
    settings = watch.Settings(scorer, compiled_step.compile_step(scorer), normal, sensor_checks.Settings())

    def parse(data: bytes) -> Any:
        lines = inputs.LineBuffer()
        lines.add(data)
        lines.finish()
        state = watch.start(settings, alarms.start("1/2", 3))
        said = []
        while taken := lines.take():
            for one in watch.process(state, taken):
                said += [json.dumps(value, allow_nan=False) for value in (*one.events, one.verdict) if value]
        return said

    return Opened(fuzz_corpus.lines(), parse)


def _state(place: Place) -> Opened:
    from ganomaly_jax.scoring import scorer as scoring_scorer
    from ganomaly_jax.streaming import compiled_step, monitor
    from ganomaly_jax.streaming.options import Options

    source, state, out = (place.scratch / name for name in ("rows.csv", "state.json", "out.jsonl"))
    values = np.random.default_rng(0).normal(0, 1, (30, 2))
    source.write_text("a,b\n" + "".join(f"{a},{b}\n" for a, b in values.tolist()))
    options = Options(str(source), once=True, out=str(out), state=str(state), poll=0.001, drift_every=1000)

    scorer = scoring_scorer.load(place.rows)
    step = compiled_step.compile_step(scorer, options.steps)

    def watched() -> int:
        """Monitors the file with what does not depend on the state made once."""
        with (
            mock.patch.object(scoring_scorer, "load", lambda folder: scorer),
            mock.patch.object(compiled_step, "compile_step", lambda *given: step),
        ):
            return monitor.monitor(str(place.rows), options, lambda line: None)

    def parse(data: bytes) -> Any:
        out.write_bytes(printed)
        state.write_bytes(data)
        return watched()

    watched()
    printed = out.read_bytes()
    return Opened([state.read_bytes()], parse)


def _requests(place: Place) -> Opened:
    return Opened(fuzz_http.requests(), fuzz_http.served(place.images))


def _request(data: bytes, chance: random.Random, change: fuzz_mutators.Bytes) -> bytes:
    """Changes the head of a request, or the image in its body."""
    head, between, body = data.partition(b"\n\n")
    if chance.random() < 0.2:
        return change(head) + between + body
    return head + between + fuzz_mutators.image(body, chance, change)


TARGETS: dict[str, Target] = {
    "images": Target(_image_files, fuzz_mutators.image),
    "idx": Target(_idx, fuzz_mutators.zipped, 4096),
    "npz": Target(_arrays, fuzz_mutators.array, 8192),
    "csv": Target(_tables, plain, 8192),
    "recordings": Target(_recordings, plain, 2**14),
    "packed": Target(_packed, fuzz_mutators.document, 2**17),
    "mixture": Target(_mixture, fuzz_mutators.document),
    "commands": Target(_commands, plain, 2048),
    "config": Target(_stored_config, fuzz_mutators.document),
    "token": Target(_token, plain, 512),
    "history": Target(_history, plain, 4096),
    "predictions": Target(_predictions, plain, 4096),
    "manifest": Target(_manifest, fuzz_mutators.document),
    "meta": Target(_meta, fuzz_mutators.document),
    "export": Target(_exported, fuzz_mutators.document),
    "stream": Target(_stream, plain, 8192),
    "http": Target(_requests, _request, 2**15),
    "state": Target(_state, fuzz_mutators.document),
}
