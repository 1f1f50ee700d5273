"""The picture of what pruning dropped."""
import io
from types import SimpleNamespace

import pytest
import torch

from advprune import plots


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("n", [40, 9])
def test_pruned_shows_both_ends_of_the_scores_and_frames_what_is_dropped(n):
    scores = torch.arange(n) / 10
    shown = SimpleNamespace(images=torch.arange(n).view(n, 1, 1, 1).repeat(1, 1, 6, 4) * 5,
                            labels=torch.arange(n) % 3, classes=["a", "b", "c"],
                            image_name=lambda i: f"b/{i}-$_{{.png" if i % 2 else str(i))
    kept = torch.arange(n - 5)
    top, *sheets = plots.pruned(shown, scores, kept, lambda x: x[:, 0, 0, 0] // 5 % 2, "$_{$").axes
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
