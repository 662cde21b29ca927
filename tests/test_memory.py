"""The memory plan against what is really held, and the paper's run by hand."""

import copy
import weakref
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from test_ppo import CONFIG
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, LlamaConfig, Qwen2Config

import ppo
import rollout
import support.memory
from data.optimizer import Optimizer
from support.memory import (
    FED_AT_ONCE,
    RESERVE,
    actions_at_once,
    as_options,
    explain_memory,
    memory_plan,
    mildest,
    needed,
)
from support.models import recomputing

PAPER = dict(
    shape=Qwen2Config(
        vocab_size=151936,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    ),
    parameters=1_543_714_304,
    element=2,
    slots=192,
    capacity=4096,
    micro_batch_tokens=4096,
)
H100 = 79.1 * 2**30  # what CUDA reports of its 80 GB


class Peak(TorchDispatchMode):
    """The most bytes of tensors, made inside, that were there at one time."""

    def __init__(self):
        super().__init__()
        self.known, self.now, self.peak = weakref.WeakSet(), 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor) and (storage := x.untyped_storage()) not in self.known:
                self.known.add(storage)
                self.now += storage.nbytes()
                weakref.finalize(storage, self.gone, storage.nbytes())
                self.peak = max(self.peak, self.now)
        return result

    def gone(self, size: int) -> None:
        self.now -= size


SHAPES = {  # each with something else that takes the most: layers, logits, the gated product, attention
    "layers": dict(vocab_size=300, hidden_size=64, intermediate_size=256, num_hidden_layers=6, num_attention_heads=8),
    "vocabulary": dict(
        vocab_size=5000, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4
    ),
    "wide": dict(
        vocab_size=900,
        hidden_size=96,
        intermediate_size=560,
        num_hidden_layers=4,
        num_attention_heads=12,
        tie_word_embeddings=True,
    ),
    "large heads": dict(
        vocab_size=900, hidden_size=48, intermediate_size=96, num_hidden_layers=4, head_dim=48, num_attention_heads=6
    ),
}


@pytest.mark.parametrize(
    "kind, checkpointing, dtype",
    [
        ("layers", False, torch.bfloat16),
        ("layers", True, torch.float32),
        ("vocabulary", True, torch.bfloat16),
        ("wide", False, torch.float32),
        ("wide", True, torch.bfloat16),
        ("large heads", False, torch.bfloat16),
    ],
)
def test_the_update_holds_what_the_plan_says(kind, checkpointing, dtype, monkeypatch):
    """Two micro-batches: in the second one all gradients are there."""
    for module in (ppo, support.memory):
        monkeypatch.setattr(module, "actions_at_once", lambda vocabulary: 400)
    torch.manual_seed(0)
    shape = LlamaConfig(num_key_value_heads=2, **SHAPES[kind])
    actor = AutoModelForCausalLM.from_config(shape).to(dtype).eval()
    actor.set_attn_implementation("slots")
    with_one_label = copy.deepcopy(shape)
    with_one_label.num_labels = 1
    critic = AutoModelForTokenClassification.from_config(with_one_label).to(dtype).eval()
    optimizers = [Optimizer(model, 1e-3, 0, 10, 1.0) for model in (actor, critic)]
    count, length = 2, 300
    sampled_DT = torch.ones(count, length, dtype=torch.bool)
    sampled_DT[:, :75] = False
    dialogues = SimpleNamespace(
        tokens_DT=torch.randint(shape.vocab_size, (count, length)),
        sampled_DT=sampled_DT,
        length_D=torch.full((count,), length),
    )
    names = "old_logp", "reference", "advantage", "old_value", "return"
    targets = {name: torch.zeros(count, length) for name in names}
    with recomputing(actor, critic) if checkpointing else nullcontext(), Peak() as held:
        for _ in range(2):
            ppo.backward(actor, critic, dialogues, targets, torch.arange(count), 1, CONFIG)
    plan = memory_plan(
        shape, actor.num_parameters(), dtype.itemsize, 1, 1, count * length, gradient_checkpointing=checkpointing
    )["update"]
    planned = plan["gradients"] + plan["activations"] + plan["logits"]
    assert 0.9 < planned / held.peak < 1.2
    masters = sum(4 * master.numel() for optimizer in optimizers for master in optimizer.masters)
    assert plan["gradients"] == pytest.approx(masters, rel=1e-3)  # the critic's output is not worth counting


def test_the_plan_of_the_papers_run():
    """By hand for Qwen2.5-Math-1.5B: 1.5437e9 weights of 2 bytes, 28 layers with 2 key/value heads of 128."""
    plan = memory_plan(**PAPER)
    gb = {phase: {what: round(size / 1e9, 1) for what, size in parts.items()} for phase, parts in plan.items()}
    weights = {"actor and critic": 6.2, "float32 masters": 12.3, "reserve": 2.0, "moments": 24.7, "reference": 3.1}
    assert gb["rollout"] == weights | {"cache": 22.5, "activations": 1.7, "logits": 0.4}
    # a layer: 1536 x 12 for the norms, 2 bytes x (2 x 1536 + 2 x 1536 + 2 x 256 + 4 x 8960) for the rest
    # logits: 883 x 151936 x 12 bytes, and 2 x 2 x 151936 x 1536 for the gradient of the output weights
    activations = 4096 * (28 + 1) * (1536 * 12 + 2 * (2 * 1536 + 2 * 1536 + 2 * 256 + 4 * 8960))
    logits = 883 * 151936 * 12 + 4 * 151936 * 1536
    assert plan["update"]["activations"] == activations and plan["update"]["logits"] == logits
    assert gb["update"] == weights | {"gradients": 12.3, "activations": 12.3, "logits": 2.5}


def test_the_papers_run_fits_one_gpu_of_80_gb_with_5_to_spare():
    explained = explain_memory(H100, **PAPER)
    spare = (H100 - needed(memory_plan(**PAPER))) / 1e9
    assert spare > 5 and explained.endswith(f"it fits, with {spare:.1f} GB to spare")


@pytest.mark.parametrize(
    "gigabytes, slots, advice",
    [
        (74, 192, "--gradient_checkpointing true"),
        (62, 192, "--gradient_checkpointing true --offload true"),
        (60, 192, "--group_size 8"),
        (85, 768, "--slots 192"),
        (64, 768, "--gradient_checkpointing true --offload true --slots 384"),
        (48, 192, "--group_size 8 --offload true"),
        (20, 192, "a smaller model, or more GPUs"),
    ],
)
def test_the_mildest_options_that_help(gigabytes, slots, advice):
    settings = PAPER | dict(slots=slots)
    assert explain_memory(gigabytes * 1e9, **settings).endswith(f"it does not fit: try {advice}")
    changes = mildest(gigabytes * 1e9, **settings)
    assert changes is None or needed(memory_plan(**settings | changes)) <= gigabytes * 1e9
    assert changes is None or as_options(changes) == advice


def test_what_the_options_save():
    plan = memory_plan(**PAPER)
    shared = memory_plan(**PAPER, processes=8)
    assert shared["update"]["moments"] == shared["rollout"]["moments"] == plan["update"]["moments"] / 8
    alone = memory_plan(**PAPER, critic=False)
    for name in ("moments", "gradients", "float32 masters", "actor and critic"):
        assert alone["update"][name] == plan["update"][name] / 2
    untied = copy.copy(PAPER["shape"])
    untied.tie_word_embeddings = False  # then the critic is smaller than the actor by the output weights
    assert plan["update"]["gradients"] - memory_plan(**PAPER | dict(shape=untied))["update"]["gradients"] == (
        4 * 151936 * 1536
    )
    parked = memory_plan(**PAPER, offload=True)
    assert [parked["rollout"][name] for name in ("moments", "reference", "float32 masters")] == [0, 0, 0]
    assert parked["update"] == plan["update"] | {"reference": 0}
    float32 = memory_plan(**PAPER | dict(element=4))
    assert float32["update"]["float32 masters"] == 0 and float32["rollout"]["cache"] == 2 * plan["rollout"]["cache"]
    assert plan["rollout"]["reserve"] == plan["update"]["reserve"] == RESERVE


def test_the_plan_knows_the_rollouts_prompt_passes():
    assert FED_AT_ONCE == rollout.FEED_TOKENS


def test_fewer_logits_at_one_time_with_a_large_vocabulary():
    assert [actions_at_once(size) for size in (100, 49_152, 151_936, 2**28)] == [2048, 2048, 883, 1]
