"""Weights from PyTorch: their names and sizes, and files that are none. A stand-in reads where torch is not there."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.model import pytorch


class Tensor:
    """As much of a tensor of PyTorch as is used."""

    def __init__(self, value):
        self.value = np.asarray(value)

    def numpy(self):
        return self.value


@pytest.fixture
def torch_reads(monkeypatch):
    """Makes `torch.load` give, or raise, what the test says; how it was called is kept."""
    asked = []

    def set_to(content):
        def load(path, **options):
            asked.append((path.name, options))
            if isinstance(content, Exception):
                raise content
            return content

        monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(load=load))
        return asked

    return set_to


def test_a_state_dict_is_read_plain_and_as_the_authors_store_it(torch_reads):
    weights = {"a.weight": Tensor([1.0, 2.0])}
    for content in (weights, {"epoch": 1, "state_dict": weights}):
        asked = torch_reads(content)
        found = pytorch.read_pytorch("netG.pth")
        assert list(found) == ["a.weight"] and found["a.weight"].tolist() == [1, 2]
    assert asked == [("netG.pth", {"map_location": "cpu", "weights_only": True})] * 2  # nothing runs from the file


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": [1]}, {"a": 3}, {"a": Tensor(1), "b": "x"}])
def test_files_of_anything_else_are_refused(torch_reads, content):
    torch_reads(content)
    with pytest.raises(UserError, match=r"netG\.pth: expected a state dict"):
        pytorch.read_pytorch("netG.pth")


@pytest.mark.parametrize(
    ("error", "said"),
    [(RuntimeError("weights only\nand more"), "only: weights only$"), (EOFError(), "only: EOFError$")],
)
def test_what_torch_cannot_read_is_a_sentence(torch_reads, error, said):
    torch_reads(error)
    with pytest.raises(UserError, match=said):
        pytorch.read_checkpoint("netG.pth")


def test_without_torch_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"ganomaly-jax\[torch\]"):
        pytorch.read_checkpoint("netG.pth")


def generator(prefix="", latent=7, features=8, channels=3, pyramid=2, extra=1):
    """The tensors of an encoder that say its sizes, under the authors' names."""
    names = {f"initial-conv-{channels}-{features}": (features, channels, 4, 4)}
    names |= {f"extra-layers-{i}-{features}-conv": (features, features, 3, 3) for i in range(extra)}
    names |= {f"pyramid-{features << i}-{features << i + 1}-conv": (2, 2, 4, 4) for i in range(pyramid)}
    names |= {f"final-{features << pyramid}-1-conv": (latent, features << pyramid, 4, 4)}
    return {f"{prefix}encoder1.main.{name}.weight": np.zeros(shape) for name, shape in names.items()}


@pytest.mark.parametrize("prefix", ["", "module."])
def test_sizes_follow_from_names_and_shapes(prefix):
    sizes = {"side": 32, "channels": 3, "latent_size": 7, "features": 8, "extra_layers": 1}
    assert pytorch.infer_sizes(generator(prefix)) == sizes
    assert pytorch.infer_sizes(generator(prefix, pyramid=0, extra=0)) == sizes | {"side": 8, "extra_layers": 0}


def test_tensors_of_no_generator_are_refused():
    whole = generator()
    first, *_, last = whole
    for wrong in (
        {},
        {name: value for name, value in whole.items() if name != first},
        {name: value for name, value in whole.items() if name != last},
        whole | {last: np.zeros((7, 32))},
        whole | {first.replace("-8", "-9"): whole[first]},
    ):
        with pytest.raises(UserError, match="no generator of a GANomaly"):
            pytorch.infer_sizes(wrong)


def test_names_of_anomalib_become_those_of_the_authors():
    named = {
        "model.generator.encoder1.final_conv_layer.weight": np.zeros((7, 32, 4, 4)),
        "model.generator.decoder.pyramid_features.pyramid-32-16-convt.weight": np.zeros(1),
        "model.discriminator.features.weight": np.zeros(1),
        "loss": np.zeros(1),
    }
    assert set(pytorch.rename_anomalib(named)) == {
        "encoder1.main.final-32-1-conv.weight",
        "decoder.main.pyramid-32-16-convt.weight",
    }
    assert pytorch.rename_anomalib(generator()) is None


def test_files_of_pytorch_itself(tmp_path):
    torch = pytest.importorskip("torch", reason="reading .pth files needs the extra `torch`")
    weights = {"a.weight": torch.arange(6.0).reshape(2, 3)}
    torch.save({"epoch": 1, "state_dict": weights}, tmp_path / "netG.pth")
    np.testing.assert_array_equal(pytorch.read_pytorch(tmp_path / "netG.pth")["a.weight"], np.arange(6.0).reshape(2, 3))
    (tmp_path / "bad.pth").write_bytes(b"not a file of torch")
    with pytest.raises(UserError, match=r"bad\.pth"):
        pytorch.read_pytorch(tmp_path / "bad.pth")

    class Evil:
        def __reduce__(self):
            return (print, ("code ran",))

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="weights only"):
        pytorch.read_pytorch(tmp_path / "evil.pth")
