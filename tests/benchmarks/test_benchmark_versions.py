"""versions, and training --against: two checkouts in turn, each in a process of its own."""
import shutil

import pytest
from conftest import ROOT

from advprune import ops
from advprune.errors import UserError
from benchmarks import __main__ as benchmark
from benchmarks import versions

# What checkout.py needs of a checkout, without torch's long work.
TRAINING = '''
import time, torch

class Training:
    def __init__(self, settings):
        self.rows, self.kept, self.model = [], range(7), torch.nn.Linear(1, 1)
        assert settings == ["its", "settings"]

    def epoch(self, number, bar):
        assert number == len(self.rows)
        print("a word that is no answer")
        time.sleep(1)
        self.rows.append({})

def prepared(settings, device, data_dir):
    return [Training(settings)]
'''
OLD = {"advprune/__init__.py": "", "advprune/ops.py": f"KERNELS = {ops.KERNELS!r}\n",
       "advprune/console.py": "def device(name): pass\n", "train.py": TRAINING,
       "advprune/config.py": "import argparse\ndef parse(words):\n"
                             "    return argparse.Namespace(data_dir=''), ['its', 'settings']\n"}


@pytest.fixture
def old(tmp_path):
    for name, content in OLD.items():
        path = tmp_path / "old" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return tmp_path / "old"


@pytest.mark.slow
def test_training_in_turn_with_an_older_checkout(old):
    record = benchmark.main(["training", "--dataset", "synthetic", "--limit", "70", "--rounds",
                             "1", "--device", "cpu", "--against", str(old)])
    assert record["other_seconds"] >= 1
    assert record["ratio"] == record["seconds"] / record["other_seconds"]
    assert record["ratio_range"] == [record["ratio"]] * 2
    assert not record["same_weights"] and record["other"] is None
    assert (record["dataset"], record["examples"], record["rounds"]) == ("synthetic", 70, 1)


def test_the_comparison_by_hand():
    pairs = [((2.0, "a"), (3.0, "a")), ((4.0, "b"), (4.0, "b")), ((9.0, "c"), (1.0, "c"))]
    assert versions.compared(pairs) == (4.0, 3.0, 1.0, True)
    assert not versions.compared([*pairs, ((1.0, "d"), (1.0, "e"))])[3]


@pytest.mark.slow
def test_versions_compares_bits(tmp_path, monkeypatch):
    other = tmp_path / "other"
    shutil.copytree(ROOT / "advprune", other / "advprune")
    with open(other / "advprune/ops.py", "a") as file:
        file.write("\n\ndef rs_start(x, *others):\n    import time\n    time.sleep(0.05)\n"
                   "    return x.clone()\n")
    record = benchmark.main(["versions", "--against", str(other), "--rounds", "1"])
    differ = {row["operator"] for row in record["rows"] if not row["same_bits"]}
    assert differ == {"rs_start", "rs_start, channels last"}
    smallest = record["rows"][0]  # the other sleeps for 50 ms
    assert smallest["operator"] == "rs_start" and smallest["ratio"] < 0.5


@pytest.mark.slow
def test_checkouts_that_cannot_be_compared(old, monkeypatch):
    monkeypatch.setattr(versions, "CHECKOUT", old)  # both
    (old / "advprune/ops.py").write_text(
        "import os\nKERNELS = os.environ.setdefault('SIDE', 'cpu') + str(os.getpid())\n")
    with pytest.raises(UserError, match="run `make kernels` in both"):
        versions.in_turn(old, ["training", "cpu"], 1)
    (old / "advprune/ops.py").write_text("import nosuch")
    with pytest.raises(UserError, match="could not do this"):
        versions.in_turn(old, ["training", "cpu"], 1)
