"""What only a GPU can show, in one run of a few minutes: is it exact there, and how fast is it.

    python -m bench.gpu [--json FILE]     # make bench-gpu
    python -m bench.gpu --small           # tiny numbers, seconds on the CPU: what runs where there is no CUDA

The shape is Qwen2.5-1.5B's, with random weights in bfloat16, so nothing is downloaded. A script decides prompts,
feedback and the length of every attempt (bench/rollout.py). A section that fails stops no other; the exit code is 1.

    exact     in float32: is every token the one that the full forward pass and the dialogue's uniform numbers give, and
              how far are the log-probabilities apart? In bfloat16: the same up to ties, where the probability between a
              uniform number and its token is small; then without graphs, and without flash attention
    copy      bytes read and written per second by a device copy
    decode    steps with every slot busy at one length of context, as a share of the bound by memory bandwidth: all
              weights, all keys and values, and the logits written and read once
    rollout   1024 dialogues up to 4096 tokens
    generate  the first attempts of a few dialogues, by `.generate()` and by the engine
    update    an optimiser step of PPO on 128 made-up dialogues, and the two forward passes before it, critic and all.
              A step of the paper is the rollout and eight times that: computed, not run
"""

import argparse
import gc
import math
import sys
import time
import traceback
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, Qwen2Config

import ppo
import rollout
import train
from bench.rollout import COMMON, Script, play_generate, play_ours, random_model, run_engine
from support.files import save_json
from support.memory import QWEN25, SHAPE
from support.models import cache_bytes

SMALL_SHAPE = COMMON | dict(zip(SHAPE, (64, 96, 2, 4, 2, 512)), initializer_range=0.3)
FULL = dict(
    shape=COMMON | QWEN25["1.5B"],
    decode=[(64, 1000), (256, 1000), (256, 3000), (512, 1000)],
    slots=256,
    rollout=dict(dialogues=1024, prompt=(60, 300), length=(8, 2000), median=450, longest=3700, feedback=30),
    generate=dict(dialogues=32, prompt=(60, 300), length=(8, 1200), median=450, attempts=1),
    update=dict(count=128, mean=1500, longest=4000),
)
SMALL = dict(
    shape=SMALL_SHAPE,
    decode=[(4, 64)],
    slots=4,
    rollout=dict(dialogues=8, prompt=(4, 8), length=(2, 12), median=5, longest=60, feedback=5),
    generate=dict(dialogues=4, prompt=(4, 8), length=(2, 6), median=4, attempts=1),
    update=dict(count=4, mean=48, longest=80),
)
BF16_PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense, per second, from the makers' data sheets


def timed(run) -> float:
    """Seconds until the device has done all that `run` gives it."""
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


# -------------------- The sections: each returns {measure: value}
def exact(size: dict, device: str, dtype: torch.dtype) -> dict[str, float]:
    script = Script(24, SMALL_SHAPE["vocab_size"], prompt=(20, 60), length=(8, 60), median=25, feedback=10)
    config = Qwen2Config(**SMALL_SHAPE, head_dim=128)  # the kernels of the large model
    model, results = random_model(config, device), {}
    for name, temperature in (("sampled", 1.0), ("greedy", 0.0)):
        _, apart, distances = against_full_pass(model, script, temperature)
        results[f"float32, {name}: tokens that differ"] = sum(distance > 0 for distance in distances)
        results[f"float32, {name}: largest difference of a log-probability"] = max(apart)
    model = model.to(dtype)
    dialogues, apart, distances = against_full_pass(model, script, 1.0)
    results[f"{dtype}: difference of a log-probability, mean"] = np.mean(apart).item()
    results[f"{dtype}: difference of a log-probability, largest"] = max(apart)
    results[f"{dtype}: probability between a uniform number and its token"] = max(distances)

    def without_graph(engine, active):
        return SimpleNamespace(replay=lambda: engine.step(active, None))

    variants = {
        "without graphs": mock.patch.object(rollout.Engine, "graph", without_graph),
        "without flash attention": mock.patch.object(rollout, "has_flash", lambda model: False),
    }
    for name, patch in variants.items():
        with patch:
            other = run_engine(model, script, slots=7)
        same_DT = (other.tokens_DT == dialogues.tokens_DT).cummin(-1).values  # up to the first tie
        apart = (other.logp_DT - dialogues.logp_DT)[same_DT & dialogues.sampled_DT].abs()
        results[f"{dtype}, {name}: dialogues that differ"] = int((~same_DT).any(-1).sum())
        results[f"{dtype}, {name}: difference of a log-probability, mean"] = apart.mean().item()
    return results


@torch.no_grad()
def against_full_pass(model, script, temperature: float) -> tuple[rollout.Dialogues, list[float], list[float]]:
    """The engine's dialogues. Of every sampled token, how far its log-probability is from the full forward pass's; and
    how far the token is from the one that this pass asks for, 0 if it is that. Sampled: the probability between the
    dialogue's uniform number and the token. Greedy: in log-probability."""
    dialogues = run_engine(model, script, slots=7, temperature=temperature)
    logp_DTV = model(input_ids=dialogues.tokens_DT.to(model.device)).logits.float().log_softmax(-1).cpu()
    apart, distances = [], []
    for d, prompt in enumerate(script.prompts):
        uniforms = np.random.default_rng((0, d)).random(script.budget, dtype=np.float32)
        for t in dialogues.sampled_DT[d].nonzero()[:, 0].tolist():
            logp_V, token = logp_DTV[d, t - 1].double(), dialogues.tokens_DT[d, t]
            apart.append((dialogues.logp_DT[d, t] - logp_V[token]).abs().item())
            cdf_V = F.pad(logp_V.exp().cumsum(-1), (1, 0))
            drawn = uniforms[t - len(prompt)].item() * cdf_V[-1]
            outside = torch.maximum(cdf_V[token] - drawn, drawn - cdf_V[token + 1]).clamp(min=0)
            distances.append((outside if temperature else logp_V.max() - logp_V[token]).item())
    return dialogues, apart, distances


def copy(size: dict, device: str, dtype: torch.dtype) -> dict[str, float]:
    source = torch.zeros(2**32 if device == "cuda" else 2**22, dtype=torch.uint8, device=device)
    target = source.clone()
    return {"bytes/s": 2 * 10 * len(source) / timed(lambda: [target.copy_(source) for _ in range(10)])}


@torch.no_grad()
def decode(size: dict, device: str, dtype: torch.dtype) -> dict[str, float]:
    bandwidth, results = copy(size, device, dtype)["bytes/s"], {}
    model = random_model(Qwen2Config(**size["shape"]), device, dtype)
    model.set_attn_implementation("engine")
    for slots, context in size["decode"]:  # nothing is prefilled: the time does not depend on what the cache holds
        engine = rollout.Engine(model, slots, context + 64, temperature=1.0)
        engine.dialogues = [rollout.LiveDialogue(row, None, 1, [], 0, row=row) for row in range(slots)]
        engine.active_S[:] = True
        for count in (2, 64):  # the first ones warm up
            engine.length_S[:] = context - 32
            engine.position_S.fill_(context - 32)
            seconds = timed(lambda: list(engine.decode_async(count)())) / count
        moved = dtype.itemsize * (model.num_parameters() + 2 * slots * model.config.vocab_size)
        bound = (moved + cache_bytes(model.config, slots, context, dtype.itemsize)) / bandwidth
        results[f"{slots} slots, {context} tokens of context: tokens/s"] = slots / seconds
        results[f"{slots} slots, {context} tokens of context: share of the bound"] = bound / seconds
    return results


def whole_rollout(size: dict, device: str, dtype: torch.dtype) -> dict[str, float]:
    model = random_model(Qwen2Config(**size["shape"]), device, dtype)
    script = Script(vocabulary=model.config.vocab_size, **size["rollout"])
    seconds = timed(lambda: run_engine(model, script, size["slots"]))
    return {"sampled tokens": script.tokens, "seconds": seconds, "sampled tokens/s": script.tokens / seconds}


def generate(size: dict, device: str, dtype: torch.dtype) -> dict[str, float]:
    model = random_model(Qwen2Config(**size["shape"]), device, dtype)
    script = Script(vocabulary=model.config.vocab_size, **size["generate"])
    sides = play_ours, play_generate
    ours, theirs = (script.tokens / timed(lambda: play(model, script, len(script.prompts))) for play in sides)
    return {"ours, tokens/s": ours, "generate, tokens/s": theirs, "times as fast as generate": ours / theirs}


def update(size: dict, device: str, dtype: torch.dtype) -> dict[str, float]:
    kinds, config = (AutoModelForCausalLM, AutoModelForTokenClassification), Qwen2Config(**size["shape"], num_labels=1)
    actor, critic = (random_model(config, device, dtype, kind) for kind in kinds)
    actor.set_attn_implementation("engine")
    dialogues, config = made_up(**size["update"], vocabulary=config.vocab_size), train.Config(minibatches=1)
    optimizers = [ppo.Optimizer(model, 1e-6, 0, 100, 1.0) for model in (actor, critic)]
    reference_DT, value_DT = dialogues.logp_DT - 0.1, torch.zeros(dialogues.logp_DT.shape)
    for _ in range(2):  # the first time loads kernels
        forward = timed(lambda: ppo.reference_logps_and_values(dialogues, actor, critic, config))
        seconds = timed(
            lambda: ppo.update(actor, critic, optimizers, dialogues, reference_DT, value_DT, config, seed=0)
        )
    results = {"seconds": seconds, "tokens/s": int(dialogues.length_D.sum()) / seconds, "forward, seconds": forward}
    if device == "cuda":
        results["share of peak"] = share_of_peak(actor, dialogues, seconds)
        results["bytes at most"] = torch.cuda.max_memory_allocated()
    return results


def made_up(count: int, mean: float, longest: int, vocabulary: int) -> SimpleNamespace:
    """Dialogues of random tokens, a prompt and then alternately 40 sampled and 40 forced ones; lognormal lengths."""
    generator = torch.Generator().manual_seed(0)
    length_D = (math.log(mean) - 0.125 + 0.5 * torch.randn(count, generator=generator)).exp().clamp(32, longest).long()
    inside_DT = torch.arange(int(length_D.max())) < length_D[:, None]
    sampled_DT = inside_DT & (torch.arange(inside_DT.shape[1]) // 40 % 2 == 1)
    reward_DT = torch.zeros(inside_DT.shape)
    sampled_DT[torch.arange(count), length_D - 1] = True
    reward_DT[torch.arange(count), length_D - 1] = torch.randn(count, generator=generator).sign()
    tokens_DT = torch.randint(vocabulary, inside_DT.shape, generator=generator) * inside_DT
    known = dict(logp_DT=-9.0 * sampled_DT, reward_DT=reward_DT, truncated_D=torch.zeros(count, dtype=torch.bool))
    return SimpleNamespace(tokens_DT=tokens_DT, sampled_DT=sampled_DT, length_D=length_D, **known)


def share_of_peak(actor, dialogues, seconds: float) -> float:
    """Of the GPU's bf16 peak, for forward and backward pass of actor and critic: 6 operations a weight and token, the
    output weights only at actions, and causal attention. What is computed a second time does not count."""
    shape, tokens, actions = actor.config, int(dialogues.length_D.sum()), int(dialogues.sampled_DT.sum())
    head = shape.vocab_size * shape.hidden_size
    body = sum(weight.numel() for weight in actor.base_model.parameters()) - head  # without the embedding
    attention = 6 * shape.num_hidden_layers * shape.hidden_size * int((dialogues.length_D**2).sum())
    peak = next((peak for chip, peak in BF16_PEAK.items() if chip in torch.cuda.get_device_name()), math.nan)
    return (2 * (6 * body * tokens + attention) + 6 * head * actions) / seconds / peak


def step(sections: dict, size: dict) -> dict[str, float]:
    """The seconds of a step of the paper, from what its parts took."""
    if not all("seconds" in sections.get(name, ()) for name in ("rollout", "update")):
        return {}
    minibatch = sections["update"]["seconds"] + sections["update"]["forward, seconds"]
    minibatches = size["rollout"]["dialogues"] / size["update"]["count"]
    return {"the paper's step, from its parts: seconds": sections["rollout"]["seconds"] + minibatches * minibatch}


SECTIONS = dict(exact=exact, copy=copy, decode=decode, rollout=whole_rollout, generate=generate, update=update)


def written(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def show(section: str, results: dict) -> None:
    for name, value in results.items():
        print(f"| {section} | {name} | {value if name == 'failed' else written(value)} |", flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--small", action="store_true", help="tiny numbers, as without CUDA")
    parser.add_argument("--sections", nargs="*", choices=SECTIONS, default=list(SECTIONS))
    options = parser.parse_args(argv)
    transformers.logging.set_verbosity_error()
    cuda = torch.cuda.is_available()
    size = SMALL if options.small or not cuda else FULL
    device, dtype = ("cuda", torch.bfloat16) if cuda else ("cpu", torch.float32)
    machine = torch.cuda.get_device_name() if cuda else "CPU, small numbers: nothing here says anything about a GPU"
    figures = {"device": machine, "torch": torch.__version__, "transformers": transformers.__version__, "sections": {}}
    print(f"{machine}, torch {torch.__version__}, transformers {transformers.__version__}\n")
    print("| section | measure | value |\n|---|---|---|")
    for name in options.sections:
        start = time.perf_counter()
        try:
            results = SECTIONS[name](size, device, dtype)
        except Exception as error:  # one run on a GPU may be all there is: the other sections still run
            traceback.print_exc()
            results = {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}
        figures["sections"][name] = results | {"seconds of the section": time.perf_counter() - start}
        figures["step"] = step(figures["sections"], size)
        show(name, figures["sections"][name])
        if options.json:
            save_json(figures, options.json)
        gc.collect()
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    show("step", figures["step"])
    return int(any("failed" in results for results in figures["sections"].values()))


if __name__ == "__main__":
    sys.exit(main())
