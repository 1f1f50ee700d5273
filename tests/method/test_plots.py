"""The pictures of what pruning dropped, and of attacks."""
import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from advprune import plots
from advprune.plots import pruned  # the real one: conftest.blank replaces that of the module


@pytest.mark.parametrize("n", [40, 9])
def test_pruned_shows_both_ends_of_the_scores_and_frames_what_is_dropped(n):
    scores = torch.arange(n) / 10
    shown = SimpleNamespace(images=torch.arange(n).view(n, 1, 1, 1).repeat(1, 1, 6, 4) * 5,
                            labels=torch.arange(n) % 3, classes=["a", "b", "c"],
                            image_name=lambda i: f"b/{i}-$_{{.png" if i % 2 else str(i))
    kept = torch.arange(n - 5)
    top, *sheets = pruned(shown, scores, kept, lambda x: x[:, 0, 0, 0] // 5 % 2, "$_{$").axes
    top.figure.figure.savefig(io.BytesIO())  # a name is no formula
    assert [text.get_text() for text in top.get_legend().get_texts()] == [
        f"kept, {n - 5}", "dropped, 5"]
    ranked = list(range(n))
    for sheet, ids in zip(sheets, (ranked[:-17:-1], ranked[:16]), strict=True):
        assert [image.get_array()[0, 0] for image in sheet.images] == [5 * i for i in ids]
        above, below = sheet.texts[::2], sheet.texts[1::2]
        assert [text.get_text() for text in above] == [
            f"label {'abc'[i % 3]}\npred. {'ab'[i % 2]}\nscore {i / 10:.3g}" for i in ids]
        assert [text.get_text() for text in below] == [
            rf"{i}-\$_{{.png" if i % 2 else str(i) for i in ids]
        red = [plots.matplotlib.colors.to_hex(frame.get_edgecolor()).upper() == plots.RED
               for frame in sheet.patches]
        assert red == [i >= n - 5 for i in ids]
        for image, frame, text in zip(sheet.images, sheet.patches, above, strict=True):
            left, right, bottom, above = image.get_extent()  # rows are counted downwards
            assert (bottom - above) / (right - left) == pytest.approx(6 / 4)
            assert frame.get_bbox().extents == pytest.approx([left, bottom, right, above])
            assert text.get_position() == pytest.approx(((left + right) / 2, above - 0.05))


@pytest.mark.parametrize(("channels", "n"), [(1, 20), (3, 5), (3, 0)])
def test_attacked_shows_what_was_broken_first_and_the_difference_to_scale(channels, n):
    images = torch.full((n, channels, 4, 4), 100, dtype=torch.uint8)
    images[:, :, 0] += torch.arange(n, dtype=torch.uint8).view(-1, 1, 1)
    shift = torch.tensor([8, -8, 4, 0]) / 255  # of the columns
    labels, number = torch.arange(n) % 2, torch.arange(n)
    right, robust = number % 4 != 0, number % 4 > 1
    drawn = plots.attacked(images, labels, right, robust, images / 255 + shift,
                           (labels + robust.logical_not().long()) % 2, ["a", "\udcffb$_$"],
                           8 / 255, "run \udcff")
    drawn.savefig(io.BytesIO())  # names of any bytes can be drawn
    axes, = drawn.axes
    shown = [i for i in range(n) if i % 4 == 1] + [i for i in range(n) if i % 4 > 1]
    below = [text.get_text() for text in axes.texts if "test" in text.get_text()]
    assert below == [f"test image {i}" for i in shown[:12]]
    pictures = [np.array(image.get_array()).reshape(4, 4, channels) for image in axes.images]
    assert len(pictures) == 3 * len(below)
    for image, adversarial, difference in zip(*[iter(pictures)] * 3, strict=True):
        assert (adversarial[1, :, 0] - image[1, :, 0].astype(int) == [8, -8, 4, 0]).all()
        assert difference[0, :, 0].tolist() == pytest.approx([255, 0, 191, 128], abs=1)
    framed = [frame.get_linewidth() > 1 for frame in axes.patches]
    assert framed == [i % 4 == 1 and j == 1 for i in shown[:12] for j in range(3)]
    assert "white 0.0314" in axes.get_title()
