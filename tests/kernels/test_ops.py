"""The operators against known answers, float64 and hand-worked cases."""
import math

import pytest
import torch

from advprune import ops

SEED = 7
pytestmark = pytest.mark.usefixtures("operators")


@pytest.mark.parametrize(("key", "counter", "answer"), [  # Random123's kat_vectors, philox 4x32 10
    (0, (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (2**64 - 1, (2**32 - 1,) * 4, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (0x299F31D0A4093822, (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
     (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
])
def test_philox_known_answers(key, counter, answer):
    words = ops.philox4x32(key, *map(torch.tensor, counter))
    assert tuple(map(int, words)) == answer


def philox_word(seed, element, example, epoch):
    """One 32-bit word in Python's own integers, for the hand computation below."""
    c, k = [element // 4, example, epoch, 0], [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        a, b = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(b >> 32) ^ c[1] ^ k[0], b & 0xFFFFFFFF, (a >> 32) ^ c[3] ^ k[1], a & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c[element % 4]


@pytest.mark.parametrize("clip_start", [False, True])
@pytest.mark.parametrize(("noise_scale", "clip_ball"), [(1.0, True), (2.0, False), (0.0, True)])
def test_step_against_hand_computation_in_float64(clip_start, noise_scale, clip_ball):
    x = torch.tensor([[0.0, 0.02, 0.5, 0.97, 1.0], [0.3, 0.31, 0.32, 0.33, 0.34]])
    grad = torch.tensor([[1.0, -2.0, 0.0, 3.0, float("nan")], [-1e-30, 1e30, 5.0, -5.0, -0.0]])
    ids, eps, alpha, epoch, seed = [3, 2**31 + 5], [0.1, 0.05], 0.125, 4, 2**40 + 11
    start = ops.rs_start(x, torch.tensor(ids), torch.tensor(eps), seed, epoch, clip_start,
                         noise_scale)
    adv = ops.fgsm_step(x, grad, torch.tensor(ids), torch.tensor(eps), alpha, seed, epoch,
                        clip_start, noise_scale, clip_ball)
    for b in range(2):
        for e in range(5):
            pixel, g = x[b, e].item(), grad[b, e].item()
            u = (philox_word(seed, e, ids[b], epoch) >> 8) / 2**24
            delta = noise_scale * eps[b] * (2 * u - 1)
            if clip_start:
                delta = min(max(delta, -pixel), 1 - pixel)
            assert start[b, e].item() == pytest.approx(pixel + delta, abs=1e-7)
            delta += alpha * ((g > 0) - (g < 0))
            if clip_ball:
                delta = min(max(delta, -eps[b]), eps[b])
            assert adv[b, e].item() == pytest.approx(min(max(pixel + delta, 0), 1), abs=2e-7)


def test_noise_belongs_to_the_example_not_to_its_place():
    x, ids = torch.rand(12, 3, 5, 7), torch.randperm(1000)[:12]
    whole = ops.rs_start(x, ids, 0.1, SEED, 2)
    for part in torch.randperm(12).split(5):
        assert torch.equal(ops.rs_start(x[part], ids[part], 0.1, SEED, 2), whole[part])


def test_noise_is_uniform_and_uncorrelated():
    zero, ids = torch.zeros(2000, 401), torch.arange(2000)
    noise = ops.rs_start(zero, ids, 1.0, SEED, 0)
    n = noise.numel()
    assert noise.min() >= -1
    assert noise.max() < 1
    assert noise.max() - noise.min() > 2 - 100 / n
    assert abs(noise.mean()) < 5 / math.sqrt(3 * n)
    assert abs(noise.var() - 1 / 3) < 5 * math.sqrt(4 / 45 / n)
    others = {"id": noise.roll(1, 0), "element": noise.roll(1, 1),
              "epoch": ops.rs_start(zero, ids, 1.0, SEED, 1),
              "seed": ops.rs_start(zero, ids, 1.0, SEED + 1, 0)}
    for name, other in others.items():
        assert abs((noise * other).mean()) < 5 / (3 * math.sqrt(n)), name


def test_augment_crops_flips_and_gathers_by_id():
    images = torch.randint(1, 256, (400, 3, 9, 9), dtype=torch.uint8)
    ids, pad = torch.randperm(400), 2
    padded = torch.nn.functional.pad(images, (pad,) * 4).float() / 255
    seen = set()
    for epoch in range(2):
        out = ops.augment(images, ids, SEED, epoch, pad, True)
        for image, i in zip(out, ids.tolist(), strict=True):
            places = [(dy, dx, flip) for dy in range(5) for dx in range(5) for flip in (0, 1)
                      if torch.equal(image, padded[i, :, dy:dy + 9, dx:dx + 9].flip(-1) if flip
                                     else padded[i, :, dy:dy + 9, dx:dx + 9])]
            assert len(places) == 1
            seen.add(places[0])
    assert len(seen) == 50  # every offset, on both sides
    assert torch.equal(ops.augment(images, ids, SEED, 0), images[ids].float() / 255)
    rows = torch.arange(50) * 3
    gathered = ops.augment(images[ids[:150]], ids[rows] + 2**33, SEED, 0, pad, True, rows=rows)
    assert torch.equal(gathered, ops.augment(images, ids[rows], SEED, 0, pad, True))


def test_a_row_with_a_nan_is_not_correct():
    logits = torch.eye(3)
    logits[0, 0] = logits[1, 2] = torch.nan
    loss, correct = ops.cross_entropy_scores(logits, torch.arange(3))
    assert correct.tolist() == [False, False, True]
    assert loss.isnan().tolist() == [True, True, False]
