"""PPO against hand-computed cases, closed forms, and itself with other batches."""

import copy
import gc
import itertools
import math
import weakref
from dataclasses import replace
from functools import partial
from shutil import which
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import PROBLEMS, random_model, small_model, small_rollout
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaModel

import ppo
import train
from ppo import Optimizer, action_logps, gae, micro_batches, reference_logps_and_values, update
from rollout import Attempt
from support.cuda import fuse_layers

CONFIG = train.Config(gae_lambda=0.95, kl_coef=0.05, minibatches=1, micro_batch_tokens=100_000)
with_config = partial(replace, CONFIG)
assert_same_gradients = partial(torch.testing.assert_close, atol=1e-6, rtol=1e-4)


@pytest.fixture(scope="module")
def actor(tokenizer):
    return small_model(tokenizer)


@pytest.fixture(scope="module")
def critic(actor):
    torch.manual_seed(1)
    critic = LlamaModel(copy.deepcopy(actor.config)).eval()
    critic.score = torch.nn.Linear(32, 1)
    return critic


@pytest.fixture(scope="module")
def dialogues(actor, tokenizer):
    return small_rollout(actor, tokenizer)


class Recorder(Optimizer):
    """Keeps the gradients of the minibatches instead of stepping."""

    def step(self):
        self.kept.append([self.gradients[weight] for weight in self.weights])
        self.gradients.clear()


def gradients(actor, critic, dialogues, config, seed=0):
    """Metrics of an update, and the actor's and the critic's gradients of every minibatch. The reference model's
    log-probabilities are the actor's minus 0.1, so that the KL term has a gradient."""
    actor, critic = copy.deepcopy((actor, critic))
    recorders = [Recorder(model, 1e-3, 0, 10, max_grad_norm=1e9) for model in (actor, critic) if model]
    for recorder in recorders:
        recorder.kept = []
    reference_DT, value_DT = reference_logps_and_values(actor, critic, dialogues, config)
    metrics = update(actor, critic, recorders, dialogues, reference_DT - 0.1, value_DT, config, seed)
    return metrics, *(recorder.kept for recorder in recorders)


def plain_logps(actor, dialogues) -> torch.Tensor:
    """(A,), from the logits of all tokens."""
    logp_DTV = actor(input_ids=dialogues.tokens_DT).logits[:, :-1].log_softmax(-1)
    return logp_DTV.gather(-1, dialogues.tokens_DT[:, 1:, None])[..., 0][dialogues.sampled_DT[:, 1:]]


# -------------------- Log-probabilities and values
def test_every_number_of_reference_and_critic_is_at_its_action(actor, critic, dialogues):
    reference_DT, value_DT = reference_logps_and_values(actor, critic, dialogues, with_config(micro_batch_tokens=300))
    torch.testing.assert_close(reference_DT, dialogues.logp_DT, atol=1e-5, rtol=0)
    for d in (0, 7):  # without padding, one dialogue at a time: the value before action t is read at token t - 1
        n = dialogues.length_D[d]
        value_T = critic.score(critic(input_ids=dialogues.tokens_DT[d : d + 1, :n]).last_hidden_state)[0, :, 0]
        expected_T = torch.cat([torch.zeros(1), value_T[:-1]]) * dialogues.sampled_DT[d, :n]
        torch.testing.assert_close(value_DT[d, :n], expected_T, atol=1e-5, rtol=0)
    assert (value_DT[~dialogues.sampled_DT] == 0).all()


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 200))
def test_micro_batches_hold_every_dialogue_once_within_the_budget(lengths, budget):
    batches = list(micro_batches(torch.tensor(lengths), budget))
    assert sorted(torch.cat(batches).tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[d] for d in batch) <= budget


# -------------------- Advantages
def test_gae_of_two_attempts_by_hand():
    """prompt, 2 actions, 2 feedback tokens, 1 action; gamma 1, lambda 0.5; the values are 0.2, 0.4, 0.6. Both dialogues
    get 1 for the last action; the second one also gets 0.5 for its first attempt.

    deltas        0.4 - 0.2 = 0.2                0.6 - 0.4 = 0.2                1 - 0.6 = 0.4
    advantages    0.2 + 0.5 * 0.4 = 0.4          0.2 + 0.5 * 0.4 = 0.4          0.4
    the second    0.2 + 0.5 * 0.9 = 0.65         (0.2 + 0.5) + 0.5 * 0.4 = 0.9  0.4"""
    sampled = torch.tensor([[False, True, True, False, False, True, False]] * 2)
    value = torch.tensor([[9.0, 0.2, 0.4, 9.0, 9.0, 0.6, 9.0]] * 2)
    reward = torch.tensor([[0, 0, 0, 0, 0, 1.0, 0], [0, 0, 0.5, 0, 0, 1.0, 0]])
    advantage, returns = gae(reward, value, sampled, gamma=1.0, lam=0.5)
    torch.testing.assert_close(advantage, torch.tensor([[0, 0.4, 0.4, 0, 0, 0.4, 0], [0, 0.65, 0.9, 0, 0, 0.4, 0]]))
    torch.testing.assert_close(returns, torch.tensor([[0, 0.6, 0.8, 0, 0, 1.0, 0], [0, 0.85, 1.3, 0, 0, 1.0, 0]]))


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0, 1))
def test_gae_is_the_formula_with_feedback_removed(seed, gamma, lam):
    """With a reward at any action, as if each were an attempt."""
    generator = torch.Generator().manual_seed(seed)
    sampled_DT = torch.rand(5, 12, generator=generator) < 0.5
    sampled_DT[:, 3] = True
    value_DT, reward_DT = torch.randn(2, 5, 12, generator=generator)
    reward_DT *= sampled_DT
    advantage_DT, return_DT = gae(reward_DT, value_DT, sampled_DT, gamma, lam)
    expected = []
    for d, sampled in enumerate(sampled_DT):
        v, r = value_DT[d][sampled].double().tolist(), reward_DT[d][sampled].double().tolist()
        delta = [r[t] + gamma * next_v - v[t] for t, next_v in enumerate([*v[1:], 0])]
        expected += [sum((gamma * lam) ** (u - t) * delta[u] for u in range(t, len(v))) for t in range(len(v))]
    expected_DT = torch.zeros(5, 12).masked_scatter(sampled_DT, torch.tensor(expected))
    torch.testing.assert_close(advantage_DT, expected_DT, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(return_DT, (expected_DT + value_DT) * sampled_DT, atol=1e-5, rtol=1e-4)


def grouped(rewards: list[list[float]]) -> SimpleNamespace:
    """Dialogues with these rewards of their attempts: tokens 1 and 2, 4 and 5, 7 and 8."""
    attempts = [[Attempt(3 * i + 1, 3 * i + 3, "", None, False) for i in range(len(row))] for row in rewards]
    reward_DT, used_D = torch.zeros(len(rewards), 9), torch.tensor([len(row) for row in rewards])
    for d, row in enumerate(rewards):
        reward_DT[d, [attempt.end - 1 for attempt in attempts[d]]] = torch.tensor(row).float()
    return SimpleNamespace(reward_DT=reward_DT, used_D=used_D, attempts=attempts)


def test_group_advantages_by_hand():
    """Three questions, three dialogues each, of 1, 2 and 3 attempts."""
    groups = [  # the rewards of the attempts of each dialogue, and their advantages
        ([[1], [0, 0], [0, 0, -1]], [[1], [0, 0.5], [-1, -0.5, 0]]),  # means: 0 of the first attempts, -0.5, -1
        ([[0.5], [0.5, 0], [0, 0.5, -1.5]], [[0.5], [0.5, 0.5], [-1, -0.5, 0]]),  # to go: 0.5 | 0.5, 0 | -1, -1, -1.5
        ([[-0.5], [0, -0.5], [0, 0, -0.5]], [[0], [0, 0], [0, 0, 0]]),  # all fail alike
    ]
    rewards, advantages = (sum(each, []) for each in zip(*groups))
    dialogues, expected_DT = grouped(rewards), torch.zeros(9, 9)
    for d in range(9):
        for attempt, advantage in zip(dialogues.attempts[d], advantages[d], strict=True):
            expected_DT[d, attempt.start : attempt.end] = advantage
    torch.testing.assert_close(ppo.group_advantages(dialogues, group_size=3), expected_DT)


def test_groups_equal_inside_have_no_advantage_at_all():
    """Not even one of 1e-8, which normalisation would blow up: 3 x 0.1 / 3 is not 0.1 in float32."""
    dialogues = grouped([[0.1, 0.2, 0.3]] * 3 + [[0.9], [-0.1, 0.9], [0.9]])
    advantage_DT = ppo.group_advantages(dialogues, group_size=3)
    assert (advantage_DT[:3] == 0).all() and (advantage_DT[3:, 1:3] != 0).all()
    for calibrated in (False, True):
        config = SimpleNamespace(group_size=3, calibrated=calibrated)
        assert ppo.informative_dialogues(dialogues, config).tolist() == [3, 4, 5]
        config.group_size = 1
        assert ppo.informative_dialogues(dialogues, config).tolist() == []


@pytest.mark.parametrize("calibrated", [False, True])
def test_group_advantages_give_the_gradient_of_success_within_k_attempts(calibrated):
    """Every outcome of a group of 3 with up to 3 attempts, attempt i right with its own probability sigmoid(theta_i).
    For the n dialogues of a group that reach attempt i, the expected gradient is (n - 1) times that of success, given
    that they reach it. docs/forking.md derives the weights; with weights of 1, the first attempts would count too much.
    """
    theta = torch.tensor([-0.5, 0.3, -1.0], dtype=torch.float64, requires_grad=True)
    p = theta.sigmoid()
    kinds = [(1,), (0, 1), (0, 0, 1), (0, 0, 0)]
    chances = [math.prod((p[i] if right else 1 - p[i]).item() for i, right in enumerate(kind)) for kind in kinds]
    found, comparisons = torch.zeros(2, 3, dtype=torch.float64)
    for group in itertools.product(range(4), repeat=3):
        advantage_DT = ppo.group_advantages(grouped([[*kinds[k]] for k in group]), 3, calibrated)
        for i in range(3):
            reached = [d for d, k in enumerate(group) if len(kinds[k]) > i]
            chance = math.prod(chances[k] for k in group)
            comparisons[i] += chance * max(0, len(reached) - 1)
            for d in reached:
                score = kinds[group[d]][i] - p[i].item()  # the derivative of the log-probability by theta_i
                found[i] += chance * advantage_DT[d, 3 * i + 1].item() * score
    success = 1 - (1 - p).prod()
    wrong = 1 - p.detach()
    reach = torch.stack([torch.ones_like(wrong[0]), wrong[0], wrong[0] * wrong[1]])
    (gradient,) = torch.autograd.grad(success, theta)
    torch.testing.assert_close(found, comparisons * gradient / reach, atol=1e-7, rtol=1e-6)
    own_success = (p * (1 - p)).detach()
    assert found[0] < 0.8 * (comparisons * own_success)[0]


@pytest.mark.parametrize("how, shift, scale", [("std", 3, math.sqrt(14 / 4)), ("centre", 3, 1), ("none", 0, 1)])
def test_advantages_are_normalised_over_the_actions_alone(how, shift, scale):
    mask = torch.tensor([[True, False, True], [False, True, True]])
    advantage = torch.tensor([[1.0, 99.0, 2.0], [99.0, 3.0, 6.0]])
    torch.testing.assert_close(ppo.normalise(advantage, mask, how), (advantage - shift) / scale * mask)


def test_explained_variance():
    returns = torch.tensor([1.0, -1.0, 0.5])
    assert ppo.explained_variance(returns, returns) == 1.0
    assert abs(ppo.explained_variance(torch.full((3,), 7.0), returns)) < 1e-6
    assert ppo.explained_variance(returns, torch.ones(3)) is None


# -------------------- Losses
CLIPPED = [  # ratio, advantage, clip_high, loss, its slope in the log ratio, is the ratio outside the clip range?
    (1.1, 2.0, None, -2.2, -2.2, False),
    (1.5, 2.0, None, -2.4, 0.0, True),  # clipped: no reason to go further up
    (0.5, 2.0, None, -1.0, -1.0, True),  # on the wrong side: the loss is not clipped
    (0.5, -2.0, None, 1.6, 0.0, True),  # clipped: no reason to go further down
    (1.5, -2.0, None, 3.0, 3.0, True),
    (1.5, 2.0, 0.6, -3.0, -3.0, False),  # Clip-Higher
    (1.7, 2.0, 0.6, -3.2, 0.0, True),
    (0.5, -2.0, 0.6, 1.6, 0.0, True),
]


@pytest.mark.parametrize("ratio, advantage, clip_high, loss, slope, outside", CLIPPED)
def test_policy_loss(ratio, advantage, clip_high, loss, slope, outside):
    logp_A, old_logp_A = torch.tensor([math.log(ratio) - 1.0], requires_grad=True), torch.tensor([-1.0])
    loss_A, outside_A = ppo.policy_loss(logp_A, old_logp_A, torch.tensor([advantage]), 0.2, clip_high)
    loss_A.sum().backward()
    assert loss_A.item() == pytest.approx(loss, abs=1e-5) and logp_A.grad.item() == pytest.approx(slope, abs=1e-5)
    assert outside_A.tolist() == [outside]


def test_action_weights():
    """Of three dialogues with 1, 2 and 5 actions."""
    count_B = torch.tensor([1, 2, 5])
    assert ppo.action_weights(count_B, "tokens").tolist() == [1 / 8] * 3
    assert ppo.action_weights(count_B, "dialogues").tolist() == pytest.approx([1 / 3, 1 / 6, 1 / 15])


@pytest.mark.parametrize("value, target, loss", [(0.1, 1, 0.405), (0.5, 1, 0.32), (0.5, -1, 1.125), (-0.5, 1, 1.125)])
def test_value_loss(value, target, loss):
    """The old value is 0, the clip range 0.2."""
    value_A, old_value_A, return_A = torch.tensor([[value], [0.0], [target]])
    assert ppo.value_loss(value_A, old_value_A, return_A, clip=0.2).item() == pytest.approx(loss, abs=1e-6)


def test_k3_has_the_value_of_the_kl_not_its_slope():
    """In expectation over the policy's own samples: the value of KL(policy || reference), with the gradient of
    KL(reference || policy)."""
    logits = torch.tensor([0.5, -0.2, 0.1], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64).log()
    logp = logits.log_softmax(-1)
    estimate = (logp.exp().detach() * ppo.kl_k3(logp, reference)).sum()
    exact, reverse = (logp.exp() * (logp - reference)).sum(), (reference.exp() * (reference - logp)).sum()
    grad = partial(torch.autograd.grad, inputs=logits, retain_graph=True)
    torch.testing.assert_close(estimate, exact)
    torch.testing.assert_close(grad(estimate), grad(reverse))
    assert (grad(exact)[0] - grad(reverse)[0]).abs().max() > 0.01
    assert (ppo.kl_k3(logp, logp) == 0).all() and (ppo.kl_k3(logp[:, None], reference) >= 0).all()


# -------------------- The update
@pytest.mark.parametrize("loss_mean", ["tokens", "dialogues"])
def test_micro_batches_and_padding_change_nothing(loss_mean, actor, critic, dialogues, monkeypatch):
    """Nor does it matter how many logits there are at one time."""
    three = partial(with_config, minibatches=3, loss_mean=loss_mean)
    metrics, *expected = gradients(actor, critic, dialogues, three())
    monkeypatch.setattr(ppo, "actions_at_once", lambda vocabulary: 70)
    for budget in (1, 150, 400):
        others, *found = gradients(actor, critic, dialogues, three(micro_batch_tokens=budget))
        assert_same_gradients(found, expected)
        assert others == pytest.approx(metrics, abs=2e-5)


@pytest.mark.parametrize("loss_mean", ["tokens", "dialogues"])
def test_gradient_of_the_update_is_that_of_the_plain_formula(loss_mean, actor, critic, dialogues):
    """One minibatch, everything written out: the mean over all actions of the step, or over dialogues."""
    metrics, actor_gradients, critic_gradients = gradients(actor, critic, dialogues, with_config(loss_mean=loss_mean))

    def mean(x_A):
        parts = x_A.split(dialogues.sampled_DT.sum(1).tolist())
        return x_A.mean() if loss_mean == "tokens" else torch.stack([part.mean() for part in parts]).mean()

    mask = dialogues.sampled_DT
    reference_DT, value_DT = reference_logps_and_values(actor, critic, dialogues, CONFIG)
    advantage_DT, return_DT = gae(dialogues.reward_DT, value_DT, mask, 1.0, 0.95)
    advantage_A = advantage_DT[mask]
    advantage_A = (advantage_A - advantage_A.mean()) / advantage_A.std(correction=0)
    logp_A = plain_logps(actor, dialogues)
    ratio_A = (logp_A - dialogues.logp_DT[mask]).exp()
    surrogate_A = -torch.minimum(ratio_A * advantage_A, ratio_A.clamp(0.8, 1.2) * advantage_A)
    log_ratio_A = reference_DT[mask] - 0.1 - logp_A
    kl_A = log_ratio_A.exp() - 1 - log_ratio_A
    value_A = critic.score(critic(input_ids=dialogues.tokens_DT).last_hidden_state)[:, :-1, 0][mask[:, 1:]]
    value_loss_A = 0.5 * (value_A - return_DT[mask]) ** 2  # not clipped: the values are still the old ones
    actor_loss, critic_loss = mean(surrogate_A + 0.05 * kl_A), mean(value_loss_A)
    assert_same_gradients(actor_gradients, [torch.autograd.grad(actor_loss, list(actor.parameters()))])
    assert_same_gradients(critic_gradients, [torch.autograd.grad(critic_loss, list(critic.parameters()))])
    expected = dict(policy_loss=surrogate_A, kl=kl_A, value_loss=value_loss_A)  # means over actions in any case
    expected = {name: x_A.mean().item() for name, x_A in expected.items()} | dict(approx_kl=0, clipfrac=0)
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-5)


def test_gradient_without_a_critic_is_that_of_the_plain_formula(actor, dialogues):
    config = with_config(group_size=4, kl_coef=0.0)
    metrics, found = gradients(actor, None, dialogues, config)  # no metrics of the critic
    assert set(metrics) == set("learned policy_loss kl entropy approx_kl clipfrac ratio skipped grad_norm lr".split())

    advantage_A = ppo.group_advantages(dialogues, 4)[dialogues.sampled_DT]
    assert advantage_A.unique().numel() > 2
    advantage_A = (advantage_A - advantage_A.mean()) / advantage_A.std(correction=0)
    ratio_A = (plain_logps(actor, dialogues) - dialogues.logp_DT[dialogues.sampled_DT]).exp()
    assert_same_gradients(found, [torch.autograd.grad(-(ratio_A * advantage_A).mean(), list(actor.parameters()))])


def test_the_ratio_is_new_policy_over_that_of_the_rollout(actor, critic, dialogues):
    metrics, *_ = gradients(actor, critic, dialogues, with_config(micro_batch_tokens=1))
    assert metrics["ratio"] == pytest.approx(1, abs=1e-5)
    moved = replace(dialogues, logp_DT=dialogues.logp_DT - math.log(1.5))
    metrics, *_ = gradients(actor, critic, moved, CONFIG)
    assert metrics["ratio"] == pytest.approx(1.5, abs=1e-4) and metrics["clipfrac"] == 1


def test_every_epoch_uses_every_dialogue_once_in_its_own_order(actor, critic, dialogues, monkeypatch):
    seen = []

    def minibatch_step(actor, critic, optimizers, dialogues, per_token, indices, config):
        seen.append(indices.tolist())

    monkeypatch.setattr(ppo, "minibatch_step", minibatch_step)
    for seed in (5, 5, 6):
        gradients(actor, critic, dialogues, with_config(epochs=2, minibatches=4), seed)
    first, second, again, _, other, _ = (sum(seen[i : i + 4], []) for i in range(0, 24, 4))
    assert len(seen) == 24 and sorted(first) == sorted(second) == list(range(len(PROBLEMS)))
    assert first != second and first == again != other


def test_drop_truncated_leaves_those_dialogues_out(actor, critic, dialogues):
    kept = (~dialogues.truncated_D).nonzero()[:, 0]
    assert 0 < len(kept) < len(PROBLEMS)
    _, dropped, _ = gradients(actor, critic, dialogues, with_config(drop_truncated=True))
    _, expected, _ = gradients(actor, critic, dialogues.select(kept), CONFIG)
    assert_same_gradients(dropped, expected)
    none = replace(dialogues, truncated_D=torch.ones_like(dialogues.truncated_D))
    assert gradients(actor, critic, none, with_config(drop_truncated=True)) == ({"learned": 0.0}, [], [])


@pytest.mark.parametrize("broken", ["old_logp", "return"])
def test_a_step_that_is_not_finite_is_skipped_for_both_models(broken, actor, critic, dialogues, monkeypatch):
    """The second of three minibatches has a loss that is not finite, the actor's or the critic's. The models and the
    metrics are those of the other two alone."""
    original, calls = ppo.minibatch_step, []

    def step(actor, critic, optimizers, dialogues, per_token, indices, config):
        calls.append((dialogues, per_token, indices, config))
        per_token = per_token | ({broken: per_token[broken] * torch.nan} if len(calls) == 2 else {})
        return original(actor, critic, optimizers, dialogues, per_token, indices, config)

    models, twins = ([copy.deepcopy(model) for model in (actor, critic)] for _ in range(2))
    optimizers, twin_optimizers = ([Optimizer(model, 1e-3, 0, 10, 1.0) for model in each] for each in (models, twins))
    known = reference_logps_and_values(actor, critic, dialogues, CONFIG)
    monkeypatch.setattr(ppo, "minibatch_step", step)
    metrics = update(*models, optimizers, dialogues, *known, with_config(minibatches=3), seed=0)
    assert metrics["skipped"] == 1
    for optimizer in optimizers:
        assert {int(state["step"]) for state in optimizer.states.values()} == {2} and optimizer.skipped == 0

    expected = [original(*twins, twin_optimizers, *calls[i]) for i in (0, 2)]
    for model, twin in zip(models, twins):
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters()))
    assert metrics["ratio"] == pytest.approx(1, abs=0.1)  # the mean over the actions of those two
    assert metrics["grad_norm"] == pytest.approx(np.mean([norms[0] for _, norms in expected]))
    optimizers[0].skip()
    twin_optimizers[0].load_state_dict(optimizers[0].state_dict())  # a resumed run counts on
    assert twin_optimizers[0].skipped == 1 and twin_optimizers[0].steps == 2


# -------------------- The optimiser
def linear(dtype, offload=False):
    """Always the same small layer, and its optimiser."""
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 8, bias=False).to(dtype)
    return model, Optimizer(model, lr=1e-3, warmup_steps=0, total_steps=10, max_grad_norm=1.0, offload=offload)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_optimizer_is_adamw_over_float32_masters_with_and_without_offload(dtype, monkeypatch):
    """Five steps with a clipped gradient of two micro-batches, in parts of 24 numbers, beside torch's own AdamW over
    float32 weights. Gradients add up in float32: in bfloat16, 256 + 1 is 256."""
    monkeypatch.setattr(ppo, "SHARD_SIZE", 24)
    (model, optimizer), (other, offloaded) = linear(dtype), linear(dtype, offload=True)
    plain = linear(dtype)[0].float()
    adamw = torch.optim.AdamW(plain.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0, foreach=False)
    assert len(offloaded.movable[0]) == (2 if dtype == torch.float32 else 3)  # such a weight is its own master
    for i in range(5):
        wave = torch.sin(torch.arange(64.0) * (i + 1)).view(8, 8).to(dtype)
        for part, each in itertools.product((256.0, wave), (model, other)):
            (part * each.weight).sum().backward()
            assert each.weight.grad is None
        plain.weight.grad, adamw.param_groups[0]["lr"] = 256 + wave.float(), optimizer.lr
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        for each in (optimizer, offloaded):
            assert each.reduce_and_clip() == norm > 1
            each.step()
        adamw.step()
    assert torch.equal(model.weight, other.weight) and torch.equal(model.weight, plain.weight.to(dtype))
    assert optimizer.states.keys() == offloaded.states.keys() == {0, 1, 2}
    for n, state in optimizer.states.items():
        assert all(torch.equal(x, offloaded.states[n][name]) for name, x in state.items())


def test_the_memory_of_a_trained_model_is_freed():
    weight = weakref.ref(linear(torch.bfloat16)[0].weight)
    gc.collect()
    assert weight() is None


# -------------------- Fused layers
@pytest.mark.skipif(not (which("g++") or which("clang++")), reason="torch.compile needs a C++ compiler")
def test_fused_layers_compute_the_same(tokenizer):
    """Without and with gradients. From the second size on, batches of other sizes use the same kernels, or none."""
    model = random_model(tokenizer, "llama", seed=0, layers=2, spread=0.3)
    sizes = (2, 9), (3, 7), (4, 3), (1, 15)
    batches = [(torch.randint(len(tokenizer), size), torch.rand(size) < 0.5) for size in sizes]

    def results(batch) -> list[torch.Tensor]:
        without = torch.no_grad()(action_logps)(model, *batch, 1.0)
        logp_A, entropy_A = action_logps(model, *batch, 1.0)
        return [*without, logp_A, entropy_A, *torch.autograd.grad(logp_A.sum(), list(model.parameters()))]

    expected, stats, compiled = [*map(results, batches)], torch._dynamo.utils.counters["stats"], []
    with torch.compiler.set_stance("force_eager"):  # restored at the end
        fuse_layers(model)
        for batch, eager in zip(batches, expected):
            torch.testing.assert_close(results(batch), eager, atol=1e-4, rtol=1e-5)
            compiled.append(stats["unique_graphs"])
    assert 0 < compiled[0] < compiled[1] == compiled[2] == compiled[3]
