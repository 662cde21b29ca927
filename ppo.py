"""PPO: Dialogues + models -> one update of actor and critic.

What deviates from textbook PPO, all of it the paper's (section 4 and the authors' settings):

- Only tokens that the model wrote are actions. Prompt and feedback enter no loss, and GAE steps over them: the state
  after the last token of an attempt is the one before the first token of the next attempt.
- The reward comes once, at the last action (+1, -0.5 or -1), with gamma 1 and lambda 0.99.
- The KL to the frozen reference model is a term of the loss (k3 estimator), not of the reward.
- Every mean over tokens is over the whole minibatch, so neither micro-batch size nor padding changes the result.

Not in the paper: several dialogues per question, compared with each other, need no critic (`group_advantages`), and
where all of them got the same reward, there is nothing to learn (`differing`).

The logits of a whole batch never exist: log-probabilities are computed only where a token was sampled, in chunks
whose logits are recomputed in the backward pass.

Shapes: D dialogues of the step, B dialogues of a micro-batch, T tokens, A actions (sampled tokens), V vocabulary,
        E hidden size; Q questions of G dialogues each. A tensor _DT or _BT is aligned with the tokens: entry t belongs
        to choosing token t.
"""

import math
from collections import Counter
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from support import ranks
from support.memory import actions_at_once

# ---------------------------------------------------------------------------------------------------------------------
# What the models say of the actions


def action_logps(model, tokens_BT: torch.Tensor, sampled_BT: torch.Tensor, temperature: float):
    """Log-probability and entropy of every action, each (A,) float32 in row-major order of `sampled_BT`.

    The distribution is that of sampling: softmax(logits / temperature). The rows are right-padded, so causal attention
    needs no mask.
    """
    hidden_BTE = model.base_model(input_ids=tokens_BT, use_cache=False).last_hidden_state
    hidden_AE = hidden_BTE[:, :-1][sampled_BT[:, 1:]]  # the state before an action is at the token before it
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


def crop(dialogues, rows: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens of some dialogues, without needless padding, on the device, and their sampled mask on the CPU: counting
    actions there needs not wait for the device."""
    longest = int(dialogues.length_D[rows].max())
    return dialogues.tokens_DT[rows, :longest].to(device), dialogues.sampled_DT[rows, :longest]


@torch.no_grad()
def score(dialogues, reference, critic, temperature: float, token_budget: int):
    """Once per rollout: the reference model's log-probabilities and the critic's values, (D, T) float32 on the CPU; the
    values are None without a critic."""
    reference_DT = torch.zeros_like(dialogues.logp_DT)
    value_DT = None if critic is None else torch.zeros_like(dialogues.logp_DT)
    for rows in micro_batches(dialogues.length_D, token_budget):
        tokens_BT, sampled_BT = crop(dialogues, rows, reference.device)
        where = rows[:, None], torch.arange(tokens_BT.shape[1])
        said = [(reference_DT, action_logps(reference, tokens_BT, sampled_BT, temperature)[0])]
        if critic is not None:
            said.append((value_DT, action_values(critic, tokens_BT, sampled_BT)))
        for out_DT, action_A in said:
            out_DT[where] = torch.zeros(sampled_BT.shape).masked_scatter(sampled_BT, action_A.cpu())
    return ranks.total(reference_DT), None if critic is None else ranks.total(value_DT)


# ---------------------------------------------------------------------------------------------------------------------
# Advantages


def gae(reward_D: torch.Tensor, value_DT: torch.Tensor, sampled_DT: torch.Tensor, gamma: float, lam: float):
    """Generalised advantage estimation (arXiv 1506.02438, equation 16) over the actions of each dialogue.

        delta_t = r_t + gamma V_{t+1} - V_t,    A_t = delta_t + gamma lambda A_{t+1},    return_t = A_t + V_t

    t + 1 is the next *action*, feedback squeezed out; V behind the last one is 0, for a truncated dialogue too (it gets
    its reward and no bootstrap, as in the paper). Returns advantages and returns, (D, T), 0 where no token was sampled.
    """
    count_D = sampled_DT.sum(1)
    A = int(count_D.max())
    packed_DA = torch.arange(A) < count_D[:, None]
    value_DA = torch.zeros(packed_DA.shape).masked_scatter(packed_DA, value_DT[sampled_DT])
    reward_DA = torch.zeros(packed_DA.shape).scatter(1, (count_D - 1)[:, None], reward_D[:, None])
    advantage_DA = torch.zeros(packed_DA.shape)
    next_value_D = next_advantage_D = torch.zeros(len(reward_D))
    for t in range(A - 1, -1, -1):
        delta_D = reward_DA[:, t] + gamma * next_value_D - value_DA[:, t]
        next_advantage_D = (delta_D + gamma * lam * next_advantage_D) * packed_DA[:, t]
        next_value_D = value_DA[:, t]
        advantage_DA[:, t] = next_advantage_D
    advantage_DT = torch.zeros_like(value_DT).masked_scatter(sampled_DT, advantage_DA[packed_DA])
    return advantage_DT, (advantage_DT + value_DT) * sampled_DT


def group_advantages(dialogues, group_size: int) -> torch.Tensor:
    """Without a critic: an action of the i-th attempt gets the reward of its dialogue minus the mean reward of those
    in its group that came to an i-th attempt, (D, T).

    A group is the `group_size` neighbours that answer the same question. The mean over all of them, also over those
    that were right before, would call most later attempts worse than they are. Rewards are not divided by the group's
    standard deviation, which would favour questions that are nearly always or nearly never solved (Dr. GRPO, arXiv
    2503.20783). For n dialogues it is (n - 1) / n times the leave-one-out baseline of RLOO (arXiv 2402.14740).
    """
    advantage_DT = torch.zeros(dialogues.tokens_DT.shape)
    for group in torch.arange(len(dialogues.attempts)).split(group_size):
        for i in range(int(dialogues.used_D[group].max())):
            there = group[dialogues.used_D[group] > i]
            mean = dialogues.reward_D[there].mean()
            for d in there.tolist():
                attempt = dialogues.attempts[d][i]
                advantage_DT[d, attempt.start : attempt.end] = dialogues.reward_D[d] - mean
    return advantage_DT


def differing(reward_D: torch.Tensor, group_size: int) -> torch.Tensor:
    """Indices of the dialogues in groups whose rewards are not all the same: in the others all advantages are 0. The
    filter of DAPO (arXiv 2503.14476, section 3.2), without sampling anew."""
    reward_QG = reward_D.view(-1, group_size)
    differ_D = (reward_QG != reward_QG[:, :1]).any(1)
    return differ_D.repeat_interleave(group_size).nonzero()[:, 0]


def normalise(advantage_DT: torch.Tensor, mask_DT: torch.Tensor) -> torch.Tensor:
    """Mean 0 and standard deviation 1 over the actions of the whole step."""
    actions = advantage_DT[mask_DT]
    return ((advantage_DT - actions.mean()) / (actions.std(correction=0) + 1e-8)) * mask_DT


# ---------------------------------------------------------------------------------------------------------------------
# Losses, each a sum over actions (the caller divides by the number of actions in the minibatch)


def policy_loss(logp_A, old_logp_A, advantage_A, clip: float) -> torch.Tensor:
    """Clipped surrogate (PPO, arXiv 1707.06347, equation 7)."""
    ratio_A = (logp_A - old_logp_A).exp()
    return -torch.minimum(ratio_A * advantage_A, ratio_A.clamp(1 - clip, 1 + clip) * advantage_A).sum()


def value_loss(value_A, old_value_A, return_A, clip: float) -> torch.Tensor:
    """Squared error, the larger of the plain one and that of the value clipped around the old one, halved."""
    clipped_A = old_value_A + (value_A - old_value_A).clamp(-clip, clip)
    return 0.5 * torch.maximum((value_A - return_A) ** 2, (clipped_A - return_A) ** 2).sum()


def kl_k3(logp_A, reference_A, weight_A=1.0) -> torch.Tensor:
    """k3 estimator of KL(policy || reference) from the policy's own samples (joschu.net/blog/kl-approx.html):
    r - 1 - log r with r = reference / policy; never negative.

    Its gradient, though, is that of KL(reference || policy) at the policy's own samples. Weighted with policy / old
    policy, which is differentiated too, both value and gradient are those of KL(policy || reference), and the samples
    may be the old policy's (DeepSeek-V3.2, arXiv 2512.02556, equation 7).
    """
    log_ratio_A = reference_A - logp_A
    return (weight_A * (log_ratio_A.exp() - 1 - log_ratio_A)).sum()


# ---------------------------------------------------------------------------------------------------------------------
# One PPO update


def update(actor, critic, actor_optimizer, critic_optimizer, dialogues, reference_DT, value_DT, config, seed) -> dict:
    """`config.epochs` passes over the dialogues in `config.minibatches` optimiser steps each; returns the metrics,
    none where there is no dialogue to learn from.

    `reference_DT` and `value_DT` come from `score`, on the models as they were during the rollout; a critic that is not
    there, its optimiser and its values are None. `seed` orders the dialogues. Of `config` it reads: gamma, gae_lambda,
    group_size, clip, value_clip, kl_coef, kl_estimator, epochs, minibatches, drop_truncated, temperature,
    micro_batch_tokens.
    """
    kept_D = ~dialogues.truncated_D if config.drop_truncated else torch.ones_like(dialogues.truncated_D)
    trained_DT = dialogues.sampled_DT & kept_D[:, None]
    if not kept_D.any():
        return {}
    targets, optimizers, metrics = {"old_logp": dialogues.logp_DT, "reference": reference_DT}, {"": actor_optimizer}, {}
    if critic is None:
        advantage_DT = group_advantages(dialogues, config.group_size)
    else:
        mask_DT = dialogues.sampled_DT
        advantage_DT, return_DT = gae(dialogues.reward_D, value_DT, mask_DT, config.gamma, config.gae_lambda)
        metrics["explained_variance"] = explained_variance(value_DT[trained_DT], return_DT[trained_DT])
        targets |= {"old_value": value_DT, "return": return_DT}
        optimizers["critic_"] = critic_optimizer
    targets["advantage"] = normalise(advantage_DT, trained_DT)
    sums, actions, norms, skipped = Counter(), 0, [], 0
    rng = np.random.default_rng(seed)
    for _ in range(config.epochs):
        order = torch.from_numpy(rng.permutation(kept_D.nonzero()[:, 0].numpy()))
        for rows in order.tensor_split(min(config.minibatches, len(order))):
            total, before = int(dialogues.sampled_DT[rows].sum()), sums.copy()
            batches = [rows[micro] for micro in micro_batches(dialogues.length_D[rows], config.micro_batch_tokens)]
            parts = [backward(actor, critic, dialogues, targets, batch, total, config) for batch in batches]
            for part in parts:  # read only now, as reading waits for the device
                sums.update({name: float(x) for name, x in part.items()})
            norm = [optimizer.clip() for optimizer in optimizers.values()]
            if math.isfinite(sum(norm) + sum(ranks.gather(sum(sums.values())))):
                actions += total
                norms.append(norm)
                for optimizer in optimizers.values():
                    optimizer.step()
            else:  # neither model moves, and nothing of it enters the metrics
                sums = before
                skipped += 1
                for optimizer in optimizers.values():
                    optimizer.skip()
    everywhere = Counter()
    for part in ranks.gather(sums):
        everywhere.update(part)
    if actions:
        metrics["padding"] = 1 - everywhere.pop("tokens") / everywhere.pop("cells")
        metrics |= {name: value / actions for name, value in everywhere.items()}
    metrics["skipped"] = skipped
    for prefix, optimizer in optimizers.items():
        metrics[f"{prefix}lr"] = optimizer.schedule.get_last_lr()[0]
    for prefix, norm in zip(optimizers, np.mean(norms, axis=0).tolist() if norms else []):
        metrics[f"{prefix}grad_norm"] = norm
    return metrics


def backward(actor, critic, dialogues, targets: dict, rows: torch.Tensor, total: int, config) -> dict:
    """Gradients of the losses on a micro-batch of a minibatch with `total` actions. Returns sums over actions for the
    log, as tensors of one number, on the device."""
    tokens_BT, sampled_BT = crop(dialogues, rows, actor.device)
    target = {name: x_DT[rows, : tokens_BT.shape[1]][sampled_BT].to(actor.device) for name, x_DT in targets.items()}

    logp_A, entropy_A = action_logps(actor, tokens_BT, sampled_BT, config.temperature)
    surrogate = policy_loss(logp_A, target["old_logp"], target["advantage"], config.clip)
    ratio_A = (logp_A - target["old_logp"]).exp()
    kl = kl_k3(logp_A, target["reference"], ratio_A if config.kl_estimator == "k3_weighted" else 1.0)
    ((surrogate + config.kl_coef * kl) / total).backward()

    ratio_A = ratio_A.detach()
    sums = dict(
        policy_loss=surrogate.detach(),
        kl=kl.detach(),
        entropy=entropy_A.sum(),
        approx_kl=kl_k3(target["old_logp"], logp_A.detach()),
        clipfrac=((ratio_A - 1).abs() > config.clip).sum(),
        ratio=ratio_A.sum(),
        tokens=dialogues.length_D[rows].sum(),
        cells=torch.tensor(tokens_BT.numel()),
    )
    if critic is not None:
        value_A = action_values(critic, tokens_BT, sampled_BT)
        squared_error = value_loss(value_A, target["old_value"], target["return"], config.value_clip)
        (squared_error / total).backward()
        sums["value_loss"] = squared_error.detach()
    return sums


def explained_variance(value_A: torch.Tensor, return_A: torch.Tensor) -> float | None:
    """1 - Var(return - value) / Var(return): 1 is a perfect critic, 0 no better than a constant; None when all returns
    are equal."""
    variance = return_A.var(correction=0) if len(return_A) else torch.tensor(0.0)
    return None if variance == 0 else (1 - (return_A - value_A).var(correction=0) / variance).item()
