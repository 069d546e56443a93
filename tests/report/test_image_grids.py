import ast
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.report import image_grids


def random_pair(n=3, height=32, width=32, channels=1, seed=0):
    generator = np.random.default_rng(seed)
    return generator.uniform(-1, 1, (2, n, height, width, channels)).astype(np.float32)


def find(image, tile):
    """(top, left) of each place where the tile [h, w, 3] lies in the picture."""
    image = np.asarray(image)
    high, wide = tile.shape[:2]
    places = np.argwhere((image == tile[0, 0]).all(-1))
    return [(y, x) for y, x in places.tolist() if np.array_equal(image[y : y + high, x : x + wide], tile)]


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_grid_shows_each_input_above_its_reconstruction(channels):
    x, x_hat = random_pair(n=10, channels=channels)
    image = image_grids.grid(x, x_hat, columns=4)
    assert image.mode == "RGB"
    for i in range(10):
        places = []
        for one in (x[i], x_hat[i]):
            tile = image_grids.to_rgb(one).repeat(3, axis=0).repeat(3, axis=1)
            assert tile.shape == (96, 96, 3)
            (place,) = find(image, tile)
            places.append(place)
        (top, left), (bottom, left_below) = places
        assert (left_below, bottom) == (left, top + 96 + image_grids.GAP)
    left_of = [find(image, image_grids.to_rgb(x[i]).repeat(3, 0).repeat(3, 1))[0] for i in range(10)]
    assert len({left for _, left in left_of}) == 4
    assert len({top for top, _ in left_of}) == 3


@pytest.mark.parametrize(
    ("height", "width", "factor"), [(16, 16, 6), (28, 28, 4), (128, 128, 1), (32, 128, 3), (256, 16, 1)]
)
def test_tiles_are_enlarged_by_whole_factors(height, width, factor):
    x, x_hat = random_pair(1, height, width)
    image = image_grids.grid(x, x_hat)
    assert len(find(image, image_grids.to_rgb(x[0]).repeat(factor, 0).repeat(factor, 1))) == 1


def test_to_rgb():
    grey = np.array([-1, 0, 1, 7, -7, np.nan, np.inf, -np.inf], np.float32).reshape(1, 8, 1)
    assert image_grids.to_rgb(grey)[0, :, 0].tolist() == [0, 128, 255, 255, 0, 128, 255, 0]
    colour = np.array([1, -1, 0], np.float32).reshape(1, 1, 3)
    assert image_grids.to_rgb(colour)[0, 0].tolist() == [255, 0, 128]
    five = np.array([1, 1, 1, -1, -1], np.float32).reshape(1, 1, 5)  # mean 0.2
    assert image_grids.to_rgb(five)[0, 0].tolist() == [153, 153, 153]


def test_residual_is_the_mean_over_channels():
    x = np.array([[[[1.0, 0.0, -1.0]]]])
    x_hat = np.array([[[[-1.0, 0.5, -1.0]]]])
    np.testing.assert_allclose(image_grids.residual(x, x_hat), [[[2.5 / 3]]])


def test_heat_is_a_fixed_scale():
    assert image_grids.heat(np.array([0.0, 0.25, 0.5, 9.0, np.nan]), 0.5).tolist() == [
        list(image_grids.COLOURS[i]) for i in (0, 128, 255, 255, 255)
    ]
    np.testing.assert_array_equal(image_grids.heat(np.array(0.1), 0.2), image_grids.heat(np.array(0.2), 0.4))


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_a_scale_that_is_none_is_refused(bad):
    with pytest.raises(UserError, match="residual_max"):
        image_grids.titled_grid([("a", *random_pair())], bad)


def test_the_same_residual_has_the_same_colour_whatever_else_is_shown():
    x, x_hat = np.zeros((2, 1, 32, 32, 1), np.float32)
    x_hat[0, :16] = 0.3
    other = np.where(x_hat == 0, 2.0, x_hat)  # the same 0.3, beside a far larger residual
    colour = tuple(image_grids.heat(np.array(0.3), 1.0).tolist())
    area = [np.all(np.asarray(image_grids.titled_grid([("a", x, y)], 1.0)) == colour, -1) for y in (x_hat, other)]
    assert area[0].sum() >= 48 * 96
    np.testing.assert_array_equal(*area)


def test_titled_grid_holds_inputs_reconstructions_maps_and_the_bar():
    sections = [("normal", *random_pair(4)), ("gun", *random_pair(2, seed=1))]
    image = image_grids.titled_grid(sections, 0.7)
    lefts = []
    for _, x, x_hat in sections:
        maps = image_grids.heat(image_grids.residual(x, x_hat), 0.7)
        for i in range(len(x)):
            places = [
                find(image, tile.repeat(3, axis=0).repeat(3, axis=1))
                for tile in (image_grids.to_rgb(x[i]), image_grids.to_rgb(x_hat[i]), maps[i])
            ]
            (top, left), (middle, left_2), (bottom, left_3) = (place for (place,) in places)
            assert top < middle < bottom
            assert left == left_2 == left_3
            lefts.append(left)
    assert lefts[:2] == lefts[4:]
    assert len(find(image, np.tile(image_grids.COLOURS, (14, 1, 1)))) == 1
    assert image.size != image_grids.titled_grid(sections[:1], 0.7).size


def test_the_bar_has_its_numbers():
    one, two = (np.asarray(image_grids.titled_grid([("a", *random_pair(1))], scale)) for scale in (0.5, 0.6))
    numbers = slice(one.shape[0] - 45, one.shape[0] - 24)
    assert one.shape == two.shape
    assert (one[numbers] != two[numbers]).any()


@pytest.mark.parametrize("title", ["", "new\nline\0\x1b[31m", "x" * 500, "日本 été", "\u202eabc", "a\ud800"])
def test_any_title_is_drawn(title):
    assert image_grids.titled_grid([(title, *random_pair())], 1.0).width < 1000


def test_titles_keep_to_the_font():
    assert image_grids._ascii("\u00e9t\u00e9 \u65e5 a") == "ete ? a"


@pytest.mark.parametrize(
    ("x", "x_hat"),
    [
        (np.zeros((2, 8, 8, 1)), np.zeros((2, 8, 8, 3))),
        (np.zeros((8, 8, 1)), np.zeros((8, 8, 1))),
        (np.zeros((0, 8, 8, 1)), np.zeros((0, 8, 8, 1))),
        (np.zeros((1, 8, 8, 1), np.uint8), np.zeros((1, 8, 8, 1))),
    ],
)
def test_what_cannot_be_drawn_is_refused(x, x_hat):
    with pytest.raises(UserError, match="expected"):
        image_grids.grid(x, x_hat)
    with pytest.raises(UserError, match="expected"):
        image_grids.titled_grid([("a", x, x_hat)], 1.0)


def test_no_sections_are_refused():
    with pytest.raises(UserError, match="at least one"):
        image_grids.titled_grid([], 1.0)


def test_save_is_a_png_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "picture.png"
    path.write_text("old")
    image = image_grids.grid(*random_pair())
    image_grids.save(image, path)
    with Image.open(path) as stored:
        assert stored.format == "PNG"
        np.testing.assert_array_equal(stored, image)
    assert os.listdir(tmp_path) == ["picture.png"]
    plain = tmp_path / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode


def test_a_failed_save_keeps_the_old_file(tmp_path):
    class Full:
        def save(self, path, **_):
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")

    path = tmp_path / "picture.png"
    path.write_text("old")
    with pytest.raises(UserError, match=r"picture\.png.*No space left"):
        image_grids.save(Full(), path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["picture.png"]


def test_a_folder_that_cannot_be_is_named(tmp_path):
    (tmp_path / "no_folder").write_text("")
    with pytest.raises(UserError, match="no_folder"):
        image_grids.save(image_grids.grid(*random_pair()), tmp_path / "no_folder" / "a.png")


def test_one_line():
    assert image_grids.one_line("a\nb\0c") == "a?b?c"
    assert image_grids.one_line("0123456789" * 10, 20) == "012345678...23456789"
    assert image_grids.one_line("x" * 80) == "x" * 80


def test_pillow_is_imported_lazily():
    tree = ast.parse(Path(image_grids.__file__).read_text())
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {getattr(node, "module", None) or node.names[0].name for node in top}
    assert not any(name.startswith(("PIL", "matplotlib", "jax")) for name in names)
