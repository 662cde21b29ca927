"""Pretrained models: where they run, in which precision, whether they fit, with errors that a person can act on."""

import shutil
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_layers import GradientCheckpointingLayer

from data.cli import whole


def pick_device(name: str = "auto") -> torch.device:
    """`auto`: CUDA, else Apple's MPS, else the CPU. ValueError when the named device is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} is not available here: {str(error).splitlines()[0]}") from error


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto`: bfloat16 on CUDA, float32 elsewhere."""
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" else "float32"
    if name not in ("float32", "bfloat16"):
        raise ValueError(f"dtype {name!r} is not supported: choose auto, float32 or bfloat16")
    return getattr(torch, name)


def load_model(name: str, device: torch.device, dtype: torch.dtype):
    """(model, tokenizer) from a model folder or a hub name, dropout off. OSError or ValueError in one sentence."""
    if not Path(name).is_dir() and (name.count("/") != 1 or name[0] in "./~"):
        raise FileNotFoundError(f"there is no model folder {name}: give a folder with a config.json, or a hub name")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, SafetensorError) as error:
        raise OSError(f"the model {name} cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    return model.to(device).eval(), tokenizer


def save_model(model, tokenizer, folder: Path) -> None:
    """Write a Hugging Face folder, in place of the one that may be there; it appears whole."""
    with whole(folder) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        shutil.rmtree(folder, ignore_errors=True)


def check_fit(model, longest_prompt: int, max_new_tokens: int) -> int:
    """The cache positions that the longest dialogue needs. ValueError when the model cannot do it."""
    config = model.config
    if set(getattr(config, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
        raise ValueError(f"{config.model_type} with sliding-window layers is not supported: it needs full attention")
    capacity = longest_prompt + max_new_tokens
    if capacity > config.max_position_embeddings:
        raise ValueError(
            f"the longest prompt ({longest_prompt} tokens) and max_new_tokens {max_new_tokens} exceed the model's "
            f"{config.max_position_embeddings} positions: lower max_new_tokens or leave out long questions"
        )
    return capacity


@contextmanager
def recomputing(*models):
    """Inside, layers do not keep their activations for the backward pass but compute them again.

    transformers does so in layers in training mode, which brings dropout back and refuses a key/value cache; here the
    layers stay as they are.
    """
    layers = [part for model in models for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class's own again


def actions_at_once(vocabulary: int) -> int:
    """How many sampled tokens' logits the update computes at one time: at most 2048, with large vocabularies fewer."""
    return min(2048, max(1, 2**27 // vocabulary))


def memory_plan(shape, parameters: int, element: int, slots: int, capacity: int, micro_batch_tokens: int, *,
                chunk: int = 2048, processes: int = 1, critic: bool = True, offload: bool = False,
                gradient_checkpointing: bool = False) -> dict[str, dict[str, float]]:
    """Bytes on each device in the two phases of a step, by what they hold. `shape` is the model's config, `element` the
    size of a weight, `chunk` the actions whose logits exist at one time. Activations are an estimate."""
    trained = parameters * (1 + critic)
    head = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    always = {"actor and critic": element * trained, "float32 masters": 4 * trained if element < 4 else 0}
    parked = {"reference": element * parameters, "moments": 8 * trained / processes}
    cache = shape.num_hidden_layers * 2 * slots * shape.num_key_value_heads * capacity * head * element
    # of a token in a layer: inputs, queries, keys, values and outputs, the gated product; two float32 norms
    layer = element * (10 * shape.hidden_size + 4 * shape.intermediate_size) + 16 * shape.hidden_size
    kept = layer * shape.num_hidden_layers
    if gradient_checkpointing:  # each layer's input, and one layer at a time
        kept = element * shape.hidden_size * shape.num_hidden_layers + layer
    update = {
        "moments": parked["moments"],
        "reference": 0 if offload else parked["reference"],
        "gradients": 4 * trained + (4 * parameters if processes > 1 else 0),  # ranks add up a flat copy
        "activations": kept * micro_batch_tokens,
        "logits": chunk * shape.vocab_size * (element + 5 * 4),
    }
    rollout = ({} if offload else parked) | {"cache": cache, "logits": slots * shape.vocab_size * (element + 2 * 4)}
    return {"rollout": always | rollout, "update": always | update}


def explain_memory(available: float, **settings) -> str:
    """The plan in words, in GB, and the mildest options with which it fits when it does not."""
    def needed(plan):
        return max(sum(phase.values()) for phase in plan.values())

    plan = memory_plan(**settings)
    lines = [f"memory of a device, estimated, of {available / 1e9:.1f} GB:"]
    for name, phase in plan.items():
        parts = ", ".join(f"{what} {size / 1e9:.1f}" for what, size in phase.items() if size)
        lines.append(f"  {name} {sum(phase.values()) / 1e9:.1f} ({parts})")
    if needed(plan) > available:
        recompute, offload = {"gradient_checkpointing": True}, {"offload": True}
        fewer = [{"slots": max(1, settings["slots"] // part)} for part in (2, 4, 8)]
        changes = [recompute, offload, *fewer, recompute | offload, *(recompute | offload | few for few in fewer)]
        fitting = [change for change in changes if needed(memory_plan(**settings | change)) <= available]
        options = " ".join(f"--{name} {str(value).lower()}" for name, value in (fitting or [{}])[0].items())
        lines.append(f"  it does not fit: try {options or 'a smaller model, or more GPUs'}")
    return "\n".join(lines)
