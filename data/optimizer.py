"""AdamW as the update needs it: exact in bfloat16, shared by the ranks, undeterred by a gradient that is not finite."""

from functools import partial

import torch
from transformers import get_cosine_with_min_lr_schedule_with_warmup

from support import ranks

MAX_SKIPPED = 5  # steps in a row without a finite gradient: then the run is lost and stops


class Optimizer:
    """AdamW with linear warm-up, cosine decay to a tenth and gradient clipping, over float32 masters of the weights.

    At a learning rate of 5e-7 a bfloat16 weight would hardly ever move, and gradients of many micro-batches would be
    rounded as they are added up: so masters and their gradients are float32. A float32 weight is its own master.
    """

    def __init__(self, model, lr: float, warmup_steps: int, total_steps: int, max_grad_norm: float):
        self.weights = list(model.parameters())
        self.masters = [p if p.dtype == torch.float32 else p.detach().float() for p in self.weights]
        self.copies = [(p, master) for p, master in zip(self.weights, self.masters) if p is not master]
        for weight, master in self.copies:
            weight.register_post_accumulate_grad_hook(partial(add_to_master, master))
        # one weight after the other: all at once would need the memory of another moment
        settings = dict(lr=lr, betas=(0.9, 0.95), weight_decay=0.0, foreach=False)
        if ranks.count() == 1:
            self.adamw = torch.optim.AdamW(self.masters, **settings)
        else:  # each rank keeps the moments of its share of the weights, steps those, and hands them to the others
            from torch.distributed.optim import ZeroRedundancyOptimizer  # slow to import, and noisy

            self.adamw = ZeroRedundancyOptimizer(self.masters, torch.optim.AdamW, **settings)
        self.schedule = get_cosine_with_min_lr_schedule_with_warmup(
            self.adamw, warmup_steps, total_steps, min_lr_rate=0.1
        )
        self.max_grad_norm, self.skipped = max_grad_norm, 0

    def clip(self) -> float:
        """Add up the gradients of all ranks and clip them. Returns their norm before that."""
        if ranks.count() > 1:
            for master in self.masters:
                master.grad = ranks.total(torch.zeros_like(master) if master.grad is None else master.grad)
        return torch.nn.utils.clip_grad_norm_(self.masters, self.max_grad_norm).item()

    @torch.no_grad()
    def step(self) -> None:
        """Step and copy the masters back."""
        with ranks.together():
            self.adamw.step()
        self.schedule.step()
        self.adamw.zero_grad()
        for weight, master in self.copies:
            weight.copy_(master)
        self.skipped = 0

    def skip(self) -> None:
        """Drop the gradients. FloatingPointError when that happens again and again."""
        self.adamw.zero_grad()
        self.skipped += 1
        if self.skipped == MAX_SKIPPED:
            raise FloatingPointError(
                f"in {MAX_SKIPPED} optimiser steps in a row the loss or its gradient was not finite: lower the "
                "learning rates or the temperature"
            )

    def parked(self) -> list[torch.Tensor]:
        """What nothing but the update needs, so that it may be elsewhere before and after: moments and masters."""
        states = getattr(self.adamw, "optim", self.adamw).state.values()
        return [state[name] for state in states for name in ("exp_avg", "exp_avg_sq")] + [m for _, m in self.copies]

    def state_dict(self) -> dict:
        """Whole on rank 0, whatever the number of ranks; on the others without the moments."""
        state = {"schedule": self.schedule.state_dict(), "skipped": self.skipped}
        if ranks.count() > 1:
            with ranks.together():
                self.adamw.consolidate_state_dict(to=0)
        if ranks.rank() == 0:
            state["adamw"] = self.adamw.state_dict()
        return state | {"masters": [master for _, master in self.copies]}

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        self.adamw.load_state_dict(state["adamw"])
        self.schedule.load_state_dict(state["schedule"])
        self.skipped = state["skipped"]
        for (_, master), saved in zip(self.copies, state["masters"], strict=True):
            master.copy_(saved)


def add_to_master(master: torch.Tensor, weight: torch.Tensor) -> None:
    """Add the weight's gradient to the master's as soon as it is there, and free it."""
    master.grad = weight.grad.float() if master.grad is None else master.grad.add_(weight.grad)
    weight.grad = None
