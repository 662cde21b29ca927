"""Everything that only a GPU can show, in one run of at most 8 minutes: is it exact there, and how fast.

    python bench/gpu.py [--json FILE]     # make bench-gpu; on one H100, beside the targets
    python bench/gpu.py --small           # tiny numbers, a minute on the CPU: what runs where there is no CUDA

The shape is Qwen2.5-1.5B's with random weights in bfloat16, so nothing is downloaded. Prompts, feedback and the length
of every attempt come from a script, as in bench/rollout.py. A section that fails says so in the table, the others still
run, and the exit code is 1.

    exact     float32: every token is the one that the full forward pass and the dialogue's uniform numbers give, and
              how far the log-probabilities are apart. The model's precision: the same up to ties (between a uniform
              number and the token it chose there is no more probability than rounding explains), and the fast step
              beside the same without graphs, and beside the one of other devices, without flash attention
    copy      bytes read and written per second by a device copy
    decode    steps with every slot busy at one length of context, as a share of the bound by memory bandwidth:
              all weights, all keys and values, and the logits written and read once
    rollout   1024 dialogues up to 4096 tokens, graded in worker processes. Idle is the time in which the device had
              been given nothing to do, the capture of graphs included (gaps inside a feed count as work); overshoot is
              what was sampled behind the end of an attempt. The script knows where attempts end: no text is looked at
    generate  the first attempts of some of these dialogues, by `.generate()` and by the engine. Later attempts, which
              `.generate()` has to prefill again, would make the difference larger
    update    one optimiser step of PPO on 128 made-up dialogues, by bench/ppo.py, and the two forward passes before it.
              A step of the paper is the rollout and eight times that: computed, not run
"""

import argparse
import gc
import importlib.util
import json
import sys
import time
import traceback
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2ForTokenClassification

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import ppo  # noqa: E402
import rollout  # noqa: E402
from reward import Grader  # noqa: E402
from support.models import cache_bytes  # noqa: E402


def neighbour(name: str):
    """Another script of this folder as a module; `rollout` and `ppo` are the project's own files."""
    spec = importlib.util.spec_from_file_location(f"bench_{name}", Path(__file__).with_name(f"{name}.py"))
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


bench = neighbour("rollout")

SHAPE = dict(
    vocab_size=151936,
    hidden_size=1536,
    intermediate_size=8960,
    num_hidden_layers=28,
    num_attention_heads=12,
    num_key_value_heads=2,
    max_position_embeddings=32768,
    tie_word_embeddings=True,
    eos_token_id=None,
    bos_token_id=None,
)
SMALL_SHAPE = SHAPE | dict(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    initializer_range=0.3,
)
FULL = dict(
    copy=2**32,
    decode=[(64, 1000), (256, 1000), (256, 3000), (512, 1000)],
    steps=64,
    slots=256,
    rollout=dict(dialogues=1024, prompt=(60, 300), length=(8, 2000), median=450, longest=3700, feedback=30),
    generate=dict(dialogues=256, prompt=(60, 300), length=(8, 1200), median=450, attempts=1),
    exact=dict(dialogues=24, prompt=(20, 60), length=(8, 60), median=25, feedback=10),
    update=dict(dialogues=128, mean=1500, longest=4000, minibatches=1, micro_batch_tokens=4096),
)
SMALL = FULL | dict(
    copy=2**22,
    decode=[(4, 32)],
    steps=4,
    slots=4,
    rollout=dict(dialogues=8, prompt=(4, 8), length=(2, 12), median=5, longest=60, feedback=5),
    generate=dict(dialogues=4, prompt=(4, 8), length=(2, 6), median=4, attempts=1),
    exact=dict(dialogues=6, prompt=(4, 8), length=(2, 12), median=6, feedback=5),
    update=dict(dialogues=4, mean=48, longest=80, minibatches=1, micro_batch_tokens=128),
)
TARGETS = {  # by the end of the measure's name
    "difference of a log-probability, mean": "under 0.02",
    "tokens that differ": "0",
    "probability between a uniform number and its token": "under 0.02",
    "256 slots, 1000 tokens of context: tokens/s": "about 40,000",
    "share of the bound": "at least 60%",
    "sampled tokens/s": "at least 20,000",
    "idle": "under 3%",
    "overshoot": "under 3%",
    "times as fast as generate": "at least 5",
    "share of peak": "at least 40%",
    "the paper's step, from its parts: seconds": "at most 150",
}


def build(shape: dict, device: torch.device, dtype: torch.dtype, kind=Qwen2ForCausalLM, **more):
    torch.manual_seed(0)
    with device:
        return kind(Qwen2Config(**shape, **more)).to(dtype).eval()


def wait(device: torch.device) -> float:
    """The time when the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


# ---------------------------------------------------------------------------------------------------------------------
# The sections: each returns {measure: value}


def exact(_, size, device, dtype) -> dict:
    script = bench.draw_script(vocab=SMALL_SHAPE["vocab_size"], **size["exact"])
    shape = SMALL_SHAPE | {"head_dim": 128}  # the kernels of the large model
    model, results = build(shape, device, torch.float32), {}
    for name, temperature in (("sampled", 1.0), ("greedy", 0.0)):
        dialogues, logp_DTV = play_and_score(model, script, temperature)
        distances = off(dialogues, logp_DTV, script, temperature)
        results[f"float32, {name}: tokens that differ"] = sum(distance > 0 for distance in distances)
        apart = differences(dialogues, logp_DTV)
        results[f"float32, {name}: largest difference of a log-probability"] = apart.max().item()
    model = model.to(dtype)
    dialogues, logp_DTV = play_and_score(model, script, 1.0)
    apart = differences(dialogues, logp_DTV)
    results[f"{dtype}: difference of a log-probability, mean"] = apart.mean().item()
    results[f"{dtype}: difference of a log-probability, largest"] = apart.max().item()
    results[f"{dtype}: probability between a uniform number and its token"] = max(off(dialogues, logp_DTV, script, 1.0))
    with mock.patch.object(rollout.Grid, "captured", lambda grid, R: partial(grid.step, R)):
        plain, _ = play_and_score(model, script, 1.0)
    results[f"{dtype}, without graphs: tokens that differ"] = int((plain.tokens_DT != dialogues.tokens_DT).sum())
    with mock.patch.object(rollout, "has_flash", lambda model: False):
        slow, _ = play_and_score(model, script, 1.0)
    same_DT = (slow.tokens_DT == dialogues.tokens_DT).cummin(-1).values  # up to the first tie
    apart = (slow.logp_DT - dialogues.logp_DT)[same_DT & dialogues.sampled_DT].abs()
    results[f"{dtype}, without flash attention: dialogues that part"] = int((~same_DT).any(-1).sum())
    results[f"{dtype}, without flash attention: difference of a log-probability, mean"] = apart.mean().item()
    return results


def play_and_score(model, script, temperature: float):
    """The engine's dialogues, and the float32 log-softmax of the full forward pass at temperature 1."""
    with bench.scripted(script):
        dialogues = bench.run_engine(model, script, slots=7, temperature=temperature)
    with torch.no_grad():
        logits = model(input_ids=dialogues.tokens_DT.to(model.device)).logits[:, :-1]
    return dialogues, logits.float().log_softmax(-1).cpu()


def differences(dialogues, logp_DTV) -> torch.Tensor:
    full_DT = logp_DTV.gather(-1, dialogues.tokens_DT[:, 1:, None])[..., 0]
    return (dialogues.logp_DT[:, 1:] - full_DT)[dialogues.sampled_DT[:, 1:]].abs()


def off(dialogues, logp_DTV, script, temperature: float) -> list[float]:
    """Of every sampled token, how far it is from the one that the full forward pass asks for, in float64; 0 if it is
    that. Sampled: the probability between the dialogue's uniform number and the token. Greedy: in log-probability."""
    distances = []
    for d, prompt in enumerate(script.prompts):
        uniforms = np.random.default_rng((0, d)).random(script.budget, dtype=np.float32)
        for t in dialogues.sampled_DT[d].nonzero()[:, 0].tolist():
            logp_V, token = logp_DTV[d, t - 1].double(), dialogues.tokens_DT[d, t]
            cdf_V = F.pad(logp_V.exp().cumsum(-1), (1, 0))
            drawn = uniforms[t - len(prompt)].item() * cdf_V[-1]
            outside = torch.maximum(cdf_V[token] - drawn, drawn - cdf_V[token + 1]).clamp(min=0)
            distances.append((outside if temperature else logp_V.max() - logp_V[token]).item())
    return distances


def copy(_, size, device, dtype) -> dict:
    source = torch.zeros(size["copy"], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    start = wait(device)
    for _ in range(10):
        target.copy_(source)
    return {"bytes/s": 2 * 10 * size["copy"] / (wait(device) - start)}


def decode(model, size, device, dtype) -> dict:
    bandwidth = copy(model, size, device, dtype)["bytes/s"]
    results = {}
    for slots, context in size["decode"]:
        seconds = bench.decode_seconds(model, slots, context, size["steps"], partial(wait, device))
        moved = dtype.itemsize * (model.num_parameters() + 2 * slots * model.config.vocab_size)
        bound = (moved + cache_bytes(model.config, slots, context, dtype.itemsize)) / bandwidth
        results[f"{slots} slots, {context} tokens of context: tokens/s"] = slots / seconds
        results[f"{slots} slots, {context} tokens of context: share of the bound"] = bound / seconds
    return results


@contextmanager
def watched(device):
    """Yields what a rollout does: the tokens that it samples, the seconds in which it captures graphs, and the device's
    events around all that it is given."""
    seen = SimpleNamespace(sampled=0, capturing=0.0, events=[])
    feed, launch, captured = rollout.Grid.feed, rollout.Grid.launch, rollout.Grid.captured

    def watch(method):
        def run(grid, *arguments):
            if method is launch:
                seen.sampled += int(grid.active_S.sum()) * arguments[0]
            events = [torch.cuda.Event(enable_timing=True) for _ in range(2 * (device.type == "cuda"))]
            for event in events[:1]:
                event.record()
            result = method(grid, *arguments)
            for event in events[1:]:
                event.record()
            seen.events.append(events)
            return result

        return run

    def watched_capture(grid, R):
        new, start = R not in grid.graphs, time.perf_counter()
        replay = captured(grid, R)
        seen.capturing += new * (time.perf_counter() - start)
        return replay

    with mock.patch.multiple(rollout.Grid, feed=watch(feed), launch=watch(launch), captured=watched_capture):
        yield seen


def whole_rollout(model, size, device, dtype) -> dict:
    script = bench.draw_script(vocab=model.config.vocab_size, **size["rollout"])
    with bench.scripted(script), watched(device) as seen, Grader() as grader:

        def grade(answer, gold):
            return grader.submit("\\frac{1}{2}" if answer == gold else "\\frac{1}{3}", "0.5")

        grade("right", "right").result()  # the workers have started
        start = wait(device)
        dialogues = bench.run_engine(model, script, size["slots"], grade=grade)
        seconds = wait(device) - start
    if dialogues.correct_D.tolist() != script.correct:
        raise RuntimeError("the verdicts are not those of the script")
    results = {"sampled tokens": script.tokens, "seconds": seconds, "sampled tokens/s": script.tokens / seconds}
    if device.type == "cuda":
        busy = sum(first.elapsed_time(last) for first, last in seen.events) / 1e3 - seen.capturing
        results |= {"to capture graphs": seen.capturing / seconds, "idle": 1 - busy / seconds}
    return results | {"overshoot": 1 - script.tokens / seen.sampled}


def generate(model, size, device, dtype) -> dict:
    script = bench.draw_script(vocab=model.config.vocab_size, **size["generate"])
    seconds = {}
    for play in (bench.play_ours, bench.play_generate):
        start = wait(device)
        play(model, script, len(script.prompts))
        seconds[play] = wait(device) - start
    ours, theirs = (script.tokens / seconds[play] for play in (bench.play_ours, bench.play_generate))
    return {"ours, tokens/s": ours, "generate, tokens/s": theirs, "times as fast as generate": ours / theirs}


def update(_, size, device, dtype) -> dict:
    shape = SHAPE if size is FULL else SMALL_SHAPE
    actor = build(shape, device, dtype)
    actor.set_attn_implementation("slots")
    critic = build(shape, device, dtype, Qwen2ForTokenClassification, num_labels=1)
    plain, options = neighbour("ppo"), SimpleNamespace(side="ours", model=None, **size["update"])
    with mock.patch.object(plain, "models_of", lambda _: (actor, critic)):
        measured = plain.measure(options)
    names = {
        "seconds": "seconds",
        "tokens_per_second": "tokens/s",
        "share_of_peak": "share of peak",
        "peak_memory": "bytes at most",
    }
    dialogues = plain.made_up(options.dialogues, options.mean, shape["vocab_size"], options.longest)
    start = wait(device)
    ppo.score(dialogues, actor, critic, 1.0, options.micro_batch_tokens)
    forward = wait(device) - start
    return {name: measured[key] for key, name in names.items() if key in measured} | {"forward, seconds": forward}


def step(sections: dict, size: dict) -> dict:
    """The seconds of a step of the paper, from what its parts took."""
    if not all("seconds" in sections.get(name, ()) for name in ("rollout", "update")):
        return {}
    times = size["rollout"]["dialogues"] / size["update"]["dialogues"]
    one = sections["update"]["seconds"] + sections["update"]["forward, seconds"]
    return {"the paper's step, from its parts: seconds": sections["rollout"]["seconds"] + times * one}


SECTIONS = {
    "exact": exact,
    "copy": copy,
    "decode": decode,
    "rollout": whole_rollout,
    "generate": generate,
    "update": update,
}
NEED_THE_MODEL = "decode", "rollout", "generate"


def written(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def line(section: str, name: str, value: str) -> str:
    target = next((target for ending, target in TARGETS.items() if name.endswith(ending)), "")
    return f"| {section} | {name} | {value} | {target} |"


def show(section: str, results: dict) -> None:
    for name, value in results.items():
        print(line(section, name, value if name == "failed" else written(value)), flush=True)


def main(argv: list[str] | None = None) -> int:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--json", type=Path, help="write the figures to this file")
    options.add_argument("--small", action="store_true", help="tiny numbers, as without CUDA")
    options.add_argument("--sections", nargs="*", choices=SECTIONS, default=list(SECTIONS))
    options = options.parse_args(argv)
    transformers.logging.set_verbosity_error()
    cuda = torch.cuda.is_available()
    size = SMALL if options.small or not cuda else FULL
    device, dtype = (torch.device("cuda"), torch.bfloat16) if cuda else (torch.device("cpu"), torch.float32)
    machine = torch.cuda.get_device_name() if cuda else "CPU, small numbers: nothing here says anything about a GPU"
    figures = {"device": machine, "torch": torch.__version__, "transformers": transformers.__version__, "sections": {}}
    print(f"{machine}, torch {torch.__version__}, transformers {transformers.__version__}\n")
    print("| section | measure | value | target |\n|---|---|---|---|", flush=True)
    model, failed = None, False
    for name in options.sections:
        start = time.perf_counter()
        try:
            if name not in NEED_THE_MODEL:
                model = None
            elif model is None:
                model = build(SHAPE if size is FULL else SMALL_SHAPE, device, dtype)
            results = SECTIONS[name](model, size, device, dtype)
        except Exception as error:  # one run on a GPU may be all there is: the other sections still run
            traceback.print_exc()
            failed, results = True, {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}
        figures["sections"][name] = results | {"seconds of the section": time.perf_counter() - start}
        show(name, figures["sections"][name])
        gc.collect()
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        if options.json:
            options.json.write_text(json.dumps(figures, indent=1) + "\n")
    figures["step"] = step(figures["sections"], size)
    show("step", figures["step"])
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
