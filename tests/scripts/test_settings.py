"""The optimiser's flags against torch by hand; what they refuse; the help and the record."""
import re

import numpy as np
import pytest
import torch
from conftest import make, refused

import train
from advprune import config, models
from advprune.errors import UserError

FLAGS = ["--dataset", "synthetic", "--limit", "32", "--batch-size", "32", "--epochs", "2",
         "--attack", "none"]
SGD, ADAM, ADAMW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW


@pytest.mark.parametrize(("flags", "kind", "how"), [
    ([], ADAM, dict(lr=5e-3)), (["--lr", "0.02"], ADAM, dict(lr=0.02)),
    (["--weight-decay", "0.1"], ADAM, dict(lr=5e-3, weight_decay=0.1)),
    (["--optimizer", "adamw", "--lr", "0.01", "--weight-decay", "0.3"], ADAMW,
     dict(lr=0.01, weight_decay=0.3)),
    (["--optimizer", "sgd", "--lr", "0.1"], SGD, dict(lr=0.1, momentum=0.9)),
    (["--optimizer", "sgd", "--lr", "0.1", "--weight-decay", "0.1"], SGD,
     dict(lr=0.1, momentum=0.9, weight_decay=0.1)),
], ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_two_steps_are_torchs(flags, kind, how):
    _, a = config.parse([*FLAGS, *flags])
    training, network, _ = train.prepared(a, torch.device("cpu"))
    model = models.build(**network)
    model.load_state_dict(training.model.state_dict())
    opt = kind(model.parameters(), **how)
    dataset = training.dataset
    for epoch in range(2):
        training.epoch(epoch, train.tqdm(disable=True))
        ids = torch.arange(32)
        x = dataset.batch(ids, a.seed, epoch, a.pad, a.flip)
        opt.param_groups[0]["lr"] = train.lr_at((epoch + 1) / 2, how["lr"], a.peak)
        opt.zero_grad()
        torch.nn.functional.cross_entropy(model(x), dataset.labels).backward()
        opt.step()
    assert opt.param_groups[0]["lr"] == 0
    rate = train.lr_at(0.5, how["lr"], a.peak)
    for ours, theirs in zip(training.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=rate * 2e-2)


@pytest.mark.parametrize(("flags", "wanted"), [
    (["--dataset", "cifar10"], dict(optimizer="sgd", lr=0.2, momentum=0.9, nesterov=False,
                                    weight_decay=5e-4, attack="rs-fgsm", beta=None, ema=None)),
    (["--dataset", "cifar10", "--recipe", "wang2023"], dict(
        loss="trades", beta=5.0, ema=0.995, label_smoothing=0.1, schedule="cosine", attack="pgd",
        nesterov=True, model="wideresnet28-10-silu", epochs=400, batch_size=512,
        alpha=2 / 255, pgd_steps=10)),
    (["--dataset", "cifar10", "--recipe", "wang2023", "--beta", "6", "--ema", "0.9", "--epochs",
      "100", "--model", "preactresnet18"], dict(beta=6.0, ema=0.9, epochs=100,
                                                model="preactresnet18", nesterov=True)),
    (["--dataset", "cifar10", "--recipe", "robust"], dict(attack="n-fgsm", alpha=8 / 255)),
    (["--dataset", "cifar100", "--recipe", "robust"], dict(attack="n-fgsm", flip=True, lr=0.2)),
    (["--dataset", "svhn", "--recipe", "authors"], dict(lr=0.05, flip=False, pad=4,
                                                        schedule="cyclic-fixed")),
    (["--dataset", "mnist", "--recipe", "robust"], dict(attack="pgd", pgd_steps=2, epochs=8,
                                                        alpha=pytest.approx(0.2))),
    (["--prune", "puma"], dict(prune="puma", score="margin", p=0.4, epoch=3, adapt_eps=True)),
    (["--prune", "puma", "--score-model", "x"], dict(epoch=0)),
    (["--prune", "high", "--epsilon", "0.2"], dict(alpha=0.25, score_alpha=0.25,
                                                   adapt_eps=False)),
], ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_what_the_recipes_and_flags_give(flags, wanted):
    _, a = config.parse(flags)
    assert {name: getattr(a, name) for name in wanted} == wanted


@pytest.mark.parametrize(("flags", "images", "batch_size", "epochs"), [
    ([], 400, 32, 77), ([], 448, 32, 72), ([], 1023, 32, 32), ([], 1024, 64, 63),
    ([], 2047, 64, 32), ([], 2048, 128, 63), ([], 4300, 128, 30), ([], 100_000, 128, 30),
    (["--batch-size", "200"], 400, 200, 500), (["--epochs", "3"], 400, 32, 3),
    (["--recipe", "wang2023"], 400, 512, 400)])
def test_a_folders_epochs_follow_from_its_images(flags, images, batch_size, epochs):
    """1,000 updates or more, and 16 or more in an epoch of 512 images or more."""
    settled = config.settled(config.parse(["--dataset", "folder", *flags])[1], images)
    assert (settled.batch_size, settled.epochs) == (batch_size, epochs)


def test_an_epoch_too_late_for_a_folders_epochs_is_refused():
    a = config.parse(["--dataset", "folder", "--prune", "high", "--epoch", "30"])[1]
    assert config.settled(a, 4000).epochs == 32
    with pytest.raises(UserError, match="--epoch 30 is too late"):
        config.settled(a, 5000)


@pytest.mark.parametrize("text", ["8/255", "8./255", "8/255.", "80e-1/255", f"{8 / 255}"])
def test_a_number_may_be_a_fraction(text):
    assert config.parse(["--epsilon", text])[1].epsilon == 8 / 255


@pytest.mark.parametrize("text", ["1/0", "a/b", "8/", "/255", "8/255/1", "nan/1", "9/8"])
def test_a_fraction_that_is_no_number_is_refused(text, capsys):
    assert text in refused(train.main, ["--epsilon", text], capsys)


REFUSED = """
--dataset nosuch                                nosuch
--prune high --p -0.1                           --p
--prune high --p 1                              below 1
--prune high --p nan                            --p
--prune high --p lots                           --p
--prune high --p Auto                           or auto
--prune high --p 0.9 --limit 1                  --p
--p 0.4                                         --prune
--p auto                                        --p has no effect
--prune none --p 0.3                            --prune
--prune high --p auto                           --score-model
--prune high --p auto --scores x                --scores
--prune low --p auto --score-model first        not for --prune low
--prune high --p auto --score-model first --score margin    margin
--prune most                                    most
--prune gone.py:rule                            gone.py
--prune own.py:gone                             gone
--prune own.py:rule --class-balanced            --class-balanced
--prune high --score gone.py:x                  gone.py
--prune high --epoch 6 --epochs 5               --epoch
--prune high --epoch 0 --score running-loss     running-loss
--prune high --until-epoch 3                    --until-epoch 3
--prune high --until-epoch 99                   --until-epoch 99
--every 2                                       --prune
--until-epoch 3                                 --prune
--prune high --scores missing.npz               missing.npz
--prune high --scores own.py --every 1          --every
--prune high --scores x --score-model x         --score-model
--prune high --scores x --score clean-loss      --score computes
--prune high --scores x --score-augmented       --score-augmented
--prune high --score-model gone                 gone
--prune high --score-model first --score running-loss       running-loss
--prune high --score-model first --score own.py:Seen        own.py:Seen
--prune high --score-model first --first-epochs 0           at least 1
--prune high --first-epochs 3                   --score-model first
--score-model first                             --score-model
--score margin                                  --prune
--prune random --score margin                   random
--prune random --score-model first              --score-model
--prune high --margin-norm l2                   --score margin
--prune puma --margin-norm l2                   linf
--prune puma --score loss                       margin
--prune puma --attack none                      budget
--prune puma --epsilon 0                        budget
--prune puma --adapt-fraction 0                 above 0
--prune puma --score-model nowhere.pth          nowhere.pth
--prune high --adapt-fraction 0.5               puma
--eps-floor 0                                   --eps-floor
--beta 0                                        trades
--beta 1e300 --loss trades                      --beta
--loss trades --attack rs-fgsm                  --attack
--recipe wang2023 --attack n-fgsm               --attack n-fgsm
--recipe wang2023 --optimizer adam --lr 1       SGD
--pgd-steps 7                                   is for --attack pgd, not for rs-fgsm
--attack none --alpha 0.1                       --alpha
--alpha 1e300                                   --alpha
--epsilon -0.1                                  --epsilon
--epsilon 8                                     --epsilon
--ema 1                                         below 1
--optimizer sgd                                 --lr: the learning rate in digits's
--optimizer rmsprop                             rmsprop
--momentum 0.5                                  --momentum
--weight-decay -1                               at least 0
--weight-decay 1e300                            --weight-decay
--lr 0                                          --lr
--lr 1e38                                       --lr
--lr inf                                        --lr
--lr 1e999                                      --lr
--batch-size 0                                  --batch-size
--epochs 0                                      --epochs
--epo 3                                         --epo
--limit 0                                       --limit
--seed -1                                       --seed
--skip-bad                                      folder
--image-size 32                                 folder
--extra-fraction 0.5                            --extra-data
--extra-data x --extra-fraction 0               above
--extra-data x.npz --prune high --score running-loss        running-loss
--data-dir afile --dataset mnist                afile
--data-dir empty --dataset cifar10              cifar10
--resume missing                                missing
--resume missing --seed 3                       --seed
""".strip().splitlines()
DEVICES = ["meta", "mkldnn", "fpga", "vulkan", "lazy", "mps", "hpu", "privateuseone", "cuda:77",
           "cpu:-1", "nosuch", "é"]


@pytest.mark.parametrize("line", [*REFUSED, *(f"--device {device}   {device.split(':')[0]}"
                                              for device in DEVICES)])
def test_bad_input_is_one_sentence_and_writes_nothing(line, tmp_path, capsys):
    flags, words = re.split("  +", line)
    (tmp_path / "own.py").write_text("""
def rule(scores, labels, p, seed, epoch): pass
class Seen:
    def __init__(self, n): pass
    def see(self, *_): pass
    def scores(self): pass
""")
    images, labels = make(20)
    np.savez(tmp_path / "x.npz", image=images, label=labels)
    (tmp_path / "afile").touch()
    before = sorted(tmp_path.rglob("*"))
    assert words in refused(train.main, flags.split(), capsys)
    assert sorted(tmp_path.rglob("*")) == before


def test_more_processes_than_cards_are_refused_alike(monkeypatch, capsys):
    """Also in the process that has a card, because it is the one that says so."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert "2 processes of this machine" in refused(train.main, ["--device", "cuda"], capsys)


def test_the_help_names_the_recipe_of_each_data_set(capsys):
    with pytest.raises(SystemExit):
        train.main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    for line in ("digits 30; mnist, fashion-mnist 10; cifar10, cifar100, svhn 15; folder 30 or "
                 "more; synthetic 5",
                 "peak learning rate (digits, mnist, fashion-mnist, synthetic 0.005; cifar10, "
                 "cifar100, folder 0.2; svhn 0.05)"):
        assert line in said
    for name in ("epsilon", "batch_size", "optimizer", "weight_decay", "pgd_steps"):
        assert config.shown(name) in said.replace("- ", "-"), name
