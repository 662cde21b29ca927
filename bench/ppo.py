"""Our PPO update beside a plain one: tokens per second and peak memory.

    python -m bench.ppo [--json FILE] [--runs 3]     # make bench-ppo: on the CPU, a vocabulary of 150 thousand

    ours    ppo.py: micro-batches of similar length filled to a token budget; logits only where a token was sampled, in
            chunks that are recomputed in the backward pass
    plain   what one writes first: dialogues in random order, padded micro-batches of equally many rows, the logits of
            every position, log-softmax over all of them, the same losses

Both learn from the same made-up dialogues, with the same optimiser and number of steps. Each runs in a process of its
own, in turn, with one thread; the table has the medians. Seconds are CPU-seconds, bytes the most that the process held
beyond what it held before. In bench/gpu.py they are plain seconds, after an update that does not count, and the peak.
"""

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, LlamaConfig

import ppo
import train
from bench.rollout import COMMON, random_model
from support.files import save_json
from support.memory import SHAPE

DEFAULTS = dict(runs=3, dialogues=8, mean=250, longest=1000, vocabulary=150_000, minibatches=2, micro_batch_tokens=1000)
BF16_PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense, per second, from the makers' data sheets


def made_up(count: int, mean: float, longest: int, vocabulary: int) -> SimpleNamespace:
    """Dialogues of random tokens, a prompt and then alternately 40 sampled and 40 forced ones; lognormal lengths."""
    generator = torch.Generator().manual_seed(0)
    length_D = (math.log(mean) - 0.125 + 0.5 * torch.randn(count, generator=generator)).exp().clamp(32, longest).long()
    inside_DT = torch.arange(int(length_D.max())) < length_D[:, None]
    sampled_DT = inside_DT & (torch.arange(inside_DT.shape[1]) // 40 % 2 == 1)
    sampled_DT[torch.arange(count), length_D - 1] = True
    reward_DT = torch.zeros(inside_DT.shape)
    reward_DT[torch.arange(count), length_D - 1] = torch.randn(count, generator=generator).sign()
    return SimpleNamespace(
        tokens_DT=torch.randint(vocabulary, inside_DT.shape, generator=generator) * inside_DT,
        sampled_DT=sampled_DT,
        logp_DT=-9.0 * sampled_DT,
        length_D=length_D,
        truncated_D=torch.zeros(count, dtype=torch.bool),
        reward_DT=reward_DT,
    )


def plain_update(actor, critic, optimizers, dialogues, reference_DT, value_DT, config, seed):
    """One epoch of PPO as a loop over padded micro-batches, every logit computed and kept."""
    mask_DT = dialogues.sampled_DT
    advantage_DT, return_DT = ppo.advantages(dialogues, value_DT, config)
    targets = dialogues.logp_DT, reference_DT, advantage_DT, return_DT, value_DT
    rows_at_once = max(1, round(config.micro_batch_tokens / dialogues.length_D.float().mean().item()))
    order = torch.randperm(len(mask_DT), generator=torch.Generator().manual_seed(seed))
    for minibatch in order.tensor_split(config.minibatches):
        actions = mask_DT[minibatch].sum()
        for rows in minibatch.split(rows_at_once):
            longest = int(dialogues.length_D[rows].max())
            tokens, mask = dialogues.tokens_DT[rows, :longest], mask_DT[rows, :longest]
            old_logp, reference, advantage, returns, old_value = (x_DT[rows, :longest][mask] for x_DT in targets)
            logits = actor(input_ids=tokens, use_cache=False).logits[:, :-1].float() / config.temperature
            logp_V = logits.log_softmax(-1)
            logp = logp_V.gather(-1, tokens[:, 1:, None])[..., 0][mask[:, 1:]]
            loss = ppo.policy_loss(logp, old_logp, advantage, config.clip) + config.kl_coef * ppo.kl_k3(logp, reference)
            (loss / actions).backward()
            values = critic(input_ids=tokens, use_cache=False).logits[:, :-1, 0][mask[:, 1:]]
            (ppo.value_loss(values, old_value, returns, config.value_clip) / actions).backward()
        for optimizer in optimizers:
            optimizer.clip()
            optimizer.step()


SIDES = {"ours": ppo.update, "plain": plain_update}


def build_models(config, device="cpu", dtype=torch.float32):
    """Actor and critic of this shape, with random weights."""
    config.num_labels = 1  # which only the critic reads
    kinds = AutoModelForCausalLM, AutoModelForTokenClassification
    return [random_model(config, device, dtype, kind) for kind in kinds]


def clock_and_memory() -> tuple[float, int]:
    """CPU-seconds of this process, and the most bytes it ever held; on a GPU, seconds and the GPU's bytes."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter(), torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return time.process_time(), unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(side: str, actor, critic, dialogues, minibatches: int, micro_batch_tokens: int) -> dict[str, float]:
    """One update."""
    config = train.Config(minibatches=minibatches, micro_batch_tokens=micro_batch_tokens)
    actor.set_attn_implementation("engine" if side == "ours" else "sdpa")  # ours: as the rollout leaves it
    optimizers = [ppo.Optimizer(model, 1e-6, 0, 100, 1.0) for model in (actor, critic)]
    reference_DT, value_DT = dialogues.logp_DT - 0.1, torch.zeros(dialogues.logp_DT.shape)
    cuda = torch.cuda.is_available()
    for _ in range(1 + cuda):  # the first update on a GPU loads kernels
        start, before = clock_and_memory()
        SIDES[side](actor, critic, optimizers, dialogues, reference_DT, value_DT, config, seed=0)
        end, most = clock_and_memory()
    seconds, tokens = end - start, int(dialogues.length_D.sum())
    result = {"tokens/s": tokens / seconds, "seconds": seconds, "bytes": most if cuda else most - before}
    return result | ({"share of peak": share_of_peak(actor, dialogues, seconds)} if cuda else {})


def share_of_peak(actor, dialogues, seconds: float) -> float:
    """Of the GPU's bf16 peak, for forward and backward pass of actor and critic: 6 operations a weight and token, the
    output weights only at actions, and causal attention. What is computed a second time does not count."""
    shape, tokens, actions = actor.config, int(dialogues.length_D.sum()), int(dialogues.sampled_DT.sum())
    head = shape.vocab_size * shape.hidden_size
    body = sum(weight.numel() for weight in actor.base_model.parameters()) - head  # without the embedding
    attention = 6 * shape.num_hidden_layers * shape.hidden_size * int((dialogues.length_D**2).sum())
    peak = next((peak for chip, peak in BF16_PEAK.items() if chip in torch.cuda.get_device_name()), math.nan)
    return (2 * (6 * body * tokens + attention) + 6 * head * actions) / seconds / peak


def written(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description="The PPO update beside a plain loop.")
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)  # a measurement's own process
    for name, default in DEFAULTS.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    if options.side:
        torch.set_num_threads(1)
        models = build_models(LlamaConfig(**COMMON, **dict(zip(SHAPE, (64, 192, 2, 4, 2, options.vocabulary)))))
        dialogues = made_up(options.dialogues, options.mean, options.longest, options.vocabulary)
        sizes = options.minibatches, options.micro_batch_tokens
        return print(json.dumps(measure(options.side, *models, dialogues, *sizes)))
    runs = {side: [] for side in SIDES}
    for _ in range(options.runs):
        for side, results in runs.items():
            command = [sys.executable, "-m", "bench.ppo", *sys.argv[1:], "--side", side]
            results.append(json.loads(subprocess.check_output(command, text=True).splitlines()[-1]))
    medians = {
        side: {name: statistics.median(result[name] for result in results) for name in results[0]}
        for side, results in runs.items()
    }
    print(f"| update | {' | '.join(medians['ours'])} |\n|---{'|---' * len(medians['ours'])}|")
    for side, row in medians.items():
        print(f"| {side} | {' | '.join(map(written, row.values()))} |")
    ratio = {name: value / medians["plain"][name] for name, value in medians["ours"].items()}
    print(f"\nours: {ratio['tokens/s']:.1f} times as fast, {100 * ratio['bytes']:.0f}% of the memory")
    if options.json:
        settings = {name: getattr(options, name) for name in DEFAULTS}
        save_json({"torch": torch.__version__, "options": settings, "results": medians}, options.json)


if __name__ == "__main__":
    main()
