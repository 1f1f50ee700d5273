"""--model FILE.py:NAME: a stranger's network trains, goes on, prunes and evaluates; trust."""
import json
import shutil
import sys
from pathlib import Path

import killing
import pytest
import torch
from conftest import refused, same

import advprune
import evaluate
import prune
import train
from advprune import models

NETWORK = '''"""A stranger's network: batch norm and dropout, and a helper in the same file."""
import torch
from torch import nn


def block(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1), nn.BatchNorm2d(outputs), nn.ReLU(),
                         nn.Dropout2d(0.1))


class Gate(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.mix = nn.Conv2d(width, width, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.mix(x))


class Net(nn.Module):
    def __init__(self, classes, channels=3, size=32):
        super().__init__()
        self.body = nn.Sequential(block(channels, 8), Gate(8), block(8, 16))
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(16 * ((size + 3) // 4) ** 2, classes)

    def forward(self, x):
        return self.head(self.drop(self.body(x - 0.5).flatten(1)))
'''
FLAGS = ["--dataset", "synthetic", "--limit", "300", "--epochs", "3", "--prune", "high", "--p",
         "0.4", "--epoch", "1"]


@pytest.fixture
def file(tmp_path):
    (tmp_path / "net.py").write_text(NETWORK)
    return tmp_path / "net.py"


@pytest.fixture
def run(file):
    train.main([*FLAGS, "--model", "net.py:Net", "--out", "run"])
    return file.parent / "run"


def test_an_interrupted_run_goes_on_to_the_same_weights_and_is_used(file, run, cut_off):
    command = [*FLAGS, "--model", "net.py:Net", "--out", "cut"]
    with cut_off(2):
        train.main(command)
    train.main(command)
    assert same("cut", run)
    assert prune.main(["cut"])["n"] == 300
    assert evaluate.main(["cut", "--attack", "fgsm", "--n", "50"])["n"] == 50
    assert advprune.load("cut")(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    assert (file.parent / "cut/network.py").read_text() == NETWORK


def uses(run):
    """Every way to use a run, each a script and its arguments."""
    (run / "train.json").unlink()  # so that it is not finished
    more = ["--prune", "high", "--score", "margin", "--dataset", "synthetic", "--limit", "100",
            "--epochs", "1", "--score-model", str(run)]
    return {"evaluate": (evaluate.main, [str(run), "--attack", "clean"]),
            "prune": (prune.main, [str(run)]), "resume": (train.main, ["--resume", str(run)]),
            "margins": (train.main, [*more, "--out", "new"])}


@pytest.mark.parametrize("how", ["gone", "changed"])
def test_code_that_only_the_run_has_is_executed_with_trust_code(file, run, how, capsys):
    file.write_text(NETWORK + "\nprint('changed')\n")
    if how == "gone":
        file.unlink()
    before = sorted(file.parent.rglob("*"))
    cases = uses(run)
    for main, argv in cases.values():
        capsys.readouterr()
        err = refused(main, argv, capsys)
        assert how in err and "--trust-code" in err and "network.py" in err
    assert set(file.parent.rglob("*")) <= set(before)
    with pytest.raises(ValueError, match="--trust-code"):
        advprune.load(run)
    for main, argv in cases.values():
        main([*argv, "--trust-code"])
    assert "changed\n" not in capsys.readouterr().out
    advprune.load(run, trust_code=True)


def test_a_score_model_from_a_weights_file_is_built_from_the_runs_code(file, run, cut_off):
    flags = ["--dataset", "synthetic", "--limit", "100", "--epochs", "2", "--prune", "high",
             "--score", "margin", "--epoch", "1", "--model", "net.py:Net"]
    with cut_off(1):
        train.main([*flags, "--score-model", str(run / "model.safetensors"), "--out", "cut"])
    file.unlink()
    assert train.main(["--resume", "cut", "--trust-code"])["n_kept"] == 60


def test_code_that_was_tampered_with_is_refused_in_any_case(file, run, capsys):
    file.unlink()
    (run / "network.py").write_text(NETWORK + "\nopen('owned', 'w')\n")
    for main, argv in uses(run).values():
        capsys.readouterr()
        assert "not the code" in refused(main, [*argv, "--trust-code"], capsys)
    (run / "network.py").unlink()
    assert "gone" in refused(evaluate.main, [str(run), "--trust-code"], capsys)
    assert not (file.parent / "owned").exists()


def test_a_file_that_came_with_the_run_is_not_trusted_without_the_flag(file, run, capsys):
    here = file.parent
    (here / "link").symlink_to(run)
    shutil.copytree(run, here / "beside")
    config = json.loads((run / "config.json").read_text())
    # The run's own by several names, and a relative one: wherever the run is used from, a folder
    # of that name may have come with it.
    for name in (f"{here}/run/network.py", f"{here}/run/../run/network.py", "run/network.py",
                 f"{here}/link/network.py", "beside/network.py"):
        config["network"]["name"] = f"{name}:Net"
        (run / "config.json").write_text(json.dumps(config))
        assert "--trust-code" in refused(evaluate.main, [str(run), "--attack", "clean"], capsys)
    evaluate.main([str(run), "--attack", "clean", "--trust-code"])


def test_an_unchanged_file_needs_no_flag_though_the_copy_is_gone(file, run):
    (run / "network.py").unlink()
    assert evaluate.main([str(run), "--attack", "clean"])["n"] == 500


def test_weights_of_an_own_network_can_be_evaluated(file, run):
    shutil.copy(run / "model.safetensors", "w.safetensors")
    args = ["--weights", "w.safetensors", "--dataset", "synthetic", "--attack", "clean"]
    alone = evaluate.main([*args, "--model", "net.py:Net"])
    assert alone["clean_accuracy"] == evaluate.main([str(run), "--attack", "clean"])[
        "clean_accuracy"]


HEAD = "import torch\nfrom torch import nn\n"
LINEAR = "nn.Sequential(nn.Flatten(), nn.Linear({}, {}))"
BAD = {  # what is wrong -> (the file, words of the sentence)
    "syntax": ("def Net(classes:\n", ["SyntaxError"]),
    "no such name": (HEAD, ["'Net'"]),
    "not callable": ("Net = 3\n", ["'Net'"]),
    "no classes": (HEAD + "def Net(k):\n    return nn.Flatten()\n", ["`classes`"]),
    "another needed": (HEAD + "def Net(classes, depth):\n    return nn.Flatten()\n", ["depth"]),
    "shape": (HEAD + f"def Net(classes):\n    return {LINEAR.format(784, 7)}\n",
              ["[2, 7]", "[2, 10]"]),
    "a tuple": (HEAD + "class Net(nn.Module):\n    def __init__(self, classes):\n"
                "        super().__init__()\n    def forward(self, x):\n        return x, x\n",
                ["tuple"]),
    "size": (HEAD + f"def Net(classes):\n    return {LINEAR.format(100, 10)}\n", ["1x28x28"]),
    "no module": ("def Net(classes):\n    return 'resnet'\n", ["str", "nn.Module"]),
    "raises": ("def Net(classes):\n    raise RuntimeError('two\\nlines')\n",
               ["RuntimeError", "two"]),
    "raises at once": ("1 / 0\n", ["ZeroDivisionError"]),
    "exits": ("raise SystemExit('bye')\n", ["SystemExit"]),
    "an absent import": ("import nosuchmodule\n", ["nosuchmodule"]),
    "not text": (b"\xff\xfe\x00", ["cannot be read"]), "absent": (None, ["cannot be read"]),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_files_are_one_sentence_and_leave_nothing(tmp_path, capsys, what):
    content, words = BAD[what]
    if content is not None:
        (tmp_path / "net.py").write_bytes(content if isinstance(content, bytes)
                                          else content.encode())
    before, path = sorted(tmp_path.rglob("*")), list(sys.path)
    err = refused(train.main, ["--dataset", "synthetic", "--model", "net.py:Net"], capsys)
    assert "net.py" in err
    assert all(word in err for word in words), err
    assert sorted(tmp_path.rglob("*")) == before
    assert sys.path == path


MODULE = """import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.ReLU(),
                                  nn.Linear(8, classes))
        {init}

    def forward(self, x):
        {forward}
        return self.body(x)
"""
FAULTY = {  # what is wrong -> (in __init__, in forward, words of the sentence)
    "a tuple": ("pass", "if self.training: return self.body(x), x", ["train mode", "tuple"]),
    "a dict": ("pass", "if not self.training: return {'out': self.body(x)}", ["eval", "dict"]),
    "fewer logits": ("pass", "if self.training: return self.body(x)[:, :3]", ["[2, 3]"]),
    "in place": ("pass", "x -= 0.5", ["changes its images in place"]),
    "in place, no gradient": ("pass", "with torch.no_grad(): x.mul_(2)", ["in place"]),
    "inplace ReLU": ("self.body.insert(0, nn.ReLU(inplace=True))", "pass", ["in place"]),
    "in place, by data": ("pass", "x.data += 0.5", ["in place"]),
    "detach": ("pass", "x = x.detach()", ["no gradient with respect to the images"]),
    "no_grad": ("pass", "with torch.no_grad(): return self.body(x)", ["no gradient"]),
    "numpy": ("pass", "x = torch.from_numpy(x.detach().numpy())", ["no gradient"]),
    "labels": ("pass", "if self.training: raise ValueError('targets are missing')",
               ["train mode", "ValueError: targets are missing"]),
    "backward": ("pass", "x = x.sqrt(); self.y = x.mul(2); x = x.exp(); x.add_(1).zero_()",
                 ["RuntimeError", "inplace operation"]),
    "a reentrant checkpoint": (
        "from torch.utils import checkpoint; self.kept = checkpoint.checkpoint",
        "return self.kept(self.body, x, use_reentrant=True)", ["use_reentrant"]),
    "a graph that is kept": (
        "self.register_buffer('b', torch.zeros(1))",
        "y = self.body(x); self.b = self.b + y.mean(); return y + self.b", ["second time"]),
    "another number of images": ("pass", "x = x.flatten().view(2, -1)", ["shapes cannot be"]),
    "no batch of one": ("pass", "return self.body(x).squeeze()", ["eval mode", "1 image, not"]),
    "a tensor that grows": (
        "self.register_buffer('b', torch.zeros(0))",
        "self.b = torch.cat([self.b, x.detach().mean()[None]])", ["resizes tensors"]),
    "a layer that is made late": ("pass", "self.late = nn.Linear(2, 2)", ["adds or"]),
    "lazy": ("self.body[1] = nn.LazyLinear(8)", "pass", ["lazy", "torch.zeros(2, 1, 28, 28)"]),
    "no copy": ("self.ids = (i for i in range(3))", "pass", ["cannot be copied", "generator"]),
    "expanded": ("self.register_buffer('b', torch.zeros(1).expand(3))", "pass",
                 ["cannot be saved", "none expanded"]),
    "frozen": ("self.requires_grad_(False)", "pass", ["no parameter to train"]),
    "unsaved": ("self.register_buffer('b', torch.zeros(2, dtype=torch.complex128))", "pass",
                ["cannot be saved", "complex128"]),
    "extra state": ("type(self).get_extra_state = lambda self: {'a': set()}", "pass",
                    ["cannot be saved"]),
}


def module(init="pass", forward="pass"):
    return MODULE.replace("{init}", init).replace("{forward}", forward)


@pytest.mark.parametrize("what", FAULTY)
def test_a_network_that_cannot_be_trained_is_one_sentence_before_the_work(what, tmp_path, capsys):
    init, forward, words = FAULTY[what]
    (tmp_path / "net.py").write_text(module(init, forward))
    err = refused(train.main, ["--dataset", "synthetic", "--model", "net.py:Net"], capsys)
    assert all(word in err for word in ["net.py", *words]), err
    assert not (tmp_path / "runs").exists()


UNUSUAL = {  # what is unusual, and works -> in __init__, in forward
    "frozen layer": ("self.body[1].requires_grad_(False)", "pass"),
    "unused layer": ("self.spare = nn.Linear(3, 3)", "pass"),
    "one layer, two names": ("self.head = self.body[3]", "pass"),
    "a network and its parts": ("self.parts = nn.Sequential(*self.body.children())", "pass"),
    "kinds of tensors": (
        "for i, v in enumerate([torch.ones(2, dtype=torch.bfloat16), torch.tensor(3), "
        "torch.ones(2, 3).t(), torch.zeros(0, 2), torch.tensor([True]), torch.ones(2) * 1j]): "
        "self.register_buffer(f'b{i}', v)", "pass"),
    "a complex parameter": ("self.c = nn.Parameter(torch.zeros(784, dtype=torch.complex64))",
                            "x = x.flatten(1) + self.c.real"),
    "two views": ("v = torch.ones(4); self.register_buffer('a', v[:2]); "
                  "self.register_buffer('c', v[1:])", "pass"),
}


@pytest.mark.parametrize("what", UNUSUAL)
def test_an_unusual_network_trains_goes_on_and_is_evaluated(what, tmp_path, cut_off):
    (tmp_path / "net.py").write_text(module(*UNUSUAL[what]))
    command = ["--dataset", "synthetic", "--limit", "40", "--epochs", "2", "--model", "net.py:Net",
               "--ema", "0.5", "--out", "run"]
    with cut_off(1):
        train.main(command)
    train.main(command)
    assert evaluate.main(["run", "--attack", "clean", "--n", "9"])["n"] == 9


@pytest.mark.parametrize("forward", ["pass", "if torch.rand(()) < 0.5: x = self.spare(x)"])
def test_two_processes_train_a_network_with_layers_that_are_not_always_used(
        forward, tmp_path, forks):
    (tmp_path / "net.py").write_text(module("self.spare = nn.Conv2d(1, 1, 1)", forward))
    command = killing.Command(forks, "train", tmp_path / "output", processes=2)
    command.run("--dataset", "synthetic", "--limit", "200", "--epochs", "1", "--model",
                f"{tmp_path}/net.py:Net", "--out", str(tmp_path / "run"))
    assert (tmp_path / "run/train.json").exists()


@pytest.mark.parametrize("takes", ["num_classes", "num_classes=1000, **how", "*, num_classes"])
def test_num_classes_is_as_good_as_classes(takes):
    layers = LINEAR.format(784, "num_classes")
    if "how" in takes:  # which a layer takes that knows neither channels nor size
        layers = layers.replace("Flatten()", "Flatten(**how)")
    Path("net.py").write_text(HEAD + f"def Net({takes}):\n    return {layers}\n")
    assert models.build("net.py:Net", 1, classes=7)(torch.rand(2, 1, 28, 28)).shape == (2, 7)


def test_mean_and_std_are_refused_where_the_network_is_ones_own(file, capsys):
    argv = ["--dataset", "synthetic", "--model", "net.py:Net", "--mean", "0.5", "--std", "0.5"]
    assert "models.Normalize(mean, std)" in refused(train.main, argv, capsys)


def test_width_is_refused_where_the_network_has_none(file, capsys):
    argv = ["--dataset", "synthetic", "--model", "net.py:Net", "--width", "3"]
    assert "--width" in refused(train.main, argv, capsys)
