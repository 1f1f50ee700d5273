"""Memory: one part of activations at a time, and parts that do not fit are halved."""
import weakref

import pytest
import torch
from conftest import ended

import evaluate
import prune
import train
from advprune import config, data, guard, memory, models, pruning, weights

ERRORS = [torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
          RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 12345 bytes"),
          RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
          RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
          RuntimeError("CUDA error: out of memory"), MemoryError()]


class Small(torch.nn.Module):
    """A network on a machine with room for so many images."""

    def __init__(self, room, error=ERRORS[0], model=None):
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
def test_parts_that_do_not_fit_are_halved(error, capsys):
    tried, done = [], []

    def work(first, end):
        tried.append(end - first)
        if end - first > 12:
            raise error
        done.append((first, end))

    memory.in_parts(work, 40, 30, start=3)
    assert tried == [30, 15, 7, 7, 7, 7, 7, 2]
    assert done == [(3, 10), (10, 17), (17, 24), (24, 31), (31, 38), (38, 40)]
    assert capsys.readouterr().err.splitlines() == [
        "30 images at a time do not fit into memory; trying 15",
        "15 images at a time do not fit into memory; trying 7"]


@pytest.mark.parametrize("error", [*ERRORS, RuntimeError("shapes do not match"),
                                   ValueError("bad value")])
def test_what_smaller_parts_do_not_help_is_raised_as_it_is(error):
    tried = []

    def work(first, end):
        tried.append(end - first)
        raise error

    with pytest.raises(type(error)) as raised:
        memory.in_parts(work, 40, 5)
    assert raised.value is error
    assert tried == ([5, 2, 1] if error in ERRORS else [5])


@pytest.mark.parametrize("kind", ["loss", "clean-loss", "margin"])
def test_scores_are_those_of_smaller_batches(kind, images):
    how = dict(eps=0.1) if kind == "loss" else {}
    wanted = pruning.score(Small(99), images.images, images.labels, kind, **how, batch_size=12)
    model = Small(12)
    scores = pruning.score(model, images.images, images.labels, kind, **how, batch_size=50)
    assert torch.equal(scores, wanted)
    assert max(model.seen) == 50


def test_predictions_are_those_of_smaller_batches(images):
    wanted = models.predict(Small(999), images.test_images, 100)
    assert torch.equal(models.predict(Small(60), images.test_images), wanted)


def test_evaluation_goes_on_with_smaller_batches(trained, monkeypatch, capsys):
    flags = [str(trained()), "--attack", "fgsm", "--n", "8", "--out"]
    wanted = evaluate.main([*flags, "wanted.json", "--batch-size", "4"])
    load = weights.of_run
    monkeypatch.setattr(weights, "of_run", lambda *args: Small(4, model=load(*args)))
    found = evaluate.main([*flags, "found.json", "--batch-size", "8"])
    assert "8 images at a time do not fit into memory; trying 4" in capsys.readouterr().err
    assert found["per_attack"] == wanted["per_attack"]


def test_the_guard_measures_in_smaller_parts(images):
    _, settings = config.parse(["--dataset", "synthetic", "--limit", "100"])
    watch = guard.Guard(settings, images)
    assert watch.measure(Small(20)) == pytest.approx(watch.measure(Small(999)))


def test_one_image_that_does_not_fit_is_one_sentence(trained, monkeypatch, capsys):
    run = str(trained())
    monkeypatch.setattr(weights, "of_run", lambda *args: Small(0, ERRORS[1]))
    for main, flags in (evaluate.main, ["--attack", "clean"]), (prune.main, []):
        code, _, said = ended(main, [run, *flags], capsys)
        assert code == 2
        assert "memory ran out" in said[-1]


@pytest.mark.parametrize("error", ERRORS)
def test_training_that_does_not_fit_names_the_batch_size(error, monkeypatch, capsys):
    def losses(*_):
        raise error

    monkeypatch.setattr(train.Training, "losses", losses)
    flags = ["--dataset", "synthetic", "--limit", "40", "--epochs", "2", "--out", "run"]
    code, _, said = ended(train.main, flags, capsys)
    assert (code, len(said)) == (2, 1)
    assert "--batch-size" in said[0]


def test_no_more_than_one_part_of_activations_is_kept(images):
    model = Small(10)
    pruning.score(model, images.images, images.labels, "loss", eps=0.1, batch_size=10)
    models.predict(model, images.test_images, 10)
    assert len(model.seen) == 70
    assert model.most <= 2  # that of a part, and of the part before until it is replaced
