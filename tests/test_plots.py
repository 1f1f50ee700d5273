"""The pictures: they show the rows that they are given, and name what their axes are."""
import numpy as np
import pytest

from advprune import plots


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
