"""Small real models for the tests: grouped heads, random weights that like boxes and end tokens."""

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

import train
from data import Problem
from data.chat import Chat
from data.miniature import build_tokenizer, draw_riddles
from reward import Rules, extract_boxed, reward
from rollout import Engine, rollout

torch.set_num_threads(1)
PROBLEMS = [
    Problem(f"My number is below {20 + 3 * i}. Divided by {3 + i % 9} it leaves {i % 3}." + " Think." * (i % 4), "5")
    for i in range(32)
]
ALLOWED = [1 + i % 4 for i in range(len(PROBLEMS))]
OPTIONS = dict(max_new_tokens=70, max_attempt_tokens=25, slots=64)
# about one answer in three is right, by its length; the gold answers of PROBLEMS do not matter
RULES = Rules(extract_boxed, lambda answer, gold: len(answer) % 3 == 1, reward)
FAMILIES = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}


@pytest.fixture(scope="session")
def tokenizer():
    return build_tokenizer(draw_riddles("train")[:200])


def random_model(tokenizer, family: str, seed: int, layers: int, spread: float):
    torch.manual_seed(seed)
    config_class, model_class = FAMILIES[family]
    sizes = dict(hidden_size=32, intermediate_size=64, num_attention_heads=4, num_key_value_heads=2)
    sizes |= dict(vocab_size=len(tokenizer), num_hidden_layers=layers, max_position_embeddings=512)
    tokens = dict(eos_token_id=tokenizer.eos_token_id, bos_token_id=None, tie_word_embeddings=False)
    return model_class(config_class(**sizes, **tokens, initializer_range=spread)).eval()


def like_boxes(tokenizer, weight: torch.Tensor, biases: list[float]) -> None:
    """Give these entries of the weight to the tokens that make boxes and to the end of a turn."""
    with torch.no_grad():
        for text, bias in zip(("}", ". \\boxed{", "5", "17", "<|im_end|>"), biases, strict=True):
            weight[tokenizer(text, add_special_tokens=False)["input_ids"]] = bias


def small_model(tokenizer, family: str = "llama", seed: int = 0):
    """About one sampled token in ten closes a brace, one in ten opens a box, a few end the turn."""
    model = random_model(tokenizer, family, seed, layers=2, spread=0.3)
    model.lm_head = torch.nn.Linear(32, len(tokenizer), bias=True)
    with torch.no_grad():
        model.lm_head.weight.normal_(std=0.1)
        model.lm_head.bias.zero_()
    like_boxes(tokenizer, model.lm_head.bias, [4.5, 4.5, 4.0, 4.0, 2.5])
    return model


def small_rollout(model, tokenizer, temperature=1.0, asked=(PROBLEMS, ALLOWED), schedule=None, engine=None, **options):
    """A rollout with the options of the tests, except where others are given. `schedule` as in rollout.py:Engine."""
    seed = options.pop("seed", (0,))
    chat, config = Chat(model, tokenizer, "chatml"), train.Config(**OPTIONS | options)
    if schedule:
        engine = Engine(model, config.slots, 400, temperature, schedule)
    return rollout(model, chat, *asked, RULES, config, temperature, seed, engine=engine)


@pytest.fixture(scope="session", params=["llama", "qwen2"])
def model(request, tokenizer):
    return small_model(tokenizer, request.param)


@pytest.fixture(scope="session")
def run_inputs(tokenizer, tmp_path_factory):
    """A folder with what tests/tiny_runs.py trains: a base model that likes boxes, and questions that it gets right now
    and then.

    An ordinary Llama has no bias. Here every token's embedding has the same large first entry, so that the first column
    of the output weights acts as one.
    """
    folder = tmp_path_factory.mktemp("inputs")
    model = random_model(tokenizer, "llama", seed=0, layers=1, spread=0.1)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 4.0
    like_boxes(tokenizer, model.lm_head.weight[:, 0], [1.5, 1.5, 1.5, 1.5, 0.875])
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    held_out = [(f"Another {i}", "5") for i in range(4)]
    files = {"held_out": held_out, "first_three": held_out[:3], "long": [("Why? " * 500, "1")]}
    files["questions"] = [(f"Question {i}" + ", is it?" * (i % 3), ["5", "17"][i % 2]) for i in range(12)]
    files["shared"] = [("New", "1"), ("Question 0", "5")]
    for name, rows in files.items():
        lines = [json.dumps({"question": question, "answer": answer}) + "\n" for question, answer in rows]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture
def inputs(run_inputs, tmp_path, monkeypatch):
    """The test runs in an empty folder with those inputs in it."""
    monkeypatch.chdir(tmp_path)
    for path in run_inputs.iterdir():
        (tmp_path / path.name).symlink_to(path)
