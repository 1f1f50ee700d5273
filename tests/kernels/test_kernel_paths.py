"""What only the CUDA kernels have, emulated: wide channels last, selection in one launch."""
from itertools import product

import pytest
import torch
from test_kernels import FLOATS, batch, special_gradients

from advprune import ops, reference


@pytest.mark.parametrize("dtype", FLOATS)
def test_emulated_channels_last_is_wide_where_it_can_be(emulated, dtype):
    emulated.emulator_tallest(2)  # so that a block has more than one example
    for shape, offset, wide in [
            ((5, 3, 16, 16), 0, True), ((5, 3, 26, 30), 0, True),  # three blocks and a part of one
            ((5, 3, 2, 2), 0, True), ((5, 3, 16, 20), 1, False), ((5, 3, 3, 6), 0, False),
            ((5, 4, 16, 16), 0, False)]:
        n, c, h, w = shape
        x, ids = batch(shape, dtype, "cpu")
        room = torch.empty(x.numel() + offset, dtype=dtype)
        laid = room.as_strided(shape, (h * w * c, 1, w * c, c), offset).copy_(x)
        grad = special_gradients(x).contiguous(memory_format=torch.channels_last)
        eps = torch.linspace(0, 0.3, n)
        start = torch.ops.advprune.rs_start(laid, ids, 0.0, eps, 5, 1, True, 1.0)
        assert (emulated.emulator_threads() == 192) == wide, shape
        assert torch.equal(start, reference.rs_start(x, ids, 0.0, eps, 5, 1, True, 1.0)), shape
        rest = ids, 0.0, eps, 0.1, None, 5, 1, True, 1.0, True
        adv = torch.ops.advprune.fgsm_step(laid, grad, *rest)
        assert (emulated.emulator_threads() == 192) == wide, shape
        assert torch.equal(adv, reference.fgsm_step(x, grad, *rest)), shape
        assert adv.stride() == laid.stride()


@pytest.mark.parametrize("dtype", [torch.uint8, *FLOATS])
def test_emulated_contiguous_is_wide_where_it_can_be(emulated, dtype):
    kernels = []
    for shape, offset in [((5, 3, 4, 4), 0), ((5, 3, 4, 4), 1), ((5, 3, 3, 5), 0)]:
        x, ids = batch(shape, dtype, "cpu")
        x = torch.cat([x.flatten()[:offset], x.flatten()])[offset:].view(shape)
        torch.ops.advprune.rs_start(x, ids, 0.1, None, 5, 1, True, 1.0)
        kernels.append(emulated.emulator_kernel())
    wide, misaligned, odd = kernels
    assert wide != misaligned == odd


def selections_are_the_references(scores, middle=False):
    n = len(scores)
    for low, high in {(0, 0), (n // 3, 0), (0, n // 2), (n // 3, n // 2), (n // 2, n - n // 2),
                      (0, n - 1), (n - 1, 0), (0, n), (n, 0)}:
        args = scores, low, high, 500.5 if middle else None
        for out, wanted in zip(torch.ops.advprune.select_kept(*args),
                               reference.select_kept(*args), strict=True):
            assert torch.equal(out, wanted), (n, low, high)


def test_emulated_selection_in_one_launch(emulated):
    scores, before = torch.randn(50_000), emulated.emulator_launches()
    out = torch.ops.advprune.select_kept(scores, 10_000, 15_000, None)[0]
    assert emulated.emulator_launches() == before + 1
    assert torch.equal(out, reference.select_kept(scores, 10_000, 15_000, None)[0])
    emulated.emulator_shared(4 * (2 * 2048 + 1500) + 4096)  # 1,500 scores are the most
    for n, alone in [(1, True), (1024, True), (1025, True), (1500, True), (1501, False)]:
        scores, before = torch.randint(40, (n,)).float(), emulated.emulator_launches()
        torch.ops.advprune.select_kept(scores, n // 2, 0, None)
        assert (emulated.emulator_launches() == before + 1) == alone
        selections_are_the_references(scores)


@pytest.mark.parametrize("n", [1, 17, 4096, 4097, 9000])
def test_emulated_selection_in_many_launches(emulated, n):
    emulated.emulator_shared(0)
    for values, middle in product([3, 1000], [False, True]):
        scores = torch.randint(values, (n,)).float()
        selections_are_the_references(scores, middle)
        scores[n // 2] = torch.nan
        for low in (0, n):
            assert torch.ops.advprune.select_kept(scores, low, 0, None)[1] == 1


def test_emulated_augment_of_large_images(emulated):
    emulated.emulator_tallest(2)  # so that a thread has more rows than one
    for shape in [(2, 3, 70, 40), (2, 3, 5, 1100), (2, 2, 70, 41)]:
        images, ids = torch.randint(256, shape, dtype=torch.uint8), torch.tensor([1, 0, 1])
        for channels_last in (False, True):
            args = images, ids, 5, 2, 4, True, channels_last
            assert torch.equal(ops.augment(*args), reference.augment(*args)), shape
