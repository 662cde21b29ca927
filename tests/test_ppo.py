"""PPO against hand-computed cases, closed forms, and itself with other batches."""

import copy
import math
from contextlib import nullcontext
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from statistics import NormalDist
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import small_model
from hypothesis import given, settings
from hypothesis import strategies as st
from test_rollout import QUESTIONS, run
from transformers import LlamaForTokenClassification

import ppo
from data.dialogues import Attempt
from data.optimizer import Optimizer
from ppo import (
    action_logps,
    action_values,
    differing,
    explained_variance,
    gae,
    group_advantages,
    kl_k3,
    micro_batches,
    normalise,
    policy_loss,
    score,
    update,
    value_loss,
)
from support.models import move, recomputing

CONFIG = SimpleNamespace(
    gamma=1.0,
    gae_lambda=0.95,
    clip=0.2,
    value_clip=0.2,
    kl_coef=0.05,
    kl_estimator="k3",
    epochs=1,
    minibatches=1,
    drop_truncated=False,
    temperature=1.0,
    micro_batch_tokens=100_000,
    group_size=1,
)


@pytest.fixture(scope="module")
def actor(tokenizer):
    return small_model(tokenizer)


@pytest.fixture(scope="module")
def critic(actor):
    torch.manual_seed(1)
    critic = LlamaForTokenClassification(copy.deepcopy(actor.config)).eval()
    critic.score = torch.nn.Linear(32, 1)
    return critic


@pytest.fixture(scope="module")
def dialogues(actor, tokenizer):
    return run(actor, tokenizer)


def with_config(**changes):
    return SimpleNamespace(**vars(CONFIG) | changes)


class Recorder(Optimizer):
    """Keeps the gradients of the minibatches instead of stepping."""

    def __init__(self, model):
        super().__init__(model, 1e-3, 0, 10, 1e9)
        self.gradients = []

    def step(self):
        self.gradients.append([None if m.grad is None else m.grad.clone() for m in self.masters])
        self.adamw.zero_grad()


def gradients(actor, critic, dialogues, config, seed=0):
    """Metrics, and the actor's and the critic's gradients of every minibatch."""
    actor.zero_grad()
    critic.zero_grad()
    actor_recorder, critic_recorder = Recorder(actor), Recorder(critic)
    reference_DT, value_DT = score(dialogues, actor, critic, config.temperature, config.micro_batch_tokens)
    metrics = update(
        actor, critic, actor_recorder, critic_recorder, dialogues, reference_DT - 0.1, value_DT, config, seed
    )
    return metrics, actor_recorder.gradients, critic_recorder.gradients


def assert_same_gradients(first, second, atol=1e-6):
    for a, b in zip(first, second, strict=True):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, atol=atol, rtol=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# Log-probabilities and values


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_first_ratio_is_1(model, tokenizer, temperature):
    """The trainer's log-probabilities are the engine's."""
    batch = run(model, tokenizer, temperature=temperature, slots=5, stride=4)
    logp_A, entropy_A = action_logps(model, batch.tokens_DT, batch.sampled_DT, temperature)
    torch.testing.assert_close(logp_A, batch.logp_DT[batch.sampled_DT], atol=1e-5, rtol=0)
    assert (entropy_A > 0).all() and (entropy_A < math.log(len(tokenizer))).all()


def test_chunks_of_logits_change_nothing(actor, dialogues, monkeypatch):
    whole = action_logps(actor, dialogues.tokens_DT, dialogues.sampled_DT, 1.0)
    monkeypatch.setattr(ppo, "actions_at_once", lambda vocabulary: 7)
    for a, b in zip(whole, action_logps(actor, dialogues.tokens_DT, dialogues.sampled_DT, 1.0)):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_score_puts_every_number_at_its_action(actor, critic, dialogues):
    reference_DT, value_DT = score(dialogues, actor, critic, 1.0, token_budget=300)
    torch.testing.assert_close(reference_DT, dialogues.logp_DT, atol=1e-5, rtol=0)
    for d in (0, 7):  # without padding, one dialogue at a time: the value before action t is read at token t - 1
        n = dialogues.length_D[d]
        with torch.no_grad():
            value_T = critic(input_ids=dialogues.tokens_DT[d : d + 1, :n]).logits[0, :, 0]
        expected_T = torch.cat([torch.zeros(1), value_T[:-1]]) * dialogues.sampled_DT[d, :n]
        torch.testing.assert_close(value_DT[d, :n], expected_T, atol=1e-5, rtol=0)
    assert (value_DT[~dialogues.sampled_DT] == 0).all()


def test_forced_positions_get_no_gradient(actor, critic, dialogues):
    """The only states that a gradient reaches from above are those in which the model chose a token."""
    caught = []

    def keep(module, args, output):
        output.last_hidden_state.retain_grad()
        caught.append(output.last_hidden_state)

    hooks = [model.base_model.register_forward_hook(keep) for model in (actor, critic)]
    logp_A, _ = action_logps(actor, dialogues.tokens_DT, dialogues.sampled_DT, 1.0)
    value_A = action_values(critic, dialogues.tokens_DT, dialogues.sampled_DT)
    (logp_A.sum() + value_A.sum()).backward()
    for hook in hooks:
        hook.remove()
    chosen_DT = torch.zeros_like(dialogues.sampled_DT)
    chosen_DT[:, :-1] = dialogues.sampled_DT[:, 1:]
    for hidden in caught:
        assert torch.equal(hidden.grad.abs().sum(-1) > 0, chosen_DT)


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 200))
def test_micro_batches_hold_every_dialogue_once_within_the_budget(lengths, budget):
    batches = list(micro_batches(torch.tensor(lengths), budget))
    assert sorted(torch.cat(batches).tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[d] for d in batch) <= budget


# ---------------------------------------------------------------------------------------------------------------------
# Advantages


def test_gae_of_two_attempts_by_hand():
    """prompt, 2 actions, 2 feedback tokens, 1 action: lambda 0.5, gamma 1, reward 1, values 0.2, 0.4, 0.6.

    deltas: 0.4 - 0.2 = 0.2, 0.6 - 0.4 = 0.2, 1 - 0.6 = 0.4
    advantages: 0.4; 0.2 + 0.5 * 0.4 = 0.4; 0.2 + 0.5 * 0.4 = 0.4
    """
    sampled = torch.tensor([[False, True, True, False, False, True, False]])
    value = torch.tensor([[9.0, 0.2, 0.4, 9.0, 9.0, 0.6, 9.0]])
    advantage, returns = gae(torch.tensor([1.0]), value, sampled, gamma=1.0, lam=0.5)
    torch.testing.assert_close(advantage, torch.tensor([[0, 0.4, 0.4, 0, 0, 0.4, 0]]))
    torch.testing.assert_close(returns, torch.tensor([[0, 0.6, 0.8, 0, 0, 1.0, 0]]))


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0, 1))
def test_gae_is_the_formula_with_feedback_removed(seed, gamma, lam):
    generator = torch.Generator().manual_seed(seed)
    sampled = torch.rand(5, 12, generator=generator) < 0.5
    sampled[:, 3] = True
    value, reward = torch.randn(5, 12, generator=generator), torch.randn(5, generator=generator)
    advantage, returns = gae(reward, value, sampled, gamma, lam)
    for d in range(5):
        v = value[d][sampled[d]].double().tolist()
        delta = [(reward[d].item() if t == len(v) - 1 else gamma * v[t + 1]) - v[t] for t in range(len(v))]
        expected = [sum((gamma * lam) ** (u - t) * delta[u] for u in range(t, len(v))) for t in range(len(v))]
        torch.testing.assert_close(advantage[d][sampled[d]], torch.tensor(expected), atol=1e-5, rtol=1e-4)
        expected_return = torch.tensor(expected) + torch.tensor(v)
        torch.testing.assert_close(returns[d][sampled[d]], expected_return, atol=1e-5, rtol=1e-4)
        assert (advantage[d][~sampled[d]] == 0).all() and (returns[d][~sampled[d]] == 0).all()


def test_group_advantages_by_hand():
    """Two questions of three dialogues: the first attempts have the mean reward 0, those with a second one -0.5, the
    only third one is compared with itself; all of the second question fail alike."""
    spans = [[(1, 3)], [(1, 2), (3, 5)], [(1, 2), (3, 5), (7, 8)], *[[(2, 3), (4, 5)]] * 3]
    rewards = torch.tensor([1.0, 0.0, -1.0, -0.5, -0.5, -0.5])
    dialogues = SimpleNamespace(
        tokens_DT=torch.zeros(6, 8),
        reward_D=rewards,
        used_D=torch.tensor(list(map(len, spans))),
        attempts=[[Attempt(start, end, "", None, False) for start, end in each] for each in spans],
    )
    advantage = group_advantages(dialogues, group_size=3)
    expected = torch.tensor(
        [[0, 1, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0.5, 0.5, 0, 0, 0], [0, -1, 0, -0.5, -0.5, 0, 0, 0], *[[0] * 8] * 3]
    )
    torch.testing.assert_close(advantage, expected)
    assert differing(rewards, 3).tolist() == [0, 1, 2] and differing(rewards, 1).tolist() == []
    assert differing(rewards, 2).tolist() == [0, 1, 2, 3]


def test_advantages_are_normalised_over_the_actions_alone():
    mask = torch.tensor([[True, False, True], [False, True, True]])
    advantage = torch.tensor([[1.0, 99.0, 2.0], [99.0, 3.0, 6.0]])
    normalised = normalise(advantage, mask)
    deviation = math.sqrt((4 + 1 + 0 + 9) / 4)
    torch.testing.assert_close(normalised, torch.tensor([[-2.0, 0, -1.0], [0, 0, 3.0]]) / deviation)


def test_explained_variance():
    returns = torch.tensor([1.0, -1.0, 0.5])
    assert explained_variance(returns, returns) == 1.0
    assert abs(explained_variance(torch.full((3,), 7.0), returns)) < 1e-6
    assert explained_variance(returns, torch.ones(3)) is None
    assert explained_variance(torch.zeros(0), torch.zeros(0)) is None


# ---------------------------------------------------------------------------------------------------------------------
# Losses


@pytest.mark.parametrize(
    "ratio, advantage, loss, slope",
    [  # slope: of the loss in log ratio
        (1.0, 2.0, -2.0, -2.0),
        (1.1, 2.0, -2.2, -2.2),
        (1.5, 2.0, -2.4, 0.0),  # clipped: no reason to go further up
        (0.5, 2.0, -1.0, -1.0),  # on the wrong side: not clipped
        (0.5, -2.0, 1.6, 0.0),  # clipped: no reason to go further down
        (1.5, -2.0, 3.0, 3.0),
    ],
)
def test_policy_loss(ratio, advantage, loss, slope):
    logp = torch.tensor([math.log(ratio) - 1.0], requires_grad=True)
    value = policy_loss(logp, torch.tensor([-1.0]), torch.tensor([advantage]), clip=0.2)
    value.backward()
    assert value.item() == pytest.approx(loss, abs=1e-5) and logp.grad.item() == pytest.approx(slope, abs=1e-5)


@pytest.mark.parametrize(
    "value, old, target, loss",
    [(0.1, 0.0, 1.0, 0.405), (0.5, 0.0, 1.0, 0.32), (0.5, 0.0, -1.0, 1.125), (-0.5, 0.0, 1.0, 1.125)],
)
def test_value_loss(value, old, target, loss):
    result = value_loss(torch.tensor([value]), torch.tensor([old]), torch.tensor([target]), clip=0.2)
    assert result.item() == pytest.approx(loss, abs=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
def test_k3_is_the_exact_kl_of_a_small_softmax(weighted):
    """In expectation over the samples: of the policy itself, or, weighted, of an older one. The plain form has the exact
    value of KL(policy || reference) with the gradient of KL(reference || policy), the weighted form both exact."""
    logits = torch.tensor([0.5, -0.2, 0.1], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64).log()
    logp = logits.log_softmax(-1)
    old = torch.tensor([0.25, 0.4, 0.35], dtype=torch.float64).log() if weighted else logp.detach()
    estimate = 0
    for token in range(3):
        weight = [(logp[token] - old[token]).exp()[None]] if weighted else []
        estimate += old[token].exp() * kl_k3(logp[token : token + 1], reference[token : token + 1], *weight)
    exact = (logp.exp() * (logp - reference)).sum()
    other = (reference.exp() * (reference - logp)).sum()
    torch.testing.assert_close(estimate, exact)
    slope, exact_slope, other_slope = (
        torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (estimate, exact, other)
    )
    torch.testing.assert_close(slope, exact_slope if weighted else other_slope)
    assert (exact_slope - other_slope).abs().max() > 0.01
    assert kl_k3(logp, logp).item() == 0
    assert all(kl_k3(p[None], q[None]) >= 0 for p in logp for q in reference)


# ---------------------------------------------------------------------------------------------------------------------
# The update


@pytest.mark.parametrize("budget", [1, 150, 400])
def test_micro_batches_and_padding_change_nothing(actor, critic, dialogues, budget):
    config = with_config(minibatches=3)
    metrics, actor_gradients, critic_gradients = gradients(actor, critic, dialogues, config)
    config.micro_batch_tokens = budget
    other, actor_other, critic_other = gradients(actor, critic, dialogues, config)
    assert_same_gradients(actor_gradients, actor_other)
    assert_same_gradients(critic_gradients, critic_other)
    for name in metrics.keys() - {"padding"}:
        assert metrics[name] == pytest.approx(other[name], abs=2e-5), name


def test_gradient_of_the_update_is_that_of_the_plain_formula(actor, critic, dialogues):
    """One minibatch, everything written out: token-mean over all actions of the step."""
    metrics, (actor_gradient,), (critic_gradient,) = gradients(actor, critic, dialogues, CONFIG)
    reference_DT, value_DT = score(dialogues, actor, critic, 1.0, 100_000)
    reference_DT = reference_DT - 0.1
    mask = dialogues.sampled_DT
    advantage_DT, return_DT = gae(dialogues.reward_D, value_DT, mask, 1.0, 0.95)
    advantage_A = normalise(advantage_DT, mask)[mask]
    logits = actor(input_ids=dialogues.tokens_DT).logits[:, :-1].log_softmax(-1)
    logp_A = logits.gather(-1, dialogues.tokens_DT[:, 1:, None])[..., 0][mask[:, 1:]]
    ratio_A = (logp_A - dialogues.logp_DT[mask]).exp()
    loss = -torch.minimum(ratio_A * advantage_A, ratio_A.clamp(0.8, 1.2) * advantage_A).mean()
    log_ratio_A = reference_DT[mask] - logp_A
    kl = (log_ratio_A.exp() - 1 - log_ratio_A).mean()
    expected = torch.autograd.grad(loss + 0.05 * kl, list(actor.parameters()))
    assert_same_gradients([actor_gradient], [expected])
    assert metrics["policy_loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert metrics["kl"] == pytest.approx(kl.item(), abs=1e-5)
    value_A = critic(input_ids=dialogues.tokens_DT).logits[:, :-1, 0][mask[:, 1:]]
    loss = 0.5 * ((value_A - return_DT[mask]) ** 2).mean()
    assert_same_gradients([critic_gradient], [torch.autograd.grad(loss, list(critic.parameters()))])
    assert metrics["value_loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert metrics["approx_kl"] == pytest.approx(0, abs=1e-6) and metrics["clipfrac"] == 0


def test_gradient_without_a_critic_is_that_of_the_plain_formula(actor, dialogues):
    size = next(n for n in (2, 3, 5, 7) if len(dialogues.attempts) % n == 0)
    recorder, config = Recorder(actor), with_config(group_size=size, kl_coef=0.0)
    actor.zero_grad()
    reference_DT, value_DT = score(dialogues, actor, None, 1.0, 100_000)
    assert value_DT is None
    torch.testing.assert_close(reference_DT, dialogues.logp_DT, atol=1e-5, rtol=0)
    metrics = update(actor, None, recorder, None, dialogues, reference_DT, None, config, 0)
    names = "policy_loss kl entropy approx_kl clipfrac ratio padding skipped grad_norm lr".split()
    assert set(metrics) == set(names)  # none of the critic's

    mask, reward = dialogues.sampled_DT, dialogues.reward_D.tolist()
    advantages = []
    for d, attempts in enumerate(dialogues.attempts):
        group = range(d - d % size, d - d % size + size)
        for i, attempt in enumerate(attempts):
            there = [reward[other] for other in group if len(dialogues.attempts[other]) > i]
            advantages += [reward[d] - sum(there) / len(there)] * (attempt.end - attempt.start)
    advantage_A = torch.tensor(advantages)
    assert advantage_A.unique().numel() > 2
    advantage_A = (advantage_A - advantage_A.mean()) / advantage_A.std(correction=0)
    logits = actor(input_ids=dialogues.tokens_DT).logits[:, :-1].log_softmax(-1)
    logp_A = logits.gather(-1, dialogues.tokens_DT[:, 1:, None])[..., 0][mask[:, 1:]]
    loss = -((logp_A - dialogues.logp_DT[mask]).exp() * advantage_A).mean()
    assert_same_gradients(recorder.gradients, [torch.autograd.grad(loss, list(actor.parameters()))])


def test_the_weighted_estimator_in_the_update(actor, critic, dialogues):
    """Equal while the policy is that of the rollout; its gradient is another."""
    (plain, gradient, _), (weighted, other, _) = (
        gradients(actor, critic, dialogues, with_config(kl_coef=100.0, kl_estimator=name))
        for name in ("k3", "k3_weighted")
    )
    assert plain["kl"] == pytest.approx(weighted["kl"], rel=1e-4) and plain["kl"] > 1e-3
    assert max((a - b).abs().max() for a, b in zip(gradient[0], other[0])) > 1e-3


def test_ratio_and_padding(actor, critic, dialogues):
    metrics, *_ = gradients(actor, critic, dialogues, with_config(micro_batch_tokens=1))
    assert metrics["ratio"] == pytest.approx(1, abs=1e-5) and metrics["padding"] == 0
    moved = copy.copy(dialogues)
    moved.logp_DT = dialogues.logp_DT - math.log(1.5)
    metrics, *_ = gradients(actor, critic, moved, CONFIG)
    cells = dialogues.length_D.max() * len(dialogues.length_D)
    assert metrics["ratio"] == pytest.approx(1.5, abs=1e-4) and metrics["clipfrac"] == 1
    assert metrics["padding"] == pytest.approx(1 - dialogues.length_D.sum().item() / cells.item())


@pytest.mark.parametrize("processes", [1, 8])
@pytest.mark.parametrize("minibatches", [1, 8], ids=["score", "update"])
def test_little_padding_at_the_papers_shapes(minibatches, processes, monkeypatch):
    """1024 dialogues of 200 to 4096 tokens, lognormal with a mean of 1500, each rank's share of them."""
    spread = NormalDist(7.2, 0.5)
    length_D = torch.tensor([math.exp(spread.inv_cdf((d + 0.5) / 1024)) for d in range(1024)]).clamp(200, 4096).long()
    assert 1490 < length_D.float().mean() < 1510
    monkeypatch.setattr(ppo.ranks, "count", lambda: processes)
    order, tokens, cells = torch.from_numpy(np.random.default_rng(0).permutation(1024)), 0, 0
    for rows in order.tensor_split(minibatches):
        for rank in range(processes):
            monkeypatch.setattr(ppo.ranks, "rank", lambda: rank)
            for micro in micro_batches(length_D[rows], 4096):
                lengths = length_D[rows][micro]
                tokens, cells = tokens + int(lengths.sum()), cells + len(lengths) * int(lengths.max())
    assert tokens == length_D.sum() and 1 - tokens / cells < 0.1


def test_recomputed_activations_change_no_gradient(actor, critic, dialogues):
    """And far less is kept for the backward pass, without dropout coming back."""

    def kept_and_gradients(context):
        kept = []
        with context, torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
            logp_A, _ = action_logps(actor, dialogues.tokens_DT, dialogues.sampled_DT, 1.0)
            value_A = action_values(critic, dialogues.tokens_DT, dialogues.sampled_DT)
            loss = logp_A.sum() + value_A.sum()
            found = torch.autograd.grad(loss, [*actor.base_model.parameters(), *critic.base_model.parameters()])
        return sum(kept), found

    training = [part.training for model in (actor, critic) for part in model.modules()]
    plain, expected = kept_and_gradients(nullcontext())
    less, found = kept_and_gradients(recomputing(actor, critic))
    assert less < 0.5 * plain and all(torch.equal(a, b) for a, b in zip(expected, found))
    assert training == [part.training for model in (actor, critic) for part in model.modules()]


def test_every_epoch_uses_every_dialogue_once_in_its_own_order(actor, critic, dialogues, monkeypatch):
    seen = []
    original = ppo.backward

    def spy(actor, critic, dialogues, targets, rows, total, config):
        seen.append(rows.tolist())
        return original(actor, critic, dialogues, targets, rows, total, config)

    monkeypatch.setattr(ppo, "backward", spy)
    _, steps, _ = gradients(actor, critic, dialogues, with_config(epochs=2, minibatches=4), seed=5)
    assert len(steps) == 8 and len(seen) == 8
    first, second = sum(seen[:4], []), sum(seen[4:], [])
    assert sorted(first) == sorted(second) == list(range(len(QUESTIONS)))
    assert [set(rows) for rows in seen[:4]] != [set(rows) for rows in seen[4:]]
    seen.clear()
    gradients(actor, critic, dialogues, with_config(epochs=2, minibatches=4), seed=5)
    assert sum(seen[:4], []) == first


def test_drop_truncated_leaves_those_dialogues_out(actor, critic, dialogues, tokenizer):
    assert dialogues.truncated_D.any() and not dialogues.truncated_D.all()
    _, dropped, _ = gradients(actor, critic, dialogues, with_config(drop_truncated=True))
    kept = [d for d in range(len(QUESTIONS)) if not dialogues.truncated_D[d]]
    alone = copy.copy(dialogues)
    for name, value in vars(dialogues).items():
        setattr(alone, name, value[torch.tensor(kept)] if torch.is_tensor(value) else [value[d] for d in kept])
    _, expected, _ = gradients(actor, critic, alone, CONFIG)
    assert_same_gradients(dropped, expected)
    everything = copy.copy(dialogues)
    everything.truncated_D = torch.ones_like(dialogues.truncated_D)
    metrics, steps, _ = gradients(actor, critic, everything, with_config(drop_truncated=True))
    assert steps == [] and "policy_loss" not in metrics


def test_an_update_makes_rewarded_actions_likelier(actor, critic, dialogues):
    trained, trained_critic = copy.deepcopy(actor), copy.deepcopy(critic)
    reference_DT, value_DT = score(dialogues, actor, critic, 1.0, 100_000)
    optimizers = [Optimizer(m, 3e-3, 0, 100, 1.0) for m in (trained, trained_critic)]
    metrics = update(trained, trained_critic, *optimizers, dialogues, reference_DT, value_DT, with_config(epochs=5), 0)
    mask, good = dialogues.sampled_DT, (dialogues.reward_D > 0)[:, None]
    logp_A, _ = action_logps(trained, dialogues.tokens_DT, mask, 1.0)
    change_DT = torch.zeros_like(value_DT).masked_scatter(mask, logp_A.detach()) - dialogues.logp_DT
    assert change_DT[mask & good].mean() > 0.02 > -0.02 > change_DT[mask & ~good].mean()
    value_after_DT = score(dialogues, trained, trained_critic, 1.0, 100_000)[1]
    returns = dialogues.reward_D[:, None].expand_as(value_DT)
    assert ((value_after_DT - returns)[mask] ** 2).mean() < ((value_DT - returns)[mask] ** 2).mean()
    assert metrics["grad_norm"] > 0 and metrics["critic_grad_norm"] > 0 and 0 < metrics["clipfrac"] < 1


# ---------------------------------------------------------------------------------------------------------------------
# The optimiser


def linear(dtype):
    torch.manual_seed(0)
    return torch.nn.Linear(8, 8, bias=False).to(dtype)


def test_schedule_rises_linearly_and_falls_to_a_tenth():
    optimizer = Optimizer(linear(torch.float32), 1.0, warmup_steps=4, total_steps=20, max_grad_norm=1.0)
    rates = []
    for _ in range(20):
        rates.append(optimizer.schedule.get_last_lr()[0])
        optimizer.weights[0].grad = torch.zeros(8, 8)
        optimizer.step()
    assert rates[:5] == pytest.approx([0, 0.25, 0.5, 0.75, 1.0])
    assert all(a > b for a, b in zip(rates[4:], rates[5:]))
    assert optimizer.schedule.get_last_lr()[0] == pytest.approx(0.1)


def test_float32_masters_move_bfloat16_weights():
    """Updates far below a bfloat16 weight's last bit add up; a float32 model is its own master."""
    plain, weight = linear(torch.bfloat16), linear(torch.bfloat16)
    start = weight.weight.detach().clone()
    optimizer = Optimizer(weight, 2e-6, 0, 10_000, 1.0)
    adamw = torch.optim.AdamW(plain.parameters(), lr=2e-6, betas=(0.9, 0.95), weight_decay=0)
    for _ in range(400):
        for model in (weight, plain):
            model.weight.grad = None
            model.weight.sum().backward()
        optimizer.step()
        adamw.step()
    moved = (weight.weight != start).float().mean()
    assert moved > 0.5 > (plain.weight != start).float().mean()
    torch.testing.assert_close(optimizer.masters[0], start.float() - 400 * 2e-6, atol=1e-4, rtol=0)
    assert Optimizer(linear(torch.float32), 1.0, 0, 1, 1.0).copies == []


def test_gradients_of_micro_batches_add_up_in_float32():
    model = linear(torch.bfloat16)
    optimizer = Optimizer(model, 1e-3, 0, 10, 1e9)
    for gradient in (256.0, 1.0, 1.0):  # 256 + 1 is 256 in bfloat16
        (gradient * model.weight).sum().backward()
    assert (optimizer.masters[0].grad == 258).all() and model.weight.grad is None


def test_gradients_are_clipped_and_the_norm_is_reported():
    model = linear(torch.float32)
    optimizer = Optimizer(model, 1.0, 0, 10, max_grad_norm=0.5)
    model.weight.grad = torch.full((8, 8), 1.0)
    seen = []
    optimizer.adamw.register_step_pre_hook(lambda *_: seen.append(model.weight.grad.norm().item()))
    assert optimizer.clip() == pytest.approx(8.0)
    optimizer.step()
    assert seen == [pytest.approx(0.5, rel=1e-4)]


@pytest.mark.parametrize("broken", ["actor", "critic"])
def test_a_step_that_is_not_finite_is_skipped_for_both_models(broken, actor, critic, dialogues, monkeypatch):
    """The second of three minibatches is: the others move the models and make the metrics, as if it were not there."""
    original, minibatches = ppo.backward, []

    def backward(actor, critic, dialogues, targets, rows, total, config):
        minibatches.append(rows.tolist())
        if len(minibatches) == 2:
            name = {"actor": "old_logp", "critic": "return"}[broken]
            targets = targets | {name: torch.full_like(targets[name], torch.nan)}
        return original(actor, critic, dialogues, targets, rows, total, config)

    monkeypatch.setattr(ppo, "backward", backward)
    models = [copy.deepcopy(model) for model in (actor, critic)]
    optimizers = [Optimizer(model, 1e-3, 0, 10, 1.0) for model in models]
    scores = score(dialogues, actor, critic, 1.0, 100_000)
    metrics = update(*models, *optimizers, dialogues, *scores, with_config(minibatches=3), 0)
    assert metrics["skipped"] == 1 and all(math.isfinite(value) for value in metrics.values())
    for optimizer in optimizers:
        assert {int(state["step"]) for state in optimizer.adamw.state.values()} == {2} and optimizer.skipped == 0

    monkeypatch.setattr(ppo, "backward", original)
    twins = [copy.deepcopy(model) for model in (actor, critic)]
    optimizers = [Optimizer(model, 1e-3, 0, 10, 1.0) for model in twins]
    order = torch.tensor(sum(minibatches, []))
    rest = [minibatches[0], minibatches[2]]
    rng = SimpleNamespace(permutation=lambda rows: order.numpy())
    monkeypatch.setattr(ppo.np.random, "default_rng", lambda seed: rng)
    monkeypatch.setattr(torch.Tensor, "tensor_split", lambda order, parts: [torch.tensor(rows) for rows in rest])
    expected = update(*twins, *optimizers, dialogues, *scores, with_config(minibatches=3), 0)
    assert metrics == expected | {"skipped": 1}
    for model, twin in zip(models, twins):
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters()))


def test_the_run_stops_when_no_step_is_finite(actor, critic, dialogues):
    models = [copy.deepcopy(model) for model in (actor, critic)]
    optimizers = [Optimizer(model, 1e-3, 0, 10, 1.0) for model in models]
    reference_DT, value_DT = score(dialogues, actor, critic, 1.0, 100_000)

    def broken(minibatches):
        config = with_config(minibatches=minibatches)
        return update(*models, *optimizers, dialogues, reference_DT * torch.nan, value_DT, config, 0)

    metrics = broken(4)
    assert metrics["skipped"] == 4 and "policy_loss" not in metrics and "grad_norm" not in metrics
    resumed = [Optimizer(model, 1e-3, 0, 10, 1.0) for model in models]
    for old, new in zip(optimizers, resumed):
        new.load_state_dict(old.state_dict())
    optimizers = resumed  # the count survives
    with pytest.raises(
        FloatingPointError, match="in 5 optimiser steps in a row the loss or its gradient was not finite"
    ):
        broken(1)
    for model, before in zip(models, (actor, critic)):
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters()))


def test_moments_and_masters_can_wait_elsewhere():
    model = linear(torch.bfloat16)
    optimizer = Optimizer(model, 1e-3, 0, 10, 1.0)
    assert [x.shape for x in optimizer.parked()] == [(8, 8)]  # before the first step there are no moments
    model.weight.sum().backward()
    optimizer.step()
    (state,) = optimizer.adamw.state.values()
    expected = [state["exp_avg"], state["exp_avg_sq"], optimizer.masters[0]]
    assert all(x is y for x, y in zip(optimizer.parked(), expected, strict=True))
    move(optimizer.parked(), torch.device("cpu"))
    assert all(x is y for x, y in zip(optimizer.parked(), expected, strict=True))  # in place
    assert Optimizer(linear(torch.float32), 1e-3, 0, 10, 1.0).parked() == []  # such a weight is its own master


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_moved_to_pinned_memory_and_back():
    there = torch.randn(1000, 1000, device="cuda").t()
    x = torch.nn.Parameter(there.clone())
    move([x], torch.device("cpu"))
    assert x.is_pinned() and torch.equal(x, there.cpu())
    move([x], torch.device("cuda"))
    assert x.is_cuda and torch.equal(x, there) and x.stride() == there.stride()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_restored_optimizer_continues_exactly(dtype):
    def go(optimizer, model, steps):
        for i in steps:
            (torch.sin(torch.arange(64.0) * (i + 1)).view(8, 8).to(dtype) * model.weight).sum().backward()
            optimizer.step()

    straight = linear(dtype)
    optimizer = Optimizer(straight, 1e-3, 2, 10, 1.0)
    go(optimizer, straight, range(3))
    state = copy.deepcopy((straight.state_dict(), optimizer.state_dict()))
    go(optimizer, straight, range(3, 6))
    resumed = linear(dtype)
    other = Optimizer(resumed, 1e-3, 2, 10, 1.0)
    resumed.load_state_dict(state[0])
    other.load_state_dict(state[1])
    go(other, resumed, range(3, 6))
    assert torch.equal(straight.weight, resumed.weight)
    assert all(torch.equal(a, b) for a, b in zip(optimizer.masters, other.masters))


# ---------------------------------------------------------------------------------------------------------------------
# The benchmark


def test_the_benchmarks_plain_update_is_the_same_update():
    """One minibatch: both take the same step."""
    path = Path(__file__).parents[1] / "bench" / "ppo.py"
    bench = module_from_spec(spec := spec_from_file_location("bench_ppo", path))
    spec.loader.exec_module(bench)
    models = bench.models_of(SimpleNamespace(model=None, vocabulary=100))
    dialogues = bench.made_up(5, 60.0, 100, 90)
    assert dialogues.length_D.max() <= 90 and 0.2 < dialogues.sampled_DT.sum() / dialogues.length_D.sum() < 0.7
    config = with_config(kl_coef=1.0, micro_batch_tokens=150)
    reference_DT, value_DT = dialogues.logp_DT - 0.1, torch.zeros(dialogues.logp_DT.shape)

    def moved(step):
        copies = [copy.deepcopy(model) for model in models]
        optimizers = [Optimizer(model, 1e-3, 0, 10, 1e9) for model in copies]
        step(copies, optimizers)
        return [state["exp_avg"] for optimizer in optimizers for state in optimizer.adamw.state.values()]

    ours = moved(lambda m, o: update(*m, *o, dialogues, reference_DT, value_DT, config, 0))
    plain = moved(lambda m, o: bench.plain_update(*m, o, dialogues, reference_DT, value_DT, config))
    assert_same_gradients([ours], [plain])
    assert bench.flops(models[0], dialogues, 100, 50) > 6 * 100 * 64 * 192 * 3 * 2 * 2
