"""Our rollout engine and transformers' three ways to generate, side by side on the CPU, and how our cost grows.

    python bench/rollout.py [--json FILE] [--minutes 9]      # the table: make bench-rollout
    python bench/rollout.py --growth FILE.png [--json FILE]  # our engine alone: slots, context length, vocabulary

Every side plays the same dialogues with the same random weights: prompts, feedback and the length of every attempt come
from a script, whatever tokens the model samples. Temperature 1, no top-k, no top-p, float32, one thread each.

    ours        rollout.py; it also stores the log-probability of every token, which no peer has to compute
    generate    `.generate()` per attempt on the whole dialogue, in rounds: all dialogues that are not over, sorted by
                length and left-padded, in batches of equal size; a batch runs until its longest attempt is written,
                and what a row writes beyond its script does not count
    static      the same with `cache_implementation="static"`, not compiled: every shape would be compiled anew
    continuous  transformers' continuous batching: a request per attempt on the whole dialogue, the next attempt
                submitted as soon as the one before it is there, blocks of equal prefixes shared; 32 requests at a time
                (for qwen2-5m the best of 8, 16, 32 and 64): its attention reads the keys of all requests for each

Counted are the sampled tokens inside the script, per CPU-second of the process (all of its threads). Ours plays four
dialogues for every slot, a peer one or two batches of the same kind: `generate` was as fast with four. The sides take
turns; the table shows the median of the runs with the lowest and the highest. A workload's turns go on until its share
of --minutes is spent, three of them at least.
"""

import argparse
import json
import logging
import os
import platform
import statistics
import sys
import time
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Callable
from unittest import mock

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: continuous batching computes in a thread of its own

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import (  # noqa: E402
    ContinuousBatchingConfig,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import rollout  # noqa: E402
from data.miniature import build_model  # noqa: E402

# ---------------------------------------------------------------------------------------------------------------------
# The script of a rollout


@dataclass
class Script:
    """What happens in every dialogue, whatever the model samples."""

    prompts: list[list[int]]
    lengths: list[list[int]]  # tokens of each attempt; the last one is correct, or no further one is allowed
    correct: list[bool]  # the verdict on the last attempt
    allowed: list[int]
    feedback: list[int]

    @property
    def tokens(self) -> int:
        """Sampled tokens, the only ones that count."""
        return sum(map(sum, self.lengths))

    @property
    def attempts(self) -> int:
        return sum(map(len, self.lengths))

    @property
    def budget(self) -> int:
        """Tokens after the prompt in the longest dialogue."""
        return max(sum(lengths) + len(self.feedback) * (len(lengths) - 1) for lengths in self.lengths)


def draw_script(
    dialogues: int,
    vocab: int,
    *,
    prompt: tuple[int, int] = (24, 64),
    length: tuple[int, int] = (8, 160),
    median: float = 30,
    sigma: float = 0.7,
    attempts: int = 5,
    success: float = 0.35,
    feedback: int = 24,
    seed: int = 0,
) -> Script:
    """Attempt lengths are lognormal, cut off at both ends of `length`."""
    rng = np.random.default_rng(seed)
    script = Script([], [], [], [], rng.integers(vocab, size=feedback).tolist())
    for _ in range(dialogues):
        script.prompts.append(rng.integers(vocab, size=rng.integers(prompt[0], prompt[1] + 1)).tolist())
        script.allowed.append(int(rng.integers(1, attempts + 1)))
        lengths, correct = [], False
        while len(lengths) < script.allowed[-1] and not correct:
            lengths.append(int(np.clip(rng.lognormal(np.log(median), sigma), *length)))
            correct = bool(rng.random() < success)
        script.lengths.append(lengths)
        script.correct.append(correct)
    return script


# ---------------------------------------------------------------------------------------------------------------------
# Our side


@contextmanager
def scripted(script: Script):
    """The one place where the engine is bent to the script; yields a clock with the CPU-seconds spent in decode steps.

    An attempt's limit is its scripted end, so the grid itself reports the row there, as it does when a budget runs out;
    there are no end tokens, so it reports it nowhere else. Then `find_end` hands out a boxed answer with the verdict.
    """
    clock = {"decode": 0.0}
    engine_launch = rollout.Grid.launch

    class Chat:
        ends, closing = set(), set()

        def __init__(self, *_):
            pass

        def prompt(self, question, _):
            return script.prompts[int(question)]

        def feedback_after(self, *_):
            return script.feedback

    class Slot(rollout.Slot):
        @property
        def limit(self):
            return self.start + script.lengths[self.dialogue][len(self.attempts)]

        @limit.setter
        def limit(self, _):
            pass

    def find_end(slot, *_):
        last = len(slot.attempts) + 1 == len(script.lengths[slot.dialogue])
        verdict = "right" if last and script.correct[slot.dialogue] else "wrong"
        return rollout.Attempt(slot.start, slot.limit, "", verdict, truncated=False)

    def launch(grid, count):
        start = time.process_time()
        flight = engine_launch(grid, count)
        clock["decode"] += time.process_time() - start
        return flight

    with (
        mock.patch.multiple(rollout, Chat=Chat, Slot=Slot, find_end=find_end),
        mock.patch.object(rollout.Grid, "launch", launch),
    ):
        yield clock


def grade(answer: str, gold: str) -> Future:
    verdict = Future()
    verdict.set_result(answer == gold)
    return verdict


def play_ours(model, script: Script, slots: int, temperature: float = 1.0) -> list[list[list[int]]]:
    """The sampled tokens of every attempt of every dialogue."""
    with scripted(script):
        dialogues = run_engine(model, script, slots, temperature)
    rows = zip(dialogues.tokens_DT, dialogues.attempts)
    return [[tokens[attempt.start : attempt.end].tolist() for attempt in attempts] for tokens, attempts in rows]


def run_engine(model, script: Script, slots: int, temperature: float = 1.0) -> rollout.Dialogues:
    count = len(script.prompts)
    return rollout.rollout(
        model, None, list(map(str, range(count))), ["right"] * count, script.allowed, extract=None, grade=grade,
        reward=lambda correct, *_: float(correct), slots=slots, max_new_tokens=script.budget, temperature=temperature,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# The peers


def sampling(temperature: float) -> dict:
    return dict(do_sample=True, temperature=temperature, top_k=0, top_p=1.0) if temperature else dict(do_sample=False)


def play_generate(model, script: Script, rows: int, temperature: float = 1.0, cache: str | None = None):
    """As `play_ours`, with `.generate()` in rounds, at most `rows` dialogues in a batch."""
    model.set_attn_implementation("sdpa")
    tokens = [list(prompt) for prompt in script.prompts]
    played = [[] for _ in tokens]
    while unfinished := [d for d, lengths in enumerate(script.lengths) if len(played[d]) < len(lengths)]:
        unfinished.sort(key=lambda d: len(tokens[d]))  # little padding
        batches = -(-len(unfinished) // rows)
        for batch in np.array_split(unfinished, batches):  # of equal size
            longest = max(len(tokens[d]) for d in batch)
            inputs = torch.zeros(len(batch), longest, dtype=torch.long)
            mask = torch.zeros_like(inputs)
            for i, d in enumerate(batch):
                inputs[i, longest - len(tokens[d]) :] = torch.tensor(tokens[d])
                mask[i, longest - len(tokens[d]) :] = 1
            lengths = [script.lengths[d][len(played[d])] for d in batch]
            config = GenerationConfig(
                max_new_tokens=max(lengths), eos_token_id=None, pad_token_id=0, cache_implementation=cache,
                disable_compile=True, **sampling(temperature),
            )  # fmt: skip
            written = model.generate(inputs, attention_mask=mask, generation_config=config)[:, longest:]
            for d, row, length in zip(batch, written, lengths):
                played[d].append(row[:length].tolist())
                tokens[d] += played[d][-1] + script.feedback
    return played


def play_static(model, script: Script, rows: int, temperature: float = 1.0):
    return play_generate(model, script, rows, temperature, cache="static")


def play_continuous(model, script: Script, rows: int, temperature: float = 1.0):
    """As `play_ours`, with transformers' continuous batching of at most `rows` requests at a time."""
    model.set_attn_implementation("sdpa")
    longest = max(map(len, script.prompts)) + script.budget
    page = 32
    settings = ContinuousBatchingConfig(
        page_size=page, num_blocks=rows * (-(-longest // page) + 1), max_batch_tokens=max(256, 2 * rows),
        max_requests_per_batch=rows,
    )  # fmt: skip
    config = GenerationConfig(eos_token_id=-1, pad_token_id=0, **sampling(temperature))
    tokens = [list(prompt) for prompt in script.prompts]
    played = [[] for _ in tokens]
    left = script.attempts
    with model.continuous_batching_context_manager(config, continuous_batching_config=settings) as manager:

        def submit(d):
            length = script.lengths[d][len(played[d])]
            manager.add_request(tokens[d], f"{d}/{len(played[d])}", max_new_tokens=length, eos_token_id=-1)

        for d in range(len(tokens)):
            submit(d)
        while left:
            result = manager.get_result(timeout=1)
            if result is None:
                if not manager.is_running():
                    raise RuntimeError("continuous batching stopped before its requests were done")
                continue
            if result.error:
                raise RuntimeError(f"continuous batching failed: {result.error}")
            left -= 1
            d = int(result.request_id.split("/")[0])
            played[d].append(list(result.generated_tokens))
            tokens[d] += played[d][-1] + script.feedback
            if len(played[d]) < len(script.lengths[d]):
                submit(d)
    return played


# ---------------------------------------------------------------------------------------------------------------------
# Workloads and the table


def qwen2(vocab: int = 4096):
    """Qwen2's shape with about 5 million parameters, random weights."""
    torch.manual_seed(0)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=vocab, hidden_size=256, intermediate_size=704, num_hidden_layers=6, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=4096, tie_word_embeddings=True, eos_token_id=None,
            bos_token_id=None,
        )
    ).eval()  # fmt: skip


def smollm2():
    """SmolLM2-135M's shape, random weights."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
            num_key_value_heads=3, max_position_embeddings=4096, tie_word_embeddings=True, eos_token_id=None,
            bos_token_id=None,
        )
    ).eval()  # fmt: skip


def miniature():
    return build_model(704, None, seed=0).eval()


@dataclass
class Workload:
    name: str
    build: Callable  # () -> model
    slots: tuple[int, ...]  # of our engine, which plays four dialogues for each slot
    rows: int  # of a peer's batch
    requests: int  # of continuous batching, side by side
    dialogues: int  # that a peer plays: one batch or more
    share: float  # of the time
    length: tuple[int, int] = (8, 160)
    median: float = 30


WORKLOADS = [
    Workload("qwen2-5m", qwen2, (64, 256), rows=64, requests=32, dialogues=128, share=0.7),
    Workload("miniature", miniature, (64,), rows=64, requests=32, dialogues=128, share=0.1),
    Workload("smollm2", smollm2, (8,), rows=8, requests=8, dialogues=8, share=0.2, length=(4, 24), median=8),
]
PEERS = {"generate": play_generate, "continuous": play_continuous, "static": play_static}


def measure(play, model, script: Script, rows: int) -> float:
    """Sampled tokens per CPU-second; RuntimeError when a side did not play the script."""
    start = time.process_time()
    played = play(model, script, rows)
    spent = time.process_time() - start
    if [list(map(len, attempts)) for attempts in played] != script.lengths:
        raise RuntimeError(f"{play.__name__} did not write the attempts of the script")
    return script.tokens / spent


def compare(workload: Workload, seconds: float, least: int = 3) -> dict:
    """Turns of our side and every peer, at least `least`, more while there is time."""
    model = workload.build()

    def script(dialogues):
        return draw_script(dialogues, model.config.vocab_size, length=workload.length, median=workload.median)

    sides = {f"ours, {slots} slots": (play_ours, script(4 * slots), slots) for slots in workload.slots}
    for peer, play in PEERS.items():
        sides[peer] = play, script(workload.dialogues), workload.requests if peer == "continuous" else workload.rows
    warm = draw_script(2, model.config.vocab_size, length=(2, 3), median=2)
    for play, _, rows in sides.values():
        play(model, warm, rows)
    rates = {side: [] for side in sides}
    start, turns = time.perf_counter(), 0
    while turns < least or (time.perf_counter() - start) * (turns + 1) / turns < seconds:
        for side, (play, script_, rows) in sides.items():
            rates[side].append(measure(play, model, script_, rows))
        turns += 1
    return {
        "workload": workload.name,
        "parameters": model.num_parameters(),
        "sides": {
            side: {
                "rows": rows, "dialogues": len(played.prompts), "attempts": played.attempts, "tokens": played.tokens,
                "tokens per CPU-second": rates[side],
            }
            for side, (_, played, rows) in sides.items()
        },
        "ours is faster": {
            peer: {ours: [a / b for a, b in zip(rates[ours], rates[peer])] for ours in sides if ours not in PEERS}
            for peer in PEERS
        },
    }  # fmt: skip


def versions() -> dict:
    return {
        "torch": torch.__version__, "transformers": transformers.__version__, "python": platform.python_version(),
        "threads a side": torch.get_num_threads(),
    }  # fmt: skip


def spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}..{max(values):.{digits}f})"


def table(results: list[dict]) -> str:
    """A line for each side of each workload; the ratios are those of the runs of one turn."""
    header = ("workload", "side", "rows", "dialogues", "runs", "tokens per CPU-second", "ours is faster, times")
    lines = [header, ("---",) * len(header)]
    for result in results:
        for name, side in result["sides"].items():
            rates, ratios = side["tokens per CPU-second"], result["ours is faster"].get(name, {})
            faster = "; ".join(f"{ours.removeprefix('ours, ')}: {spread(times, 1)}" for ours, times in ratios.items())
            lines.append(
                (result["workload"], name, side["rows"], side["dialogues"], len(rates), spread(rates, 0), faster)
            )
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


# ---------------------------------------------------------------------------------------------------------------------
# How our cost grows

GROWTH = {
    "slots": [16, 32, 64, 128, 256, 512],
    "context": [64, 128, 256, 512, 1024, 2048],
    "vocabulary": [1024, 4096, 16384, 65536, 131072],
}
STANDARD = {"slots": 64, "context": 128, "vocabulary": 4096}
FEWER = {"context": {"slots": 16}}  # it is writing a long context into the cache that takes the time


def decode_rate(slots: int, context: int, vocabulary: int, tokens: int = 16) -> float:
    """Sampled tokens per CPU-second of the decode steps alone, every slot busy, around `context` tokens."""
    model = qwen2(vocabulary)
    script = draw_script(
        slots, vocabulary, prompt=(context - tokens // 2,) * 2, length=(tokens,) * 2, median=tokens, attempts=1
    )
    rates = []
    for _ in range(2):  # the first one also warms up
        with scripted(script) as clock:
            run_engine(model, script, slots)
        rates.append(script.tokens / clock["decode"])
    return max(rates)


def growth() -> dict[str, list[list]]:
    """{axis: [[value, tokens per CPU-second], ...]}; the other two axes stay at their standard value."""
    return {
        axis: [[value, decode_rate(**STANDARD | FEWER.get(axis, {}) | {axis: value})] for value in values]
        for axis, values in GROWTH.items()
    }


def plot_growth(curves: dict[str, list[list]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = {"slots": "slots", "context": "tokens of context", "vocabulary": "tokens in the vocabulary"}
    colours = dict(zip(names, ("#0072b2", "#d55e00", "#009e73")))  # told apart by colour-blind eyes, too
    figure, panels = plt.subplots(1, 3, figsize=(10.5, 3.4), sharey=True, layout="constrained")
    for panel, (axis, points) in zip(panels, curves.items()):
        values, rates = zip(*points)
        panel.plot(values, rates, color=colours[axis], marker="o", linewidth=1.8, markersize=5)
        panel.set_xscale("log", base=2)
        ticks = [f"{value // 1024}k" if value >= 1024 else str(value) for value in values]
        panel.set_xticks(values, ticks)
        panel.minorticks_off()
        panel.set_xlabel(names[axis])
        others = (STANDARD | FEWER.get(axis, {})).items()
        title = ", ".join(f"{name} {value}" for name, value in others if name != axis)
        panel.set_title(title, fontsize=9.5, color="0.35")
        panel.set_ylim(bottom=0)
        panel.grid(color="0.9")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("sampled tokens per CPU-second")
    figure.suptitle("Decode steps of the engine, 5M parameters, float32, one CPU thread", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(argv: list[str] | None = None):
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--json", type=Path, help="write the figures to this file")
    options.add_argument("--growth", type=Path, help="no table: plot tokens per second of our engine into this file")
    options.add_argument("--minutes", type=float, default=9.0, help="for the table; three turns are always made")
    options.add_argument("--workload", nargs="*", help="only these, by name")
    options = options.parse_args(argv)
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.CRITICAL)  # the cache's size is given
    figures = {"versions": versions()}
    print(", ".join(f"{name} {value}" for name, value in figures["versions"].items()), flush=True)
    if options.growth:
        figures["growth"] = growth()
        plot_growth(figures["growth"], options.growth)
        for axis, points in figures["growth"].items():
            print(f"{axis:<12}" + "  ".join(f"{value}: {rate:.0f}" for value, rate in points))
    else:
        figures["workloads"] = []
        for workload in WORKLOADS:
            if not options.workload or workload.name in options.workload:
                figures["workloads"].append(compare(workload, workload.share * options.minutes * 60))
        print(table(figures["workloads"]))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
