"""Every parser on arbitrary bytes and on changed valid files: a value or a sentence for the user, nothing else.

The targets are those of benchmarks/faults/fuzzing.py, which tries them for an hour.
"""

import json
import random
import signal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.faults import fuzz_mutators, fuzz_target, fuzz_targets, fuzz_worker, fuzzing

# Those of detectors take longer an input.
SLOW = {"meta": 3, "state": 8, "http": 15, "export": 15}
EXTRAS = {"recordings": "soundfile", "packed": "array_record", "http": "prometheus_client", "export": "flatbuffers"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of the two detectors, trained once."""
    folder = tmp_path_factory.mktemp("fuzzing")
    fuzzing.prepare(folder)
    return folder


@pytest.fixture(scope="module", params=fuzz_targets.TARGETS)
def opened(request, runs, tmp_path_factory):
    """(name, target, opened)."""
    if request.param in EXTRAS:
        pytest.importorskip(EXTRAS[request.param])
    place = fuzz_target.Place(tmp_path_factory.mktemp("scratch"), *(runs / name for name in fuzzing.RUNS))
    target = fuzz_targets.TARGETS[request.param]
    return request.param, target, target.open(place)


def test_bytes_end_in_a_value_or_a_sentence(opened):
    name, target, parser = opened
    assert fuzz_target.VALUE in {fuzz_target.outcome(parser, data) for data in parser.seeds}

    @settings(max_examples=SLOW.get(name, 30))
    @given(st.binary(max_size=200))
    def arbitrary(data):
        fuzz_target.outcome(parser, data)

    @settings(max_examples=3 * SLOW.get(name, 30))
    @given(st.sampled_from(list(parser.seeds)), st.integers(0, 2**32))
    def changed(data, seed):
        chance = random.Random(seed)
        data = target.mutate(data, chance, lambda part: fuzz_mutators.mutated_bytes(part, chance))
        fuzz_target.outcome(parser, data[: target.longest])

    signal.alarm(120)  # nothing may hang
    arbitrary()
    changed()
    signal.alarm(0)


def test_messages_that_would_act_on_a_terminal_are_findings():
    def parse(data):
        raise fuzz_target.DamagedError(data.decode())

    parser = fuzz_target.Opened([], parse)
    assert fuzz_target.outcome(parser, b"two\nlines") == "two\nlines"
    for data in (b"", b"\x1b[2J"):
        with pytest.raises(fuzz_target.UnprintableError):
            fuzz_target.outcome(parser, data)


def test_a_finding_is_known_by_its_place_and_keeps_its_input(tmp_path):
    with pytest.raises(AttributeError) as caught:
        fuzzing.arguments(None.split())
    kind, finding = fuzz_worker.described(caught.value, b"\xff")
    assert kind.startswith("AttributeError at test_fuzzing.py:") and finding["input"] == "/w=="
    assert fuzz_worker.shortened("/tmp/x.csv: row 17 holds 'x y'") == "# row # holds #"
    found = fuzz_worker.Found(tmp_path / "stats.json")
    found.inputs = 3
    found.write()
    assert json.loads((tmp_path / "stats.json").read_text())["inputs"] == 3 and found.peak_mib > 1


def test_the_page_counts_what_did_not_hold():
    one = dict.fromkeys((*fuzzing._SUMS, *fuzzing._LARGEST), 1) | {"commit": "abc", "distinct_outcomes": 1}
    findings = [{"kind": kind, "times": 2} for kind in ("KeyError at x.py:1", "hang", "memory")]
    report = {
        "date": "today", "machine": {"processor": "p", "cores": 2, "python": "3"}, "versions": {"jax": "1"},
        "settings": {"seed": 0, "limit": 30, "memory": 1024},
        "targets": {"csv": one | {"findings": findings}, "idx": one | {"findings": []}},
    }  # fmt: skip
    page = fuzzing.markdown(report)
    assert "| csv | abc | 0.0 | 0.0 | 1 | 1 | 1 | 1 | 1.00 | 0 | 1 | 1 | 1 |" in page and "hang, 2 times" in page
    assert "All of it held." in fuzzing.markdown(report | {"targets": {"idx": report["targets"]["idx"]}})
