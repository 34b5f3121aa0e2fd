"""Pictures of kinship: what they say, that they open, and that they are the same each time."""

import io
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image, rc_context

from kinship_daemon.draw.heat_map import cluster, heat_map
from kinship_daemon.draw.layers import MOST_LINES, layer_lines
from kinship_daemon.draw.picture import elided, format_of
from kinship_daemon.errors import UsageError

NAMES = ["ant", "bee", "cow", "dog", "eel", "fox"]


def two_families(seed=0):
    """Models 0, 2, 4 are kin, and 1, 3, 5; no two kinships are alike."""
    noise = np.random.default_rng(seed).uniform(-0.05, 0.05, (6, 6))
    odd = np.arange(6) % 2
    kin = np.where(odd[:, None] == odd, 0.7, 0.2) + (noise + noise.T) / 2
    np.fill_diagonal(kin, 1)
    return kin


def layers(models=3, depth=4):
    found = {i: two_families(i)[:models, :models] for i in range(depth)}
    return {**found, None: two_families(99)[:models, :models]}


def texts(svg):
    """Every text of a picture, in the order drawn."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg.decode())


def pixels(png):
    return image.imread(io.BytesIO(png), format="png")


def test_a_heat_map_says_names_values_metric_and_base():
    kin = two_families()
    said = texts(heat_map(kin, NAMES, "pcc", "mistral-7b", "svg"))
    for name in NAMES:
        assert said.count(name) == 2, name  # its row and its column
    for i in range(6):
        for j in range(i):
            assert f"{kin[i, j]:.2f}" in said
    assert any("pcc" in text and "mistral-7b" in text for text in said)
    assert "Pearson correlation of weight changes" in said
    assert "1 \N{MINUS SIGN} pcc" in said


def test_rows_are_ordered_by_family():
    said = texts(heat_map(two_families(), NAMES, "pcc", "b", "svg"))
    rows = [text for text in said if text in NAMES][:6]
    assert {frozenset(rows[:3]), frozenset(rows[3:])} == {
        frozenset({"ant", "cow", "eel"}),
        frozenset({"bee", "dog", "fox"}),
    }


def test_the_tree_joins_kin_first():
    tree = cluster(two_families(), "pcc")
    assert tree.shape == (5, 4)
    assert tree[-1, 3] == 6
    across = 1 - two_families()[0::2, 1::2].mean()
    assert tree[-1, 2] == pytest.approx(across)
    near = cluster(1 - two_families(), "euclidean")
    assert near[-1, 2] == pytest.approx(across)


def test_what_is_not_defined_is_drawn_as_such_and_farthest():
    kin = two_families()
    kin[2, :] = kin[:, 2] = np.nan
    assert cluster(kin, "pcc")[-1, 2] == pytest.approx(2)
    assert texts(heat_map(kin, NAMES, "pcc", "b", "svg")).count("n/a") == 11


def test_colours_are_two_sided_only_where_kinship_is_negative():
    """Opposite and unrelated models must not look the same; the diagonal is grey in both."""
    positive, negative = two_families(), two_families()
    negative[0, 1] = negative[1, 0] = -0.7
    one_sided, two_sided = (
        pixels(heat_map(kin, NAMES, "cosine", "b", "png"))[..., :3] for kin in (positive, negative)
    )

    def blue(picture):
        red, _, blue = picture.reshape(-1, 3).T
        return int(((blue > 0.7) & (red < 0.35)).sum())

    assert blue(two_sided) > 1000
    assert blue(one_sided) < 100


def test_more_than_twenty_models_have_names_but_no_values():
    names = [f"model-{i}" for i in range(24)]
    kin = np.full((24, 24), 0.31) + 0.69 * np.eye(24)
    said = texts(heat_map(kin, names, "pcc", "b", "svg"))
    assert set(names) <= set(said)
    assert "0.31" not in said


@pytest.mark.parametrize("models", [2, 6, 30, 130])
def test_a_png_opens_and_is_of_a_size_to_print(models):
    names = [f"some-organisation/some-model-{i}" for i in range(models)]
    distances = np.abs(np.subtract.outer(np.arange(models), np.arange(models))) * 0.1
    shape = pixels(heat_map(distances, names, "euclidean", "b", "png")).shape
    assert 300 < shape[0] < 3200
    assert 300 < shape[1] < 3200


def test_two_identical_models_can_be_drawn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kin, metric in ((np.ones((2, 2)), "pcc"), (np.zeros((2, 2)), "euclidean")):
            assert heat_map(kin, ["a", "b"], metric, "base", "png")


def test_lines_over_depth_name_every_pair():
    said = texts(layer_lines(layers(), NAMES[:3], "cosine", "mistral-7b", "svg"))
    for pair in ("ant \N{EN DASH} bee", "ant \N{EN DASH} cow", "bee \N{EN DASH} cow"):
        assert pair in said
    assert "cosine similarity of weight changes" in said
    assert any("cosine" in text and "mistral-7b" in text for text in said)
    assert any("layer" in text for text in said)
    assert {"0", "1", "2", "3", "outside"} <= set(said)


def test_of_many_pairs_the_mean_and_the_extremes_are_drawn():
    assert len(NAMES) * (len(NAMES) - 1) / 2 > MOST_LINES
    found = {i: kin.copy() for i, kin in layers(6).items()}
    for kin in found.values():
        kin[1, 3] = kin[3, 1] = 0.95
        kin[0, 5] = kin[5, 0] = -0.4
    said = texts(layer_lines(found, NAMES, "pcc", "b", "svg"))
    assert "mean of 15 pairs" in said
    assert "highest: bee \N{EN DASH} dog" in said
    assert "lowest: ant \N{EN DASH} fox" in said
    assert "ant \N{EN DASH} bee" not in said


@pytest.mark.parametrize("models", [2, 6])
def test_layers_without_a_kinship_leave_a_gap_and_no_warning(models):
    found = layers(models)
    found[1][:] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert layer_lines(found, NAMES[:models], "pcc", "b", "png")
        assert layer_lines({None: found[None]}, NAMES[:models], "pcc", "b", "png")


@pytest.mark.parametrize("form", ["png", "svg"])
def test_the_same_input_gives_the_same_bytes_whatever_the_users_style(form):
    def drawn():
        lines = layer_lines(layers(), NAMES[:3], "pcc", "b", form)
        return heat_map(two_families(), NAMES, "pcc", "b", form), lines

    first = drawn()
    with rc_context({"font.size": 20, "svg.hashsalt": "other", "axes.facecolor": "red"}):
        assert drawn() == first
    assert b"<dc:date>" not in first[0] + first[1]


def test_a_name_is_no_formula():
    names = ["a$x^2$b", "c_{d}", "<script>&"]
    said = texts(heat_map(two_families()[:3, :3], names, "pcc", "$b$", "svg"))
    assert {"a$x^2$b", "c_{d}", "&lt;script&gt;&amp;"} <= set(said)


def test_long_names_lose_their_middle_unless_they_would_be_the_same():
    long, other = "organisation/" + "x" * 40 + "-v1", "organisation/" + "x" * 40 + "-v2"
    cut = elided(["short", long, other])
    assert cut[0] == "short"
    assert [len(name) for name in cut[1:]] == [29, 29]
    assert cut[1].startswith("organisation/")
    assert cut[1].endswith("-v1")
    alike = ["a" * 20 + middle + "b" * 20 for middle in "12"]
    assert elided(alike) == alike


@pytest.mark.parametrize("name", ["kin.pdf", "kin", "kin.png.gz"])
def test_other_formats_are_refused_naming_ours(name):
    with pytest.raises(UsageError, match=r"\.png or \.svg"):
        format_of(Path(name))
    assert format_of(Path("kin.PNG")) == "png"
