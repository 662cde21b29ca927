"""The rollout engine beside transformers' ways to generate, on the CPU.

    python -m bench.rollout [--json FILE] [--minutes 9]     # make bench-rollout

Every side plays the same dialogues with the same random weights. A script decides prompts, feedback and the length of
every attempt, whatever tokens the model samples. Temperature 1, no top-k, no top-p, float32, one thread each.

    ours        rollout.py; it also stores the log-probability of every token, which no peer has to compute
    generate    `.generate()` per attempt on the whole dialogue, in rounds: the unfinished dialogues, sorted by length
                and left-padded, are written in batches of equal size. A batch runs until its longest attempt is
                written; what a row writes beyond its script does not count
    continuous  transformers' continuous batching with one manager: the next attempt is submitted as soon as the one
                before it is there. Blocks of equal prefixes are shared, so that a dialogue is hardly prefilled again

The figure is sampled tokens of the script per CPU-second, the median run with the lowest and the highest. Ours plays
four dialogues for every slot, a peer one to four batches of the same kind. The sides take turns, at least two each.
"""

import argparse
import logging
import math
import operator
import statistics
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
import transformers
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig, LlamaConfig, Qwen2Config

import rollout
import train
from data import Problem
from data.miniature import build_model
from support.cli import fail
from support.files import save_json
from support.memory import SHAPE

# what the models of all benchmarks have in common; without end tokens, nothing ends before its script
COMMON = dict(tie_word_embeddings=True, max_position_embeddings=4096, eos_token_id=None, bos_token_id=None)


# -------------------- The script of a rollout
@dataclass
class Script:
    """What happens in every dialogue, whatever the model samples."""

    prompts: list[list[int]]
    lengths: list[list[int]]  # tokens of each attempt; the last one is correct
    allowed: list[int]  # attempts, at least as many
    feedback: list[int]

    @property
    def tokens(self) -> int:
        """Sampled tokens, the only ones that count."""
        return sum(map(sum, self.lengths))

    @property
    def budget(self) -> int:
        """Tokens after the prompt in the longest dialogue."""
        return max(sum(lengths) + len(self.feedback) * (len(lengths) - 1) for lengths in self.lengths)


def draw_script(
    dialogues, vocabulary, prompt=(24, 64), length=(8, 160), median=30, attempts=5, feedback=24, longest=np.inf
) -> Script:
    """An attempt is correct with probability 0.35. Its length is lognormal, cut off at both ends of `length`. One with
    which there would be more than `longest` tokens after the prompt is left out, and all after it."""
    rng = np.random.default_rng(0)
    script = Script([], [], [], rng.integers(vocabulary, size=feedback).tolist())
    for _ in range(dialogues):
        script.prompts.append(rng.integers(vocabulary, size=rng.integers(prompt[0], prompt[1] + 1)).tolist())
        script.allowed.append(int(rng.integers(1, attempts + 1)))
        lengths, correct = [], False
        while len(lengths) < script.allowed[-1] and not correct:
            tokens = int(np.clip(rng.lognormal(np.log(median), 0.7), *length))
            if sum(lengths) + feedback * len(lengths) + tokens > longest:
                break
            lengths.append(tokens)
            correct = rng.random() < 0.35
        script.lengths.append(lengths)
    return script


# -------------------- The sides: (model, script, dialogues at a time) -> tokens of every attempt of every dialogue
def run_engine(model, script: Script, slots: int, temperature: float = 1.0) -> rollout.Dialogues:
    """The script played by the engine: the only place that knows its inside. An attempt ends where its budget does,
    which is its scripted length; `find_end` then gives it an answer, right for the last attempt of a dialogue."""
    chat = SimpleNamespace(feedback_after=lambda *_: script.feedback)
    chat.prompt = lambda question, allowed: list(script.prompts[int(question)])

    def open_attempt(live, config) -> None:
        live.start = live.n_scanned = len(live.tokens)
        live.end_before = live.start + script.lengths[live.index][len(live.attempts)]

    def find_end(live, *_) -> rollout.Attempt | None:
        if len(live.tokens) < live.end_before:
            return None
        last = len(live.attempts) + 1 == len(script.lengths[live.index])
        return rollout.Attempt(live.start, live.end_before, "", "right" if last else "wrong", truncated=False)

    problems = [Problem(str(i), "right") for i in range(len(script.prompts))]
    rules = rollout.Rules(None, operator.eq, lambda attempts, gold: [float(attempt.correct) for attempt in attempts])
    config = train.Config(slots=slots, max_new_tokens=script.budget)
    scripted = mock.patch.object(rollout.LiveDialogue, "open_attempt", open_attempt)
    with scripted, mock.patch.object(rollout, "find_end", find_end):
        return rollout.rollout(model, chat, problems, script.allowed, rules, config, temperature)


def play_ours(model, script: Script, slots: int, temperature: float = 1.0) -> list[list[list[int]]]:
    dialogues = run_engine(model, script, slots, temperature)
    rows = zip(dialogues.tokens_DT, dialogues.attempts)
    return [[tokens[attempt.start : attempt.end].tolist() for attempt in attempts] for tokens, attempts in rows]


def sampling(temperature: float) -> dict:
    return dict(do_sample=True, temperature=temperature, top_k=0, top_p=1.0) if temperature else dict(do_sample=False)


def play_generate(model, script: Script, rows: int, temperature: float = 1.0) -> list[list[list[int]]]:
    model.set_attn_implementation("sdpa")
    config = GenerationConfig(eos_token_id=None, pad_token_id=0, **sampling(temperature))
    tokens, played = [list(prompt) for prompt in script.prompts], [[] for _ in script.prompts]
    while unfinished := [d for d, lengths in enumerate(script.lengths) if len(played[d]) < len(lengths)]:
        unfinished.sort(key=lambda d: len(tokens[d]))  # little padding
        for batch in np.array_split(unfinished, math.ceil(len(unfinished) / rows)):  # of equal size
            texts = [torch.tensor(tokens[d]) for d in batch]
            inputs = pad_sequence(texts, batch_first=True, padding_side="left").to(model.device)
            mask = pad_sequence(list(map(torch.ones_like, texts)), batch_first=True, padding_side="left")
            lengths = [script.lengths[d][len(played[d])] for d in batch]
            config.max_new_tokens = max(lengths)
            written = model.generate(inputs, attention_mask=mask.to(model.device), generation_config=config)
            for d, row, length in zip(batch, written[:, inputs.shape[1] :].tolist(), lengths):
                played[d].append(row[:length])
                tokens[d] += row[:length] + script.feedback
    return played


def play_continuous(model, script: Script, requests: int, temperature: float = 1.0) -> list[list[list[int]]]:
    model.set_attn_implementation("sdpa")
    config = GenerationConfig(eos_token_id=-1, pad_token_id=0, **sampling(temperature))
    longest, page = max(map(len, script.prompts)) + script.budget, 32
    pages = ContinuousBatchingConfig(
        page_size=page,
        num_blocks=requests * (-(-longest // page) + 1),  # so that all of them fit
        max_batch_tokens=max(256, 2 * requests),
        max_requests_per_batch=requests,
    )
    tokens, played = [list(prompt) for prompt in script.prompts], [[] for _ in script.prompts]
    with model.continuous_batching_context_manager(config, continuous_batching_config=pages) as manager:
        to_submit = list(range(len(tokens)))
        for _ in range(sum(map(len, script.lengths))):
            for d in to_submit:
                length = script.lengths[d][len(played[d])]
                manager.add_request(tokens[d], str(d), max_new_tokens=length, eos_token_id=-1)
            while (result := manager.get_result(timeout=1)) is None:
                if not manager.is_running():
                    raise RuntimeError("continuous batching stopped before its requests were done")
            if result.error:
                raise RuntimeError(f"continuous batching failed: {result.error}")
            d = int(result.request_id)
            played[d].append(list(result.generated_tokens))
            tokens[d] += played[d][-1] + script.feedback
            to_submit = [d] if len(played[d]) < len(script.lengths[d]) else []
    return played


# -------------------- Workloads and the table
@dataclass
class Workload:
    config: transformers.PreTrainedConfig
    slots: tuple[int, ...]  # of our engine, which plays four dialogues for each slot
    rows: int  # of a batch of `generate`
    requests: int  # of `continuous`, side by side
    dialogues: int  # that a peer plays
    share: float  # of the time
    length: tuple[int, int] = (8, 160)  # of an attempt
    median: float = 30


QWEN2_5M = Qwen2Config(**dict(zip(SHAPE, (256, 704, 6, 4, 2, 4096))), **COMMON)
SMOLLM2 = LlamaConfig(**dict(zip(SHAPE, (576, 1536, 30, 9, 3, 49152))), **COMMON)
MINIATURE = build_model(704, None, seed=0).config
WORKLOADS = {  # of 112 dialogues 112, 62, 34, 14, 3 come to a first, second ... attempt: well filled batches of 64
    "qwen2-5m": Workload(QWEN2_5M, (64, 256), rows=64, requests=32, dialogues=112, share=0.79),
    "miniature": Workload(MINIATURE, (64,), rows=64, requests=32, dialogues=112, share=0.08),
    "smollm2": Workload(SMOLLM2, (8,), rows=8, requests=8, dialogues=8, share=0.13, length=(4, 24), median=8),
}
RATE = "tokens per CPU-second"


def random_model(config, device: str = "cpu", dtype=torch.float32, kind=AutoModelForCausalLM):
    """A model of this shape, the same one at every call."""
    torch.manual_seed(0)
    with torch.device(device):
        return kind.from_config(config).to(dtype).eval()


def measure(play, model, script: Script, rows: int) -> float:
    """Sampled tokens per CPU-second; RuntimeError when a side did not play the script."""
    start = time.process_time()
    played = play(model, script, rows)
    spent = time.process_time() - start
    if [list(map(len, attempts)) for attempts in played] != script.lengths:
        raise RuntimeError(f"{play.__name__} did not write the attempts of the script")
    return script.tokens / spent


def compare(name: str, seconds: float) -> dict:
    """Two turns of every side of a workload, more while its share of the time lasts."""
    workload = WORKLOADS[name]
    model = random_model(workload.config)
    script = partial(draw_script, vocabulary=model.config.vocab_size, length=workload.length, median=workload.median)
    sides = {f"ours, {slots} slots": (play_ours, script(4 * slots), slots) for slots in workload.slots}
    sides["generate"] = play_generate, script(workload.dialogues), workload.rows
    sides["continuous"] = play_continuous, script(workload.dialogues), workload.requests
    for play, _, rows in sides.values():
        play(model, draw_script(2, model.config.vocab_size, length=(2, 3), median=2), rows)  # a first call is slower
    found = {
        side: {"rows": rows, "dialogues": len(played.prompts), "tokens": played.tokens, RATE: []}
        for side, (_, played, rows) in sides.items()
    }
    start, turns = time.perf_counter(), 0
    while turns < 2 or (time.perf_counter() - start) * (turns + 1) / turns < workload.share * seconds:
        for side, (play, played, rows) in sides.items():
            found[side][RATE].append(measure(play, model, played, rows))
        turns += 1
    return {"workload": name, "parameters": model.num_parameters(), "sides": found}


def table(results: list[dict]) -> str:
    """A line for each side of each workload."""
    lines = [f"| workload | side | rows | dialogues | runs | {RATE} | ours is faster, times |", "|" + "---|" * 7]
    for result in results:
        medians = {side: statistics.median(found[RATE]) for side, found in result["sides"].items()}
        for side, found in result["sides"].items():
            rates = f"{medians[side]:.0f} ({min(found[RATE]):.0f} - {max(found[RATE]):.0f})"
            ours = [name for name in medians if name.startswith("ours") and not side.startswith("ours")]
            faster = "; ".join(f"{name.removeprefix('ours, ')}: {medians[name] / medians[side]:.1f}" for name in ours)
            cells = result["workload"], side, found["rows"], found["dialogues"], len(found[RATE]), rates, faster
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--minutes", type=float, default=9.0, help="at least two turns are made")
    parser.add_argument("--workload", nargs="*", choices=WORKLOADS, default=list(WORKLOADS))
    options = parser.parse_args(argv)
    if not hasattr(ContinuousBatchingConfig, "page_size"):  # which came with continuous batching on the CPU
        fail("transformers 5.17 has continuous batching on GPUs alone: install the version that requirements.txt names")
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.CRITICAL)  # it warns that the cache's size is given
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(", ".join(f"{name} {value}" for name, value in versions.items()), flush=True)
    results = [compare(name, 60 * options.minutes) for name in options.workload]
    print(table(results))
    if options.json:
        save_json({"versions": versions, "workloads": results}, options.json)


if __name__ == "__main__":
    main()
