"""Selection on worked cases and by its properties; scores of whatever others have; budgets."""
import numpy as np
import pytest
import torch

from advprune import attacks, checkpoint, data, image_files, models, pruning

SCORES = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0, 9.0, 0.0, 7.0, 8.0, 6.0])
MODEL = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(75, 4))
EPS = 8 / 255


@pytest.mark.parametrize(("how", "p", "kept"), [
    ("high", 0.4, [0, 1, 2, 3, 4, 6]),          # 9, 8, 7, 6 go
    ("low", 0.4, [0, 2, 5, 7, 8, 9]),           # 0, 1, 2, 3 go
    ("low+high", 0.4, [0, 2, 3, 4, 7, 9]),      # 0, 1 and 9, 8 go
    ("low+high", 0.3, [0, 1, 2, 3, 4, 7, 9]),   # 0 and 9, 8: of an odd number, one more at the top
    ("middle", 0.4, [1, 3, 5, 6, 7, 8]),        # nearest the mean 4.5: 5, 4, 3, 6 go
    ("extremes", 0.4, [0, 2, 3, 4, 7, 9]),      # farthest from 4.5: 9, 0, 8, 1 go
    ("none", 0.4, list(range(10))),
])
def test_select_worked_case(how, p, kept):
    assert pruning.select(SCORES, how, p).tolist() == kept


@pytest.mark.parametrize("how", ["high", "low", "low+high", "middle", "extremes"])
def test_ties_keep_the_lowest_ids(how):
    assert pruning.select(torch.ones(10), how, 0.4).tolist() == [0, 1, 2, 3, 4, 5]
    two = torch.tensor([1.0, 2, 1, 2, 1, 2, 1, 2])
    worked = {"high": [0, 1, 2, 3, 4, 6], "low": [0, 1, 2, 3, 5, 7],
              "low+high": [0, 1, 2, 3, 4, 5], "middle": [0, 1, 2, 3, 4, 5],
              "extremes": [0, 1, 2, 3, 4, 5]}
    assert pruning.select(two, how, 0.25).tolist() == worked[how]


@pytest.mark.parametrize("how", pruning.STRATEGIES)
@pytest.mark.parametrize("balanced", [False, True])
def test_every_strategy_keeps_the_exact_number_sorted(how, balanced):
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(1003, generator=generator).round(decimals=2)  # many ties
    labels = torch.randint(7, (1003,), generator=generator) if balanced else None
    for p in (0.0, 0.1, 0.5, 0.6, 0.999):
        kept = pruning.select(scores, how, p, 1, labels)
        assert len(kept) == 1003 - (0 if how == "none" else round(p * 1003))
        assert torch.equal(kept, kept.unique())
        if how == "none" or p == 0:
            continue
        dropped = scores[~torch.isin(torch.arange(1003), kept)]
        if not balanced and how == "high":
            assert dropped.min() >= scores[kept].max()
        if not balanced and how == "low":
            assert dropped.max() <= scores[kept].min()
        if balanced:
            lost = labels.bincount() - labels[kept].bincount(minlength=7)
            assert (lost - p * labels.bincount()).abs().max() <= 1


class Known(torch.nn.Module):
    """A network that gives image i of N, whose one value is i/(N - 1), probabilities[i]."""

    def __init__(self, probabilities):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor(probabilities).log())

    def forward(self, x):
        return self.logits[((len(self.logits) - 1) * x[:, 0, 0, 0]).round().long()]


def looked_at(probabilities):
    n = len(probabilities)
    return Known(probabilities), torch.arange(n).reshape(n, 1, 1, 1) / (n - 1)


def test_the_share_of_wrong_labels_worked_case():
    """Label 0 gets 0.6 on average, label 2 gets 0.35, and no image is labelled 1."""
    network, images = looked_at([
        [0.8, 0.1, 0.1], [0.8, 0.1, 0.1], [0.85, 0.1, 0.05],  # 0, as labelled
        [0.45, 0.3, 0.25],  # none enough
        [0.1, 0.1, 0.8],  # 2: of five labels 0, one in four is wrong
        [0.1, 0.3, 0.6],  # 2, as labelled
        [0.03, 0.9, 0.07],  # none: 1 is nobody's label
        [0.61, 0.01, 0.38]])  # both 0 and 2 have enough, 0 more: of three, one in two is wrong
    share = pruning.wrong_share(network, images, [0] * 5 + [2] * 3)
    assert share == pytest.approx((5 / 4 + 3 / 2) / 8, abs=1e-6)


def test_a_network_that_is_sure_believes_in_what_it_is_as_sure_of_as_usual():
    """All 4,000 images of label 1 have the same probability; 1,000 of label 0 have it too."""
    sure = [1 - 3e-6, 3e-6]
    network, images = looked_at([sure] * 3000 + [sure[::-1]] * 5000)
    share = pruning.wrong_share(network, images, np.repeat([0, 1], 4000))
    assert share == pytest.approx(1000 / 8000)


def test_the_automatic_fraction_has_bounds():
    assert pruning.automatic(0.3125) == (
        0.3125, "--p auto: 31.2% of the labels look wrong, so p = 0.312")
    for share, p, end in ((0.7, 0.5, "50% is the most"), (0.05, 0.05, "p = 0.050"),
                          (0.049, 0.0, "less than 5% counts as none")):
        found, said = pruning.automatic(share)
        assert found == p and said.endswith(end)


def test_random_follows_the_seed_alone():
    once, again, other = (pruning.select(torch.rand(500), "random", 0.4, s) for s in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


def test_what_cannot_be_selected_by_is_refused():
    for p in (-0.1, 1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="p is the fraction"):
            pruning.select(SCORES, "high", p)
    with pytest.raises(ValueError, match="'lowest': choose from none, random, high"):
        pruning.select(SCORES, "lowest", 0.5)


@pytest.mark.parametrize("scores", [
    SCORES.double(), SCORES.numpy(), SCORES.tolist(), SCORES.int(),
    SCORES.clone().requires_grad_()])
def test_scores_of_any_type(scores):
    assert pruning.select(scores, "high", 0.4).tolist() == [0, 1, 2, 3, 4, 6]


def test_adapted_budgets_by_hand():
    margins = torch.tensor([0.0, 0.02, 0.5, 0.07, 0.04, 0.01])
    kept = torch.tensor([0, 1, 3, 4])

    def adapt(**how):
        return pruning.adapt(margins, kept, 0.05, **how)[kept].tolist()

    assert adapt() == pytest.approx([0, 0.02, 0.05, 0.04])
    assert adapt(floor=0.03) == pytest.approx([0.03, 0.03, 0.05, 0.04])
    assert adapt(fraction=0.5) == pytest.approx([0, 0.02, 0.05, 0.05])
    assert adapt(floor=0.9) == pytest.approx([0.05] * 4)  # a floor above eps is eps


# --- scores

@pytest.fixture
def forms(tmp_path):
    """(the same 40 images in every form that may be scored, their labels)."""
    generator = np.random.default_rng(0)
    array = generator.integers(256, size=(40, 3, 5, 5), dtype=np.uint8)
    (tmp_path / "images").write_bytes(np.ascontiguousarray(array.transpose(0, 2, 3, 1)).tobytes())

    class Indexable:
        def __len__(self):
            return 40

        def __getitem__(self, ids):
            return torch.stack([torch.from_numpy(array[i]) for i in ids.tolist()])

    tensor = torch.from_numpy(array)
    file = image_files.Stored(tmp_path / "images", 0, (40, 5, 5, 3))
    return {"uint8 tensor": tensor, "uint8 array": array, "file": file,
            "joined": image_files.Joined([file.narrow(0, 0, 13), tensor[13:]]),
            "own class": Indexable(), "float tensor": tensor.float() / 255,
            "float32 array": array.astype(np.float32) / np.float32(255),
            "float64 array": array / 255, "channels last": tensor.contiguous(
                memory_format=torch.channels_last)}, generator.integers(4, size=40)


@pytest.mark.parametrize("kind", pruning.SCORES)
def test_every_form_of_images_and_labels_has_the_same_scores(forms, kind):
    images, labels = forms
    wanted = pruning.score(MODEL, images["uint8 tensor"], torch.tensor(labels), kind, eps=EPS)
    assert wanted.shape == (40,)
    assert wanted.std() > 0
    for name, form in images.items():
        for given in (labels, labels.astype(np.int32), labels.tolist()):
            scores = pruning.score(MODEL, form, given, kind, eps=EPS, batch_size=7)
            torch.testing.assert_close(scores, wanted, rtol=1e-4, atol=1e-5, msg=name)


def test_the_step_is_five_quarters_of_eps(forms):
    images, labels = forms[0]["uint8 array"], forms[1]
    default, given, other = (pruning.score(MODEL, images, labels, eps=EPS, alpha=alpha)
                             for alpha in (None, 10 / 255, 0.0))
    torch.testing.assert_close(default, given)
    assert (default > other).float().mean() > 0.9


@pytest.mark.parametrize(("how", "words"), [
    (dict(kind="marginn"), ["'marginn'", "loss, clean-loss, margin"]),
    (dict(kind="running-loss", eps=EPS), ["'running-loss'", "train.py"]),
    (dict(), ["needs eps", "8/255"]), (dict(labels=torch.zeros(39).long(), eps=EPS),
                                      ["40 images but 39 labels", "give one"]),
    (dict(labels=torch.zeros(40), eps=EPS), ["whole numbers", "float32"]),
    (dict(labels=torch.zeros(40, 4).long(), eps=EPS), ["whole numbers", "[40, 4]"]),
    (dict(images=torch.rand(40, 3, 5, 5) * 255, eps=EPS), ["divide them by 255", "Normalize"]),
    (dict(images=torch.randn(40, 3, 5, 5), eps=EPS), ["divide them by 255", "Normalize"]),
    (dict(kind="margin", norm="l1"), ["'l1'", "linf or l2"]),
])
def test_wrong_arguments_are_value_errors_that_say_what_to_do(forms, how, words):
    given = dict(images=forms[0]["uint8 tensor"], labels=torch.tensor(forms[1])) | how
    with pytest.raises(ValueError) as error:
        pruning.score(MODEL, given.pop("images"), given.pop("labels"), **given)
    assert all(word in str(error.value) for word in words), error.value


def test_scores_do_not_depend_on_the_batch_size_or_leave_a_trace():
    torch.manual_seed(0)
    dataset = data.load("synthetic", limit=300)
    model = models.build("preactresnet18", 1, width=4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    budget = {"eps": 0.1, "alpha": 0.125, "seed": 3, "epoch": 2}
    one, other = (pruning.score(model, dataset.images, dataset.labels, **budget, batch_size=b)
                  for b in (64, 300))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    clean = pruning.score(model, dataset.images, dataset.labels, "clean-loss")
    with attacks.evaluating(model):
        logits = model(dataset.images.float() / 255)
    exact = torch.nn.functional.cross_entropy(logits, dataset.labels, reduction="none")
    torch.testing.assert_close(clean, exact, rtol=1e-4, atol=1e-5)
    assert (one > clean).float().mean() > 0.95


def test_progress_is_kept_after_every_batch_and_continued(monkeypatch, tmp_path):
    monkeypatch.setattr(pruning, "SAVE_SECONDS", 0.0)
    model, dataset = models.build("mnist-net", 1), data.load("synthetic", limit=250)
    state, written = checkpoint.State(tmp_path / "x.state"), []
    write = state.write
    monkeypatch.setattr(state, "write", lambda content: (written.append(content), write(content)))
    wanted = pruning.score(model, dataset.images, dataset.labels, "margin", batch_size=100,
                           state=state)
    assert [done for _, done in written] == [100, 200, 250, 250]
    write((torch.full((250,), 7.0), 200))
    scores = pruning.score(model, dataset.images, dataset.labels, "margin", state=state)
    assert scores[:200].eq(7).all()
    torch.testing.assert_close(scores[200:], wanted[200:])


def test_classes_below_a_quarter_of_their_share_are_named():
    """Of 8, 8 and 4 examples 10 stay: a quarter of their shares is 1, 1 and 0.5."""
    labels = torch.tensor([0] * 8 + [1] * 8 + [2] * 4)
    assert pruning.starved(labels, torch.tensor([0, 8, 9, 10, 11, 12, 13, 14, 15, 16])) == []
    assert pruning.starved(labels, torch.tensor([1, 2, 3, 4, 5, 6, 7, 8, 9, 10])) == [(2, 0, 4)]
    assert pruning.starved(labels, torch.arange(10)) == [(2, 0, 4)]
    assert pruning.starved(labels, torch.arange(10, 20)) == [(0, 0, 8)]
