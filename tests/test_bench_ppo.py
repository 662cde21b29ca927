"""Both sides of the PPO benchmark compute the same gradients: otherwise their times would be no comparison."""

import torch
from transformers import LlamaConfig

from bench import ppo as bench
from bench.rollout import MORE
from support.memory import SHAPE


def test_both_sides_compute_the_same_gradients(monkeypatch):
    gradients = {"ours": [], "plain": []}

    class Recording(bench.Optimizer):
        def step(self):
            gradients[side].append(torch.cat([master.grad.flatten() for master in self.masters]))
            super().step()

    monkeypatch.setattr(bench, "Optimizer", Recording)
    for side in bench.SIDES:
        actor, critic = bench.build_models(LlamaConfig(**MORE, **dict(zip(SHAPE, (32, 48, 2, 4, 2, 96)))))
        dialogues = bench.made_up(6, mean=90, longest=200, vocabulary=96)
        found = bench.measure(side, actor, critic, dialogues, minibatches=1, micro_batch_tokens=300)
        assert round(found["tokens/s"] * found["seconds"]) == dialogues.length_D.sum() and found["seconds"] > 0
    for ours, plain in zip(*gradients.values(), strict=True):
        assert ours.norm() > 1e-3
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-6)
