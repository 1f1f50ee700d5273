"""What becomes of an image file: 16 bits, rotation, values of no known range."""
import struct
import zlib

import numpy as np
import pytest
import torch
from conftest import refused
from PIL import Image

import train
from advprune import image_folder

SIDE = 16


@pytest.fixture
def values():
    """The values of a grey image, 8 bits."""
    return np.random.default_rng(0).integers(256, size=(SIDE, SIDE), dtype=np.uint8)


@pytest.fixture
def decoded(tmp_path):
    """decoded(name, image): what a data set has of this image, saved under the name."""
    def decode(name, image, **how):
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        (folder / "val/a").mkdir(parents=True)
        if isinstance(image, bytes):
            (folder / "val/a" / name).write_bytes(image)
        else:
            image.save(folder / "val/a" / name, **how)
        return image_folder.open_folder(folder, "val", SIDE)[0][0]

    return decode


def colour_png(values):
    """A PNG of these values [H, W, 3], 16 bits, which Pillow reads but does not write."""
    def chunk(kind, content):
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    head = struct.pack(">IIBBBBB", *values.shape[1::-1], 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows))
            + chunk(b"IEND", b""))


@pytest.mark.parametrize(("name", "kind"), [
    ("a.png", "<u2"), ("a.tif", "<u2"), ("a.tif", ">u2"), ("a.pgm", "<u2"), ("a.jp2", "<u2")])
def test_16_bits_are_scaled(decoded, values, name, kind):
    eight, sixteen = values.astype(np.uint8), values.astype(kind) * np.array(257, kind)
    copy = decoded(name, Image.fromarray(sixteen))
    assert torch.equal(copy, decoded(name, Image.fromarray(eight)))
    between = np.linspace(0, 65535, SIDE * SIDE).reshape(SIDE, SIDE).astype(kind)
    wanted = torch.from_numpy(np.rint(between / 257)).expand(3, SIDE, SIDE)
    assert torch.equal(decoded(name, Image.fromarray(between)).double(), wanted)


def test_16_bits_of_colour_keep_the_upper_8(decoded):
    colours = np.random.default_rng(0).integers(65536, size=(SIDE, SIDE, 3))
    wanted = torch.from_numpy(colours // 256).permute(2, 0, 1)
    assert torch.equal(decoded("a.png", colour_png(colours)).long(), wanted)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_images_are_turned_as_their_exif_data_say(decoded, values, name, kind):
    wanted = {2: values[:, ::-1], 3: values[::-1, ::-1], 4: values[::-1], 5: values.T,
              6: values.T[:, ::-1], 7: values[::-1, ::-1].T, 8: values.T[::-1]}
    image = Image.fromarray(values if kind == np.uint8 else values.astype(kind) * kind(257))
    for orientation, turned in wanted.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        assert np.array_equal(decoded(name, image, exif=exif)[0], turned)


@pytest.mark.parametrize(("name", "mode"), [
    ("a.png", "1"), ("a.png", "LA"), ("a.png", "P"), ("a.png", "RGBA"), ("a.tif", "CMYK"),
    ("a.jpg", "CMYK"), ("a.gif", "P"), ("A.PNG", "L"), ("a.webp", "RGB")])
def test_other_modes_are_what_pillow_makes_of_them(decoded, tmp_path, values, name, mode):
    image = Image.fromarray(np.stack([values, values // 2, 255 - values], -1)).convert(mode)
    image.save(tmp_path / name)
    with Image.open(tmp_path / name) as saved:
        wanted = np.asarray(saved.convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(decoded(name, image), wanted)


def with_tag(file, tag, value):
    """Set a tag of a TIFF, a whole number of 16 bits."""
    content = bytearray(file.read_bytes())
    content[content.index(struct.pack("<HHI", tag, 3, 1)) + 8] = value
    file.write_bytes(content)


def test_values_of_no_known_range_are_named_or_left_out(tmp_path, values, capsys):
    places = [tmp_path / part / name for part in ("train", "val") for name in "ab"]
    for place in places:
        place.mkdir(parents=True)
        Image.fromarray(values).save(place / "good.png")
    Image.fromarray(values / np.float32(255)).save(places[0] / "float.tif")
    Image.fromarray(values.astype(np.int32)).save(places[0] / "int.tif")
    (places[0] / "float.pfm").write_bytes(b"Pf\n1 1\n-1.0\n" + struct.pack("<f", 0.5))
    for name, tag, value in (("12 bits.tif", 258, 12), ("white is 0.tif", 262, 0)):
        Image.fromarray(values.astype("<u2")).save(places[0] / name)
        with_tag(places[0] / name, tag, value)
    (places[1] / "none.png").write_text("<html>")
    flags = ["--dataset", "folder", "--data-dir", str(tmp_path)]
    err = refused(train.main, flags, capsys)
    for said in ("6 of the 8", "a/float.tif (its values are float32", "a/int.tif (its values are "
                 "int32", "a/float.pfm (", "a/12 bits.tif (its values are uint16, of no known",
                 "a/white is 0.tif (", "b/none.png (Pillow does not know", "--skip-bad"):
        assert said in err
    images, labels, *_ = image_folder.open_folder(tmp_path, "train", SIDE, skip_bad=True)
    assert "6 of the 8" in capsys.readouterr().err
    assert labels.tolist() in ([0, 1], [1, 0])
    assert len(images) == 2


def test_what_another_version_decoded_is_not_used(decoded, values, tmp_path, monkeypatch):
    monkeypatch.setattr(image_folder, "DECODING", image_folder.DECODING - 1)
    monkeypatch.setattr(image_folder, "_rgb", lambda image: Image.new("RGB", image.size))
    assert decoded("a.png", Image.fromarray(values)).max() == 0
    monkeypatch.undo()
    assert image_folder.open_folder(tmp_path / "0", "val", SIDE)[0][0].max() > 0
    assert len(list((tmp_path / "0").glob(".*.npy"))) == 1
