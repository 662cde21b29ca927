"""What only a GPU can show, in one run of about five minutes: is it exact there, and how fast is it.

    python -m bench.gpu [--json FILE]        # make bench-gpu
    python -m bench.gpu --small              # tiny numbers, seconds on the CPU: what runs where there is no CUDA
    python -m bench.gpu --memory 24          # as on a card of 24 GB, with the options that the paper's run needs there

The shape is Qwen2.5-1.5B's, with random weights in bfloat16, so nothing is downloaded. A script decides prompts,
feedback and the length of every attempt (bench/rollout.py). A section that fails stops no other; the exit code is 1.

    decode    steps with every slot busy at one length of context, as a share of the bound by memory bandwidth: all
              weights, all keys and values, and the logits written and read once. Before it, a device copy
    step      two steps of train.py by the paper's preset with 128 dialogues, then one with all 1024: the speed of each
              stage, and the most memory beside the plan. It has its own optimisers and critic
    resume    a small run that is resumed: the metrics of its last step beside those of the run that went through
    exact     in float32: is every token the one that the full forward pass and the dialogue's uniform numbers give, and
              how far are the log-probabilities apart? In bfloat16: the same up to ties, where the probability between a
              uniform number and its token is small; then without graphs, and without flash attention
    generate  the first attempts of a few dialogues, by `.generate()` and by the engine
"""

import argparse
import gc
import json
import math
import shutil
import sys
import time
import traceback
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

import rollout
import train
from bench.rollout import COMMON, Script, play_generate, play_ours, random_model, run_engine, scripted
from data.miniature import build_tokenizer, draw_riddles
from support.cuda import compilations, fuse_layers
from support.files import save_json
from support.memory import QWEN25, SHAPE
from support.models import cache_bytes, save_model
from support.plots import read_metrics

SMALL_SHAPE = COMMON | dict(zip(SHAPE, (64, 96, 2, 4, 2, 1024)), initializer_range=0.3)
FULL = dict(
    shape=COMMON | QWEN25["1.5B"],
    decode=[(64, 1000), (256, 1000), (256, 3000), (512, 1000)],
    lengths=dict(prompt=(60, 300), length=(8, 2000), median=450, longest=2900, feedback=30),
    steps={128: 2, 1024: 1},  # dialogues: steps
    options="",
    generate=dict(dialogues=32, prompt=(60, 300), length=(8, 1200), median=450, attempts=1),
)
SMALL = dict(
    shape=SMALL_SHAPE,
    decode=[(4, 64)],
    lengths=dict(prompt=(4, 8), length=(2, 12), median=5, longest=60, feedback=5),
    steps={8: 2},
    options="",
    generate=dict(dialogues=4, prompt=(4, 8), length=(2, 6), median=4, attempts=1),
)
SMALL_CARD = dict(options="--offload --gradient_checkpointing --micro_batch_tokens 4096", steps={128: 1})
BF16_PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense, per second, from the makers' data sheets


def timed(run) -> float:
    """Seconds until the device has done all that `run` gives it."""
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def clear() -> None:
    """Give the memory of what is gone back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


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


def copy_bandwidth(device: str) -> float:
    """Bytes read and written per second by a device copy."""
    source = torch.zeros(2**32 if device == "cuda" else 2**22, dtype=torch.uint8, device=device)
    target = source.clone()
    for count in (1, 10):  # the first one warms up
        seconds = timed(lambda: [target.copy_(source) for _ in range(count)])
    return 2 * 10 * len(source) / seconds


@torch.no_grad()
def decode(size: dict, device: str, dtype: torch.dtype) -> dict[str, float]:
    bandwidth = copy_bandwidth(device)
    results = {"device copy, bytes/s": bandwidth}
    model = random_model(Qwen2Config(**size["shape"]), device, dtype)
    model.set_attn_implementation("engine")
    if device == "cuda":
        fuse_layers(model)
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


def generate(size: dict, device: str, dtype: torch.dtype) -> dict[str, float]:
    model = random_model(Qwen2Config(**size["shape"]), device, dtype)
    script = Script(vocabulary=model.config.vocab_size, **size["generate"])
    sides = play_ours, play_generate
    ours, theirs = (script.tokens / timed(lambda: play(model, script, len(script.prompts))) for play in sides)
    return {"ours, tokens/s": ours, "generate, tokens/s": theirs, "times as fast as generate": ours / theirs}


def step(size: dict, device: str, dtype: torch.dtype) -> dict[str, float]:
    results, stages = {}, [f"{stage}_tokens_per_second" for stage in ("rollout", "score", "update")]
    with TemporaryDirectory() as folder:
        save_base(folder, size["shape"], device, dtype)
        for dialogues, steps in size["steps"].items():
            clear()
            compiled, minibatches = compilations(), max(1, dialogues // 128)
            settings = f"--steps {steps} --dialogues {dialogues} --minibatches {minibatches} {size['options']}"
            with mock.patch.object(train.Run, "save"), mock.patch.object(train, "save_model"):  # 40 GB
                row = run_training(folder, Script(dialogues, 4000, **size["lengths"]), settings)
            row["kernels compiled"] = compilations() - compiled
            keys = ["seconds", *stages, "ratio", "kernels compiled"]
            if device == "cuda":
                row["share of bf16 peak in the update"] = share_of_peak(folder, row)
                keys += ["share of bf16 peak in the update", "device_memory", "planned_memory"]
            results |= {f"{dialogues} dialogues, {key}": row[key] for key in keys}
            shutil.rmtree(f"{folder}/run")
    return results


def save_base(folder: str, shape: dict, device: str, dtype: torch.dtype) -> None:
    """A model folder with random weights and the miniature's tokenizer, and questions of numbers."""
    model, tokenizer = random_model(LlamaConfig(**shape), device, dtype), build_tokenizer(draw_riddles("train"))
    save_model(model, tokenizer, Path(folder, "base"))
    questions = [" ".join(map(str, range(i, i + 60 + i % 60))) for i in range(200)]
    lines = [json.dumps({"question": question, "answer": "5"}) for question in questions]
    Path(folder, "questions.jsonl").write_text("\n".join(lines))


def run_training(folder: str, script: Script, options: str) -> dict:
    """train.py by the paper's preset, on the script's attempts. Returns the last step's metrics; what the run prints
    goes to stderr."""
    if options != "--resume":
        options += f" --model {folder}/base --data {folder}/questions.jsonl --eval_data none"
    with scripted(script), mock.patch.object(train, "check_model"), redirect_stdout(sys.stderr):
        train.main([*options.split(), "--out", f"{folder}/run"])
    return read_metrics(Path(folder, "run"))[-1]


def resume(size: dict, device: str, dtype: torch.dtype) -> dict[str, float]:
    script, options = (
        Script(24, 1000, **SMALL["lengths"]),
        "--dialogues 24 --minibatches 2 --max_new_tokens 90 --lr 1e-4",
    )
    with TemporaryDirectory() as folder:
        save_base(folder, SMALL_SHAPE, device, dtype)
        straight = run_training(folder, script, f"{options} --steps 3 --save_every 1 --keep_checkpoints 3")
        Path(folder, "run", "checkpoint-000003.pt").unlink()
        resumed = run_training(folder, script, "--resume")
    return {f"difference in {key}": abs(resumed[key] - straight[key]) for key in ("reward", "kl", "grad_norm")}


def share_of_peak(folder: str, row: dict) -> float:
    """Of the GPU's bf16 peak, for forward and backward pass of actor and critic: 6 operations a weight and token, the
    output weights only at actions, and causal attention. What is computed a second time does not count."""
    shape = LlamaConfig.from_pretrained(f"{folder}/base")
    head = shape.vocab_size * shape.hidden_size
    with torch.device("meta"):
        body = AutoModelForCausalLM.from_config(shape).num_parameters() - head
    peak = next((peak for chip, peak in BF16_PEAK.items() if chip in torch.cuda.get_device_name()), math.nan)
    attention = shape.num_hidden_layers * shape.hidden_size * row["tokens_total"]
    a_token = 2 * 6 * (body + attention) + 6 * head * row["tokens_sampled"] / row["tokens_total"]
    return row["update_tokens_per_second"] * a_token / peak


SECTIONS = dict(decode=decode, step=step, resume=resume, exact=exact, generate=generate)


def written(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def show(section: str, results: dict) -> None:
    for name, value in results.items():
        print(f"| {section} | {name} | {value if name == 'failed' else written(value)} |", flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--small", action="store_true", help="tiny numbers, as without CUDA")
    parser.add_argument("--memory", type=float, help="GB of the card to use: only a step, with the options that help")
    parser.add_argument("--profile", action="store_true", help="print the kernels that take the most time")
    parser.add_argument("--sections", nargs="*", choices=SECTIONS, default=list(SECTIONS))
    options = parser.parse_args(argv)
    transformers.logging.set_verbosity_error()
    cuda = torch.cuda.is_available()
    size = SMALL if options.small or not cuda else FULL
    if options.memory and cuda:
        fraction = 0.985 * options.memory * 2**30 / torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(fraction)  # CUDA reports 98.5% of a card's memory
        size, options.sections = FULL | SMALL_CARD, ["step"]
    device, dtype = ("cuda", torch.bfloat16) if cuda else ("cpu", torch.float32)
    machine = torch.cuda.get_device_name() if cuda else "CPU, small numbers: nothing here says anything about a GPU"
    figures = {"device": machine, "torch": torch.__version__, "transformers": transformers.__version__, "sections": {}}
    print(f"{machine}, torch {torch.__version__}, transformers {transformers.__version__}\n")
    print("| section | measure | value |\n|---|---|---|")
    for name in options.sections:
        start = time.perf_counter()
        profiler = torch.profiler.profile() if options.profile else nullcontext()
        try:
            with profiler:
                results = SECTIONS[name](size, device, dtype)
        except (Exception, SystemExit) as error:  # one run on a GPU may be all there is: the other sections still run
            traceback.print_exc()
            results = {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}
        figures["sections"][name] = results | {"seconds of the section": time.perf_counter() - start}
        show(name, figures["sections"][name])
        if options.profile:
            by = f"self_{'cuda' if cuda else 'cpu'}_time_total"
            print(profiler.key_averages().table(sort_by=by, row_limit=25), file=sys.stderr)
        if options.json:
            save_json(figures, options.json)
        clear()
    return int(any("failed" in results for results in figures["sections"].values()))


if __name__ == "__main__":
    sys.exit(main())
