r"""What fits where: models, GPUs and how many of them, with the options that a run needs there and the time of a step.

    python bench/memory.py [--json FILE] [--run runs/NAME ...]

Nothing is downloaded or run: a model is its shape. What fits is what the memory plan says that train.py prints at its
start (support/memory.py), for the paper's settings: dialogues of up to 4096 tokens, 192 slots, bfloat16; where they do not
fit, with the mildest options that help, `--group_size 8` (no critic) last. Of a card's memory CUDA reports 98.5%.

The seconds of a step are computed, for 1024 dialogues of 1500 tokens on average, 1200 of them sampled:

    update and scores   at 40% of the card's dense bf16 peak: 6 floating-point operations a weight and token for each
                        trained model, 2 for the base model and the critic's values, the output weights only at sampled
                        tokens, causal attention besides; with gradient checkpointing the forward pass once more
    rollout             prompts and feedback at the same rate; decoding at 60% of the card's memory bandwidth: each step
                        reads the weights once and the cache of half a dialogue for each slot; the slots are busy in 75%
                        of the steps
    several GPUs        share the dialogues; the time to add up gradients (float32, all of them once a minibatch) is not
                        in the figure, nor are grading and moves to host memory

With --run, rows are added that were measured: the median of the seconds per step of finished runs, made on this machine
by one process.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

import torch
from transformers import AutoConfig, Qwen2Config

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.memory import as_options, memory_plan, mildest, needed  # noqa: E402
from support.models import cache_bytes, head_size  # noqa: E402

CARDS = {  # memory in GiB, dense bf16 operations and bytes a second, from the maker's data sheets
    "24 GB (RTX 4090)": (24, 165e12, 1.01e12),
    "40 GB (A100)": (40, 312e12, 1.56e12),
    "80 GB (H100)": (80, 989e12, 3.35e12),
}
MODELS = {  # the shapes of Qwen2.5
    "0.5B": dict(
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        vocab_size=151936,
        tie_word_embeddings=True,
    ),
    "1.5B": dict(
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        vocab_size=151936,
        tie_word_embeddings=True,
    ),
    "7B": dict(
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        vocab_size=152064,
        tie_word_embeddings=False,
    ),
}
GPUS = 1, 2, 8
REPORTED = 0.985  # of a card's memory
PEAK_SHARE, BANDWIDTH_SHARE, BUSY = 0.4, 0.6, 0.75
DIALOGUES, TOKENS, SAMPLED, CAPACITY, SLOTS, ELEMENT = 1024, 1500, 1200, 4096, 192, 2


def layer_weights(shape) -> int:
    """Weights of all layers: attention with biases on queries, keys and values, the gated layers, two norms."""
    hidden, keys = shape.hidden_size, head_size(shape) * shape.num_key_value_heads
    attention = 2 * hidden * (hidden + keys) + hidden + 2 * keys
    return shape.num_hidden_layers * (attention + 3 * hidden * shape.intermediate_size + 2 * hidden)


def weights(shape) -> int:
    """Of the whole model."""
    tables = 1 if shape.tie_word_embeddings else 2
    return layer_weights(shape) + tables * shape.vocab_size * shape.hidden_size + shape.hidden_size


def seconds(shape, peak: float, bandwidth: float, gpus: int, slots: int, critic: bool, checkpointing: bool) -> float:
    """Of a step, by the assumptions above."""
    tokens, sampled = DIALOGUES * TOKENS / gpus, DIALOGUES * SAMPLED / gpus
    attention = 2 * shape.num_hidden_layers * shape.hidden_size * TOKENS  # a token looks at half of the dialogue
    body = tokens * (2 * layer_weights(shape) + attention)
    output = sampled * 2 * shape.vocab_size * shape.hidden_size
    passes = 1 + (4 if checkpointing else 3)  # scores; forward, and backward twice as much
    operations = passes * (body + output + critic * body) + body * (1 - SAMPLED / TOKENS)
    slots = min(slots, DIALOGUES // gpus)
    step = ELEMENT * weights(shape) + cache_bytes(shape, slots, TOKENS // 2, ELEMENT)
    steps = sampled / slots / BUSY
    return operations / (PEAK_SHARE * peak) + steps * step / (BANDWIDTH_SHARE * bandwidth)


def computed() -> list[dict]:
    """A row for every model, card and number of cards."""
    rows = []
    for model, shape in MODELS.items():
        shape = Qwen2Config(**shape)
        for card, (memory, peak, bandwidth) in CARDS.items():
            for gpus in GPUS:
                available = REPORTED * memory * 2**30
                settings = dict(
                    shape=shape,
                    parameters=weights(shape),
                    element=ELEMENT,
                    slots=min(SLOTS, DIALOGUES // gpus),
                    capacity=CAPACITY,
                    micro_batch_tokens=4096,
                    processes=gpus,
                )
                row = {"model": model, "device": card, "count": gpus, "source": "computed"}
                changes = mildest(available, **settings)
                if changes is not None:
                    slots = changes.get("slots", settings["slots"])
                    critic, checkpointing = "critic" not in changes, "gradient_checkpointing" in changes
                    row["memory"] = needed(memory_plan(**settings | changes))
                    row["seconds"] = seconds(shape, peak, bandwidth, gpus, slots, critic, checkpointing)
                    row["options"] = as_options(changes)
                rows.append(row)
    return rows


def measured(folder: Path) -> dict:
    """A row from a finished run's folder."""
    config = json.loads((folder / "config.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    shape = AutoConfig.from_pretrained(folder / "model")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return {
        "model": f"{config['preset']}, {weights(shape) / 1e6:.3g}M",
        "device": device,
        "count": 1,
        "source": "measured",
        "seconds": statistics.median(line["seconds"] for line in lines),
        "options": f"--preset {config['preset']}",
    }


def table(rows: list[dict]) -> str:
    lines = ["| model | GPU | GPUs | memory of each, GB | seconds per step | options | |", "|" + "---|" * 7]
    for row in rows:
        memory = f"{row['memory'] / 1e9:.0f}" if "memory" in row else ""
        took = f"{row['seconds']:.3g}" if "seconds" in row else "does not fit"
        options = f"`{row['options']}`" if row.get("options") else ""
        lines.append(
            f"| {row['model']} | {row['device']} | {row['count']} | {memory} | {took} | {options} | {row['source']} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="What fits where.")
    parser.add_argument("--json", type=Path, help="write the rows there as well")
    parser.add_argument("--run", type=Path, nargs="*", default=[], help="folders of finished runs of this machine")
    options = parser.parse_args()
    rows = computed() + [measured(folder) for folder in options.run]
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
