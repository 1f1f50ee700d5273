"""The gradients of the operators, against autograd in float64."""
import pytest
import torch
import torch.nn.functional as F

from advprune import ops

pytestmark = pytest.mark.usefixtures("operators")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("clip_start", [False, True])
@pytest.mark.parametrize("eps", [0.3, torch.tensor([0.1, 0.2, 0.3])])
def test_the_start_passes_the_gradient_but_where_it_is_clipped(eps, clip_start, dtype):
    torch.manual_seed(0)
    x = torch.rand(3, 3, 5, 5).contiguous(memory_format=torch.channels_last)
    x = (4 * x).round().div(4).to(dtype).requires_grad_()  # a part lies on the box
    args, weight = (torch.arange(3), eps, 5, 1), torch.randn(x.shape).to(dtype)
    (found,) = torch.autograd.grad(ops.rs_start(x, *args, clip_start), x, weight)
    noise = ops.rs_start(torch.zeros(x.shape), *args).double()
    wide = x.detach().double().requires_grad_()
    start = wide + (torch.clamp(noise, -wide, 1 - wide) if clip_start else noise)
    (wanted,) = torch.autograd.grad(start, wide, weight.double())
    if clip_start:
        assert 0 < (found == 0).sum() < found.numel()
    assert found.dtype == dtype
    assert torch.equal(found.double(), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_loss_has_the_gradient_of_cross_entropy(dtype):
    torch.manual_seed(0)
    logits, labels = (5 * torch.randn(50, 10)).to(dtype).requires_grad_(), torch.arange(50) % 10
    wide, weight = logits.detach().double().requires_grad_(), torch.randn(50)
    loss, correct = ops.cross_entropy_scores(logits, labels)
    (found,) = torch.autograd.grad(loss, logits, weight)
    wanted = F.cross_entropy(wide, labels, reduction="none")
    (wanted,) = torch.autograd.grad(wanted, wide, weight.double())
    assert not correct.requires_grad
    assert found.dtype == dtype
    torch.testing.assert_close(found, wanted.to(dtype))


IDS = torch.arange(3)


def start(x):
    return ops.rs_start(x, IDS, 0.3, 5, 1, True)


def plain_start(x):
    return x + torch.clamp(ops.rs_start(torch.zeros(3, 4), IDS, 0.3, 5, 1), -x, 1 - x)


def scores(x):
    return ops.cross_entropy_scores(x, IDS)[0]


def plain_scores(x):
    return F.cross_entropy(x, IDS, reduction="none")


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch.func, of any operator
@pytest.mark.parametrize(("call", "plain"), [(start, plain_start), (scores, plain_scores)])
def test_torch_func_gives_first_and_second_gradients(call, plain):
    x = torch.rand(3, 4)
    grads = [torch.func.grad(lambda x, f=f: (f(x) ** 3).sum()) for f in (call, plain)]
    for transform in (lambda grad: grad, torch.func.jacrev, torch.func.vmap):
        xs = torch.rand(2, 3, 4) if transform is torch.func.vmap else x
        found, wanted = (transform(grad)(xs) for grad in grads)
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(("op", "call"), [
    ("rs_start", start), ("cross_entropy_scores", scores),
    ("fgsm_step", lambda x: ops.fgsm_step(x, x, IDS, 0.3, 0.3, 5, 1)),
    ("select_kept", lambda x: ops.select_kept(x.flatten(), 1, "high"))])
def test_forward_mode_is_refused(op, call):
    with pytest.raises(ValueError, match=f"{op}: there is no forward-mode gradient"):
        torch.func.jvp(call, (torch.rand(3, 4),), (torch.ones(3, 4),))
