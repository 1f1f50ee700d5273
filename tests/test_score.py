"""pruning.score on whatever others have: arrays, tensors, files, and wrong arguments."""
import numpy as np
import pytest
import torch

from advprune import models, pruning, stored

MODEL = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(75, 4))
EPS = 8 / 255


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

    tensor, file = torch.from_numpy(array), stored.Stored(tmp_path / "images", 0, (40, 5, 5, 3))
    return {"uint8 tensor": tensor, "uint8 array": array, "file": file,
            "joined": stored.Joined([file.narrow(0, 0, 13), tensor[13:]]),
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


def test_scores_that_are_not_finite_are_counted(forms):
    broken = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(75, 4))
    broken[1].bias.data[0] = torch.nan
    with pytest.raises(ValueError, match="40 of the 40"):
        pruning.score(broken, forms[0]["file"], forms[1], "clean-loss")


def test_a_network_behind_normalize_is_scored_as_normalised_images(forms):
    images, labels = forms[0]["float tensor"], forms[1]
    wrapped = torch.nn.Sequential(models.Normalize([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]), MODEL)
    x = (images - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor(
        [0.2, 0.3, 0.4]).view(3, 1, 1)
    wanted = torch.nn.functional.cross_entropy(MODEL(x), torch.tensor(labels), reduction="none")
    scores = pruning.score(wrapped, images, labels, "clean-loss")
    torch.testing.assert_close(scores, wanted.detach(), rtol=1e-4, atol=1e-5)
