"""The pictures: they show the rows that they are given, and name what their axes are."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from advprune import plots


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("n", [40, 9])
def test_pruned_shows_both_ends_of_the_scores_and_frames_what_is_dropped(n):
    scores = torch.arange(n) / 10
    shown = SimpleNamespace(images=torch.arange(n).view(n, 1, 1, 1).repeat(1, 1, 6, 4) * 5,
                            labels=torch.arange(n) % 3, classes=["a", "b", "c"])
    kept = torch.arange(n - 5)
    top, *sheets = plots.pruned(shown, scores, kept, lambda x: x[:, 0, 0, 0] // 5 % 2, "t").axes
    assert [text.get_text() for text in top.get_legend().get_texts()] == [
        f"kept, {n - 5}", "dropped, 5"]
    ranked = list(range(n))
    for sheet, ids in zip(sheets, (ranked[:-17:-1], ranked[:16]), strict=True):
        assert [image.get_array()[0, 0] for image in sheet.images] == [5 * i for i in ids]
        assert [text.get_text() for text in sheet.texts] == [
            f"label {'abc'[i % 3]}\npred. {'ab'[i % 2]}\nscore {i / 10:.3g}" for i in ids]
        red = [plots.matplotlib.colors.to_hex(frame.get_edgecolor()).upper() == plots.RED
               for frame in sheet.patches]
        assert red == [i >= n - 5 for i in ids]
        for image, frame, text in zip(sheet.images, sheet.patches, sheet.texts, strict=True):
            left, right, bottom, above = image.get_extent()  # rows are counted downwards
            assert (bottom - above) / (right - left) == pytest.approx(6 / 4)
            assert frame.get_bbox().extents == pytest.approx([left, bottom, right, above])
            assert text.get_position() == pytest.approx(((left + right) / 2, above - 0.05))


def test_study_shows_a_dot_for_each_seed_and_the_mean():
    rows = [{"arm": arm, "seed": seed, "n": 500, "robust_accuracy": robust + seed / 100,
             "clean_accuracy": 0.9} for arm, robust in (("full", 0.5), ("puma", 0.4))
            for seed in range(3)]
    figure = plots.study(rows, "mnist")
    left, right = figure.axes
    assert [text.get_text() for text in left.get_yticklabels()] == ["full", "puma"]
    seeds, mean = left.lines[2:4]  # of puma
    np.testing.assert_allclose(seeds.get_xdata(), [0.4, 0.41, 0.42])
    np.testing.assert_allclose(mean.get_xdata(), [0.41])
    assert "AutoAttack, 500" in left.get_xlabel() and "without attack" in right.get_xlabel()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one seed", "mean"]


def test_kernels_shows_the_ends_of_each_operators_sizes():
    rows = [{"operator": "rs_start + fgsm_step", "n": n, "eager": ratio}
            for n, ratio in ((300, 3.0), (10, 2.0), (20, 9.0))]
    rows += [{"operator": "select_kept", "n": 10, "topk": 0.5}, {"operator": "augment", "n": 3}]
    axes, = plots.kernels({"device": "cpu", "threads": 2, "rows": rows}).axes
    assert [bar.get_width() for bar in axes.patches] == [2.0, 3.0, 0.5]
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert "10 elements" in labels[0] and "300 elements" in labels[1] and "topk" in labels[2]


@pytest.mark.parametrize("count", [1, 4])
def test_maps_show_every_example_once_with_its_class(count):
    labels, points = np.arange(12), np.arange(24.0).reshape(12, 2)
    row = {"name": "set", "n": 12, "examples": 99, "rho": 1.0, "delta": 2.0}
    classes = [f"class {k}" for k in range(12)]
    figure = plots.maps([(row, labels, points, classes)] * count)
    assert len(figure.axes) == count
    for axes in figure.axes:
        drawn = np.concatenate([dots.get_offsets() for dots in axes.collections])
        np.testing.assert_allclose(np.sort(drawn, axis=0), points)
        looks = {(tuple(dots.get_facecolor().ravel()), dots.get_paths()[0].vertices.tobytes())
                 for dots in axes.collections}
        assert len(looks) == 12  # no two classes look the same
        assert [text.get_text() for text in axes.get_legend().get_texts()] == classes
