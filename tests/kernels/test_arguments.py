"""What the operators take and what they refuse: the same with kernels and without."""
import pytest
import torch

from advprune import ops

pytestmark = pytest.mark.usefixtures("operators")

X, IDS, LOGITS = torch.rand(3, 1, 2, 2), torch.arange(3), torch.randn(3, 5)
IMAGES, SCORES = torch.randint(256, (4, 1, 2, 2), dtype=torch.uint8), torch.rand(9)
LEAF, ELSEWHERE = X.clone().requires_grad_(), IDS.to("meta")


def start(x=X, ids=IDS, eps=0.1, seed=5, epoch=1, **how):
    return ops.rs_start(x, ids, eps, seed, epoch, **how)


def step(x=X, grad=X - 0.5, ids=IDS, eps=0.1, alpha=0.1, **how):
    return ops.fgsm_step(x, grad, ids, eps, alpha, 5, 1, **how)


def augment(images=IMAGES, ids=IDS, pad=1, flip=True, rows=None):
    return ops.augment(images, ids, 5, 1, pad, flip, rows=rows)


def scores(logits=LOGITS, labels=IDS):
    return ops.cross_entropy_scores(logits, labels)


def select(scores=SCORES, drop=2, how="high"):
    return ops.select_kept(scores, drop, how)


@pytest.mark.parametrize(("sentence", "call"), [
    ("rs_start: x must be a tensor of uint8, float32, float16 or bfloat16, not torch.float64",
     lambda: start(X.double())),
    ("rs_start: x must be a tensor of uint8, float32, float16 or bfloat16, not list",
     lambda: start(X.tolist())),
    ("rs_start: x must be a tensor of uint8, float32, float16 or bfloat16, not ndarray",
     lambda: start(X.numpy())),
    ("rs_start: x must be a tensor of uint8, float32, float16 or bfloat16, not torch.sparse_coo",
     lambda: start(X.to_sparse())),
    ("rs_start: x must have a batch dimension", lambda: start(X[0, 0, 0, 0])),
    ("rs_start: ids must be a tensor of whole numbers, int64 for example, not torch.float32",
     lambda: start(ids=IDS.float())),
    ("rs_start: ids must be a tensor of whole numbers, int64 for example, not range",
     lambda: start(ids=range(3))),
    ("rs_start: ids must be a vector of 3, one for each example, not [2]",
     lambda: start(ids=IDS[:2])),
    ("rs_start: ids must be a vector of 3, one for each example, not []",
     lambda: start(ids=IDS[0])),
    ("rs_start: ids must be on cpu as the other tensors, not on meta",
     lambda: start(ids=ELSEWHERE)),
    ("rs_start: eps must be a number or one value for each of the 3 examples, not [2]",
     lambda: start(eps=torch.rand(2))),
    ("rs_start: eps must be a number or one value for each of the 3 examples, not [3, 2]",
     lambda: start(eps=torch.rand(3, 2))),
    ("rs_start: eps must be a tensor of real numbers, not torch.complex64",
     lambda: start(eps=torch.zeros(3, dtype=torch.complex64))),
    ("rs_start: eps must be on cpu as the other tensors, not on meta",
     lambda: start(eps=torch.rand(3, device="meta"))),
    *[(f"rs_start: eps must be a number from 0 on, or a tensor, not {shown}",
       lambda eps=eps: start(eps=eps))
      for eps, shown in [(float("nan"), "nan"), (-0.1, "-0.1"), (float("inf"), "inf"),
                         (None, "NoneType"), ("0.1", "'0.1'"), ([0.1, 0.2, 0.3], "list")]],
    ("rs_start: noise_scale must be a number from 0 on, not -1", lambda: start(noise_scale=-1)),
    ("rs_start: seed must be a whole number of 64 bits, not 1.0", lambda: start(seed=1.0)),
    ("rs_start: seed must be a whole number of 64 bits, not 18446744073709551616",
     lambda: start(seed=2**64)),
    ("rs_start: epoch must be a whole number of 64 bits, not Tensor",
     lambda: start(epoch=IDS[1])),
    ("rs_start: clip_start must be True or False, not 'no'", lambda: start(clip_start="no")),
    ("rs_start: there is no gradient for eps; give eps.detach()",
     lambda: start(eps=torch.rand(3, requires_grad=True))),
    ("fgsm_step: x must be a tensor of uint8, float32, float16 or bfloat16, not torch.int64",
     lambda: step(X.long())),
    ("fgsm_step: grad must be [3, 1, 2, 2], as the start, not [2, 1, 2, 2]",
     lambda: step(grad=X[:2])),
    ("fgsm_step: grad must be [3, 1, 2, 2], as the start, not [3, 4]",
     lambda: step(X, X.flatten(1))),
    ("fgsm_step: grad must be a tensor of torch.float16, as the start, not torch.float32",
     lambda: step(X.half())),
    ("fgsm_step: grad must be a tensor of torch.float32, as the start, not NoneType",
     lambda: step(grad=None)),
    ("fgsm_step: grad must be on cpu as the other tensors, not on meta",
     lambda: step(grad=X.to("meta"))),
    ("fgsm_step: alpha must be a number from 0 on, or a tensor, not nan",
     lambda: step(alpha=float("nan"))),
    ("fgsm_step: clip_ball must be True or False, not 2", lambda: step(clip_ball=2)),
    ("fgsm_step: alpha must be a number or one value for each of the 3 examples, not [1]",
     lambda: step(alpha=torch.rand(1))),
    ("fgsm_step: there is no gradient for x; give x.detach()", lambda: step(LEAF)),
    ("fgsm_step: there is no gradient for grad; give grad.detach()", lambda: step(grad=LEAF)),
    ("augment: images must be a tensor of uint8, not torch.float32", lambda: augment(X)),
    ("augment: images must be contiguous [N, C, H, W], not [4, 1, 2, 2] of strides (4, 4, 1, 2)",
     lambda: augment(IMAGES.mT)),
    ("augment: pad must be from 0 to 2, the images' longer side, not -1", lambda: augment(pad=-1)),
    ("augment: pad must be from 0 to 2, the images' longer side, not 2147483648",
     lambda: augment(pad=2**31)),
    ("augment: pad must be a whole number of 64 bits, not 1.5", lambda: augment(pad=1.5)),
    ("augment: flip must be True or False, not NoneType", lambda: augment(flip=None)),
    ("augment: ids must be a tensor of whole numbers, int64 for example, not list",
     lambda: augment(ids=[0, 1])),
    ("augment: ids must be a vector of 3, one for each example, not [3, 1]",
     lambda: augment(ids=IDS[:, None])),
    ("augment: rows must be a vector of 3, one for each example, not [2]",
     lambda: augment(rows=IDS[:2])),
    ("augment: an id is outside the images", lambda: augment(ids=IDS + 2)),
    ("augment: an id is outside the images", lambda: augment(ids=IDS - 1)),
    ("augment: an id is outside the images", lambda: augment(rows=IDS - 1)),
    ("cross_entropy_scores: logits must be a tensor of float32, float16 or bfloat16, not "
     "torch.float64",
     lambda: scores(LOGITS.double())),
    ("cross_entropy_scores: logits must be a tensor of float32, float16 or bfloat16, not "
     "torch.uint8",
     lambda: scores(LOGITS.byte())),
    ("cross_entropy_scores: logits must be [B, K], K at least 1, not [5]",
     lambda: scores(LOGITS[0])),
    ("cross_entropy_scores: logits must be [B, K], K at least 1, not [3, 0]",
     lambda: scores(LOGITS[:, :0])),
    ("cross_entropy_scores: labels must be a tensor of whole numbers, int64 for example, not "
     "torch.bool",
     lambda: scores(labels=IDS > 1)),
    ("cross_entropy_scores: labels must be a vector of 3, one for each example, not [3, 5]",
     lambda: scores(labels=LOGITS.long())),
    ("cross_entropy_scores: a label is no class", lambda: scores(labels=IDS + 3)),
    ("cross_entropy_scores: a label is no class", lambda: scores(labels=IDS - 1)),
    *[(f"select_kept: scores must be a tensor of float32, not {shown}",
       lambda wrong=wrong: select(wrong))
      for wrong, shown in [(SCORES.double(), "torch.float64"), (SCORES.long(), "torch.int64"),
                           (SCORES.numpy(), "ndarray")]],
    ("select_kept: scores must be a vector of values, not [3, 3] on cpu",
     lambda: select(SCORES.view(3, 3))),
    ("select_kept: scores must be a vector of values, not [9] on meta",
     lambda: select(SCORES.to("meta"))),
    ("select_kept: there is no gradient for scores; give scores.detach()",
     lambda: select(LEAF.flatten())),
    ("select_kept: cannot drop 10 of 9 examples", lambda: select(drop=10)),
    ("select_kept: drop must be a whole number of 64 bits, not 2.0", lambda: select(drop=2.0)),
    ("select_kept: unknown strategy ['high']: choose high, low, low+high, middle, extremes",
     lambda: select(how=["high"])),
    ("select_kept: 9 of 9 scores are not finite", lambda: select(SCORES / 0)),
    *[("select_kept: 1 of 9 scores are not finite",
       lambda wrong=wrong, how=how: select(SCORES.index_fill(0, IDS[:1], wrong), how=how))
      for wrong in (torch.nan, torch.inf) for how in ("high", "middle", "extremes")],
])
def test_a_wrong_argument_is_one_sentence(sentence, call, capfd):
    with pytest.raises((TypeError, ValueError, RuntimeError)) as refused:
        call()
    assert str(refused.value) == sentence
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("call", "same"), [
    (lambda: start(ids=IDS.int()), start), (lambda: step(ids=IDS.to(torch.uint8)), step),
    (lambda: augment(ids=IDS.int(), rows=IDS.short()), augment),
    (lambda: scores(labels=IDS.int())[0], lambda: scores()[0]),
    (lambda: scores(labels=IDS.to(torch.uint16))[0], lambda: scores()[0]),
    (lambda: start(ids=IDS.to(torch.uint64)), start),
    (lambda: start(eps=torch.tensor(0.1)), start),
    (lambda: step(eps=torch.tensor(0.1).double(), alpha=torch.full((3, 1, 1, 1), 0.1)), step),
    (lambda: start(ids=IDS - 7), lambda: start(ids=IDS - 7 + 2**32)),
    (lambda: start(X[:0], IDS[:0], torch.rand(0)), lambda: X[:0]),
    (lambda: step(X[:0], X[:0], IDS[:0]), lambda: X[:0]),
    (lambda: augment(ids=IDS[:0]), lambda: X[:0]),
    (lambda: scores(LOGITS[:0], IDS[:0])[0], lambda: torch.rand(0)),
    (lambda: select(SCORES[:0], 0), lambda: IDS[:0]),
])
def test_natural_forms_are_converted(call, same):
    assert torch.equal(call(), same())


def test_the_epoch_counts_with_its_lowest_32_bits():
    for epoch in (-1, 2**32 + 7):
        assert torch.equal(ops.rs_start(X, IDS, 0.1, 5, epoch),
                           ops.rs_start(X, IDS, 0.1, 5, epoch % 2**32))
