"""What a run needs of each device's memory: a plan by formula, made before the long work starts."""

from support.models import cache_bytes, head_size

PREFILL_TOKENS = 16384  # of a forward pass over prompts or feedback, padding included
RESERVE = 2e9  # bytes that no tensor is counted for: CUDA's own, the libraries' workspaces, gaps between tensors
GROUP = 8  # dialogues of a question that are enough to do without the critic


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
    *,
    processes: int = 1,
    critic: bool = True,
    offload: bool = False,
    gradient_checkpointing: bool = False,
) -> dict[str, dict[str, float]]:
    """Bytes on each device in the two phases of a step, by what they hold. `shape` is the model's config, `parameters`
    the actor's, `element` the bytes of a weight. Activations are those of layers like Llama's and Qwen2's."""
    E, V, L = shape.hidden_size, shape.vocab_size, shape.num_hidden_layers
    queries, keys = (heads * head_size(shape) for heads in (shape.num_attention_heads, shape.num_key_value_heads))
    trained = parameters
    if critic:  # which has no output weights
        trained += parameters if shape.tie_word_embeddings else parameters - V * E
    masters, moments, reference = 4 * trained if element < 4 else 0, 8 * trained / processes, element * parameters

    # Of a token, a layer keeps two norms (each its input and the normalised one, in float32, the latter also in the
    # model's precision), what the linear layers read, queries, keys, values and the gated product.
    norms = E * (8 + 2 * element if element < 4 else 16)
    layer = norms + element * (2 * E + 2 * queries + 2 * keys + 4 * shape.intermediate_size)
    kept = element * E * L if gradient_checkpointing else layer * L  # with checkpointing each layer's input alone
    # three float32 copies of a chunk of logits, and the output weights' gradient, of the chunk and added up
    logits = actions_at_once(V) * V * 12 + 2 * element * V * E
    update = {
        "moments": moments,
        "reference": 0 if offload else reference,
        "gradients": 4 * trained,
        "activations": (kept + layer) * micro_batch_tokens,
        "logits": max(logits, layer * micro_batch_tokens),
    }
    rollout = {
        "moments": 0 if offload else moments,
        "reference": 0 if offload else reference,
        "cache": cache_bytes(shape, slots, capacity, element),
        "activations": layer * PREFILL_TOKENS,
        "logits": slots * V * (element + 12),
    }
    weights = {"actor and critic": element * trained, "reserve": RESERVE}
    return {
        "rollout": weights | {"float32 masters": 0 if offload else masters} | rollout,
        "update": weights | {"float32 masters": masters} | update,
    }


def needed(plan: dict[str, dict[str, float]]) -> float:
    """Bytes of the larger phase."""
    return max(sum(phase.values()) for phase in plan.values())


def mildest(available: float, **settings) -> dict | None:
    """The changes of options with which the plan fits: the first that does, from none at all over those that only cost
    time to the one that does without the critic. None when nothing helps."""
    recompute, offload = {"gradient_checkpointing": True}, {"offload": True}
    fewer = [{"slots": max(1, settings["slots"] // part)} for part in (2, 4, 8)]
    changes = [{}, recompute, offload, *fewer, recompute | offload, *(recompute | offload | few for few in fewer)]
    changes += [change | {"critic": False} for change in changes]
    return next((change for change in changes if needed(memory_plan(**settings | change)) <= available), None)


def as_options(changes: dict) -> str:
    """The changes as they stand on the command line."""
    changes = {"group_size": GROUP} | changes if "critic" in changes else changes
    return " ".join(f"--{name} {str(value).lower()}" for name, value in changes.items() if name != "critic")


def explain_memory(available: float, **settings) -> str:
    """The plan in words, in GB, and the mildest options with which it fits when it does not."""
    plan = memory_plan(**settings)
    lines = [f"memory of a device, estimated, of {available / 1e9:.1f} GB:"]
    for name, phase in plan.items():
        parts = ", ".join(f"{what} {size / 1e9:.1f}" for what, size in phase.items() if size)
        lines.append(f"  {name} {sum(phase.values()) / 1e9:.1f} ({parts})")
    if (spare := available - needed(plan)) >= 0:
        lines.append(f"  it fits, with {spare / 1e9:.1f} GB to spare")
    else:
        changes = mildest(available, **settings)
        advice = "a smaller model, or more GPUs" if changes is None else as_options(changes)
        lines.append(f"  it does not fit: try {advice}")
    return "\n".join(lines)
