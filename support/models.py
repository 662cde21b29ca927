"""Pretrained models: where they run, in which precision, whether they fit, with errors that a person can act on."""

import math
import os
import shutil
from collections.abc import Iterable
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_layers import GradientCheckpointingLayer

from support.files import atomic_write


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
    with atomic_write(folder) as part:
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
def recompute_activations(*models):
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


@torch.no_grad()
def move(tensors: Iterable[torch.Tensor], device: torch.device) -> None:
    """Move tensors in place, from a GPU into pinned host memory, which it reads and writes without help of the CPU.

    Copies to a GPU are only queued: what is computed there comes after them. Those to the host are there on return.
    """
    for x in tensors:
        if x.is_cuda and device.type == "cpu":
            x.data = torch.empty_like(x, device=device, pin_memory=True).copy_(x, non_blocking=True)
        else:
            x.data = x.data.to(device, non_blocking=device.type == "cuda")
    if device.type == "cpu" and torch.cuda.is_available():
        torch.cuda.synchronize()


def head_size(config) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def cache_bytes(config, rows: int, capacity: int, element: int) -> int:
    """Of the rollout's key/value cache: this many rows of this many positions, `element` bytes a number."""
    a_position = config.num_hidden_layers * 2 * config.num_key_value_heads * head_size(config) * element
    return rows * capacity * a_position


def allocate_cache(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros for a key/value cache, not empty memory: a masked NaN would still poison sums. ValueError in one sentence
    when there is not enough memory."""
    takes, free = math.prod(shape) * dtype.itemsize, float("inf")
    if device.type == "cuda":  # torch still holds memory of tensors that are gone: that is free as well
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + held
    elif device.type == "cpu":  # the system promises more than it has, and ends the process when it is used
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        if takes > free:
            raise RuntimeError
        return torch.zeros(shape, dtype=dtype, device=device)
    except RuntimeError as error:
        raise ValueError(
            f"the key/value cache takes {takes / 1e9:.3g} GB, more than is free: lower --slots or --max_new_tokens"
        ) from error
