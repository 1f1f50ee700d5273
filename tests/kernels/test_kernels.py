"""The kernels against the references: bit for bit where nothing is summed, on every device."""
from itertools import product

import numpy as np
import pytest
import torch

from advprune import ops, reference

HOST = pytest.mark.parametrize("device", ["cpu", "emulated"], indirect=True)
FLOATS = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(0, 3, 8, 8), (1, 1, 1, 1), (3, 1, 5, 5), (2, 3, 7, 9), (5, 1, 28, 28), (4, 3, 32, 32),
          (2, 3, 40, 41), (2, 3, 17, 31), (7, 13), (3,), (2, 2050)]
VARIANTS = [  # per-example eps, clip_start, noise_scale, clip_ball
    (False, False, 1.0, True), (True, True, 1.0, True), (True, False, 2.0, False)]


@pytest.fixture(params=["cpu", "emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """Where the tensors are; `emulated` is the CUDA kernels, on the CPU."""
    if request.param == "emulated":
        request.getfixturevalue("emulated")
        return "cpu"
    return request.param


@pytest.fixture(autouse=True)
def built(request):
    wanted = "cuda" if request.node.get_closest_marker("gpu") else "cpu"
    if wanted not in ops.KERNELS and "emulated" not in request.node.name:
        pytest.skip(f"no {wanted} kernels were built: make kernels says why")


def batch(shape, dtype, device, layout="contiguous"):
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.rand(shape, generator=generator)
    x.view(-1)[::5] = 0
    x.view(-1)[1::5] = 1
    x = (x * 255).round().to(torch.uint8) if dtype == torch.uint8 else x.to(dtype)
    x = x.to(device)
    if layout == "channels_last" and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":
        x = torch.stack([x, x], -1).flatten(-2)[..., ::2]
    if layout == "offset":  # every other row of a larger batch, from an odd address
        x = torch.cat([x.flatten()[:1], x.flatten()])[1:].view(shape)
    ids = torch.randint(2**33, (shape[0],), generator=generator).to(device)
    return x, ids


def special_gradients(like):
    grad = torch.randn(like.shape, generator=torch.Generator().manual_seed(1))
    for i, value in enumerate([0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-45]):
        grad.view(-1)[i::11] = value
    return grad.to(like.device, like.dtype)


@pytest.mark.parametrize("dtype", [torch.uint8, *FLOATS])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "offset"])
def test_start_and_step_are_the_references_bits(device, dtype, layout):
    shapes = [s for s in SHAPES if layout != "channels_last" or len(s) == 4]
    for shape, (each, clip, scale, ball) in product(shapes, VARIANTS):
        case = f"{shape}, per example: {each}"
        x, ids = batch(shape, dtype, device, layout)
        eps = torch.linspace(0, 0.3, shape[0], device=device) if each else None
        args = x, ids, 0.0 if each else 0.1, eps, 2**50 + 3, 9, clip, scale
        start, wanted = torch.ops.advprune.rs_start(*args), reference.rs_start(*args)
        assert torch.equal(start, wanted), case
        assert (start.dtype, start.stride()) == (wanted.dtype, wanted.stride()), case
        grad, alphas = special_gradients(start), None if eps is None else 1.25 * eps
        args = (x, grad, ids, *args[2:4], 0.0 if each else 0.125, alphas, *args[4:], ball)
        adv, wanted = torch.ops.advprune.fgsm_step(*args), reference.fgsm_step(*args)
        assert torch.equal(adv, wanted), case
        assert (adv.dtype, adv.stride()) == (wanted.dtype, wanted.stride()), case


@pytest.mark.parametrize("dims", [(0, 1, 3, 2), (0, 2, 1, 3), (3, 1, 2, 0)])
def test_start_and_step_keep_any_order_of_dimensions(device, dims):
    x, ids = batch((5, 3, 4, 6), torch.float32, device)
    x = x.permute(dims).contiguous().permute(torch.tensor(dims).argsort().tolist())
    assert not x.is_contiguous()
    start = ops.rs_start(x, ids, 0.1, 5, 1)
    adv = ops.fgsm_step(x, special_gradients(x), ids, 0.1, 0.2, 5, 1)
    assert start.stride() == adv.stride() == x.stride()
    plain = x.contiguous()
    assert torch.equal(start, ops.rs_start(plain, ids, 0.1, 5, 1))
    assert torch.equal(adv, ops.fgsm_step(plain, special_gradients(x), ids, 0.1, 0.2, 5, 1))


def test_more_examples_than_a_grid_is_high(device):
    x, ids = batch((65_540, 1), torch.float32, device)
    args = x, ids, 0.1, None, 3, 1, False, 1.0
    assert torch.equal(torch.ops.advprune.rs_start(*args), reference.rs_start(*args))


def test_every_shade_is_its_255th(device):
    shades = torch.arange(256, dtype=torch.uint8, device=device).view(1, 1, 16, 16)
    wanted = torch.tensor([np.float32(v) / np.float32(255) for v in range(256)], device=device)
    zero = torch.zeros(1, dtype=torch.int64, device=device)
    for out in (ops.augment(shades, zero, 0, 0), ops.rs_start(shades, zero, 0.0, 0, 0),
                ops.augment(shades, zero, 0, 0, channels_last=True), ops.pixels(shades)):
        assert torch.equal(out.flatten(), wanted)


@pytest.mark.parametrize("channels_last", [False, True])
def test_augment_is_the_references(device, channels_last):
    shapes = [(5, 1, 28, 28), (9, 3, 32, 32), (4, 2, 5, 3), (1, 1, 1, 1)]
    ways = [(0, False), (0, True), (4, True), (2, False)]
    for shape, (pad, flip), count in product(shapes, ways, (0, 1, 33)):
        pad = min(pad, max(shape[2:]))
        case = f"{count} of {shape}, pad {pad}, flip {flip}"
        images, _ = batch(shape, torch.uint8, device)
        ids = torch.randint(shape[0], (count,), device=device)
        how = 5, 2, pad, flip, channels_last
        out, wanted = ops.augment(images, ids, *how), reference.augment(images, ids, *how)
        assert torch.equal(out, wanted), case
        assert out.stride() == wanted.stride(), case
        rows = torch.arange(count, device=device)  # of the images gathered first
        assert torch.equal(ops.augment(images[ids], ids, *how, rows), wanted), case


def test_ids_and_labels_outside_are_refused(device):
    images = torch.zeros(3, 1, 4, 4, dtype=torch.uint8, device=device)
    zero, logits = torch.tensor([0], device=device), torch.zeros(1, 3, device=device)

    def both(call, wrong, right):  # on a card the call after it says so
        call(wrong)
        torch.cuda.synchronize()
        call(right)

    for i in (-1, 3):
        for call, match in [
                (lambda ids: ops.augment(images, ids, 0, 0), "augment: an id is outside"),
                (lambda rows: ops.augment(images, zero, 0, 0, rows=rows), "the images"),
                (lambda y: ops.cross_entropy_scores(logits, y), "scores: a label is no class")]:
            with pytest.raises(RuntimeError, match=match):
                both(call, zero + i, zero)
            call(zero)  # it is said once


@pytest.mark.parametrize("dtype", FLOATS)
def test_cross_entropy_against_float64(device, dtype):
    for rows, classes in [(0, 10), (1, 1), (7, 2), (300, 10), (64, 1000)]:
        torch.manual_seed(rows)
        logits = (torch.randn(rows, classes, device=device) * 20).to(dtype)
        labels = torch.randint(classes, (rows,), device=device)
        loss, correct = ops.cross_entropy_scores(logits, labels)
        wide = logits.double()
        picked = wide.gather(1, labels[:, None])
        gaps = wide - picked
        others = gaps.scatter(1, labels[:, None], -torch.inf)  # loss = log1p(sum of the others)
        exact = torch.where(others.amax(1) < 30, others.exp().sum(1).log1p(), wide.logsumexp(1)
                            - picked[:, 0])
        torch.testing.assert_close(loss.double(), exact, rtol=2e-7, atol=0)
        assert torch.equal(correct, logits.argmax(1) == labels)
        wanted = reference.cross_entropy_scores(logits, labels)
        assert torch.equal(loss, wanted[0])
        assert torch.equal(correct, wanted[1])


def cases():
    generator = np.random.default_rng(0)
    yield "uniform", generator.random(100_003)
    yield "lognormal", np.exp(generator.normal(size=50_000) * 5)
    yield "ties", generator.integers(0, 20, 70_001).astype(float)
    yield "constant", np.full(33_333, 2.5)
    yield "signed zeros", np.where(generator.random(5_000) < 0.5, 0.0, -0.0)
    yield "denormals", generator.integers(-50, 50, 20_000) * 1.4e-45
    yield "negative", -generator.random(4_097)
    yield "extremes", np.array([3.4e38, -3.4e38, 1e-38, -1e-38, 0, 1, -1] * 300)
    yield "none", np.array([])
    yield "one", np.array([1.0])
    yield "two", np.array([2.0, 1.0])


@pytest.mark.parametrize(("name", "values"), list(cases()),
                         ids=lambda v: v if isinstance(v, str) else "")
def test_selection_is_the_sorts(device, name, values):
    scores = torch.tensor(values, dtype=torch.float32, device=device)
    n = len(scores)
    drops = {0, 1, n // 3, n // 2, n - 1, n} & set(range(n + 1))
    for how, drop in product(["high", "low", "low+high", "middle", "extremes"], drops):
        kept = ops.select_kept(scores, drop, how)
        key = scores.cpu().double().numpy()
        if how in ("middle", "extremes"):
            key = np.abs(key - float(scores.double().mean())).astype(np.float32)
        low = {"low": drop, "low+high": drop // 2, "middle": drop}.get(how, 0)
        by_low = np.lexsort((-np.arange(n), key))  # ascending, of equals the highest id first
        rest = np.sort(by_low[low:])
        by_high = rest[np.lexsort((-rest, -key[rest]))]
        assert np.array_equal(kept.cpu(), np.sort(by_high[drop - low:])), (how, drop)


def test_selection_of_more_than_a_million(device):  # the scan of CUDA goes round more than once
    scores = torch.randint(1000, (1_060_000,), device=device).float()
    wanted = reference.select_kept(scores, 200_000, 300_000, None)[0]
    assert torch.equal(torch.ops.advprune.select_kept(scores, 200_000, 300_000, None)[0], wanted)


def test_selection_counts_what_is_not_finite(device):
    scores = torch.rand(50_000, device=device)
    scores[[5, 700, 49_999]] = torch.tensor([torch.nan, torch.inf, -torch.inf], device=device)
    for drop in (0, 10, 50_000):
        with pytest.raises(ValueError, match="3 of 50000 scores"):
            ops.select_kept(scores, drop, "high")


@pytest.mark.parametrize("name", list(reference.OPERATORS))
def test_opcheck(device, name):
    if not hasattr(torch.ops.advprune, name):
        pytest.skip("CUDA has no kernel of its own for this operator")
    x, ids = batch((3, 3, 8, 8), torch.float32, device, "channels_last")
    images, eps = batch((3, 1, 4, 4), torch.uint8, device)[0], torch.rand(3, device=device)
    rows = x.permute(0, 2, 3, 1)
    args = {
        "rs_start": (x, ids, 0.1, eps, 1, 2, True, 1.0),
        "fgsm_step": (x, x, ids, 0.1, None, 0.1, eps, 1, 2, False, 2.0, False),
        "augment": (images, ids % 3, 1, 2, 1, True, True, ids.flip(0) % 3),
        "cross_entropy_scores": (torch.randn(3, 5, device=device), ids % 5),
        "select_kept": (torch.rand(50, device=device), 3, 4, None),
        "conv_input_grad": (torch.rand(2, 5, 5, 3, device=device),
                            torch.rand(3, 1, 4, 4, device=device), 11, 10, 2, 1),
        "batch_norm_relu": (rows, eps, eps, None, None, 1e-5),
        "batch_norm_relu_grad": (rows, rows, eps, eps, eps, eps, 1e-5, True)}[name]
    results = torch.library.opcheck(getattr(torch.ops.advprune, name).default, args,
                                    test_utils=("test_schema", "test_faketensor",
                                                "test_aot_dispatch_dynamic"))
    assert set(results.values()) == {"SUCCESS"}


class Step(torch.nn.Module):
    """All that a graph can hold of a step, with gradients for the network and the image."""

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(36, 5)

    def forward(self, images, ids, y):
        x = ops.augment(images, ids.int(), 3, 1, 1, True)
        start = ops.rs_start(x, ids, torch.tensor(0.1, device=x.device), 3, 1, True)
        adv = ops.fgsm_step(x, start - 0.5, ids, 0.1, 0.125, 3, 1)
        return start, adv, *ops.cross_entropy_scores(self.head(adv.flatten(1)), y)


@pytest.fixture
def step(device):
    torch.manual_seed(0)
    images, _ = batch((9, 1, 6, 6), torch.uint8, device)
    return Step().to(device), [(images, torch.arange(n, device=device),
                                torch.arange(n, device=device) % 5) for n in (4, 3)]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("backend", [
    "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_whole(step, device, backend):
    module, inputs = step
    compiled = torch.compile(module, fullgraph=True, backend=backend, dynamic=True)
    for args in inputs:
        outs = module(*args), compiled(*args)
        assert all(torch.equal(a, b) for a, b in zip(*outs, strict=True))
        grads = [torch.autograd.grad(out[2].sum(), list(module.parameters())) for out in outs]
        assert all(torch.allclose(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_exports_for_any_batch(step, device):
    module, inputs = step
    size = {0: torch.export.Dim("batch")}
    exported = torch.export.export(module, inputs[0], dynamic_shapes=(None, size, size)).module()
    for args in inputs:
        assert all(torch.equal(a, b) for a, b in zip(exported(*args), module(*args), strict=True))


@HOST
def test_other_callers_read_nothing_that_is_not_there(device):
    op, x, ids, logits = torch.ops.advprune, torch.rand(3, 1, 2, 2), torch.arange(3), torch.eye(3)
    images, move = x.byte(), (0, 0, False, 1.0)
    for call in [
            lambda: op.rs_start(x, ids[:2], 0.1, None, *move),
            lambda: op.rs_start(x, ids.int(), 0.1, None, *move),
            lambda: op.rs_start(x.double(), ids, 0.1, None, *move),
            lambda: op.rs_start(x, ids, 0.1, torch.rand(2), *move),
            lambda: op.fgsm_step(x, x[:2], ids, 0.1, None, 0.1, None, *move, True),
            lambda: op.fgsm_step(x, x.half(), ids, 0.1, None, 0.1, None, *move, True),
            lambda: op.augment(x, ids, 0, 0, 0, False, False),
            lambda: op.augment(images, ids, 0, 0, 0, False, False, ids[:2]),
            lambda: op.cross_entropy_scores(logits, ids.int()),
            lambda: op.cross_entropy_scores(logits, ids[:2]),
            lambda: op.select_kept(logits[0].double(), 0, 0, None),
            lambda: op.select_kept(logits[0], -1, 1, None),
            lambda: op.select_kept(logits[0], 1, -1, None),
            lambda: op.select_kept(logits[0], 2, 2, None)]:
        with pytest.raises(RuntimeError, match="these arguments are not what advprune.ops gives"):
            call()


@pytest.mark.gpu
def test_another_stream_sees_its_own_data():
    x, ids = batch((64, 3, 32, 32), torch.float32, "cuda")
    wanted = ops.rs_start(x, ids, 0.1, 0, 0)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        slow = torch.randn(4096, 4096, device="cuda")
        for _ in range(20):
            slow = slow @ slow * 1e-4
        late = x + 0 * slow[0, 0].nan_to_num(0, 0, 0)
        out = ops.rs_start(late, ids, 0.1, 0, 0)
    stream.synchronize()
    assert torch.equal(out, wanted)
