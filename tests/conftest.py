"""Small real models for the tests: two layers, grouped heads, random weights that like boxes and end tokens."""

import sys
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))

from data.miniature import build_tokenizer, draw_riddles  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer():
    return build_tokenizer(draw_riddles("train")[:200])


def small_model(tokenizer, family: str = "llama", seed: int = 0):
    """About one sampled token in ten closes a brace, one in ten opens a box, a few end the turn."""
    torch.manual_seed(seed)
    families = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}
    config_class, model_class = families[family]
    config = config_class(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model = model_class(config).eval()
    model.lm_head = torch.nn.Linear(32, len(tokenizer), bias=True)
    with torch.no_grad():
        model.lm_head.weight.normal_(std=0.1)
        model.lm_head.bias.zero_()
        for text, bias in (("}", 4.5), (". \\boxed{", 4.5), ("5", 4.0), ("17", 4.0), ("<|im_end|>", 2.5)):
            model.lm_head.bias[tokenizer(text, add_special_tokens=False)["input_ids"]] = bias
    return model


@pytest.fixture(scope="session", params=["llama", "qwen2"])
def model(request, tokenizer):
    return small_model(tokenizer, request.param)


def settled(verdict: bool) -> Future:
    """A verdict that is already there."""
    future = Future()
    future.set_result(verdict)
    return future
