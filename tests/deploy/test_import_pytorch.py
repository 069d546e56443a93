"""Detectors from PyTorch files: the scores of PyTorch, from raw pixels, and nothing run from the file."""

import numpy as np  # noqa: I001
import pytest
from PIL import Image
from tests.support import blobs

import ganomaly_jax
from ganomaly_jax.cli import main
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.deploy import export

torch = pytest.importorskip("torch", reason="importing needs the extra `torch`")

SIDE, CHANNELS, LATENT, FEATURES = 32, 3, 5, 4
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Where anomalib keeps what the original keeps under `main`.
PARTS = {"initial": "input_layers", "extra": "extra_layers", "pyramid": "pyramid_features", "final": "final_layers"}


def weights(extra):
    """A generator's state dict under the original's names, drawn so that scores differ."""
    torch.manual_seed(0)
    made = {}

    def conv(name, *shape):
        made[f"{name}.weight"] = torch.randn(shape) * 0.1

    def norm(name, n):
        made[f"{name}.weight"], made[f"{name}.bias"] = 1 + 0.1 * torch.randn(n), 0.1 * torch.randn(n)
        made[f"{name}.running_mean"], made[f"{name}.running_var"] = 0.1 * torch.randn(n), 0.5 + torch.rand(n)
        made[f"{name}.num_batches_tracked"] = torch.tensor(7)

    for encoder in ("encoder1.main", "encoder2.main"):
        f = FEATURES
        conv(f"{encoder}.initial-conv-{CHANNELS}-{f}", f, CHANNELS, 4, 4)
        for i in range(extra):
            conv(f"{encoder}.extra-layers-{i}-{f}-conv", f, f, 3, 3)
            norm(f"{encoder}.extra-layers-{i}-{f}-batchnorm", f)
        for _ in range(2):
            conv(f"{encoder}.pyramid-{f}-{2 * f}-conv", 2 * f, f, 4, 4)
            f *= 2
            norm(f"{encoder}.pyramid-{f}-batchnorm", f)
        conv(f"{encoder}.final-{f}-1-conv", LATENT, f, 4, 4)
    conv(f"decoder.main.initial-{LATENT}-{f}-convt", LATENT, f, 4, 4)
    norm(f"decoder.main.initial-{f}-batchnorm", f)
    for _ in range(2):
        conv(f"decoder.main.pyramid-{f}-{f // 2}-convt", f, f // 2, 4, 4)
        f //= 2
        norm(f"decoder.main.pyramid-{f}-batchnorm", f)
    for i in range(extra):
        conv(f"decoder.main.extra-layers-{i}-{f}-conv", f, f, 3, 3)
        norm(f"decoder.main.extra-layers-{i}-{f}-batchnorm", f)
    conv(f"decoder.main.final-{f}-{CHANNELS}-convt", f, CHANNELS, 4, 4)
    return made


def torch_scores(made, images, extra, anomalib):
    """The network in PyTorch's own operations, in `eval` mode: the mean squared difference of the latents."""
    functional = torch.nn.functional

    def kernel(start):
        (name,) = (n for n in made if n.startswith(start) and n.endswith(("conv.weight", "convt.weight", "-4.weight")))
        return made[name]

    def norm(x, name):
        moments = made[f"{name}.running_mean"], made[f"{name}.running_var"]
        return functional.batch_norm(x, *moments, made[f"{name}.weight"], made[f"{name}.bias"])

    def leaky(x):
        return functional.leaky_relu(x, 0.2)

    def encode(x, net):
        f = FEATURES
        x = leaky(functional.conv2d(x, kernel(f"{net}.initial"), stride=2, padding=4 if anomalib else 1))
        for i in range(extra):
            x = functional.conv2d(x, kernel(f"{net}.extra-layers-{i}"), padding=1)
            x = leaky(norm(x, f"{net}.extra-layers-{i}-{f}-batchnorm"))
        for _ in range(2):
            x = functional.conv2d(x, kernel(f"{net}.pyramid-{f}"), stride=2, padding=1)
            f *= 2
            x = leaky(norm(x, f"{net}.pyramid-{f}-batchnorm"))
        return functional.conv2d(x, kernel(f"{net}.final"))

    def decode(z):
        net, f = "decoder.main", 4 * FEATURES
        x = torch.relu(norm(functional.conv_transpose2d(z, kernel(f"{net}.initial")), f"{net}.initial-{f}-batchnorm"))
        for _ in range(2):
            x = functional.conv_transpose2d(x, kernel(f"{net}.pyramid-{f}"), stride=2, padding=1)
            f //= 2
            x = torch.relu(norm(x, f"{net}.pyramid-{f}-batchnorm"))
        for i in range(extra):
            x = functional.conv2d(x, kernel(f"{net}.extra-layers-{i}"), padding=1)
            x = norm(x, f"{net}.extra-layers-{i}-{f}-batchnorm")
            x = leaky(x) if anomalib else torch.relu(x)
        return torch.tanh(functional.conv_transpose2d(x, kernel(f"{net}.final"), stride=2, padding=1))

    x = torch.tensor(images.transpose(0, 3, 1, 2)).float() / 255
    mean, deviation = (torch.tensor(v).view(1, 3, 1, 1) for v in ((MEAN, DEVIATION) if anomalib else ([0.5] * 3,) * 2))
    with torch.no_grad():
        z = encode((x - mean) / deviation, "encoder1.main")
        z_hat = encode(decode(z), "encoder2.main")
    return ((z - z_hat) ** 2).mean(1).flatten().numpy()


def as_anomalib(made):
    """The same tensors in the checkpoint of anomalib's Lightning module."""
    state = {
        "model.discriminator.features.0.weight": torch.zeros(1),
        "post_processor.x": torch.zeros(()),
    }
    for name, value in made.items():
        network, _, rest = name.split(".", 2)
        part = next(part for start, part in PARTS.items() if rest.startswith(start))
        if network == "decoder":
            part = {"input_layers": "latent_input", "pyramid_features": "inverse_pyramid"}.get(part, part)
        if network != "decoder" and rest.startswith("final"):
            state[f"model.generator.{network}.final_conv_layer.weight"] = value
        else:
            state[f"model.generator.{network}.{part}.{rest}"] = value
    transforms = [{"init_args": {"size": [SIDE, SIDE]}}, {"init_args": {"mean": list(MEAN), "std": list(DEVIATION)}}]
    config = {"transform": {"class_path": "Compose", "init_args": {"transforms": transforms}}}
    return {"state_dict": state, "epoch": 3, "hyper_parameters": {}, "anomalib_pre_processor_config": config}


@pytest.fixture(scope="module")
def normals():
    """Colour images [60, 32, 32, 3] uint8."""
    grey = blobs(60, 0).repeat(2, 1).repeat(2, 2)
    return np.concatenate([grey, grey[:, ::-1], 255 - grey], -1)


@pytest.mark.parametrize(("anomalib", "extra"), [(False, 0), (True, 1)])
def test_scores_are_those_of_pytorch(anomalib, extra, normals, tmp_path):
    made = weights(extra)
    file = tmp_path / "weights"
    torch.save(as_anomalib(made) if anomalib else {"epoch": 3, "state_dict": made}, file)
    scorer = ganomaly_jax.import_pytorch(file, normals[:40], tmp_path / "run")
    expected = torch_scores(made, normals, extra, anomalib)
    assert expected.shape == (60,) and np.ptp(expected) > 0.05 * expected.mean()
    np.testing.assert_allclose(scorer(normals), expected, rtol=1e-4)
    other = torch_scores(made, normals, extra, not anomalib)
    assert np.abs(other - expected).max() > 0.01 * expected.max()  # what differs between the two networks shows
    loaded = ganomaly_jax.load(tmp_path / "run")
    np.testing.assert_array_equal(loaded(normals), scorer(normals))
    assert loaded.threshold == np.sort(scorer(normals[:40]))[-1]
    x, x_hat = loaded.reconstruct(normals[:3])
    assert np.abs(x).max() <= 1 and np.abs(x_hat).max() <= 1 and np.ptp(x_hat) > 0
    assert ganomaly_jax.recalibrate(tmp_path / "run", quantile=0.5).threshold < loaded.threshold
    export.export(loaded, tmp_path / "export")
    with pytest.raises(UserError, match="already holds a run"):
        ganomaly_jax.import_pytorch(file, normals, tmp_path / "run")


def test_the_command(normals, tmp_path, capsys):
    torch.save(weights(0), tmp_path / "netG.pth")
    (tmp_path / "good").mkdir()
    for i, image in enumerate(normals[:30]):
        Image.fromarray(image).save(tmp_path / "good" / f"{i:02}.png")
    run = ["--workdir", str(tmp_path / "run")]
    assert main.main(["import", str(tmp_path / "netG.pth"), "--data", str(tmp_path / "good"), *run]) == 0
    assert "32x32x3" in capsys.readouterr().out
    assert main.main(["predict", str(tmp_path / "good" / "00.png"), *run]) == 0
    assert (
        main.main(["predict", str(tmp_path / "good" / "00.png"), *run, "--overwrite"]) == 0
    )  # no harm to the detector


def test_what_cannot_be_scored_is_refused(normals, tmp_path):
    file = tmp_path / "file.ckpt"

    def refused(content, said, images=normals):
        torch.save(content, file)
        with pytest.raises(UserError, match=said):
            ganomaly_jax.import_pytorch(file, images, tmp_path / "run")
        assert not (tmp_path / "run").exists()

    refused({"a": torch.zeros(3)}, "no generator of a GANomaly")
    made = weights(0)
    refused({name: value for name, value in made.items() if "initial-conv" not in name}, "no generator")
    refused({name: value for name, value in made.items() if not name.startswith("decoder")}, "no tensor 'decoder")
    refused(made, "floating-point", normals.astype(np.float32))
    refused(made, "1 to N", normals[..., :2])
    for place, said in (("size", "trained with"), ("mean", "normalises by")):
        content = as_anomalib(made)
        for one in content["anomalib_pre_processor_config"]["transform"]["init_args"]["transforms"]:
            if place in one["init_args"]:
                one["init_args"][place] = [20, 30] if place == "size" else [0.5, 0.5, 0.5]
        refused(content, said)

    class Evil:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    refused({"state_dict": made, "callbacks": Evil()}, "weights only")
    assert not (tmp_path / "ran").exists()


def test_the_network_of_anomalib_is_not_trained():
    with pytest.raises(UserError, match="square of at least 32"):
        ganomaly_jax.Ganomaly((32, 64, 3), network="anomalib")
    settings = ganomaly_jax.Config()
    settings.model.network = "anomalib"
    with pytest.raises(UserError, match=r"model\.network"):
        ganomaly_jax.train(settings, "nowhere", np.zeros((40, 32, 32, 3), np.uint8))
