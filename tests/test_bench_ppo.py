"""Both sides of the PPO benchmark compute the same gradients: otherwise their times would be no comparison."""

from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig

import ppo
from bench import ppo as bench
from bench.rollout import COMMON
from support.memory import SHAPE


def test_both_sides_compute_the_same_gradients(monkeypatch):
    gradients = {"ours": [], "plain": []}

    class Recording(ppo.Optimizer):
        def step(self):
            gradients[side].append(torch.cat([master.grad.flatten() for master in self.masters]))
            super().step()

    monkeypatch.setattr(ppo, "Optimizer", Recording)
    for side in bench.SIDES:
        actor, critic = bench.build_models(LlamaConfig(**COMMON, **dict(zip(SHAPE, (32, 48, 2, 4, 2, 96)))))
        dialogues = bench.made_up(6, mean=90, longest=200, vocabulary=96)
        found = bench.measure(side, actor, critic, dialogues, minibatches=1, micro_batch_tokens=300)
        assert round(found["tokens/s"] * found["seconds"]) == dialogues.length_D.sum() and found["seconds"] > 0
    assert dialogues.length_D.max() <= 200 and 0.2 < dialogues.sampled_DT.sum() / dialogues.length_D.sum() < 0.7
    for ours, plain in zip(*gradients.values(), strict=True):
        assert ours.norm() > 1e-3
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-6)


def test_the_share_of_the_peak_by_hand(monkeypatch):
    """One layer of 4 x 8 x 8 + 3 x 8 x 16 weights, and norms of 3 x 8: 664. A token costs 6 operations a weight, twice
    for the two models; an action 6 x 16 x 8 more; a dialogue of T tokens 6 x 8 x T^2 for the attention, twice."""
    actor, _ = bench.build_models(LlamaConfig(**COMMON, **dict(zip(SHAPE, (8, 16, 1, 2, 2, 16)))))
    dialogues = SimpleNamespace(length_D=torch.tensor([40, 20]), sampled_DT=torch.ones(2, 15))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    operations = 2 * (6 * 664 * 60 + 6 * 8 * (40**2 + 20**2)) + 6 * 16 * 8 * 30
    assert bench.share_of_peak(actor, dialogues, seconds=2.0) == pytest.approx(operations / 2 / 989e12)
