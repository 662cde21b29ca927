"""PPO: Dialogues (rollout.py) + models -> one update of actor and critic. `config` is the Config of train.py.

What textbook PPO leaves open or does otherwise. The authors' code has only the first two (docs/paper.md):
- Only tokens that the model wrote are actions. Prompt and feedback enter no loss, and GAE steps over them: the state
  after the last token of an attempt is the one before the first token of the next attempt.
- The KL to the frozen reference model is a term of the loss (k3 estimator), not of the reward.
- A loss is the mean over all actions of its minibatch (or as `action_weights` says), not of a micro-batch.
- A step in which every action has the same undiscounted reward-to-go trains nothing (`trained_mask`).
- The old log-probabilities are those of the rollout, not computed again: at first a ratio is 1 up to rounding.

Shapes: D dialogues of the step, B of a minibatch or micro-batch, T tokens, A actions (sampled tokens), V vocabulary,
        E hidden size, Q questions. Entry t of a tensor _DT is about the choice of token t.
"""

import math
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch.optim.adamw import adamw
from torch.utils.checkpoint import checkpoint

from support import ranks
from support.cuda import streams
from support.memory import actions_at_once
from support.models import logits_of, move, to_device


# -------------------- Log-probabilities and values of the actions
def action_logps(model, tokens_BT: torch.Tensor, sampled_BT: torch.Tensor, temperature: float):
    """Log-probability and entropy (detached) of every action, each (A,) float32 in row-major order of `sampled_BT`.

    Rows are right-padded, so causal attention needs no mask. Logits are the largest tensor: they are computed only for
    actions, in chunks, and again in the backward pass. `logits_of` runs the model's own head, without its layers."""
    outputs = model.base_model(input_ids=tokens_BT, use_cache=False)
    # the loss mask: only sampled tokens are actions; the state before an action is at the token before it
    b_A, t_A = to_device(sampled_BT.nonzero().T, model.device)
    hidden_AE, action_A = outputs.last_hidden_state[b_A, t_A - 1], tokens_BT[b_A, t_A]

    def of_chunk(hidden, action):
        return logps_and_entropies(logits_of(model, outputs, hidden), action, temperature)

    recomputed = partial(checkpoint, of_chunk, use_reentrant=False, preserve_rng_state=False)  # in the backward pass
    chunks = 1 + len(action_A) // actions_at_once(model.get_output_embeddings().weight.shape[0])
    parts = map(recomputed, hidden_AE.tensor_split(chunks), action_A.tensor_split(chunks))
    return tuple(map(torch.cat, zip(*parts)))


@torch.compile  # eager until `fuse_layers`: importing support/cuda.py turns all compilation off
def logps_and_entropies(logits_AV: torch.Tensor, action_A: torch.Tensor, temperature: float):
    """Log-probabilities of the actions under softmax(logits / temperature); that distribution's entropies, detached."""
    logp_AV = (logits_AV.float() / temperature).log_softmax(-1)
    detached_AV = logp_AV.detach()
    return logp_AV.gather(-1, action_A[:, None])[:, 0], -detached_AV.exp().mul_(detached_AV).sum(-1)


def action_values(critic, tokens_BT: torch.Tensor, sampled_BT: torch.Tensor) -> torch.Tensor:
    """The critic's value of the state before every action, (A,) float32 even where its weights are bfloat16."""
    hidden_BTE = critic(input_ids=tokens_BT, use_cache=False).last_hidden_state
    value_BT = F.linear(hidden_BTE.float(), critic.score.weight.float(), critic.score.bias.float())[..., 0]
    b_A, t_A = to_device(sampled_BT.nonzero().T, critic.device)
    return value_BT[b_A, t_A - 1]  # at the token before the action, as in `action_logps`


def micro_batches(length_D: torch.Tensor, token_budget: int) -> Iterator[torch.Tensor]:
    """This rank's dialogues, as indices: batches of similar length, each of at most `token_budget` tokens with padding
    (but at least one dialogue). Dialogues are dealt out in order of length, so that all ranks have about equal work."""
    remaining = length_D.argsort(descending=True)[ranks.rank() :: ranks.world_size()]
    while len(remaining):
        count = max(1, token_budget // int(length_D[remaining[0]]))  # the first is the longest
        yield remaining[:count]
        remaining = remaining[count:]


def trim(dialogues, indices: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens of these dialogues without needless padding, on the device; their sampled mask, which stays on the CPU."""
    longest = int(dialogues.length_D[indices].max())
    return to_device(dialogues.tokens_DT[indices, :longest], device), dialogues.sampled_DT[indices, :longest]


@torch.no_grad()
def map_actions(function, model, dialogues, config) -> torch.Tensor:
    """function(model, tokens_BT, sampled_BT) gives a number per action, (A,). Returns those of all actions, (D, T)."""
    x_DT = torch.zeros_like(dialogues.logp_DT, device=model.device)  # copied back once: a copy waits for the device
    for indices in micro_batches(dialogues.length_D, config.micro_batch_tokens):
        tokens_BT, sampled_BT = trim(dialogues, indices, model.device)
        b_A, t_A = sampled_BT.nonzero().T
        d_A, t_A = to_device(torch.stack([indices[b_A], t_A]), model.device)
        x_DT[d_A, t_A] = function(model, tokens_BT, sampled_BT)
    return ranks.all_reduce_sum(x_DT.cpu())  # each rank has filled in its own dialogues


def reference_logps_and_values(reference, critic, dialogues, config):
    """Once per step: the reference model's log-probabilities and the critic's values (None without a critic)."""
    ref_logp_DT = map_actions(lambda *args: action_logps(*args, config.temperature)[0], reference, dialogues, config)
    return ref_logp_DT, (None if critic is None else map_actions(action_values, critic, dialogues, config))


# -------------------- Advantages
def advantages(dialogues, value_DT: torch.Tensor | None, trained_DT: torch.Tensor, config):
    """Advantages of the actions, normalised over those that are trained on, and the critic's targets; both (D, T).
    Without values the advantages are those of groups, and there are no targets."""
    if value_DT is None:
        advantage_DT, return_DT = group_advantages(dialogues, config.group_size, config.calibrated), None
    else:
        reward_DT, sampled_DT = dialogues.reward_DT, dialogues.sampled_DT
        advantage_DT, return_DT = gae(reward_DT, value_DT, sampled_DT, config.gamma, config.gae_lambda)
    return normalise(advantage_DT, trained_DT, config.normalise), return_DT


def trained_mask(dialogues, config) -> torch.Tensor:
    """(D,), True for the dialogues to train on: all, or with `drop_truncated` those that did not run out of tokens. All
    False if every action has the same undiscounted reward-to-go: advantages would be noise."""
    trained_D = ~(dialogues.truncated_D & config.drop_truncated)
    to_go_A = dialogues.reward_DT.flip(1).cumsum(1).flip(1)[dialogues.sampled_DT & trained_D[:, None]]
    return trained_D & (len(to_go_A.unique()) > 1)


def gae(reward_DT: torch.Tensor, value_DT: torch.Tensor, sampled_DT: torch.Tensor, gamma: float, lam: float):
    """Generalised advantage estimation (arXiv 1506.02438, equation 16) over the actions of each dialogue.

        delta_t = reward_t + gamma value_{t+1} - value_t
        advantage_t = delta_t + gamma lambda advantage_{t+1},    return_t = advantage_t + value_t

    t + 1 is the next *action*: feedback is skipped. The value after the last one is 0, for a truncated dialogue too (no
    bootstrap, as in the paper). Gives advantages and returns, (D, T), 0 where no token was sampled."""
    advantage_DT = torch.zeros_like(value_DT)
    next_value_D = next_advantage_D = torch.zeros(len(value_DT))
    for t in reversed(range(value_DT.shape[1])):
        delta_D = reward_DT[:, t] + gamma * next_value_D - value_DT[:, t]
        advantage_DT[:, t] = delta_D + gamma * lam * next_advantage_D
        next_advantage_D = torch.where(sampled_DT[:, t], advantage_DT[:, t], next_advantage_D)
        next_value_D = torch.where(sampled_DT[:, t], value_DT[:, t], next_value_D)
    return advantage_DT * sampled_DT, (advantage_DT + value_DT) * sampled_DT


def group_advantages(dialogues, group_size: int, calibrated: bool = False) -> torch.Tensor:
    """Without a critic, (D, T): an action of attempt i gets r_i + r_{i+1} + ... minus the mean of this sum over the
    dialogues of its group that reached attempt i. `calibrated` (CAL-GRPO): the mean at i + 1 replaces r_{i+1} + ...

    A group is the `group_size` neighbours that answer the same question. Those that ended earlier are not in the mean:
    it estimates what a dialogue that reaches attempt i still gets. There is no gamma, and no division by the group's
    deviation, which would favour questions that are nearly always or never solved (Dr. GRPO, arXiv 2503.20783)."""
    advantage_DT = torch.zeros_like(dialogues.reward_DT)
    later_D = torch.zeros(len(dialogues.attempts), dtype=torch.float64)  # r_{i+1} + ..., or its mean
    for group in torch.arange(len(later_D)).split(group_size):
        for i in reversed(range(int(dialogues.used_D[group].max()))):
            reached = group[dialogues.used_D[group] > i].tolist()
            attempts = [dialogues.attempts[d][i] for d in reached]
            to_go = later_D[reached] + dialogues.reward_DT[reached, [attempt.end - 1 for attempt in attempts]]
            mean = to_go.mean().clamp(*to_go.aminmax())  # equal rewards have exactly that mean, despite rounding
            for d, attempt, advantage in zip(reached, attempts, to_go - mean):
                advantage_DT[d, attempt.start : attempt.end] = advantage
            later_D[reached] = mean if calibrated else to_go
    return advantage_DT


def informative_dialogues(dialogues, config) -> torch.Tensor:
    """Indices of dialogues in groups with an advantage other than 0 (like DAPO, arXiv 2503.14476; none are redrawn)."""
    advantage_DT = group_advantages(dialogues, config.group_size, config.calibrated)
    informative_Q = (advantage_DT != 0).any(1).view(-1, config.group_size).any(1)
    return informative_Q.repeat_interleave(config.group_size).nonzero()[:, 0]


def normalise(advantage_DT: torch.Tensor, mask_DT: torch.Tensor, how: str) -> torch.Tensor:
    """Over the step's actions that are trained on (the mask): "std" gives them mean 0 and standard deviation 1, as in
    the paper, "centre" only mean 0; both can give a group of equal rewards an advantage. "none" changes nothing."""
    if how == "none":
        return advantage_DT * mask_DT
    advantage_A = advantage_DT[mask_DT]
    scale = advantage_A.std(correction=0) + 1e-8 if how == "std" else 1.0
    return (advantage_DT - advantage_A.mean()) / scale * mask_DT


# -------------------- Losses per action, (A,), and the weights with which the update adds them up
def action_weights(count_B: torch.Tensor, loss_mean: str) -> torch.Tensor:
    """(B,): what each action of a dialogue weighs in a minibatch; `count_B` counts a dialogue's actions. "tokens":
    the loss is the mean over all actions. "dialogues": the mean over dialogues of their own means."""
    if loss_mean == "tokens":
        return (1 / count_B.sum()).expand(len(count_B))
    return 1 / (len(count_B) * count_B)


def policy_loss(logp_A, old_logp_A, advantage_A, clip: float, clip_high: float | None = None):
    """Minus the clipped surrogate (PPO, arXiv 1707.06347, equation 7), and whether the ratio is outside the clip range,
    bool. `clip_high` is the range above 1, if it differs (Clip-Higher of DAPO)."""
    ratio_A = (logp_A - old_logp_A).exp()
    clipped_A = ratio_A.clamp(1 - clip, 1 + (clip if clip_high is None else clip_high))
    return -torch.minimum(ratio_A * advantage_A, clipped_A * advantage_A), clipped_A != ratio_A


def value_loss(value_A, old_value_A, return_A, clip: float) -> torch.Tensor:
    """Half the larger of two squared errors: of the value, and of the value clipped to within `clip` of the old one."""
    clipped_A = old_value_A + (value_A - old_value_A).clamp(-clip, clip)
    return 0.5 * torch.maximum((value_A - return_A) ** 2, (clipped_A - return_A) ** 2)


def kl_k3(logp_A, other_logp_A) -> torch.Tensor:
    """k3 estimator of KL(policy || other) from the policy's own samples (joschu.net/blog/kl-approx.html): q - 1 - log q
    with q = other / policy. It is never negative. But its expected gradient is that of KL(other || policy)."""
    log_q_A = other_logp_A - logp_A
    return log_q_A.exp() - 1 - log_q_A


# -------------------- One PPO update
def update(actor, critic, optimizers: list, dialogues, ref_logp_DT, value_DT, config, seed) -> dict:
    """`config.epochs` passes over the dialogues, in `config.minibatches` optimiser steps each. Returns the metrics;
    `learned` is the share of the step's dialogues that were trained on. If it is 0, there are no other metrics."""
    trained_D = trained_mask(dialogues, config)
    if not trained_D.any():
        return {"learned": 0.0}
    trained_DT = dialogues.sampled_DT & trained_D[:, None]
    advantage_DT, return_DT = advantages(dialogues, value_DT, trained_DT, config)
    per_token = {"old_logp": dialogues.logp_DT, "ref_logp": ref_logp_DT, "advantage": advantage_DT}
    metrics = {"learned": trained_D.sum().item() / config.dialogues}
    if critic is not None:
        per_token |= {"old_value": value_DT, "return": return_DT}
        metrics["explained_variance"] = explained_variance(value_DT[trained_DT], return_DT[trained_DT])

    results, rng = [], np.random.default_rng(seed)  # results: one for each optimiser step, None if skipped
    for _ in range(config.epochs):
        order = torch.from_numpy(rng.permutation(trained_D.nonzero()[:, 0].numpy()))
        for indices in order.tensor_split(min(config.minibatches, len(order))):
            results.append(minibatch_step(actor, critic, optimizers, dialogues, per_token, indices, config))

    metrics["skipped"] = results.count(None)
    metrics |= dict(zip(("lr", "critic_lr"), (optimizer.lr for optimizer in optimizers)))
    if taken := [result for result in results if result is not None]:
        sums, norms = zip(*taken)
        sums = sum(ranks.all_gather(sum(sums, [])), [])  # of each micro-batch, of all ranks
        totals = {name: sum(each[name] for each in sums) for name in sums[0]}
        n_actions = totals.pop("actions")
        metrics |= {name: total / n_actions for name, total in totals.items()}
        metrics |= dict(zip(("grad_norm", "critic_grad_norm"), np.mean(norms, axis=0).tolist()))
    return metrics


def minibatch_step(actor, critic, optimizers, dialogues, per_token: dict, indices: torch.Tensor, config):
    """A step of each optimiser on these dialogues. Returns sums over actions, for each micro-batch, and the norms of
    the gradients. None if a gradient is not finite: then the step is skipped."""
    weight_B = action_weights(dialogues.sampled_DT[indices].sum(1), config.loss_mean)
    sums = []
    for part in micro_batches(dialogues.length_D[indices], config.micro_batch_tokens):
        sums.append(micro_batch_backward(actor, critic, dialogues, per_token, indices[part], weight_B[part], config))
    norms = [optimizer.reduce_and_clip() for optimizer in optimizers]
    finite = all(map(math.isfinite, norms))
    for optimizer in optimizers:
        optimizer.step() if finite else optimizer.skip()
    sums = [{name: float(x) for name, x in each.items()} for each in sums]  # at the end: it waits for the device
    return (sums, norms) if finite else None


def micro_batch_backward(actor, critic, dialogues, per_token: dict, indices: torch.Tensor, weight_B, config) -> dict:
    """Gradients of the losses; `weight_B`: see `action_weights`. Returns sums over actions, still on the device."""
    tokens_BT, sampled_BT = trim(dialogues, indices, actor.device)
    b_A, t_A = sampled_BT.nonzero().T  # the actions, in the order of `action_logps`
    stored = {key: to_device(x_DT[indices[b_A], t_A], actor.device) for key, x_DT in per_token.items()}
    weight_A = to_device(weight_B[b_A], actor.device)

    logp_A, entropy_A = action_logps(actor, tokens_BT, sampled_BT, config.temperature)
    loss_A, outside_A = policy_loss(logp_A, stored["old_logp"], stored["advantage"], config.clip, config.clip_high)
    kl_A = kl_k3(logp_A, stored["ref_logp"])
    (weight_A * (loss_A + config.kl_coef * kl_A)).sum().backward()

    metrics = {
        "policy_loss": loss_A,
        "kl": kl_A,
        "entropy": entropy_A,
        "approx_kl": kl_k3(stored["old_logp"], logp_A),
        "clipfrac": outside_A,
        "ratio": (logp_A - stored["old_logp"]).exp(),
    }
    if critic is not None:
        value_A = action_values(critic, tokens_BT, sampled_BT)
        metrics["value_loss"] = value_loss(value_A, stored["old_value"], stored["return"], config.value_clip)
        (weight_A * metrics["value_loss"]).sum().backward()  # separate: the actor's activations are freed by now
    return {name: x_A.detach().sum() for name, x_A in metrics.items()} | {"actions": len(weight_A)}


def explained_variance(value_A: torch.Tensor, return_A: torch.Tensor) -> float | None:
    """1 - Var(return - value) / Var(return): 1 is perfect, 0 as good as a constant. None if returns are equal."""
    variance = return_A.var(correction=0)
    return None if variance == 0 else (1 - (return_A - value_A).var(correction=0) / variance).item()


# -------------------- The optimiser
SHARD_SIZE = 2**26  # the most elements of a shard, a part of a weight
MAX_SKIPPED = 5  # steps in a row without a finite gradient: then the run stops
add_in_place = torch.compile(torch.Tensor.add_)  # PyTorch's CUDA kernel is slow if dtypes differ


def lr_schedule(step: int, warmup_steps: int, total_steps: int) -> float:
    """The learning rate as a share of its peak after `step` optimiser steps: a linear warm-up from 0, then cosine decay
    to a tenth, where it stays. A step of the run in which nothing is learned does not count."""
    if step < warmup_steps:
        return step / warmup_steps
    progress = min(1, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return 0.5 * (1 + math.cos(math.pi * progress)) * 0.9 + 0.1


def add_gradient(gradients: dict[torch.Tensor, torch.Tensor], weight: torch.Tensor) -> None:
    """Add a weight's gradient to that of earlier micro-batches as soon as it is computed, then free it."""
    earlier = gradients.get(weight)
    gradients[weight] = weight.grad.float() if earlier is None else add_in_place(earlier, weight.grad)
    weight.grad = None


def flat_shards(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Flat views of all weights, or of all gradients, in the same order: parts of at most SHARD_SIZE elements, the
    largest first, so that the ranks' shares are about equal."""
    views = [view for x in tensors for view in x.detach().view(-1).split(SHARD_SIZE)]
    return sorted(views, key=len, reverse=True)


class Optimizer:
    """AdamW with `lr_schedule` and gradient clipping, over float32 masters of the weights: at a learning rate of 5e-7 a
    bfloat16 weight would hardly ever change. Gradients are also added up in float32. A float32 weight is its own
    master. Each rank has masters and moments of its share of the weights, updates that share and broadcasts it (ZeRO
    stage 1, arXiv 1910.02054). With `offload`, masters and moments are in host memory except during their own step."""

    def __init__(self, model, lr, warmup_steps: int, total_steps: int, max_grad_norm: float, offload=False):
        self.peak_lr, self.warmup_steps, self.total_steps = lr, warmup_steps, total_steps
        self.max_grad_norm, self.offload = max_grad_norm, offload
        self.steps, self.skipped = 0, 0  # taken so far, and skipped in a row

        self.weights, self.gradients = list(model.parameters()), {}
        for weight in self.weights:
            weight.register_post_accumulate_grad_hook(partial(add_gradient, self.gradients))

        # rank n % world_size has the state of shard n; `movable` is what of it can wait in host memory
        self.shards, self.states, self.movable = flat_shards(self.weights), {}, {}
        for n in range(ranks.rank(), len(self.shards), ranks.world_size()):
            master = self.shards[n].float()  # of a float32 weight, the shard itself
            step = torch.zeros((), device=master.device if master.is_cuda else "cpu")  # as fused AdamW asks
            m, v = torch.zeros_like(master), torch.zeros_like(master)
            self.states[n] = {"master": master, "step": step, "exp_avg": m, "exp_avg_sq": v}  # as step() unpacks it
            self.movable[n] = [m, v] if master is self.shards[n] else [master, m, v]
            if offload:
                move(self.movable[n], torch.device("cpu"))

    @property
    def lr(self) -> float:  # of the next step
        return self.peak_lr * lr_schedule(self.steps, self.warmup_steps, self.total_steps)

    def reduce_and_clip(self) -> float:
        """Add up the gradients of all ranks and clip them. Returns their norm before clipping."""
        for weight in self.weights:
            if weight not in self.gradients:  # such as that of an expert that got no token
                self.gradients[weight] = torch.zeros_like(weight, dtype=torch.float32)
        gradients = [ranks.all_reduce_sum(self.gradients[weight]) for weight in self.weights]
        norm = torch.nn.utils.get_total_norm(gradients)
        torch._foreach_mul_(gradients, torch.clamp(self.max_grad_norm / (norm + 1e-6), max=1.0))
        return norm.item()

    @torch.no_grad()
    def step(self) -> None:
        """Step the masters, and copy them back to the weights."""
        settings = dict(lr=self.lr, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.0, amsgrad=False, maximize=False)
        gradients = flat_shards([self.gradients[weight] for weight in self.weights])  # of the same shards
        with streams(self.weights[0].device) as on_device:
            for n, state in self.states.items():
                with on_device(self.movable[n] if self.offload else []):
                    master, step, m, v = state.values()
                    adamw([master], [gradients[n]], [m], [v], [], [step], fused=step.is_cuda, **settings)
                    self.shards[n].copy_(master)

        for n, shard in enumerate(self.shards):
            ranks.broadcast(shard, n % ranks.world_size())
        self.gradients.clear()
        self.steps, self.skipped = self.steps + 1, 0

    def skip(self) -> None:
        """Drop the gradients. FloatingPointError after MAX_SKIPPED times in a row."""
        self.gradients.clear()
        self.skipped += 1
        if self.skipped == MAX_SKIPPED:
            raise FloatingPointError(f"{self.skipped} steps in a row had no finite gradient: lower the learning rates")

    def state_dict(self) -> dict:
        """Whole on rank 0, whatever the number of ranks; elsewhere without the other ranks' masters and moments."""
        return {"steps": self.steps, "skipped": self.skipped, "states": ranks.gather_on_rank0(self.states)}

    @torch.no_grad()
    def load_state_dict(self, saved: dict) -> None:
        self.steps, self.skipped = saved["steps"], saved["skipped"]
        for n, state in self.states.items():
            for name, x in state.items():
                x.copy_(saved["states"][n][name])
