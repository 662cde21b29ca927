"""What a run needs of each device's memory, by formula. `python -m support.memory` shows what fits on one GPU."""

import math
import os
from contextlib import suppress
from itertools import compress, product
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from support import ranks
from support.models import kv_heads_and_size

PREFILL_TOKENS = 16384  # tokens of prompts or feedback in one forward pass of the rollout, padding included
OVERRUN = 32  # the rollout goes up to this many positions past the end of a dialogue, for tokens that it discards
USABLE = 0.985  # of a card's memory, as CUDA reports it
RESERVE = 2e9  # bytes that belong to no tensor: CUDA's own, the libraries' workspaces, gaps between tensors
CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")  # how many bytes a container may use, or "max" (cgroup v2)
FEW_SLOTS = 64  # with fewer, a rollout would be slow
# Options of train.py that save memory; the mildest, which only cost time, come last.
SAVING = dict(group_size=8, slots=FEW_SLOTS, offload=True, gradient_checkpointing=True, micro_batch_tokens=4096)


def cache_bytes(config, rows: int, capacity: int, element: int) -> int:
    """Bytes of the rollout's key/value cache: this many rows of this many positions, `element` bytes a number."""
    return rows * capacity * config.num_hidden_layers * 2 * math.prod(kv_heads_and_size(config)) * element


def device_memory(device: torch.device) -> int:
    """The bytes of the device that this process may use; of the CPU, those of the machine or container."""
    if device.type == "cuda":
        share = torch.cuda.get_per_process_memory_fraction(device)
        return int(share * torch.cuda.get_device_properties(device).total_memory)
    limit = CONTAINER_LIMIT.read_text().strip() if os.access(CONTAINER_LIMIT, os.R_OK) else "max"
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(machine, int(limit)) if limit.isdigit() else machine


def allocate_cache(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros for a key/value cache: a masked NaN would still poison sums. OSError when memory does not suffice: an
    operating system promises more than it has, and kills the process that uses it."""
    size = math.prod(shape) * dtype.itemsize
    with suppress(RuntimeError):  # not only of CUDA
        if size <= device_memory(device):
            return torch.zeros(shape, dtype=dtype, device=device)
    raise OSError(f"the cache takes {size / 2**30:.3g} GiB, more than is free: lower --slots or --max_new_tokens")


def actions_at_once(vocabulary: int) -> int:
    """For how many sampled tokens the update computes logits at once: at most 2048, fewer with large vocabularies."""
    return min(2048, 3 * 2**26 // vocabulary)


def memory_plan(model, options, longest, processes=1, keep_engine=False, offload_in_rollout=False):
    """Bytes on a device, by phase of a step and by what they hold, for layers like Llama's. `longest`: tokens of a
    dialogue; `keep_engine`: the engine stays in the update; `offload_in_rollout`: masters and moments are in host
    memory during the rollout. The reference's pass needs less."""
    shape, parameters, element = model.config, model.num_parameters(), model.dtype.itemsize
    E, V, L = shape.hidden_size, shape.vocab_size, shape.num_hidden_layers
    intermediate = getattr(shape, "intermediate_size", None) or 4 * E
    heads, size = kv_heads_and_size(shape)
    queries, keys = shape.num_attention_heads * size, heads * size
    output_weights = 0 if shape.tie_word_embeddings else V * E  # the critic has none
    trained = parameters + (parameters - output_weights if options["group_size"] == 1 else 0)
    # two moments, and masters unless the weights are float32 themselves
    states = 0 if options["offload"] else (4 * (element < 4) + 8) * trained / processes

    # bytes a token: two norms (also in float32), inputs of the linear layers, queries, keys, values, the gated product
    layer = 2 * E * (4 + element) + element * (2 * E + 2 * queries + 2 * keys + 4 * intermediate)
    if options["compile"]:  # what is element-wise is computed again in the backward pass
        layer = element * (4 * E + 3 * queries + 2 * keys + 3 * intermediate)
    kept = element * E if options["gradient_checkpointing"] else layer  # only each layer's input
    slots, tokens = options["slots"], max(options["micro_batch_tokens"], longest)  # a micro-batch has a whole dialogue
    # three float32 copies of a chunk, or compiled, one, and two in the model's dtype; twice the weights' gradient
    logits = actions_at_once(V) * V * (4 + 2 * element if options["compile"] else 12) + 2 * element * V * E
    cache = cache_bytes(shape, slots, longest + OVERRUN, element)
    both = {"actor and critic": element * trained, "masters and moments": states, "reserve": RESERVE}
    # logits: the model's own, then three float32 tensors of the sampling
    rollout = both | {"cache": cache, "activations": layer * PREFILL_TOKENS, "logits": slots * V * (element + 12)}
    rollout["masters and moments"] *= not offload_in_rollout
    update = both | {"gradients": 4 * trained, "activations": (kept * L + layer) * tokens}
    # the logits are gone before the gradients of a layer's activations come
    update |= {"logits or a layer": max(logits, layer * tokens), "cache": cache * keep_engine}
    return {"rollout": rollout, "update": update}


def needed(plan: dict[str, dict[str, float]]) -> float:
    """Bytes of the larger phase."""
    return max(sum(phase.values()) for phase in plan.values())


def most_slots(available: float, most: int, options: dict, host=math.inf, **settings) -> tuple[int, bool]:
    """As many slots as a rollout has room for with 5% to spare, but at least FEW_SLOTS, and at most `most`; and whether
    masters and moments are offloaded for that during the rollout, to at most a third of the `host` memory."""
    none, one = (memory_plan(options=options | {"slots": n}, **settings)["rollout"] for n in (0, 1))
    a_slot = sum(one.values()) - sum(none.values())  # all slots take the same
    free, states = 0.95 * available - sum(none.values()), none["masters and moments"]
    offload_in_rollout = free < most * a_slot and 0 < states <= host / 3  # pinned, they take up to 1.6 times as much
    return min(most, max(FEW_SLOTS, int((free + states * offload_in_rollout) / a_slot))), offload_in_rollout


def mildest(available: float, options: dict, **settings) -> tuple[str, dict]:
    """The mildest changes of options that make the plan fit, and the changed options. The critic is dropped last."""
    for chosen in product((False, True), repeat=len(SAVING)):  # so the mildest are tried first
        changes = dict(compress(SAVING.items(), chosen))
        if needed(memory_plan(options=options | changes, **settings)) <= available:
            return " ".join(f"--{name} {value}".lower() for name, value in changes.items()), options | changes
    return "a smaller model, or a larger GPU", options


def explain_memory(available: float, **settings) -> str:
    """The plan in words, in GiB, and, if it does not fit, the mildest options that make it fit."""
    plan = memory_plan(**settings)
    lines = [f"estimated memory of a device, out of {available / 2**30:.1f} GiB:"]
    for name, phase in plan.items():
        parts = ", ".join(f"{what} {size / 2**30:.1f}" for what, size in phase.items() if size)
        lines.append(f"  {name} {sum(phase.values()) / 2**30:.1f} ({parts})")
    verdict = f"it fits, with {(available - needed(plan)) / 2**30:.1f} GiB to spare"
    if needed(plan) > available:
        verdict = f"it does not fit: try {mildest(available, **settings)[0]}"
    return "\n".join([*lines, f"  {verdict}"])


def plan_run(run, longest: int) -> bool:
    """Sets a run's slots, what its optimisers offload in the rollout, and the planned bytes of tensors at the peak.
    Returns whether an engine fits during the update too, and so can stay. On CUDA, rank 0 prints the plan."""
    config, model, cuda = run.config, run.actor, run.actor.device.type == "cuda"
    base = 0 if cuda else model.num_parameters() * model.dtype.itemsize  # it stays in the memory of a CPU
    available, host = device_memory(model.device) - base, device_memory(torch.device("cpu")) * cuda / ranks.world_size()
    options = vars(config) | {"compile": config.compile and cuda}
    most = min(config.slots or config.dialogues, config.dialogues // ranks.world_size())
    settings = dict(model=model, options=options, longest=longest, processes=ranks.world_size())
    fitting, settings["offload_in_rollout"] = most_slots(available, most, host=host, **settings)
    if settings["offload_in_rollout"]:
        run.offloaded_in_rollout = [x for each in run.optimizers for shard in each.movable.values() for x in shard]
    options["slots"] = config.slots = most if config.slots else fitting
    kept = memory_plan(**settings, keep_engine=True)
    another = kept["rollout"]["cache"] if config.eval_every else 0  # a validation has an engine of its own
    settings["keep_engine"] = needed(kept) + another <= available
    if cuda and ranks.rank() == 0:
        print(explain_memory(available, **settings))
    run.planned_memory = needed(memory_plan(**settings)) - RESERVE
    return settings["keep_engine"]


SHAPE = "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads vocab_size".split()
QWEN25 = {
    "0.5B": dict(zip(SHAPE, (896, 4864, 24, 14, 2, 151936)), tie_word_embeddings=True),
    "1.5B": dict(zip(SHAPE, (1536, 8960, 28, 12, 2, 151936)), tie_word_embeddings=True),
    "7B": dict(zip(SHAPE, (3584, 18944, 28, 28, 4, 152064)), tie_word_embeddings=False),
}
OPTIONS = dict(group_size=1, slots=64, micro_batch_tokens=10000)  # of the paper's run, those that matter for memory
OPTIONS |= dict(offload=False, gradient_checkpointing=False, compile=True)
LONGEST = 1024 + 3000  # tokens of its longest dialogue


def main() -> None:
    print("| model | GPU | with | slots | needed, GiB |\n|---|---|---|---|---|")
    for (size, shape), memory in product(QWEN25.items(), (24, 40, 80)):
        with torch.device("meta"):  # weights that take no memory
            model = AutoModelForCausalLM.from_config(Qwen2Config(**shape), dtype=torch.bfloat16)
        available, settings = USABLE * memory * 2**30, dict(model=model, longest=LONGEST)
        advice, options = mildest(available, OPTIONS, **settings)
        slots, offload_in_rollout = most_slots(available, 1024, options, **settings)  # at most the dialogues of a step
        plan = memory_plan(options=options | {"slots": slots}, offload_in_rollout=offload_in_rollout, **settings)
        found = f"{slots} | {needed(plan) / 2**30:.0f}" if needed(plan) <= available else "- | -"
        print(f"| {size} | {memory} GB | {advice} | {found} |")


if __name__ == "__main__":
    main()
