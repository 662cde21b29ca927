r"""Our PPO update and a plain one, side by side: update tokens per second and peak memory.

    python bench/ppo.py [--json FILE] [--runs 3]     # on the CPU: a small model, a vocabulary of 150 thousand

On a GPU, ours alone at the paper's shapes: seconds and share of the chip's bf16 peak of one optimiser step.

    python bench/ppo.py --model Qwen/Qwen2.5-Math-1.5B --dialogues 128 --mean 1500 --longest 4000 --minibatches 1 \
        --micro_batch_tokens 4096

    ours    ppo.py: micro-batches of similar length filled to a token budget, logits only where a token was sampled and
            in chunks that are recomputed in the backward pass
    plain   what one writes first: dialogues in random order, in padded micro-batches of as many rows, transformers'
            forward pass with the logits of every position, log-softmax over all of them, the same losses

Both sides learn from the same made-up dialogues (lognormal lengths, half of the tokens sampled), actor and critic, with
the same optimiser and number of optimiser steps. Each runs in a process of its own, in turn, with one thread; counted
are all tokens of the dialogues per CPU-second of the process (on a GPU, per second), and as memory the most that it
held, less what it held before the update: gradients and moments, 0.2 GB here, are in both. The table has the median of
the runs. The C library is left to give freed memory back at once: kept, as the Makefile has it for everything else, it
makes our update faster still, and the peak says more about the heap than about what is held.
"""

import argparse
import copy
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from transformers import AutoModelForTokenClassification, LlamaConfig, LlamaForCausalLM, LlamaForTokenClassification

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import ppo  # noqa: E402
import train  # noqa: E402
from data.optimizer import Optimizer  # noqa: E402
from support.models import load_model  # noqa: E402

BF16_PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense, per second, from the makers' data sheets


def made_up(count: int, mean: float, vocabulary: int, longest: int) -> SimpleNamespace:
    """So many dialogues of random tokens, a prompt and then alternately 40 sampled and 40 forced ones."""
    generator = torch.Generator().manual_seed(0)
    spread = 0.5
    normal_D = torch.randn(count, generator=generator)
    length_D = (math.log(mean) - spread**2 / 2 + spread * normal_D).exp().clamp(32, longest).long()
    position = torch.arange(int(length_D.max()))
    there_DT = position < length_D[:, None]
    sampled_DT = there_DT & (position // 40 % 2 == 1)
    sampled_DT[torch.arange(count), length_D - 1] = True
    return SimpleNamespace(
        tokens_DT=torch.randint(vocabulary, there_DT.shape, generator=generator) * there_DT,
        sampled_DT=sampled_DT,
        logp_DT=-9.0 * sampled_DT,
        length_D=length_D,
        truncated_D=torch.zeros(count, dtype=torch.bool),
        reward_D=torch.randn(count, generator=generator).sign(),
    )


def plain_update(actor, critic, optimizers, dialogues, reference_DT, value_DT, config) -> None:
    """One epoch of PPO as a loop over padded micro-batches, every logit computed and kept."""
    mask_DT = dialogues.sampled_DT
    advantage_DT, return_DT = ppo.gae(dialogues.reward_D, value_DT, mask_DT, config.gamma, config.gae_lambda)
    advantage_DT = ppo.normalise(advantage_DT, mask_DT)
    rows_at_once = max(1, round(config.micro_batch_tokens / dialogues.length_D.float().mean().item()))
    order = torch.randperm(len(mask_DT), generator=torch.Generator().manual_seed(0))
    for minibatch in order.tensor_split(config.minibatches):
        actions = mask_DT[minibatch].sum()
        for rows in minibatch.split(rows_at_once):
            longest = int(dialogues.length_D[rows].max())
            tokens, mask = dialogues.tokens_DT[rows, :longest], mask_DT[rows, :longest]
            chosen = mask[:, 1:]
            known = dialogues.logp_DT, reference_DT, advantage_DT, return_DT, value_DT
            old_logp, reference, advantage, returns, old_value = (x_DT[rows, :longest][mask] for x_DT in known)
            logits = actor(input_ids=tokens, use_cache=False).logits[:, :-1].float() / config.temperature
            logp_V = logits.log_softmax(-1)
            entropy = -(logp_V.detach().exp() * logp_V.detach()).sum(-1)[chosen].mean()
            logp = logp_V.gather(-1, tokens[:, 1:, None])[..., 0][chosen]
            loss = ppo.policy_loss(logp, old_logp, advantage, config.clip) + config.kl_coef * ppo.kl_k3(logp, reference)
            (loss / actions).backward()
            values = critic(input_ids=tokens, use_cache=False).logits[:, :-1, 0][chosen]
            (ppo.value_loss(values, old_value, returns, config.value_clip) / actions).backward()
            assert entropy.isfinite()
        for optimizer in optimizers:
            optimizer.clip()
            optimizer.step()


def models_of(options):
    """Actor and critic: the named model, or a small one with a large vocabulary."""
    torch.manual_seed(0)
    if options.model:
        actor, _ = load_model(options.model, torch.device("cuda"), torch.bfloat16)
        actor.set_attn_implementation("slots")  # as the rollout leaves it
        critic = AutoModelForTokenClassification.from_pretrained(options.model, num_labels=1, dtype=torch.bfloat16)
        return actor, critic.to("cuda").eval()
    config = LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    small = copy.deepcopy(config)
    small.num_labels = 1
    return LlamaForCausalLM(config).eval(), LlamaForTokenClassification(small).eval()


def held() -> int:
    """The most bytes that this process ever held; on a GPU, of its memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(options) -> dict:
    """One update by one side, in this process."""
    torch.set_num_threads(1)
    actor, critic = models_of(options)
    config = train.Config(minibatches=options.minibatches, micro_batch_tokens=options.micro_batch_tokens)
    dialogues = made_up(options.dialogues, options.mean, actor.config.vocab_size, options.longest)
    optimizers = [Optimizer(model, 1e-6, 0, 100, 1.0) for model in (actor, critic)]
    reference_DT, value_DT = dialogues.logp_DT - 0.1, torch.zeros(dialogues.logp_DT.shape)
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time  # others may use the CPU, too
    before, start = held(), clock()
    if options.side == "ours":
        ppo.update(actor, critic, *optimizers, dialogues, reference_DT, value_DT, config, seed=0)
    else:
        plain_update(actor, critic, optimizers, dialogues, reference_DT, value_DT, config)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds = clock() - start
    tokens, actions = int(dialogues.length_D.sum()), int(dialogues.sampled_DT.sum())
    result = {"side": options.side, "seconds": seconds, "tokens_per_second": tokens / seconds}
    result["memory"] = held() - before
    if torch.cuda.is_available():
        result |= {"peak_memory": held(), "share_of_peak": flops(actor, dialogues, tokens, actions) / seconds / peak()}
    return result


def flops(actor, dialogues, tokens: int, actions: int) -> float:
    """Of forward and backward pass of actor and critic: 6 a weight and token, the output weights only at actions, and
    causal attention. What is computed a second time does not count."""
    shape = actor.config
    head = shape.vocab_size * shape.hidden_size
    body = sum(weight.numel() for weight in actor.base_model.parameters()) - head  # without the embedding
    attention = 6 * shape.num_hidden_layers * shape.hidden_size * int((dialogues.length_D**2).sum())
    return 2 * (6 * body * tokens + attention) + 6 * head * actions


def peak() -> float:
    name = torch.cuda.get_device_name()
    return next((rate for chip, rate in BF16_PEAK.items() if chip in name), math.nan)


def in_turn(options) -> dict[str, dict]:
    """The median of each side's runs, each in a process of its own."""
    runs = {side: [] for side in (["ours"] if options.model else ["ours", "plain"])}
    env = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    for _ in range(options.runs):
        for side, results in runs.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env)
            results.append(json.loads(done.stdout.splitlines()[-1]))
    return {
        side: {name: statistics.median(r[name] for r in results) for name in results[0] if name != "side"}
        for side, results in runs.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="The PPO update against a plain loop.")
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    parser.add_argument("--runs", type=int, default=3, help="of each side")
    parser.add_argument("--model", help="measure ours on a GPU with this model")
    parser.add_argument("--dialogues", type=int, default=8)
    parser.add_argument("--mean", type=float, default=250, help="tokens of a dialogue")
    parser.add_argument("--longest", type=int, default=1000)
    parser.add_argument("--vocabulary", type=int, default=150_000)
    parser.add_argument("--minibatches", type=int, default=2)
    parser.add_argument("--micro_batch_tokens", type=int, default=1000)
    parser.add_argument("--side", choices=["ours", "plain"], help=argparse.SUPPRESS)  # a measurement's own process
    options = parser.parse_args()
    if options.side:
        return print(json.dumps(measure(options)))
    results = in_turn(options)
    print("| update | tokens/s | seconds | memory, MB |\n|---|---|---|---|")
    for side, row in results.items():
        print(f"| {side} | {row['tokens_per_second']:,.0f} | {row['seconds']:.1f} | {row['memory'] / 1e6:,.0f} |")
    if "plain" in results:
        ours, plain = results["ours"], results["plain"]
        faster, less = ours["tokens_per_second"] / plain["tokens_per_second"], ours["memory"] / plain["memory"]
        print(f"\nours: {faster:.1f} times as fast, {100 * less:.0f}% of the memory")
    elif "share_of_peak" in results["ours"]:
        print(f"\n{100 * results['ours']['share_of_peak']:.0f}% of the chip's bf16 peak")
    if options.json:
        about = {"torch": torch.__version__, "machine": platform.processor() or platform.machine()}
        settings = {name: value for name, value in vars(options).items() if name not in ("json", "side")}
        options.json.write_text(json.dumps(about | {"options": settings, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
