"""What a run needs of each device's memory, by formula. `python -m support.memory` shows what fits on one GPU."""

from transformers import Qwen2Config

from support.models import cache_bytes, head_size

PREFILL_TOKENS = 16384  # tokens of prompts or feedback in one forward pass of the rollout, padding included
RESERVE = 2e9  # bytes that belong to no tensor: CUDA's own, the libraries' workspaces, gaps between tensors

SHAPE = "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads vocab_size".split()
QWEN25 = {
    "0.5B": dict(zip(SHAPE, (896, 4864, 24, 14, 2, 151936)), tie_word_embeddings=True),
    "1.5B": dict(zip(SHAPE, (1536, 8960, 28, 12, 2, 151936)), tie_word_embeddings=True),
    "7B": dict(zip(SHAPE, (3584, 18944, 28, 28, 4, 152064)), tie_word_embeddings=False),
}
PARAMETERS = {"0.5B": 494_032_768, "1.5B": 1_543_714_304, "7B": 7_615_616_512}
PAPER = dict(element=2, slots=192, capacity=4096, micro_batch_tokens=4096)  # bfloat16; train.py's defaults


def actions_at_once(vocabulary: int) -> int:
    """How many sampled tokens' logits the update computes at one time: at most 2048, with large vocabularies fewer."""
    return min(2048, max(1, 2**27 // vocabulary))


def memory_plan(
    shape,
    parameters: int,
    element: int,
    slots: int,
    capacity: int,
    micro_batch_tokens: int,
    processes: int = 1,
    critic: bool = True,
    offload: bool = False,
    gradient_checkpointing: bool = False,
) -> dict[str, dict[str, float]]:
    """Bytes on each device, by phase of a step and by what they hold. `shape` is the model's config, `parameters` the
    actor's, `element` the bytes of a weight. Activations are those of layers like Llama's and Qwen2's."""
    E, V, L = shape.hidden_size, shape.vocab_size, shape.num_hidden_layers
    queries, keys = (heads * head_size(shape) for heads in (shape.num_attention_heads, shape.num_key_value_heads))
    output_weights = 0 if shape.tie_word_embeddings else V * E  # the critic has none
    trained = parameters + critic * (parameters - output_weights)
    masters, moments = 4 * trained if element < 4 else 0, 8 * trained / processes
    reference = 0 if offload else element * parameters

    # bytes a token: two norms (also in float32), inputs of the linear layers, queries, keys, values, the gated product
    layer = 2 * E * (4 + element) + element * (2 * E + 2 * queries + 2 * keys + 4 * shape.intermediate_size)
    kept = element * E if gradient_checkpointing else layer  # with checkpointing each layer's input alone
    logits = actions_at_once(V) * V * 12 + 2 * element * V * E  # a chunk in float32 thrice, its weights' gradient twice
    plan = {  # in the rollout, in the update
        "actor and critic": (element * trained, element * trained),
        "float32 masters": (0 if offload else masters, masters),
        "moments": (0 if offload else moments, moments),
        "reference": (reference, reference),
        "cache": (cache_bytes(shape, slots, capacity, element), 0),
        "gradients": (0, 4 * trained),
        "activations": (layer * PREFILL_TOKENS, (kept * L + layer) * micro_batch_tokens),
        "logits": (slots * V * (element + 12), max(logits, layer * micro_batch_tokens)),
        "reserve": (RESERVE, RESERVE),
    }
    return {phase: {what: sizes[i] for what, sizes in plan.items()} for i, phase in enumerate(("rollout", "update"))}


def needed(plan: dict[str, dict[str, float]]) -> float:
    """Bytes of the larger phase."""
    return max(sum(phase.values()) for phase in plan.values())


def mildest(available: float, **settings) -> dict | None:
    """The mildest changes of `settings` with which the plan fits, those that only cost time first; None: none helps."""
    recompute, offload = {"gradient_checkpointing": True}, {"offload": True}
    fewer = [{"slots": max(1, settings["slots"] // part)} for part in (2, 4, 8)]
    changes = [{}, recompute, offload, *fewer, recompute | offload, *(recompute | offload | few for few in fewer)]
    changes += [{"critic": False} | change for change in changes]
    return next((change for change in changes if needed(memory_plan(**settings | change)) <= available), None)


def as_options(changes: dict | None) -> str:
    """The changes as options of train.py. Eight dialogues of a question are enough to do without the critic."""
    words = {"critic": "--group_size 8"}
    options = [words.get(name, f"--{name} {str(value).lower()}") for name, value in (changes or {}).items()]
    return "a smaller model, or more GPUs" if changes is None else " ".join(options)


def explain_memory(available: float, **settings) -> str:
    """The plan in words, in GB, and the mildest options with which it fits when it does not."""
    plan = memory_plan(**settings)
    lines = [f"memory of a device, estimated, of {available / 1e9:.1f} GB:"]
    for name, phase in plan.items():
        parts = ", ".join(f"{what} {size / 1e9:.1f}" for what, size in phase.items() if size)
        lines.append(f"  {name} {sum(phase.values()) / 1e9:.1f} ({parts})")
    spare = available - needed(plan)
    verdict = f"it fits, with {spare / 1e9:.1f} GB to spare"
    if spare < 0:
        verdict = f"it does not fit: try {as_options(mildest(available, **settings))}"
    return "\n".join([*lines, f"  {verdict}"])


def main() -> None:
    print("| model | GPU | needed, GB | with |\n|---|---|---|---|")
    for size, parameters in PARAMETERS.items():
        settings = PAPER | {"shape": Qwen2Config(**QWEN25[size]), "parameters": parameters}
        for memory in (24, 40, 80):
            changes = mildest(0.985 * memory * 2**30, **settings)  # CUDA reports 98.5% of a card's memory
            bytes_needed = needed(memory_plan(**settings | (changes or {})))
            print(f"| {size} | {memory} GB | {bytes_needed / 1e9:.0f} | {as_options(changes)} |")


if __name__ == "__main__":
    main()
