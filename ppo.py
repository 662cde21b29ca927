"""PPO: Dialogues + models -> one update of actor and critic.

What deviates from textbook PPO, all of it the paper's (section 4 and the authors' settings):

- Only tokens that the model wrote are actions. Prompt and feedback enter no loss, and GAE steps over them: the state
  after the last token of an attempt is the one before the first token of the next attempt.
- The reward comes once, at the last action (+1, -0.5 or -1), with gamma 1 and lambda 0.99.
- The KL to the frozen reference model is a term of the loss (k3 estimator), not of the reward.
- Every mean over tokens is over the whole minibatch, so neither micro-batch size nor padding changes the result.

Not in the paper: several dialogues per question, compared with each other, need no critic (`group_advantages`), and
where all of them got the same reward, there is nothing to learn (`informative_groups`).

The logits of a whole batch never exist: log-probabilities are computed only where a token was sampled, in chunks
whose logits are recomputed in the backward pass.

Shapes: D dialogues of the step, B dialogues of a micro-batch, T tokens, A actions (sampled tokens), M the most actions
        of a dialogue, V vocabulary, E hidden size; Q questions of G dialogues each. Entry t of a tensor _DT or _BT
        belongs to choosing token t.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from support import ranks
from support.memory import actions_at_once


# -------------------- Log-probabilities and values of the actions
def action_logps(model, tokens_BT: torch.Tensor, sampled_BT: torch.Tensor, temperature: float):
    """Log-probability and entropy of every action, each (A,) float32 in row-major order of `sampled_BT`.

    The distribution is that of sampling: softmax(logits / temperature). The rows are right-padded, so causal attention
    needs no mask.
    """
    hidden_BTE = model.base_model(input_ids=tokens_BT, use_cache=False).last_hidden_state
    # the loss mask: only sampled tokens are actions; the state before an action is at the token before it
    hidden_AE = hidden_BTE[:, :-1][sampled_BT[:, 1:]]
    action_A = tokens_BT[:, 1:][sampled_BT[:, 1:]]

    def chunk(hidden_AE, action_A):
        logp_AV = (model.get_output_embeddings()(hidden_AE).float() / temperature).log_softmax(-1)
        return logp_AV.gather(-1, action_A[:, None])[:, 0], -(logp_AV.exp() * logp_AV).sum(-1).detach()

    at_once = actions_at_once(model.config.vocab_size)
    parts = [
        checkpoint(chunk, hidden, action, use_reentrant=False, preserve_rng_state=False)
        for hidden, action in zip(hidden_AE.split(at_once), action_A.split(at_once))
    ]
    logps, entropies = zip(*parts)
    return torch.cat(logps), torch.cat(entropies)


def action_values(critic, tokens_BT: torch.Tensor, sampled_BT: torch.Tensor) -> torch.Tensor:
    """The critic's value of the state before every action, (A,) float32 even where its weights are bfloat16."""
    hidden_BTE = critic.base_model(input_ids=tokens_BT, use_cache=False).last_hidden_state
    value_BT = F.linear(hidden_BTE.float(), critic.score.weight.float(), critic.score.bias.float())[..., 0]
    return value_BT[:, :-1][sampled_BT[:, 1:]]


def micro_batches(length_D: torch.Tensor, token_budget: int) -> Iterator[torch.Tensor]:
    """Indices of dialogues of similar length, each batch at most `token_budget` tokens with its padding (but at least
    one dialogue). With several ranks they are dealt out by length, so that all have equally much to do."""
    batch = []
    for d in length_D.argsort(descending=True)[ranks.rank() :: ranks.count()].tolist():
        if batch and (len(batch) + 1) * int(length_D[batch[0]]) > token_budget:
            yield torch.tensor(batch)
            batch = []
        batch.append(d)
    if batch:
        yield torch.tensor(batch)


def trim(dialogues, rows: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens of some dialogues, without needless padding, on the device, and their sampled mask on the CPU: counting
    actions there need not wait for the device."""
    longest = int(dialogues.length_D[rows].max())
    return dialogues.tokens_DT[rows, :longest].to(device), dialogues.sampled_DT[rows, :longest]


@torch.no_grad()
def reference_logps_and_values(dialogues, reference, critic, config):
    """Once per rollout: the reference model's log-probabilities and the critic's values, (D, T) float32 on the CPU; the
    values are None without a critic."""
    reference_DT = torch.zeros_like(dialogues.logp_DT)
    value_DT = None if critic is None else torch.zeros_like(dialogues.logp_DT)
    for rows in micro_batches(dialogues.length_D, config.micro_batch_tokens):
        tokens_BT, sampled_BT = trim(dialogues, rows, reference.device)
        where = rows[:, None], torch.arange(tokens_BT.shape[1])
        results = [(reference_DT, action_logps(reference, tokens_BT, sampled_BT, config.temperature)[0])]
        if critic is not None:
            results.append((value_DT, action_values(critic, tokens_BT, sampled_BT)))
        for out_DT, result_A in results:
            out_DT[where] = torch.zeros(sampled_BT.shape).masked_scatter(sampled_BT, result_A.cpu())
    return ranks.all_reduce_sum(reference_DT), None if critic is None else ranks.all_reduce_sum(value_DT)


# -------------------- Advantages
def advantages(dialogues, value_DT: torch.Tensor | None, config) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Advantages, with mean 0 and standard deviation 1 over the actions that are trained on, and the critic's targets;
    both (D, T). Without values the advantages are those of groups, and there are no targets."""
    if value_DT is None:
        advantage_DT, return_DT = group_advantages(dialogues, config.group_size), None
    else:
        reward_DT, sampled_DT = dialogues.reward_DT, dialogues.sampled_DT
        advantage_DT, return_DT = gae(reward_DT, value_DT, sampled_DT, config.gamma, config.gae_lambda)
    return normalise(advantage_DT, trained_actions(dialogues, config)), return_DT


def trained_actions(dialogues, config) -> torch.Tensor:
    """(D, T), True at the actions that are trained on: all, or those of dialogues that did not run out of tokens."""
    return dialogues.sampled_DT & ~(dialogues.truncated_D[:, None] & config.drop_truncated)


def gae(reward_DT: torch.Tensor, value_DT: torch.Tensor, sampled_DT: torch.Tensor, gamma: float, lam: float):
    """Generalised advantage estimation (arXiv 1506.02438, equation 16) over the actions of each dialogue.

        delta_t = reward_t + gamma value_{t+1} - value_t
        advantage_t = delta_t + gamma lambda advantage_{t+1},    return_t = advantage_t + value_t

    t + 1 is the next *action*: feedback is skipped. The value after the last one is 0, for a truncated dialogue too (no
    bootstrap, as in the paper). Returns advantages and returns, (D, T), 0 where no token was sampled.
    """
    count_D = sampled_DT.sum(1)
    M = int(count_D.max())
    packed_DM = torch.arange(M) < count_D[:, None]
    value_DM = torch.zeros(packed_DM.shape).masked_scatter(packed_DM, value_DT[sampled_DT])
    reward_DM = torch.zeros(packed_DM.shape).masked_scatter(packed_DM, reward_DT[sampled_DT])
    advantage_DM = torch.zeros(packed_DM.shape)
    next_value_D = next_advantage_D = torch.zeros(len(reward_DT))
    for t in range(M - 1, -1, -1):
        delta_D = reward_DM[:, t] + gamma * next_value_D - value_DM[:, t]
        next_advantage_D = (delta_D + gamma * lam * next_advantage_D) * packed_DM[:, t]
        next_value_D = value_DM[:, t]
        advantage_DM[:, t] = next_advantage_D
    advantage_DT = torch.zeros_like(value_DT).masked_scatter(sampled_DT, advantage_DM[packed_DM])
    return advantage_DT, (advantage_DT + value_DT) * sampled_DT


def group_advantages(dialogues, group_size: int) -> torch.Tensor:
    """Without a critic: an action of the i-th attempt gets the rewards of its dialogue from that attempt on, minus the
    mean of the same over those in its group that came to an i-th attempt, (D, T).

    A group is the `group_size` neighbours that answer the same question. The mean over all of them would bias later
    attempts downwards, because it includes the dialogues that were solved before. Nothing is divided by the group's
    standard deviation, which would favour questions that are nearly always or nearly never solved (Dr. GRPO, arXiv
    2503.20783). For n dialogues it is (n - 1) / n times the leave-one-out baseline of RLOO (arXiv 2402.14740).
    """
    advantage_DT = torch.zeros(dialogues.tokens_DT.shape)
    for group in torch.arange(len(dialogues.attempts)).split(group_size):
        for i in range(int(dialogues.used_D[group].max())):
            reached = group[dialogues.used_D[group] > i].tolist()
            starts = [dialogues.attempts[d][i].start for d in reached]
            to_go = torch.stack([dialogues.reward_DT[d, start:].sum() for d, start in zip(reached, starts)])
            for d, start, advantage in zip(reached, starts, to_go - to_go.mean()):
                advantage_DT[d, start : dialogues.attempts[d][i].end] = advantage
    return advantage_DT


def informative_groups(reward_D: torch.Tensor, group_size: int) -> torch.Tensor:
    """Indices of the dialogues in groups whose rewards are not all the same: in the others all advantages
    are 0 before they are normalised. The filter of DAPO (arXiv 2503.14476, section 3.2), without sampling anew."""
    reward_QG = reward_D.view(-1, group_size)
    informative_Q = (reward_QG != reward_QG[:, :1]).any(1)
    return informative_Q.repeat_interleave(group_size).nonzero()[:, 0]


def normalise(advantage_DT: torch.Tensor, mask_DT: torch.Tensor) -> torch.Tensor:
    """Mean 0 and standard deviation 1 over the actions of the whole step."""
    actions = advantage_DT[mask_DT]
    return ((advantage_DT - actions.mean()) / (actions.std(correction=0) + 1e-8)) * mask_DT


# -------------------- Losses, each a sum over actions (the caller divides by the number of actions in the minibatch)
def policy_loss(logp_A, old_logp_A, advantage_A, clip: float) -> torch.Tensor:
    """Clipped surrogate (PPO, arXiv 1707.06347, equation 7)."""
    ratio_A = (logp_A - old_logp_A).exp()
    return -torch.minimum(ratio_A * advantage_A, ratio_A.clamp(1 - clip, 1 + clip) * advantage_A).sum()


def value_loss(value_A, old_value_A, return_A, clip: float) -> torch.Tensor:
    """Squared error, the larger of the plain one and that of the value clipped around the old one, halved."""
    clipped_A = old_value_A + (value_A - old_value_A).clamp(-clip, clip)
    return 0.5 * torch.maximum((value_A - return_A) ** 2, (clipped_A - return_A) ** 2).sum()


def kl_k3(logp_A, reference_A) -> torch.Tensor:
    """k3 estimator of KL(policy || reference) from the policy's own samples (joschu.net/blog/kl-approx.html):
    r - 1 - log r with r = reference / policy; never negative. Its gradient, though, is that of KL(reference || policy)
    at the policy's own samples."""
    log_ratio_A = reference_A - logp_A
    return (log_ratio_A.exp() - 1 - log_ratio_A).sum()


# -------------------- One PPO update
def update(actor, critic, optimizers: list, dialogues, reference_DT, value_DT, config, seed) -> dict:
    """`config.epochs` passes over the dialogues in `config.minibatches` optimiser steps each. Returns the metrics, none
    where there is no dialogue to learn from.

    `reference_DT` and `value_DT` come from `reference_logps_and_values`, on the models as they were during the rollout;
    without a critic, it and its values are None. `optimizers` are the actor's and the critic's. `seed` orders the
    dialogues.
    """
    trained_DT = trained_actions(dialogues, config)
    trained = trained_DT.any(1).nonzero()[:, 0]
    if len(trained) == 0:
        return {}
    advantage_DT, return_DT = advantages(dialogues, value_DT, config)
    per_token = {"old_logp": dialogues.logp_DT, "reference": reference_DT, "advantage": advantage_DT}
    if critic is not None:
        per_token |= {"old_value": value_DT, "return": return_DT}

    n_actions, parts, norms, skipped = 0, [], [], 0
    rng = np.random.default_rng(seed)
    for _ in range(config.epochs):
        order = torch.from_numpy(rng.permutation(trained.numpy()))
        for rows in order.tensor_split(min(config.minibatches, len(order))):
            step = minibatch_step(actor, critic, optimizers, dialogues, per_token, rows, config)
            if step is None:
                skipped += 1
            else:
                n_actions += int(dialogues.sampled_DT[rows].sum())
                parts += step[0]
                norms.append(step[1])

    metrics = {"skipped": skipped, "lr": optimizers[0].schedule.get_last_lr()[0]}
    if critic is not None:
        metrics["critic_lr"] = optimizers[1].schedule.get_last_lr()[0]
        metrics["explained_variance"] = explained_variance(value_DT[trained_DT], return_DT[trained_DT])
    sums = add_up(ranks.gather(add_up(parts)))
    if n_actions:
        metrics["padding"] = 1 - sums.pop("tokens") / sums.pop("cells")
        metrics |= {name: value / n_actions for name, value in sums.items()}
        metrics |= dict(zip(("grad_norm", "critic_grad_norm"), np.mean(norms, axis=0).tolist()))
    return metrics


def minibatch_step(actor, critic, optimizers, dialogues, per_token: dict, rows: torch.Tensor, config):
    """A step of each optimiser on the dialogues `rows`: the sums of every micro-batch, and the norms of the gradients.
    None where loss or gradient is not finite: then the step is skipped."""
    n_actions = int(dialogues.sampled_DT[rows].sum())
    batches = [rows[micro] for micro in micro_batches(dialogues.length_D[rows], config.micro_batch_tokens)]
    parts = [micro_batch_backward(actor, critic, dialogues, per_token, batch, n_actions, config) for batch in batches]
    parts = [{name: float(x) for name, x in part.items()} for part in parts]  # only now: to read waits for the device
    norms = [optimizer.clip() for optimizer in optimizers]
    if not math.isfinite(sum(norms) + sum(ranks.gather(sum(add_up(parts).values())))):
        for optimizer in optimizers:
            optimizer.skip()
        return None
    for optimizer in optimizers:
        optimizer.step()
    return parts, norms


def micro_batch_backward(actor, critic, dialogues, per_token: dict, rows: torch.Tensor, n_actions: int, config) -> dict:
    """Gradients of the losses on a micro-batch of a minibatch with `n_actions`. Returns sums over actions for the log,
    as tensors of one number, on the device."""
    tokens_BT, sampled_BT = trim(dialogues, rows, actor.device)
    known = {name: x_DT[rows, : tokens_BT.shape[1]][sampled_BT].to(actor.device) for name, x_DT in per_token.items()}

    logp_A, entropy_A = action_logps(actor, tokens_BT, sampled_BT, config.temperature)
    surrogate = policy_loss(logp_A, known["old_logp"], known["advantage"], config.clip)
    kl = kl_k3(logp_A, known["reference"])
    ((surrogate + config.kl_coef * kl) / n_actions).backward()

    ratio_A = (logp_A.detach() - known["old_logp"]).exp()
    sums = {
        "policy_loss": surrogate.detach(),
        "kl": kl.detach(),
        "entropy": entropy_A.sum(),
        "approx_kl": kl_k3(known["old_logp"], logp_A.detach()),
        "clipfrac": ((ratio_A - 1).abs() > config.clip).sum(),
        "ratio": ratio_A.sum(),
        "tokens": dialogues.length_D[rows].sum(),
        "cells": torch.tensor(tokens_BT.numel()),
    }
    if critic is not None:
        value_A = action_values(critic, tokens_BT, sampled_BT)
        critic_loss = value_loss(value_A, known["old_value"], known["return"], config.value_clip)
        (critic_loss / n_actions).backward()
        sums["value_loss"] = critic_loss.detach()
    return sums


def add_up(parts: list[dict[str, float]]) -> dict[str, float]:
    totals = defaultdict(float)
    for part in parts:
        for name, x in part.items():
            totals[name] += x
    return dict(totals)


def explained_variance(value_A: torch.Tensor, return_A: torch.Tensor) -> float | None:
    """1 - Var(return - value) / Var(return): 1 is a perfect critic, 0 no better than a constant; None when all returns
    are equal."""
    variance = return_A.var(correction=0)
    return None if variance == 0 else (1 - (return_A - value_A).var(correction=0) / variance).item()


# -------------------- The optimiser
MAX_SKIPPED = 5  # steps in a row without a finite gradient: then the run stops


def lr_schedule(step: int, warmup_steps: int, total_steps: int) -> float:
    """The learning rate of an optimiser step as a share of its peak: a linear rise, then a cosine down to a tenth."""
    if step < warmup_steps:
        return step / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress)) * 0.9 + 0.1


class Optimizer:
    """AdamW with `lr_schedule` and gradient clipping, over float32 masters of the weights.

    At a learning rate of 5e-7 a bfloat16 weight would hardly ever move, and gradients of many micro-batches would be
    rounded as they are added up: so masters and their gradients are float32. A float32 weight is its own master.
    """

    def __init__(self, model, lr: float, warmup_steps: int, total_steps: int, max_grad_norm: float):
        self.weights = list(model.parameters())
        self.masters = [p if p.dtype == torch.float32 else p.detach().float() for p in self.weights]
        self.copies = [(p, master) for p, master in zip(self.weights, self.masters) if p is not master]
        for weight, master in self.copies:
            weight.register_post_accumulate_grad_hook(partial(add_to_master, master))
        # foreach=True would need a temporary buffer as large as a moment
        settings = dict(lr=lr, betas=(0.9, 0.95), weight_decay=0.0, foreach=False)
        if ranks.count() == 1:
            self.adamw = torch.optim.AdamW(self.masters, **settings)
        else:  # each rank keeps the moments of its share of the weights, steps those, and hands them to the others
            from torch.distributed.optim import ZeroRedundancyOptimizer  # slow to import, and noisy

            self.adamw = ZeroRedundancyOptimizer(self.masters, torch.optim.AdamW, **settings)
        share_of_peak = partial(lr_schedule, warmup_steps=warmup_steps, total_steps=total_steps)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.adamw, share_of_peak)
        self.max_grad_norm, self.skipped = max_grad_norm, 0

    def clip(self) -> float:
        """Add up the gradients of all ranks and clip them. Returns their norm before that."""
        if ranks.count() > 1:
            for master in self.masters:
                master.grad = ranks.all_reduce_sum(torch.zeros_like(master) if master.grad is None else master.grad)
        return torch.nn.utils.clip_grad_norm_(self.masters, self.max_grad_norm).item()

    @torch.no_grad()
    def step(self) -> None:
        """Step, and copy the masters back to the weights."""
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

    def offloadable(self) -> list[torch.Tensor]:
        """What only the update needs, so that it may be in host memory in between: moments and masters."""
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
