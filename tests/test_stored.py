"""Images that stay in files: the same as a tensor, and never in memory."""
import os
import time

import numpy as np
import pytest
import torch
from conftest import make

import train
from advprune import cli, data, inputs, references, settings, stored


@pytest.fixture
def parts(tmp_path):
    """(Stored, Joined, tensor of what each holds): 7x5 images in files at odd offsets."""
    arrays = [make(n, (7, 5), 3, seed=n)[0] for n in (11, 1, 8)]
    files = []
    for i, array in enumerate(arrays):
        (tmp_path / f"{i}.bin").write_bytes(b"x" * 13 + array.tobytes() + b"tail")
        files.append(stored.Stored(tmp_path / f"{i}.bin", 13, array.shape))
    tensors = [torch.from_numpy(array).permute(0, 3, 1, 2).contiguous() for array in arrays]
    joined = stored.Joined([files[0], tensors[1], files[2]])
    return (files[0], tensors[0]), (joined, torch.cat(tensors))


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("kind", [0, 1])
def test_files_read_like_a_tensor(parts, kind):
    images, wanted = parts[kind]
    n = len(wanted)
    assert (images.shape, images.dtype, len(images)) == (wanted.shape, wanted.dtype, n)
    generator = torch.Generator().manual_seed(0)
    asked = [3, n - 1, slice(None), slice(4, n - 2), slice(2, n, 3), torch.arange(3, 9),
             torch.arange(n)[1::3],
             torch.randint(n, (50,), generator=generator), torch.tensor([], dtype=torch.int64)]
    for at in asked:
        assert torch.equal(images[at], wanted[at])
        assert images[at].is_contiguous()
    for ours, theirs in zip(images.split(6), wanted.split(6), strict=True):
        assert torch.equal(ours, theirs)
    for outside in (n, -1, torch.tensor([0, n]), torch.tensor([-1]), torch.ones(n).bool()):
        with pytest.raises(IndexError):
            images[outside]


def test_narrowed_files_end_where_they_should(parts):
    images, wanted = parts[0]
    few = images.narrow(0, 2, 5).narrow(0, 1, 3)
    assert torch.equal(few[:], wanted[3:6])
    assert len(few) == 3
    with pytest.raises(IndexError):
        few[3]


def test_a_file_cut_short_is_no_crash(parts):
    images, _ = parts[0]
    os.truncate(images.file.name, 200)
    with pytest.raises(cli.UserError, match="cut short"):
        images[10]


@pytest.mark.parametrize("kernels", [True, False])
def test_a_batch_from_files_is_the_batch_from_memory(parts, monkeypatch, kernels):
    if not kernels:
        monkeypatch.setattr(torch.ops.advprune, "augment", references._augment)
    joined, wanted = parts[1]
    labels = torch.zeros(len(wanted), dtype=torch.int64)
    memory, files = (data.Dataset("x", images, labels, images, labels, ["0"], len(labels))
                     for images in (wanted, joined))
    ids = torch.randperm(len(labels))[:13]
    for channels_last in (False, True):
        key = ids, 5, 2, 2, True, channels_last
        one, other = memory.batch(*key), files.batch(*key)
        assert torch.equal(one, other)
        assert one.stride() == other.stride()


def test_an_epoch_from_a_file_ends_with_the_weights_of_one_from_memory(tmp_path):
    args = settings.parse(["--dataset", "synthetic", "--limit", "100", "--epochs", "2"])
    args.pad, args.flip = 2, True
    dataset = inputs.dataset(args, torch.device("cpu"))
    array = dataset.images.permute(0, 2, 3, 1).contiguous().numpy()
    (tmp_path / "images").write_bytes(array.tobytes())
    ends = []
    for images in (dataset.images, stored.Stored(tmp_path / "images", 0, array.shape)):
        dataset.images = images
        training = train.Training(args, dataset, torch.device("cpu"))
        training.epoch(0, train.tqdm(disable=True))
        ends.append([*training.model.parameters(), training.prune(0)[1]])
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


@pytest.mark.slow
def test_two_million_images_take_no_memory(tmp_path):
    """6 GB of 32x32x3: streamed and gathered from, with the process no larger than before."""
    def resident():
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))

    n, noise = 2_000_000, np.random.default_rng(0).integers(256, size=2**24, dtype=np.uint8)
    with open(tmp_path / "images", "wb") as file:
        while file.tell() < n * 3072:
            file.write(noise)
    images = stored.Stored(tmp_path / "images", 0, (n, 32, 32, 3))
    before, largest, total = resident(), 0, 0
    for batch in images.split(1000):
        total += len(batch)
        largest = max(largest, resident())
    assert total == n
    generator, times = torch.Generator().manual_seed(0), []
    for _ in range(500):
        ids = torch.randint(n, (128,), generator=generator)
        start = time.perf_counter()
        images[ids]
        times.append(time.perf_counter() - start)
    print(f"{(max(largest, resident()) - before) / 1024:.0f} MiB more; a gather of 128 takes "
          f"{np.median(times) * 1e3:.2f} ms")
    assert max(largest, resident()) - before < 100 * 1024
    assert np.median(times) < 2e-3
    os.unlink(tmp_path / "images")
