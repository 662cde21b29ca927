"""The memory plan: against what an update really holds, and the paper's run by hand."""

import copy
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

import ppo
import train
from rollout import Engine
from support import memory
from support.memory import LONGEST, OPTIONS, QWEN25, SHAPE, memory_plan, needed
from support.models import recompute_activations


def qwen(dtype=torch.bfloat16, **changes):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(Qwen2Config(**QWEN25["1.5B"] | changes), dtype=dtype)


RUN = dict(model=qwen(), options=OPTIONS, longest=LONGEST)


class Peak(TorchDispatchMode):
    """The most bytes that tensors made inside took at one time."""

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


SHAPES = {  # in each, something else takes the most memory: layers, logits, the gated product, attention
    "layers": dict(zip(SHAPE, (64, 256, 6, 8, 2, 300))),
    "vocabulary": dict(zip(SHAPE, (64, 96, 2, 4, 2, 5000))),
    "wide": dict(zip(SHAPE, (96, 560, 4, 12, 2, 900)), tie_word_embeddings=True),
    "large heads": dict(zip(SHAPE, (48, 96, 4, 6, 2, 900)), head_dim=48),
}


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("checkpointing, dtype", [(False, "bfloat16"), (True, "bfloat16"), (False, "float32")])
def test_the_update_holds_what_the_plan_says(kind, checkpointing, dtype, monkeypatch):
    """Two micro-batches: in the second one all gradients are there."""
    for module in (ppo, memory):
        monkeypatch.setattr(module, "actions_at_once", lambda vocabulary: 226)
    torch.manual_seed(0)
    config, count, length, dtype = LlamaConfig(**SHAPES[kind]), 2, 300, getattr(torch, dtype)
    actor = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    critic = copy.deepcopy(actor.base_model)
    critic.score = torch.nn.Linear(config.hidden_size, 1, dtype=dtype)
    optimizers = [ppo.Optimizer(model, 1e-3, 0, 10, 1.0) for model in (actor, critic)]
    rows, sampled_DT = torch.arange(count), (torch.arange(length) >= 75).expand(count, length)
    texts = dict(tokens_DT=torch.randint(config.vocab_size, (count, length)), length_D=torch.full((count,), length))
    dialogues = SimpleNamespace(sampled_DT=sampled_DT, **texts)
    targets = dict.fromkeys("old_logp ref_logp advantage old_value return".split(), torch.zeros(count, length))
    if checkpointing:
        recompute_activations(actor, critic)
    with Peak() as held:
        for _ in range(2):
            ppo.micro_batch_backward(actor, critic, dialogues, targets, rows, torch.ones(count), train.Config())
    options = OPTIONS | dict(micro_batch_tokens=count * length, gradient_checkpointing=checkpointing, compile=False)
    plan = memory_plan(actor, options, longest=length)
    assert plan["rollout"]["cache"] == Engine(actor, options["slots"], length, 1.0).cache.kv.nbytes
    assert 0.9 < sum(plan["update"][x] for x in ("gradients", "activations", "logits or a layer")) / held.peak < 1.2
    gradients = sum(4 * weight.numel() for optimizer in optimizers for weight in optimizer.weights)
    assert plan["update"]["gradients"] == pytest.approx(gradients, rel=1e-3)  # all but the critic's output


def test_the_plan_of_the_papers_run():
    """By hand for Qwen2.5-Math-1.5B: 1.5437e9 weights of 2 bytes, 28 layers with 2 key/value heads of 128."""
    config = train.Config()
    assert (config.micro_batch_tokens, config.dialogues) == (OPTIONS["micro_batch_tokens"], 1024)
    assert RUN["longest"] == config.max_prompt_tokens + config.max_new_tokens
    plan = memory_plan(**RUN)
    gb = {name: {what: round(size / 1e9, 1) for what, size in phase.items() if size} for name, phase in plan.items()}
    both = {"actor and critic": 6.2, "masters and moments": 37.0, "reserve": 2.0}
    assert gb["rollout"] == both | {"cache": 7.4, "activations": 1.2, "logits": 0.1}
    # a layer, compiled: 2 bytes x (4 x 1536 + 3 x 1536 + 2 x 256 + 3 x 8960)
    # logits: 1325 x 151936 x 8 bytes, and 2 x 2 x 151936 x 1536 for the gradient of the output weights
    activations = 10000 * (28 + 1) * 2 * (4 * 1536 + 3 * 1536 + 2 * 256 + 3 * 8960)
    logits = 1325 * 151936 * 8 + 4 * 151936 * 1536
    assert plan["update"]["activations"] == activations and plan["update"]["logits or a layer"] == logits
    assert gb["update"] == both | {"gradients": 12.3, "activations": 22.1, "logits or a layer": 2.5}
    # an H100 held 79.1 GB in an update with 10240 tokens in a micro-batch
    assert needed(plan) - 2e9 + activations * 0.024 == pytest.approx(79.1e9, rel=0.05)
    spare = f"{(85e9 - needed(plan)) / 2**30:.1f} GiB"
    assert memory.explain_memory(85e9, **RUN).endswith(f"it fits, with {spare} to spare")


ADVICE = [
    (78, 192, "--micro_batch_tokens 4096"),
    (62, 192, "--offload true"),
    (85, 768, "--slots 64"),
    (25.4, 64, "--offload true --gradient_checkpointing true"),
    (24, 64, "--offload true --gradient_checkpointing true --micro_batch_tokens 4096"),
    (20, 192, "--group_size 8 --slots 64 --offload true --gradient_checkpointing true"),
    (10, 192, "a smaller model, or a larger GPU"),
]


@pytest.mark.parametrize("gigabytes, slots, advice", ADVICE)
def test_the_mildest_options_that_help(gigabytes, slots, advice):
    settings = RUN | dict(options=OPTIONS | dict(slots=slots))
    assert memory.explain_memory(gigabytes * 1e9, **settings).endswith(f"it does not fit: try {advice}")
    found, changed = memory.mildest(gigabytes * 1e9, **settings)
    fits = needed(memory_plan(**settings | dict(options=changed))) <= gigabytes * 1e9
    assert found == advice and fits == (changed != settings["options"])


def test_the_ranks_hold_about_equal_shares(monkeypatch):
    """Of masters and moments: the plan divides them by the number of processes."""
    model, shares = qwen(), []
    monkeypatch.setattr("support.ranks.world_size", lambda: 8)
    for rank in range(8):
        monkeypatch.setattr("support.ranks.rank", lambda: rank)
        states = ppo.Optimizer(model, 1e-3, 0, 10, 1.0).states.values()
        shares.append(sum(state["master"].numel() for state in states) / model.num_parameters())
    assert sum(shares) == pytest.approx(1) and max(shares) < 1.17 / 8


def test_what_the_options_save():
    plan, shared = memory_plan(**RUN), memory_plan(**RUN, processes=8)
    states = "masters and moments"
    assert shared["update"][states] == shared["rollout"][states] == plan["update"][states] / 8
    alone = memory_plan(**RUN | dict(options=OPTIONS | dict(group_size=8)))
    for name in (states, "gradients", "actor and critic"):
        assert alone["update"][name] == plan["update"][name] / 2
    # with output weights of its own, the actor is larger than the critic by these
    larger = memory_plan(**RUN | dict(model=qwen(tie_word_embeddings=False)))["update"]
    assert larger["gradients"] - plan["update"]["gradients"] == 4 * 151936 * 1536
    offloaded = memory_plan(**RUN | dict(options=OPTIONS | dict(offload=True)))
    for phase in plan:
        assert offloaded[phase] == plan[phase] | {states: 0}
    assert memory_plan(**RUN, offload_in_rollout=True) == {"rollout": offloaded["rollout"], "update": plan["update"]}
    kept = memory_plan(**RUN, keep_engine=True)["update"]
    assert kept == plan["update"] | {"cache": plan["rollout"]["cache"]}
    assert memory_plan(**RUN | dict(longest=20000))["update"]["activations"] == 2 * plan["update"]["activations"]
    float32 = memory_plan(**RUN | dict(model=qwen(torch.float32)))
    assert float32["update"][states] == plan["update"][states] * 2 / 3
    assert float32["rollout"]["cache"] == 2 * plan["rollout"]["cache"]


def test_as_many_slots_as_fit():
    for available, most, slots in ((85e9, 1024, 289), (85e9, 200, 200), (30e9, 1024, 64), (30e9, 8, 8)):
        assert memory.most_slots(available, most, host=110e9, **RUN) == (slots, False)
    assert memory.most_slots(85e9, 1024, host=112e9, **RUN) == (602, True)


def test_the_table(capsys):
    memory.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 9 and lines[7] == "| 1.5B | 80 GB |  | 599 | 77 |"
    assert lines[5] == "| 1.5B | 24 GB | --offload true --gradient_checkpointing true | 124 | 23 |"
