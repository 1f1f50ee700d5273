"""--precision bf16."""
import torch

import train


def test_a_run_in_bfloat16_trains_in_it_and_is_tested_in_float32(monkeypatch, capsys):
    seen, whole = [], torch.nn.Conv2d._conv_forward

    def forward(layer, x, *weights):
        out = whole(layer, x, *weights)
        if len(x) > 3:  # the trial of the network before has three images at most
            seen.append((layer.training, out.dtype))
        return out

    monkeypatch.setattr(torch.nn.Conv2d, "_conv_forward", forward)
    for has in (True, False):
        seen.clear()
        monkeypatch.setattr(train, "has_bf16", lambda device, has=has: has)
        train.main(["--dataset", "synthetic", "--limit", "40", "--epochs", "1", "--precision",
                    "bf16", "--model", "preactresnet18", "--width", "2"])
        assert {dtype for training, dtype in seen if training} == {torch.bfloat16}
        assert seen[-1] == (False, torch.float32)
        assert ("will be slow" in capsys.readouterr().err) == (not has)
