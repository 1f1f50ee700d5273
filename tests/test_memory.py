"""Memory: one chunk of activations at a time, and batches that do not fit are halved."""
import weakref

import pytest
import torch

import evaluate
import prune
import train
from advprune import data, guard, models, pruning, saved, settings

ERRORS = (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
          RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 12345 bytes"),
          MemoryError())


class Small(torch.nn.Module):
    """A network on a machine with room for so many images."""

    def __init__(self, room, error, model=None):
        super().__init__()
        torch.manual_seed(0)
        self.model = model or models.build("mnist-net", 1, width=2)
        self.room, self.error, self.seen, self.alive, self.most = room, error, [], [], 0

    def forward(self, x):
        self.seen.append(len(x))
        if len(x) > self.room:
            raise self.error
        out = self.model(x)
        self.alive = [ref for ref in self.alive if ref() is not None] + [weakref.ref(out)]
        self.most = max(self.most, len(self.alive))
        return out


@pytest.fixture(scope="module")
def images():
    return data.load("synthetic", limit=100)


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("kind", ["loss", "clean-loss", "margin"])
def test_scores_are_those_of_smaller_batches(kind, error, images, capsys):
    how = dict(eps=0.1) if kind == "loss" else {}
    wanted = pruning.score(Small(99, None), images.images, images.labels, kind, **how,
                           batch_size=12)
    model = Small(12, error)
    scores = pruning.score(model, images.images, images.labels, kind, **how, batch_size=50)
    assert torch.equal(scores, wanted)
    assert capsys.readouterr().err.splitlines() == [
        "50 images at a time do not fit into memory; trying 25",
        "25 images at a time do not fit into memory; trying 12"]


@pytest.mark.parametrize("error", ERRORS)
def test_predictions_are_those_of_smaller_batches(error, images, capsys):
    wanted = models.predict(Small(999, None), images.test_images, 100)
    assert torch.equal(models.predict(Small(60, error), images.test_images), wanted)
    assert len(capsys.readouterr().err.splitlines()) == 2  # 200 images, 100, 50


@pytest.mark.parametrize("error", ERRORS)
def test_evaluation_goes_on_with_smaller_batches(error, trained, monkeypatch, capsys):
    flags = [str(trained()), "--attack", "fgsm,pgd", "--n", "8", "--out"]
    wanted = evaluate.main([*flags, "wanted.json", "--batch-size", "4"])
    load = saved.from_run
    monkeypatch.setattr(saved, "from_run", lambda *args: Small(4, error, load(*args)))
    found = evaluate.main([*flags, "found.json", "--batch-size", "8"])
    assert "8 images at a time do not fit into memory; trying 4" in capsys.readouterr().err
    assert found["per_attack"] == wanted["per_attack"]


def test_the_guard_measures_in_smaller_parts(images, capsys):
    args = settings.parse(["--dataset", "synthetic", "--limit", "100"])
    wanted = guard.Guard(args, images).measure(Small(999, None))
    measured = guard.Guard(args, images)
    assert measured.measure(Small(20, ERRORS[0])) == pytest.approx(wanted)
    assert measured.at_once == 16
    assert len(capsys.readouterr().err.splitlines()) == 2


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), ValueError("bad value")])
def test_other_errors_are_raised_as_they_are(error, images):
    for call in (lambda: models.predict(Small(0, error), images.test_images),
                 lambda: pruning.score(Small(0, error), images.images, images.labels,
                                       "clean-loss")):
        with pytest.raises(type(error)) as raised:
            call()
        assert raised.value is error


def test_one_image_that_does_not_fit_is_one_sentence(trained, monkeypatch, capsys):
    run = str(trained())
    monkeypatch.setattr(saved, "from_run", lambda *args: Small(0, ERRORS[1]))
    for script, flags in (evaluate, ["--attack", "clean"]), (prune, []):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            script.main([run, *flags])
        assert stopped.value.code == 2
        assert "memory ran out" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("error", ERRORS)
def test_training_that_does_not_fit_names_the_batch_size(error, monkeypatch, capsys):
    def losses(*_):
        raise error

    monkeypatch.setattr(train.Training, "losses", losses)
    with pytest.raises(SystemExit) as stopped:
        train.main(["--dataset", "synthetic", "--limit", "40", "--epochs", "2", "--out", "run"])
    said = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == 2
    assert len(said) == 1
    assert "--batch-size" in said[0]


def test_no_more_than_one_chunk_of_activations_is_kept(images):
    model = Small(10, None)
    pruning.score(model, images.images, images.labels, "loss", eps=0.1, batch_size=10)
    models.predict(model, images.test_images, 10)
    assert len(model.seen) == 70
    assert model.most <= 2  # that of a chunk, and of the chunk before until it is replaced
