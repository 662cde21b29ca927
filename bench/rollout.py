"""Our rollout engine and transformers' ways to generate, side by side on the CPU, and how our cost grows.

    python bench/rollout.py [--json FILE] [--minutes 9]     # the table: make bench-rollout
    python bench/rollout.py --growth results/rollout/growth.png --json results/rollout/growth.json
                                                            # our engine alone: slots, context length, vocabulary

Every side plays the same dialogues with the same random weights: prompts, feedback and the length of every attempt come
from a script, whatever tokens the model samples. Temperature 1, no top-k, no top-p, float32, one thread each.

    ours        rollout.py; it also stores the log-probability of every token, which no peer has to compute
    generate    `.generate()` per attempt on the whole dialogue, in rounds: all dialogues that are not over, sorted by
                length and left-padded, in batches of equal size; a batch runs until its longest attempt is written,
                and what a row writes beyond its script does not count
    static      the same with `cache_implementation="static"`, not compiled: every shape would be compiled anew
    generate_batch
                transformers' continuous batching as it is usually called: `generate_batch` for each round of attempts,
                on the whole dialogues; 32 requests at a time (for qwen2-5m the best of 8, 16, 32 and 64): its attention
                reads the keys of all requests for each
    continuous  the same with one manager for everything: the next attempt is submitted as soon as the one before it is
                there, and blocks of equal prefixes are shared, so that a dialogue is hardly prefilled again

Counted are the sampled tokens inside the script, per CPU-second of the process (all of its threads). Ours plays four
dialogues for every slot, a peer one to three batches of the same kind: `generate` was as fast with four. The sides take
turns; the table shows the median of the runs with the lowest and the highest. A workload's turns go on until its share
of --minutes is spent, two of them at least.

What limits us (qwen2-5m, 64 slots, torch.profiler, one core of an AMD EPYC): 50% of the time are matrix products, at 85
to 95% of the rate that the core reaches with large matrices; 27% is attention, which reads keys and values at 11 to 18
GB/s where a copy moves 24; the rest are the small operators between them, most of them in transformers' layers. So if
all but the matrix products cost nothing, ours would be twice as fast. They are the same for every side, and
`continuous`, which does not prefill a dialogue again either, would still not be five times slower.
"""

import argparse
import json
import logging
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: continuous batching computes in a thread of its own

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import (  # noqa: E402
    ContinuousBatchingConfig,
    ContinuousBatchingManager,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import rollout  # noqa: E402
from data.miniature import build_model  # noqa: E402
from support.cli import fail  # noqa: E402

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
    longest: float = math.inf,
    seed: int = 0,
) -> Script:
    """Attempt lengths are lognormal, cut off at both ends of `length`. An attempt with which there would be more than
    `longest` tokens after the prompt is not allowed."""
    rng = np.random.default_rng(seed)
    script = Script([], [], [], [], rng.integers(vocab, size=feedback).tolist())
    for _ in range(dialogues):
        script.prompts.append(rng.integers(vocab, size=rng.integers(prompt[0], prompt[1] + 1)).tolist())
        script.allowed.append(int(rng.integers(1, attempts + 1)))
        lengths, correct = [], False
        while len(lengths) < script.allowed[-1] and not correct:
            tokens = int(np.clip(rng.lognormal(np.log(median), sigma), *length))
            if sum(lengths) + feedback * len(lengths) + tokens > longest:
                script.allowed[-1] = len(lengths)
                break
            lengths.append(tokens)
            correct = bool(rng.random() < success)
        script.lengths.append(lengths)
        script.correct.append(correct)
    return script


# ---------------------------------------------------------------------------------------------------------------------
# Our side


@contextmanager
def scripted(script: Script):
    """The one place where the engine is bent to the script.

    An attempt's limit is its scripted end, so the grid itself reports the row there, as it does when a budget runs out;
    there are no end tokens, so it reports it nowhere else. Then `find_end` hands out a boxed answer with the verdict.
    """

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

    with mock.patch.multiple(rollout, Chat=Chat, Slot=Slot, find_end=find_end):
        yield


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


def run_engine(model, script: Script, slots: int, temperature: float = 1.0, grade=grade) -> rollout.Dialogues:
    count = len(script.prompts)
    return rollout.rollout(
        model,
        None,
        list(map(str, range(count))),
        ["right"] * count,
        script.allowed,
        extract=None,
        grade=grade,
        reward=lambda correct, *_: float(correct),
        slots=slots,
        max_new_tokens=script.budget,
        temperature=temperature,
    )


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
                max_new_tokens=max(lengths),
                eos_token_id=None,
                pad_token_id=0,
                cache_implementation=cache,
                disable_compile=True,
                **sampling(temperature),
            )
            inputs, mask = inputs.to(model.device), mask.to(model.device)
            written = model.generate(inputs, attention_mask=mask, generation_config=config)[:, longest:]
            for d, row, length in zip(batch, written.cpu(), lengths):
                played[d].append(row[:length].tolist())
                tokens[d] += played[d][-1] + script.feedback
    return played


def play_static(model, script: Script, rows: int, temperature: float = 1.0):
    return play_generate(model, script, rows, temperature, cache="static")


def pages(script: Script, rows: int) -> ContinuousBatchingConfig:
    """A cache in which `rows` requests fit at a time."""
    longest, page = max(map(len, script.prompts)) + script.budget, 32
    return ContinuousBatchingConfig(
        page_size=page,
        num_blocks=rows * (-(-longest // page) + 1),
        max_batch_tokens=max(256, 2 * rows),
        max_requests_per_batch=rows,
    )


def play_generate_batch(model, script: Script, rows: int, temperature: float = 1.0):
    """As `play_ours`, with a call of `generate_batch` for each round of attempts, at most `rows` requests at a time."""
    model.set_attn_implementation("sdpa")
    config = GenerationConfig(max_new_tokens=1, eos_token_id=-1, pad_token_id=0, **sampling(temperature))
    tokens = [list(prompt) for prompt in script.prompts]
    played = [[] for _ in tokens]
    add_request = ContinuousBatchingManager.add_request
    while unfinished := [d for d, lengths in enumerate(script.lengths) if len(played[d]) < len(lengths)]:
        lengths = [script.lengths[d][len(played[d])] for d in unfinished]

        def scripted_request(manager, input_ids, request_id, **options):
            """It takes one length for all requests; here each ends at its own, as at an end token."""
            options["max_new_tokens"] = lengths[int(request_id.removeprefix("req_"))]
            return add_request(manager, input_ids, request_id, **options)

        with mock.patch.object(ContinuousBatchingManager, "add_request", scripted_request):
            results = model.generate_batch(
                [tokens[d] for d in unfinished], config, pages(script, rows), max_new_tokens=max(lengths)
            )
        for d, result in zip(unfinished, results.values(), strict=True):
            if result.error:
                raise RuntimeError(f"generate_batch failed: {result.error}")
            played[d].append(list(result.generated_tokens))
            tokens[d] += played[d][-1] + script.feedback
    return played


def play_continuous(model, script: Script, rows: int, temperature: float = 1.0):
    """As `play_ours`, with one manager of continuous batching for all attempts, at most `rows` requests at a time."""
    model.set_attn_implementation("sdpa")
    config = GenerationConfig(eos_token_id=-1, pad_token_id=0, **sampling(temperature))
    tokens = [list(prompt) for prompt in script.prompts]
    played = [[] for _ in tokens]
    left = script.attempts
    with model.continuous_batching_context_manager(config, continuous_batching_config=pages(script, rows)) as manager:

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
            vocab_size=vocab,
            hidden_size=256,
            intermediate_size=704,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            eos_token_id=None,
            bos_token_id=None,
        )
    ).eval()


def smollm2():
    """SmolLM2-135M's shape, random weights."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=49152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            eos_token_id=None,
            bos_token_id=None,
        )
    ).eval()


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


WORKLOADS = [  # of 112 dialogues 112, 62, 34, 14, 3 come to a first, second ... attempt: well filled batches of 64
    Workload("qwen2-5m", qwen2, (64, 256), rows=64, requests=32, dialogues=112, share=0.79),
    Workload("miniature", miniature, (64,), rows=64, requests=32, dialogues=112, share=0.08),
    Workload("smollm2", smollm2, (8,), rows=8, requests=8, dialogues=8, share=0.13, length=(4, 24), median=8),
]
BATCHES_ON_CPU = hasattr(ContinuousBatchingConfig, "page_size")  # which came with it
PEERS = {
    "generate": play_generate,
    "static": play_static,
    "generate_batch": play_generate_batch,
    "continuous": play_continuous,
}


def measure(play, model, script: Script, rows: int) -> float:
    """Sampled tokens per CPU-second; RuntimeError when a side did not play the script."""
    start = time.process_time()
    played = play(model, script, rows)
    spent = time.process_time() - start
    if [list(map(len, attempts)) for attempts in played] != script.lengths:
        raise RuntimeError(f"{play.__name__} did not write the attempts of the script")
    return script.tokens / spent


def compare(workload: Workload, seconds: float) -> dict:
    """Two turns of our side and every peer, more while there is time."""
    model = workload.build()

    def script(dialogues):
        return draw_script(dialogues, model.config.vocab_size, length=workload.length, median=workload.median)

    sides = {f"ours, {slots} slots": (play_ours, script(4 * slots), slots) for slots in workload.slots}
    for peer, play in PEERS.items():
        if peer in ("continuous", "generate_batch"):
            sides[peer] = play, script(min(workload.dialogues, 3 * workload.requests)), workload.requests
        else:
            sides[peer] = play, script(workload.dialogues), workload.rows
    warm = draw_script(2, model.config.vocab_size, length=(2, 3), median=2)
    for play, _, rows in sides.values():
        play(model, warm, rows)
    rates = {side: [] for side in sides}
    start, turns = time.perf_counter(), 0
    while turns < 2 or (time.perf_counter() - start) * (turns + 1) / turns < seconds:
        for side, (play, script_, rows) in sides.items():
            rates[side].append(measure(play, model, script_, rows))
        turns += 1
    return {
        "workload": workload.name,
        "parameters": model.num_parameters(),
        "sides": {
            side: {
                "rows": rows,
                "dialogues": len(played.prompts),
                "attempts": played.attempts,
                "tokens": played.tokens,
                "tokens per CPU-second": rates[side],
            }
            for side, (_, played, rows) in sides.items()
        },
        "ours is faster": {
            peer: {ours: [a / b for a, b in zip(rates[ours], rates[peer])] for ours in sides if ours not in PEERS}
            for peer in PEERS
        },
    }


def versions() -> dict:
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "threads a side": torch.get_num_threads(),
    }


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


@torch.no_grad()
def decode_seconds(model, slots: int, context: int, steps: int, clock: Callable[[], float]) -> float:
    """Of a decode step with every slot busy, the mean of `steps` around `context` tokens. The time does not depend on
    what the cache holds, so nothing is fed."""
    model.set_attn_implementation("slots")
    grid = rollout.Grid(model, slots, context + steps, temperature=1.0)
    grid.slots = [rollout.Slot(row, row, [], limit=0, left=1, start=0) for row in range(slots)]
    grid.active_S[:] = True
    for count in (2, steps):  # the first ones warm up
        grid.length_S[:] = context - steps // 2
        grid.position_S.fill_(context - steps // 2)
        start = clock()
        list(grid.launch(count))
        seconds = (clock() - start) / count
    return seconds


def growth(turns: int = 7) -> dict[str, list]:
    """{axis: [[value, [tokens per CPU-second in each turn]], ...]}; the other two axes stay at their standard value. A
    setting that stands on several axes is measured once; all settings take turns."""
    settings = {axis: [tuple((STANDARD | {axis: value}).values()) for value in GROWTH[axis]] for axis in GROWTH}
    rates = {setting: [] for of_axis in settings.values() for setting in of_axis}
    models = {vocabulary: qwen2(vocabulary) for *_, vocabulary in rates}
    for _ in range(turns):
        for (slots, context, vocabulary), measured in rates.items():
            seconds = decode_seconds(models[vocabulary], slots, context, 8, time.process_time)
            measured.append(slots / seconds)
    return {axis: [[v, rates[s]] for v, s in zip(GROWTH[axis], settings[axis])] for axis in GROWTH}


def plot_growth(curves: dict[str, list], path: Path) -> None:
    """Medians, with bars from the slowest to the fastest turn."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = {"slots": "slots", "context": "tokens of context", "vocabulary": "tokens in the vocabulary"}
    colours = dict(zip(names, ("#0072b2", "#d55e00", "#009e73")))  # told apart by colour-blind eyes, too
    figure, panels = plt.subplots(1, 3, figsize=(10.5, 3.4), sharey=True, layout="constrained")
    for panel, (axis, points) in zip(panels, curves.items()):
        values = [value for value, _ in points]
        low, middle, high = np.array([(min(r), statistics.median(r), max(r)) for _, r in points]).T
        panel.errorbar(
            values,
            middle,
            yerr=(middle - low, high - middle),
            color=colours[axis],
            marker="o",
            linewidth=1.8,
            markersize=5,
            capsize=3,
            elinewidth=1,
        )
        panel.set_xscale("log", base=2)
        ticks = [f"{value // 1024}k" if value >= 1024 else str(value) for value in values]
        panel.set_xticks(values, ticks)
        panel.minorticks_off()
        panel.set_xlabel(names[axis])
        title = ", ".join(f"{name} {value}" for name, value in STANDARD.items() if name != axis)
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
    options.add_argument("--minutes", type=float, default=9.0, help="for the table; a few turns are always made")
    options.add_argument("--workload", nargs="*", help="only these, by name")
    options = options.parse_args(argv)
    if not (BATCHES_ON_CPU or options.growth):
        fail("transformers 5.17 has continuous batching on GPUs alone: install the version that requirements.txt names")
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.CRITICAL)  # the cache's size is given
    figures = {"versions": versions()}
    print(", ".join(f"{name} {value}" for name, value in figures["versions"].items()), flush=True)
    if options.growth:
        figures["growth"] = growth()
        plot_growth(figures["growth"], options.growth)
        for axis, points in figures["growth"].items():
            print(f"{axis:<12}" + "  ".join(f"{value}: {spread(rates, 0)}" for value, rates in points))
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
