"""The benchmark of the convolutions' forms: all are the same function, the choice is the code's."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.common import command, timing
from benchmarks.speed import convolution
from benchmarks.speed.convolution_forms import ROLES, SIZES, Size, available, chosen
from ganomaly_jax.model import convolution as model_convolution


def inputs(name, size, batch=2):
    random = np.random.default_rng(0)
    return [jnp.asarray(random.standard_normal(shape), jnp.float32) for shape in ROLES[name].shapes(batch, size)]


@pytest.mark.parametrize("name", ROLES)
def test_every_form_gives_the_values_of_the_layer_itself(name):
    size = Size(8, 3, 5) if ROLES[name].layer != "head" else Size(4, 3, 5)
    arrays = inputs(name, size)
    forms = available(name, size)
    assert len(forms) >= 2
    programs = forms | {"asked": ROLES[name].asked}
    found = jax.jit(lambda *a: {form: function(*a) for form, function in programs.items()})(*arrays)
    wanted = np.asarray(found["asked"])
    for form in forms:
        np.testing.assert_allclose(found[form], wanted, atol=2e-5 * np.abs(wanted).max(), err_msg=form)


@pytest.mark.parametrize("name", ["downsample", "extra-input-gradient", "head-kernel-gradient"])
def test_in_bfloat16_there_are_forms_in_float32_too(name):
    size = Size(4, 3, 5)
    forms = available(name, size, "bfloat16")
    plain = available(name, size)
    assert set(forms) == set(plain) | {f"{form} in float32" for form in plain}
    arrays = [a.astype(jnp.bfloat16) for a in inputs(name, size)]
    wanted = np.asarray(plain["lax"](*(a.astype(jnp.float32) for a in arrays)))
    found = forms["lax in float32"](*arrays)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), wanted, rtol=2**-8)


@pytest.mark.parametrize(
    ("name", "size", "batch", "form"),
    [
        ("downsample", Size(32, 1, 64), 8, "patches"),
        ("downsample", Size(16, 16, 32), 8, "lax"),
        ("downsample", Size(16, 64, 128), 64, "filtered"),
        ("upsample", Size(32, 3, 64), 8, "fold"),
        ("upsample", Size(16, 16, 32), 8, "lax"),
        ("upsample", Size(16, 64, 128), 64, "filtered"),
        ("kernel-gradient", Size(32, 1, 64), 8, "patches"),
        ("kernel-gradient", Size(16, 16, 32), 8, "taps"),
        ("kernel-gradient", Size(16, 64, 128), 64, "filtered"),
        ("extra-input-gradient", Size(16, 64, 64), 8, "lax"),
        ("extra-kernel-gradient", Size(16, 64, 64), 8, "taps"),
        ("expand", Size(4, 256, 100), 8, "dot"),
    ],
)
def test_the_choice_is_the_one_that_the_limits_of_the_code_demand(monkeypatch, name, size, batch, form):
    limits = {"_FEW_CHANNELS": 4, "_FILTERING_CHANNELS": 32, "_FILTERING_BLOCKS": 64}  # whatever they will be one day
    for limit, value in limits.items():
        monkeypatch.setattr(model_convolution, limit, value)
    assert chosen(name, size, batch, "cpu") == form
    elsewhere = "dot" if ROLES[name].layer == "head" else "lax"
    assert chosen(name, size, batch, "cuda") == elsewhere
    assert chosen(name, size, batch, "cpu") == form  # no memory of what was asked before


def test_the_choice_follows_the_code(monkeypatch):
    asked = ("downsample", Size(16, 16, 32), 8, "cpu")
    assert chosen(*asked) == "lax"
    monkeypatch.setattr(model_convolution, "_FEW_CHANNELS", 16)
    assert chosen(*asked) == "patches"
    monkeypatch.setattr(model_convolution, "_strided_dots", lambda x, k: 2 * model_convolution._strided(x, k))
    assert chosen(*asked) is None


def of_upsample(name):
    """The role's twin: the same forms, asked through the gradients of `upsample`."""
    role = ROLES[name]
    if name == "kernel-gradient":

        def asked(g, x):
            return jax.vjp(model_convolution.upsample, x, jnp.zeros((4, 4, x.shape[-1], g.shape[-1])))[1](g)[1]

        forms = {
            form: lambda g, x, f=function: model_convolution._adjoint_kernel(f(g, x))
            for form, function in role.forms.items()
        }
        return dataclasses.replace(role, asked=asked, forms=forms)
    twin, maps = (
        (model_convolution.upsample, ("large", "twin"))
        if name == "downsample"
        else (model_convolution.downsample, ("small", "kernel"))
    )
    scale = {"downsample": lambda side: side // 2, "upsample": lambda side: side * 2}[name]

    def asked(g, k):
        like = jnp.zeros((len(g), scale(g.shape[1]), scale(g.shape[2]), k.shape[2]))
        return jax.vjp(twin, like, k)[1](g)[0]

    return dataclasses.replace(role, asked=asked, arrays=maps, of_twin=True)


@pytest.mark.parametrize("name", ["downsample", "upsample", "kernel-gradient"])
def test_the_gradients_of_the_twin_are_chosen_alike(monkeypatch, name):
    cases = [(Size(32, 1, 64), 8), (Size(8, 8, 16), 2), (Size(16, 64, 128), 64)]
    forward = [chosen(name, *case, "cpu") for case in cases]
    assert len(set(forward)) == 3 and None not in forward
    monkeypatch.setitem(ROLES, name, of_upsample(name))
    assert [chosen(name, *case, "cpu") for case in cases] == forward


def test_filtering_needs_maps_of_whole_blocks():
    assert "filtered" in available("upsample", Size(8, 3, 5))
    assert "filtered" not in available("upsample", Size(6, 3, 5))


def test_each_default_has_a_choice_that_is_among_its_forms():
    for name, role in ROLES.items():
        for size in convolution._sizes(SIZES[role.layer], [name]):
            assert chosen(name, size, 8, "cpu") in role.forms


def test_operations_by_the_definition():
    assert ROLES["upsample"].flops(2, Size(8, 3, 5)) == 2 * 2 * 16 * (16 * 3 * 5)
    assert ROLES["extra"].flops(2, Size(8, 3, 5)) == 2 * 2 * 64 * (9 * 3 * 5)
    assert ROLES["collapse"].flops(2, Size(4, 3, 5)) == 2 * 2 * 16 * 3 * 5


@pytest.mark.parametrize(("inner", "steps"), [(1, 3), (2, 3)])
def test_a_loop_calls_the_form_as_often_as_it_is_asked_to_and_on_changed_inputs(inner, steps):
    seen = []

    def form(a, b):
        jax.debug.callback(lambda a, b: seen.append((float(a[0]), float(b[0]))), a, b)
        return a @ b[:, None]

    side = convolution.side(form, [jnp.ones(3), jnp.ones(3)], inner)
    side.run(steps)
    jax.effects_barrier()
    assert len(seen) == inner * steps and side.finite()
    assert all(len(set(values)) == inner * steps for values in zip(*seen, strict=True))


def test_outside_a_loop_too():
    seen = []
    side = convolution.side(lambda a, b: jax.debug.callback(lambda: seen.append(1)) or a + b, [jnp.ones(3)] * 2, 0)
    side.run(3)
    jax.effects_barrier()
    assert len(seen) == 3 and side.finite()


def taken(**loops):
    return {form: {"loop": seconds, "outside": [0.5] * len(seconds)} for form, seconds in loops.items()}


def case(choice, **loops):
    about = {"role": "downsample", "size": [32, 1, 64], "batch": 8, "left_out": {}}
    return about | convolution.summarise(10**9, taken(**loops), choice)


def test_figures_of_a_case_by_hand():
    found = case("taps", lax=[0.1, 0.1, 0.4], taps=[0.2, 0.15, 0.4])
    assert found["best"] == "lax" and found["choice"] == "taps"
    assert found["forms"]["taps"]["loop_ms"]["median"] == pytest.approx(200)
    assert found["forms"]["taps"]["outside_ms_rounds"] == [500] * 3
    assert found["forms"]["lax"]["flops_per_s"] == pytest.approx(1e10)
    assert found["ratio"]["median"] == pytest.approx(1.5)  # rounds 2, 1.5, 1
    lines = [line.split(" | ") for line in convolution.rows(found)]
    assert lines[0] == ["32x1x64", "8", "lax", "100 (100-250)", "500 (500-500)", "10", "fastest"]
    assert lines[1][-1] == "chosen, choice is not the fastest (1.50)"
    assert convolution.verdict(found).startswith("choice is not the fastest: taps takes 1.50 (1.25-1.75)")


def test_what_is_within_the_noise_is_not_blamed():
    found = case("taps", lax=[0.1] * 3, taps=[0.109] * 3)
    assert convolution.rows(found)[1].endswith("| chosen, fastest within the noise (1.09)")
    assert "within the noise" in convolution.verdict(found)
    found = case("lax", lax=[0.1] * 3, taps=[0.109] * 3)
    assert [line.rsplit(" | ", 1)[1] for line in convolution.rows(found)] == ["chosen, fastest", "-"]


def test_what_was_too_slow_to_repeat_is_compared_all_the_same():
    found = case("lax", lax=[4.0], taps=[0.1, 0.2, 0.3])
    assert found["ratio"]["median"] == pytest.approx(20)
    assert " | 4000 (once) | " in convolution.rows(found)[0]
    assert case(None, lax=[4.0])["ratio"] is None


def options(tmp_path, *more):
    small = ["--roles", "expand,collapse", "--sizes", "3x2x3", "--batches", "2", "--rounds", "2", "--turn", "0.001"]
    return ["--out", str(tmp_path / "results" / "here"), *small, *more]


def test_one_command_writes_a_whole_report(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(timing, "PAUSE_S", 0)
    assert convolution.main(options(tmp_path, "--device", "cpu")) == 0
    assert "[2/2] collapse 3x2x3, batch 2" in capsys.readouterr().out
    report = json.loads((tmp_path / "results" / "here.json").read_text())
    assert report["finished"] and report["benchmark"] == "convolution"
    assert {"jax", "numpy"} <= set(report["machine"]["versions"]) and len(report["load_average"]["after"]) == 3
    first, second = report["cases"]
    assert list(first["forms"]) == ["lax", "dot", "taps"] and list(second["forms"]) == ["lax", "dot"]
    assert (first["choice"], second["choice"]) == ("dot", "dot")
    for found in report["cases"]:
        assert not found["left_out"] and found["ratio"]["median"] > 0
        for form in found["forms"].values():
            assert len(form["loop_ms_rounds"]) == len(form["outside_ms_rounds"]) == 2
            assert form["flops_per_s"] > 0
    page = (tmp_path / "results" / "here.md").read_text()
    assert "## expand" in page and "## collapse" in page and "load average" in page
    tables = [line for line in page.splitlines() if line.startswith("| 3x2x3 | 2 | ")]
    assert len(tables) == 5 and {line.count("|") for line in tables} == {convolution._COLUMNS.count("|") + 2}


def test_a_slow_form_runs_once_and_a_broken_one_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "PAUSE_S", 0)
    asked = convolution.arguments(options(tmp_path, "--limit", "1e-9"))
    asked.inner, asked.device = 1, "cpu"
    forms = dict(ROLES["collapse"].forms)
    forms["wrong"] = lambda x, k: jnp.full((2, 3), jnp.nan)
    monkeypatch.setitem(ROLES, "collapse", dataclasses.replace(ROLES["collapse"], forms=forms))
    side = convolution.side
    monkeypatch.setattr(convolution, "side", lambda form, *a: 1 / 0 if form is forms["lax"] else side(form, *a))
    found = convolution.measure("collapse", Size(4, 2, 3), 2, asked, lambda line: None)
    assert list(found["forms"]) == ["dot"] and len(found["forms"]["dot"]["loop_ms_rounds"]) == 1
    assert found["left_out"]["lax, loop"].startswith("ZeroDivisionError")
    assert found["left_out"]["wrong, outside"] == "its numbers are not finite"


def test_a_stopped_run_keeps_what_it_has_and_a_case_that_fails_is_listed(tmp_path, monkeypatch, capsys):
    def measure(name, *_):
        raise KeyboardInterrupt if name == "collapse" else ValueError("strange")

    monkeypatch.setattr(convolution, "measure", measure)
    assert convolution.main(options(tmp_path)) == 130
    assert "stopped" in capsys.readouterr().err
    report = json.loads((tmp_path / "results" / "here.json").read_text())
    assert len(report["cases"]) == 1 and not report["finished"]
    page = (tmp_path / "results" / "here.md").read_text()
    assert "Not finished" in page and "the case: ValueError: strange" in page


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--roles", "downsample,sleep"], "--roles"),
        (["--sizes", "32x1"], "SIDExCHANNELSxFEATURES"),
        (["--sizes", "32x0x64"], "SIDExCHANNELSxFEATURES"),
        (["--roles", "collapse,upsample", "--sizes", "4x2x3,5x1x2"], "got 5x1x2, expected an even side"),
        (["--batches", "0"], "from 1"),
        (["--rounds", "0"], "--rounds"),
        (["--turn", "0"], "--turn"),
        (["--limit", "-1"], "--limit"),
        (["--device", "gpu"], "finds none"),
    ],
)
def test_bad_arguments_are_one_sentence(tmp_path, capsys, arguments, words):
    assert convolution.main([*options(tmp_path), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and words in error and error.count("\n") == 1


def test_a_place_that_cannot_be_written_to_is_found_first(tmp_path, monkeypatch, capsys):
    (tmp_path / "results").write_text("a file where the folder would be")
    monkeypatch.setattr(convolution, "measure", lambda *_: pytest.fail("measured first"))
    assert convolution.main(options(tmp_path)) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_quick_run_takes_the_smallest_size_of_each_role(tmp_path):
    quick = convolution.arguments(["--out", str(tmp_path), "--quick"])
    assert [name for name, *_ in quick.cases] == list(ROLES)
    every = convolution.arguments(["--out", str(tmp_path)])
    assert len(every.cases) > 5 * len(quick.cases) and every.rounds > quick.rounds
    assert command.numbers("1,8,64", "") == sorted({batch for *_, batch in every.cases})
