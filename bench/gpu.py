"""What only a GPU can show, in one run of about six minutes: is our code exact there, and how fast?

    python -m bench.gpu [--json FILE]        # make bench-gpu
    python -m bench.gpu --memory 24          # as on a card of 24 GB: 128 dialogues, with options that save memory

Weights are random, in bfloat16. A script decides prompts, feedback and the length of every attempt (bench/rollout.py).
Without CUDA all sizes are tiny. If a section fails, the others go on; the exit code is 1.

    decode    steps at a fixed context length, and their bound: weights, cache and twice the logits at copy bandwidth
    exact     tokens against those of `rollout_one`, log-probabilities against those of the full forward pass
    resume    a small resumed run against an uninterrupted one: the last metrics may differ only by rounding
    smollm2   SmolLM2-135M's shape and preset: the last of two steps of train.py, after two with short attempts
    step      Qwen2.5-1.5B's shape and the paper's settings: a step of 1024 dialogues, after one with short attempts
    generate  the first attempts of a few dialogues, by `.generate()` and by the engine
"""

import argparse
import gc
import re
import sys
import time
import traceback
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import torch
import transformers
from transformers import Qwen2Config

import rollout
import train
from bench.rollout import COMMON, SMOLLM2, Script, play_generate, play_ours, random_model, scripted
from data import Problem, load
from data.chat import Chat
from data.miniature import build_tokenizer, draw_riddles
from reward import RULES
from support.cuda import fuse_layers
from support.files import read_json, save_json
from support.memory import QWEN25, SHAPE, USABLE, cache_bytes

CUDA = torch.cuda.is_available()
DEVICE, DTYPE = ("cuda", torch.bfloat16) if CUDA else ("cpu", torch.float32)
QWEN = Qwen2Config(**COMMON | QWEN25["1.5B"])
TINY = Qwen2Config(**COMMON, **dict(zip(SHAPE, (64, 96, 2, 4, 2, 1024))), head_dim=128, initializer_range=0.3)
PAPER_STEP = dict(shape=QWEN, script=dict(dialogues=1024, length=(8, 2000), median=450))
SMOLLM2_STEP = dict(shape=SMOLLM2, script=dict(dialogues=512, prompt=(10, 24), length=(4, 32), median=9))
SMALL_STEP = dict(shape=TINY, script=dict(dialogues=24, length=(2, 12), median=5))
FULL = dict(  # the arguments of each section that has some; `options` are those of train.py
    decode=dict(shape=QWEN, loads=[(64, 1000), (256, 1000), (256, 3000), (512, 1000)]),
    smollm2=SMOLLM2_STEP | dict(options="--preset smollm2-gpu --steps 2"),
    step=PAPER_STEP | dict(options="--steps 1"),
    generate=dict(shape=QWEN, script=dict(dialogues=32, prompt=(60, 300), length=(8, 400), median=150, attempts=1)),
)
SMALL = dict(
    decode=dict(shape=TINY, loads=[(4, 64)]),
    smollm2=SMALL_STEP | dict(options="--preset smollm2-gpu --dialogues 16 --steps 2"),
    step=SMALL_STEP | dict(options="--dialogues 24 --steps 1"),
    generate=dict(shape=TINY, script=dict(dialogues=4, length=(2, 6), median=4, attempts=1)),
)
BF16_PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense operations a second, from the data sheets
SPARING = "--dialogues 128 --minibatches 1 --steps 1 --offload --gradient_checkpointing --micro_batch_tokens 4096"


def timed(run) -> float:
    """Seconds until the device has done all that `run` gives it."""
    start = time.perf_counter()
    run()
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter() - start


# -------------------- The sections: each returns {measure: value}
def copy_bandwidth() -> float:
    """Bytes read and written per second by a device copy."""
    source = torch.zeros(2**32 if CUDA else 2**22, dtype=torch.uint8, device=DEVICE)
    target = source.clone()
    for count in (1, 10):  # the first one warms up
        seconds = timed(lambda: [target.copy_(source) for _ in range(count)])
    return 2 * 10 * len(source) / seconds


@torch.no_grad()
def decode(shape, loads: list[tuple[int, int]]) -> dict[str, float]:
    results = {"device copy, bytes/s": copy_bandwidth()}
    model = random_model(shape, DEVICE, DTYPE)
    model.set_attn_implementation("engine")
    if CUDA:
        fuse_layers(model)
    for slots, context in loads:  # nothing is prefilled: the time does not depend on what the cache holds
        engine = rollout.Engine(model, slots, context + 64, temperature=1.0)
        engine.in_slot = engine.active = [rollout.LiveDialogue(i, None, 1, [], 0, slot=i) for i in range(slots)]
        for count in (2, 64):  # the first ones warm up
            for live in engine.active:
                live.position = context - 32
            engine.position_S.fill_(context - 32)
            # without reading the tokens: a rollout does that while the device decodes on
            seconds = timed(lambda: engine.decode_async(count)) / count
        moved = DTYPE.itemsize * (model.num_parameters() + 2 * slots * shape.vocab_size)
        bound = (moved + cache_bytes(shape, slots, context, DTYPE.itemsize)) / results["device copy, bytes/s"]
        results[f"{slots} slots, {context} tokens of context: tokens/s"] = slots / seconds
        results[f"{slots} slots, {context} tokens of context: share of the bound"] = bound / seconds
    return results


def step(shape, script: dict, options: str) -> dict[str, float]:
    torch.compiler.set_stance("force_eager")  # as in a new process: an earlier section may have called `fuse_layers`
    for script in (script | dict(length=(2, 12)), script):  # short attempts first: to compile and to pin memory
        gc.collect()
        if CUDA:  # unused memory goes back to the device
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        torch._dynamo.utils.counters.clear()
        with TemporaryDirectory() as folder, mock.patch.object(train.Run, "save"):  # it would take 40 GB
            row = run_training(folder, shape, script, options)
    row["kernels compiled"] = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    if CUDA:
        row["share of bf16 peak in the update"] = share_of_peak(shape, row)
    return {name: row[name] for name in row if re.search("second|memory|kernels|share|ratio", name)}


def run_training(folder: str, shape, script: dict, options: str) -> dict:
    """train.py with a random model of this shape plays the script, with output on stderr. Returns the last metrics."""
    tokenizer, script = build_tokenizer(draw_riddles("train")), Script(vocabulary=shape.vocab_size, **script)
    problems = [Problem(" ".join(map(str, prompt)), "5") for prompt in script.prompts]
    ours = dict(load=lambda name: problems, load_model=lambda name, *how: (random_model(shape, *how), tokenizer))
    ours["open_log"] = lambda *_: print  # each step's metrics, in case the run does not reach its end
    nothing = dict(check_model=mock.DEFAULT, save_model=mock.DEFAULT)
    with scripted(script), mock.patch.multiple(train, **ours, **nothing), redirect_stdout(sys.stderr):
        train.main([*options.split(), "--eval_data", "none", "--out", folder])
    return read_json(Path(folder, "metrics.jsonl"), lines=True)[-1]


def share_of_peak(shape, row: dict) -> float:
    """The share of the GPU's bf16 peak, for forward and backward pass of actor and critic: 6 operations per weight and
    token (output weights only at actions), and causal attention. Recomputation does not count."""
    head = shape.vocab_size * shape.hidden_size
    body = random_model(shape, "meta").num_parameters() - head
    peak = next((peak for chip, peak in BF16_PEAK.items() if chip in torch.cuda.get_device_name()), float("nan"))
    attention = shape.num_hidden_layers * shape.hidden_size * row["tokens_total"]
    models = 1 + ("critic_lr" in row)
    a_token = models * 6 * (body + attention) + 6 * head * row["tokens_sampled"] / row["tokens_total"]
    return row["update_tokens_per_second"] * a_token / peak


def resume() -> dict[str, float]:
    options = "--dialogues 24 --minibatches 2 --max_new_tokens 90 --lr 1e-4 --steps 3 --save_every 1 --compile false"
    with TemporaryDirectory() as folder:
        straight = run_training(folder, **SMALL_STEP, options=f"{options} --keep_checkpoints 3")
        Path(folder, "checkpoint-000003.pt").unlink()
        resumed = run_training(folder, **SMALL_STEP, options="--resume")
    return {f"difference in {key}": abs(resumed[key] - straight[key]) for key in ("reward", "kl", "grad_norm")}


@torch.no_grad()
def exact() -> dict[str, float]:
    model, results = random_model(TINY, DEVICE), {}
    chat = Chat(model, build_tokenizer(draw_riddles("train")), "chatml")
    config = train.Config(slots=5, max_new_tokens=90, max_attempt_tokens=20)
    problems, allowed = load("riddles-test")[:8], [1, 2, 3, 4] * 2
    for precision, temperature in dict.fromkeys([(torch.float32, 1.0), (torch.float32, 0.0), (DTYPE, 1.0)]):
        how = RULES, config, temperature
        dialogues = rollout.rollout(model.to(precision), chat, problems, allowed, *how)
        different, apart = 0, []
        for d, length in enumerate(dialogues.length_D):
            plain, *_ = rollout.rollout_one(model, chat, problems[d], allowed[d], *how, index=d)
            tokens_T, sampled_T = dialogues.tokens_DT[d, :length], dialogues.sampled_DT[d, :length]
            different += tokens_T.tolist() != plain
            logits_TV = model(input_ids=tokens_T[None].to(model.device)).logits[0, :-1].float().cpu()
            own_T = logits_TV.log_softmax(-1).gather(1, tokens_T[1:, None])[:, 0]
            apart += (dialogues.logp_DT[d, 1:length] - own_T)[sampled_T[1:]].abs().tolist()
        name = f"{precision}, temperature {temperature:.0f}"
        results[f"{name}, dialogues that differ"] = different
        results[f"{name}, difference of a log-probability, mean"] = sum(apart) / len(apart)
        results[f"{name}, difference of a log-probability, largest"] = max(apart)
    return results


def generate(shape, script: dict) -> dict[str, float]:
    model, script = random_model(shape, DEVICE, DTYPE), Script(vocabulary=shape.vocab_size, **script)
    ours = script.tokens / timed(lambda: play_ours(model, script, len(script.prompts)))
    theirs = script.tokens / timed(lambda: play_generate(model, script, len(script.prompts)))
    return {"ours, tokens/s": ours, "generate, tokens/s": theirs, "times as fast as generate": ours / theirs}


SECTIONS = dict(decode=decode, exact=exact, resume=resume, smollm2=step, step=step, generate=generate)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--memory", type=float, help="use only this many GB; runs only step, with sparing options")
    parser.add_argument("--profile", action="store_true", help="print the kernels that take the most time")
    parser.add_argument("--sections", nargs="*", choices=SECTIONS, default=list(SECTIONS))
    options = parser.parse_args(argv)
    transformers.logging.set_verbosity_error()
    arguments = FULL if CUDA else SMALL
    if CUDA and options.memory:
        fraction = USABLE * options.memory * 2**30 / torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(fraction)
        arguments, options.sections = {"step": PAPER_STEP | {"options": SPARING}}, ["step"]
    machine = torch.cuda.get_device_name() if CUDA else "CPU, tiny sizes: nothing here says anything about a GPU"
    figures = {"device": machine, "torch": torch.__version__, "transformers": transformers.__version__, "sections": {}}
    print(f"{machine}, torch {torch.__version__}, transformers {transformers.__version__}\n")
    print("| section | measure | value |\n|---|---|---|")
    for section in options.sections:
        start = time.perf_counter()
        with torch.profiler.profile() if options.profile else nullcontext() as profiler:
            try:
                results = SECTIONS[section](**arguments.get(section, {}))
            except (Exception, SystemExit) as error:  # there may be no second run on a GPU: the other sections go on
                traceback.print_exc()
                results = {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}
        figures["sections"][section] = results | {"seconds of the section": time.perf_counter() - start}
        for measure, value in figures["sections"][section].items():
            print(f"| {section} | {measure} | {value if measure == 'failed' else f'{value:g}'} |", flush=True)
        if options.profile:
            print(profiler.key_averages().table(sort_by=f"self_{DEVICE}_time_total", row_limit=25), file=sys.stderr)
        if options.json:
            save_json(figures, options.json)
    return int(any("failed" in results for results in figures["sections"].values()))


if __name__ == "__main__":
    sys.exit(main())
