"""Pretrained models: loading and saving, device and precision, with errors that a person can act on."""

import hashlib
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from textwrap import shorten

import torch
import transformers
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_layers import GradientCheckpointingLayer

from support.files import atomic_write, make_folder

# transformers' own attention, but without a mask: to choose one, the CPU would wait for the GPU in every forward pass.
AttentionInterface.register("causal", sdpa_attention_forward)


def pick_device(name: str = "auto") -> torch.device:
    """`auto`: CUDA, else the CPU. ValueError when the named device is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if name.split(":")[0] not in ("cpu", "cuda", "mps"):
            raise RuntimeError("expected auto, cpu, cuda or mps")
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} is not available here: {shorten(str(error), 150)}") from error


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto`: bfloat16 on CUDA, float32 elsewhere."""
    auto = "bfloat16" if device.type == "cuda" else "float32"
    return getattr(torch, auto if name == "auto" else name)


def load_model(name: str, device: torch.device, dtype: torch.dtype):
    """(model, tokenizer) from a model folder or a hub name, dropout off. OSError in one sentence."""
    if not Path(name).is_dir() and not re.fullmatch(r"(?!runs/)\w[\w.-]*/[\w.-]+", name):  # nor a hub name
        advice = "give a folder with a config.json, or a hub name OWNER/NAME; `make train` (or smoke) builds a preset's"
        raise FileNotFoundError(f"there is no model folder {name}: {advice}")
    if (config := Path(name, "config.json")).exists() and '"preset"' in config.read_text():
        raise FileNotFoundError(f"{name} is the folder of a run: its model is {name}/model, written when the run ends")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        options = dict(dtype=dtype, trust_remote_code=False, output_loading_info=True)
        model, loaded = AutoModelForCausalLM.from_pretrained(name, **options)
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        if missing := sorted(loaded["missing_keys"]):
            raise ValueError(f"{len(missing)} of its weights are missing, {missing[0]} first")
        known, embedded = max(tokenizer.get_vocab().values(), default=-1) + 1, len(model.get_input_embeddings().weight)
        if known > embedded:
            raise ValueError(f"its tokenizer has {known} tokens, but the model embeds {embedded}")
    except Exception as error:  # of transformers, safetensors, tokenizers, and whatever package a model lacks
        raise OSError(f"the model {name} cannot be loaded: {shorten(str(error) or repr(error), 200)}") from error
    return model.to(device).eval(), tokenizer


def model_folder(folder: Path) -> Path:
    """The folder, if a model may be written in its place. OSError when something else is there: it would be deleted."""
    other = folder.is_symlink() or folder.is_file()
    if other or folder.is_dir() and any(folder.iterdir()) and not (folder / "tokenizer_config.json").exists():
        raise FileExistsError(f"{folder} is something other than a model folder: choose another --out")
    return make_folder(folder.parent) / folder.name


def save_model(model, tokenizer, folder: Path) -> None:
    """Write a Hugging Face folder, in place of an earlier one if any; it appears whole, or OSError is raised."""
    try:
        with atomic_write(folder) as part:
            model.save_pretrained(part)
            tokenizer.save_pretrained(part)
            shutil.rmtree(folder, ignore_errors=True)
    except Exception as error:  # safetensors has a kind of its own for a full disk
        raise OSError(f"{folder} cannot be written: {shorten(str(error), 150)}") from error


def fingerprint(model, chat) -> str:
    """A hash of all that a model is: weights, configuration, vocabulary, end tokens."""
    vocabulary = sorted(chat.tokenizer.get_vocab().items())
    digest = hashlib.sha256(repr((model.config.to_json_string(), vocabulary, sorted(chat.end_tokens))).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def logits_of(model, outputs, hidden: torch.Tensor) -> torch.Tensor:
    """Logits (A, V) of hidden states (A, E). The model's own forward pass computes them, with its layers replaced by a
    function that returns `outputs` with these states: so a scale or a soft cap of the logits is applied here too."""
    layers = model.base_model
    layers.forward = lambda *args, **kwargs: replace(outputs, last_hidden_state=hidden[None])
    logits = model(inputs_embeds=hidden[None], use_cache=False).logits[0]
    del layers.forward  # the class's own again
    return logits


def decoder_layers(*models) -> list[torch.nn.Module]:
    return [part for part in torch.nn.ModuleList(models).modules() if isinstance(part, GradientCheckpointingLayer)]


def recompute_activations(*models) -> None:
    """From now on, layers do not keep their activations for the backward pass but compute them again. transformers does
    so only in training mode, which brings dropout back."""
    for layer in decoder_layers(*models):
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)


def to_device(values, device: torch.device) -> torch.Tensor:
    """The values on the device. On CUDA, the host does not wait for what runs there; on MPS, that would not be safe."""
    return torch.as_tensor(values).to(device, non_blocking=device.type == "cuda")


@torch.no_grad()
def move(tensors: Iterable[torch.Tensor], device: torch.device) -> None:
    """Move tensors in place; from a GPU, into pinned host memory. Copies to a GPU are queued like its other work."""
    for x in tensors:
        if x.is_cuda and device.type == "cpu":
            x.data = torch.empty_like(x, device=device, pin_memory=True).copy_(x, non_blocking=True)
        else:
            x.data = x.data.to(device, non_blocking=device.type == "cuda")
    if device.type == "cpu" and torch.cuda.is_initialized():
        torch.cuda.synchronize()


@contextmanager
def moved(tensors: list[torch.Tensor], device: torch.device) -> Iterator[None]:
    """Inside this context these tensors, which share a device, are on `device`."""
    before = tensors[0].device if tensors else device
    move(tensors, device)
    yield
    move(tensors, before)


def kv_heads_and_size(config) -> tuple[int, int]:
    """The number of key/value heads in a layer (of all heads, where attention is not grouped), and their size."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return heads, getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
