"""The rollout engine against transformers' ways to generate, on the CPU.

    python -m bench.rollout     # make bench-rollout

Every side runs dialogues of the same kind with the same random weights, at temperature 1, in float32, in one thread. A
script decides prompts, feedback and lengths. The table has sampled tokens per CPU-second: median (lowest to highest).

    ours        rollout.py; it also stores the log-probability of every token, which the others do not compute
    generate    `.generate()` per attempt on the whole dialogue: the unfinished dialogues, sorted by length, left-padded
    continuous  transformers' continuous batching; an attempt is submitted as soon as the one before it is finished
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from math import ceil
from statistics import median
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
from reward import RULES
from support.memory import SHAPE

# what the models of all benchmarks have in common; without end tokens, nothing ends before its script
COMMON = dict(tie_word_embeddings=True, max_position_embeddings=4096, eos_token_id=None, bos_token_id=None)


class Script:
    """Prompts, attempts allowed, and lognormal lengths of attempts. Each is correct with probability 0.35."""

    def __init__(self, dialogues, vocabulary, prompt=(24, 64), length=(8, 160), median=30, attempts=5):
        rng = np.random.default_rng(0)
        self.feedback = rng.integers(vocabulary, size=24).tolist()
        self.prompts, self.allowed, self.lengths = [], [], []
        for _ in range(dialogues):
            self.prompts.append(rng.integers(vocabulary, size=rng.integers(prompt[0], prompt[1] + 1)).tolist())
            self.allowed.append(int(rng.integers(1, attempts + 1)))
            self.lengths.append([])
            while len(self.lengths[-1]) < self.allowed[-1]:
                self.lengths[-1].append(int(np.clip(rng.lognormal(np.log(median), 0.7), *length)))
                if rng.random() < 0.35:
                    break
        self.tokens = sum(map(sum, self.lengths))  # that are sampled
        self.budget = max(sum(lengths) + len(self.feedback) * (len(lengths) - 1) for lengths in self.lengths)


@contextmanager
def scripted(script: Script) -> Iterator[None]:
    """Rollouts play the script's attempts. An attempt ends where its budget does, which is its scripted length;
    `ended_attempt` then gives it an answer, right for a dialogue's last one."""
    started = rollout.LiveDialogue.start_attempt

    def start_attempt(live, config) -> None:
        started(live, SimpleNamespace(max_attempt_tokens=script.lengths[live.index][len(live.attempts)]))

    def ended_attempt(live, *_) -> rollout.Attempt | None:
        if len(live.tokens) >= live.attempt_limit:
            last = len(live.attempts) + 1 == len(script.lengths[live.index])
            answer = live.problem.gold if last else "wrong"
            return rollout.Attempt(live.start, live.attempt_limit, "", answer, truncated=False)

    start_scripted = mock.patch.object(rollout.LiveDialogue, "start_attempt", start_attempt)
    with start_scripted, mock.patch.object(rollout, "ended_attempt", ended_attempt):
        yield


# -------------------- The sides: (model, script, dialogues at a time) -> tokens of every attempt of every dialogue
def play_ours(model, script: Script, slots: int) -> list[list[list[int]]]:
    chat = SimpleNamespace(feedback_after=lambda *_: script.feedback)
    chat.prompt = lambda question, allowed: list(script.prompts[int(question)])
    problems = [Problem(str(i), "right") for i in range(len(script.prompts))]
    config = train.Config(slots=slots, max_new_tokens=script.budget)
    with scripted(script):
        dialogues = rollout.rollout(model, chat, problems, script.allowed, RULES, config, temperature=1.0)
    rows = zip(dialogues.tokens_DT, dialogues.attempts)
    return [[tokens[attempt.start : attempt.end].tolist() for attempt in attempts] for tokens, attempts in rows]


def play_generate(model, script: Script, rows: int) -> list[list[list[int]]]:
    model.set_attn_implementation("sdpa")
    config = GenerationConfig(do_sample=True, top_k=0, pad_token_id=0)
    tokens, played = [list(prompt) for prompt in script.prompts], [[] for _ in script.prompts]
    for attempt in range(max(map(len, script.lengths))):
        unfinished = [d for d, lengths in enumerate(script.lengths) if attempt < len(lengths)]
        unfinished.sort(key=lambda d: len(tokens[d]))  # little padding
        for batch in np.array_split(unfinished, ceil(len(unfinished) / rows)):  # of equal size
            texts = [torch.tensor(tokens[d]) for d in batch]
            inputs = pad_sequence(texts, batch_first=True, padding_value=-1, padding_side="left").to(model.device)
            lengths = [script.lengths[d][attempt] for d in batch]
            config.max_new_tokens = max(lengths)  # what a row writes beyond its script does not count
            mask = (inputs >= 0).long()
            written = model.generate(inputs.clamp(min=0), attention_mask=mask, generation_config=config)
            for d, row, length in zip(batch, written[:, inputs.shape[1] :].tolist(), lengths):
                played[d].append(row[:length])
                tokens[d] += row[:length] + script.feedback
    return played


def play_continuous(model, script: Script, requests: int) -> list[list[list[int]]]:
    model.set_attn_implementation("sdpa")
    config = GenerationConfig(do_sample=True, top_k=0, eos_token_id=-1)
    blocks = requests * (ceil((max(map(len, script.prompts)) + script.budget) / 32) + 1)  # all of them fit
    sizes = dict(page_size=32, num_blocks=blocks, max_batch_tokens=max(256, 2 * requests))
    batching = ContinuousBatchingConfig(**sizes, max_requests_per_batch=requests)
    tokens, played = [list(prompt) for prompt in script.prompts], [[] for _ in script.prompts]
    with model.continuous_batching_context_manager(config, continuous_batching_config=batching) as manager:
        ready = range(len(tokens))  # for their next attempt
        for _ in range(sum(map(len, script.lengths))):
            for d in ready:
                length = script.lengths[d][len(played[d])]
                manager.add_request(tokens[d], str(d), max_new_tokens=length, eos_token_id=-1)
            result = manager.get_result(timeout=600)
            if result is None or result.error:
                raise RuntimeError(f"continuous batching stopped: {result and result.error}")
            d = int(result.request_id)
            played[d].append(list(result.generated_tokens))
            tokens[d] += played[d][-1] + script.feedback
            ready = [d] if len(played[d]) < len(script.lengths[d]) else []
    return played


# -------------------- Workloads and the table
TURNS = 2  # of every side
SIDES = {"ours": play_ours, "generate": play_generate, "continuous": play_continuous}
QWEN2 = Qwen2Config(**COMMON, **dict(zip(SHAPE, (256, 704, 6, 4, 2, 4096))))
SMOLLM2 = LlamaConfig(**COMMON, **dict(zip(SHAPE, (576, 1536, 30, 9, 3, 49152))))
WORKLOADS = {  # model, what its scripts are like, and the sides: rows at a time, dialogues
    "qwen2-5m": (QWEN2, {}, [("ours", 64, 256), ("ours", 256, 1024), ("generate", 64, 112), ("continuous", 32, 112)]),
    "smollm2": (SMOLLM2, dict(length=(4, 24), median=8), [("ours", 8, 32), ("generate", 8, 8), ("continuous", 8, 8)]),
}


def random_model(config, device: str = "cpu", dtype=torch.float32):
    """A model of this shape, the same one at every call."""
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(deepcopy(config)).to(dtype).eval()


def main() -> None:
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {TURNS} turns\n")
    print("| workload | implementation | rows | dialogues | tokens per CPU-second |\n|---|---|---|---|---|")
    for name, (config, kind, sides) in WORKLOADS.items():
        model, rates = random_model(config), {side: [] for side in sides}
        for turn in range(TURNS + 1):  # the first one is short and does not count
            for side, rows, dialogues in sides:
                script = Script(dialogues if turn else 2, config.vocab_size, **kind)
                start = time.process_time()
                played = SIDES[side](model, script, rows)
                rates[side, rows, dialogues].append(script.tokens / (time.process_time() - start))
                if [list(map(len, attempts)) for attempts in played] != script.lengths:
                    raise RuntimeError(f"{side} did not write the attempts of the script")
        for (side, rows, dialogues), (_, *found) in rates.items():
            spread = f"{median(found):.0f} ({min(found):.0f} to {max(found):.0f})"
            print(f"| {name} | {side} | {rows} | {dialogues} | {spread} |", flush=True)


if __name__ == "__main__":
    main()
