"""Dialogues written by hand, and the engine against the plain loop and against the model's full forward pass."""

import operator
import re
from functools import partial
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ALLOWED, OPTIONS, PROBLEMS, RULES, small_model, small_rollout
from torch.utils._python_dispatch import TorchDispatchMode

import rollout as stage
import train
from data import Problem
from data.chat import CHAT_TEMPLATES, FEEDBACKS, Chat, fill_feedback, prompt_text
from reward import Rules, extract_boxed, reward
from rollout import Attempt, Engine, KVCache, rollout, rollout_one, sample
from support.cuda import flash_attention, has_flash
from support.memory import cache_bytes

SHAPE = dict(num_hidden_layers=2, num_key_value_heads=2, hidden_size=8, num_attention_heads=2)  # heads of 4 numbers


def plain_form(dialogues, d: int) -> tuple[list[int], list[bool], list[Attempt]]:
    """Dialogue d as `rollout_one` returns it."""
    length = dialogues.length_D[d]
    tokens, sampled = (x_DT[d, :length].tolist() for x_DT in (dialogues.tokens_DT, dialogues.sampled_DT))
    return tokens, sampled, dialogues.attempts[d]


@torch.no_grad()
def full_forward(model, dialogues, temperature=1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits of every action, (A, V), and its log-probability, (A,), by the model's own attention."""
    model.set_attn_implementation("eager")
    logits_AV = model(input_ids=dialogues.tokens_DT).logits[:, :-1].float()[dialogues.sampled_DT[:, 1:]]
    actions_A1 = dialogues.tokens_DT[dialogues.sampled_DT][:, None]
    return logits_AV, (logits_AV / temperature).log_softmax(-1).gather(-1, actions_A1)[:, 0]


def assert_same(a, b) -> None:
    """Token for token the same dialogues with the same rewards; log-probabilities up to float32 rounding."""
    for name in vars(a).keys() - {"attempts", "logp_DT"}:
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert a.attempts == b.attempts
    torch.testing.assert_close(a.logp_DT, b.logp_DT, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def dialogues(model, tokenizer):
    return small_rollout(model, tokenizer)


def test_the_dialogues_cover_what_the_tests_are_about(dialogues):
    """Right and wrong, boxed and ended without a box, cut off by the budget of an attempt and of the dialogue."""
    attempts = [attempt for attempts in dialogues.attempts for attempt in attempts]
    assert {a.correct for a in attempts} == {a.truncated for a in attempts} == {True, False}
    assert any(a.answer is None and not a.truncated for a in attempts)
    assert (dialogues.truncated_D & (dialogues.used_D < dialogues.allowed_D)).any()
    assert set(dialogues.used_D.tolist()) >= {1, 2, 3}
    assert set(dialogues.reward_D.tolist()) == {1.0, -0.5, -1.0}


# -------------------- Dialogues written by hand
class Scripted:
    """Stands in for a model: the token after position p is script[p + 1], whatever was fed."""

    def __init__(self, script: list[int], vocabulary: int):
        self.config = SimpleNamespace(**SHAPE, model_type="scripted", vocab_size=vocabulary, _attn_implementation="own")
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.generation_config = SimpleNamespace(eos_token_id=None)
        self.script = torch.tensor(script + [0] * 50)

    def set_attn_implementation(self, name):
        assert name in ("engine", "own")

    def base_model(self, input_ids, cache, **unused):
        keys = torch.zeros(len(input_ids), 2, input_ids.shape[1], 4)
        cache.update(keys, keys, 0)

    def __call__(self, input_ids, position_ids=None, cache=None, **unused):
        if cache is None:  # whole dialogues
            position_ids = torch.arange(input_ids.shape[1])[None]
        else:
            self.base_model(input_ids, cache)
        logits = torch.full((*input_ids.shape, self.config.vocab_size), -50.0)
        return SimpleNamespace(logits=logits.scatter(-1, self.script[position_ids + 1][..., None], 0.0))


def play_both(tokenizer, allowed: int, written: list[str], schedule=(1, 0), reward=reward, **options):
    """Asserts that the engine and `rollout_one` write these attempts. The model's script goes on with a right answer,
    so a loop that does not stop is caught. Returns the Dialogues, of one dialogue, and the spans of its attempts."""
    encode, template = partial(tokenizer.encode, add_special_tokens=False), CHAT_TEMPLATES["chatml"]
    problem, rules = Problem("5 or 17?", "5"), Rules(extract_boxed, operator.eq, reward)
    tokens, spans = encode(prompt_text(template, problem.question, allowed)), []
    sampled = [False] * len(tokens)
    for i, attempt in enumerate(written):
        if i:
            wrong = SimpleNamespace(answer=extract_boxed(written[i - 1]))
            words = fill_feedback(FEEDBACKS["paper"], allowed - i, wrong, problem.gold)
            forced = encode(template.feedback.replace("{feedback}", words))
            if written[i - 1].endswith("<|im_end|>"):
                del forced[0]  # the end token that the model has written
            tokens, sampled = tokens + forced, sampled + [False] * len(forced)
        spans.append((len(tokens), len(tokens + encode(attempt))))
        tokens, sampled = tokens + encode(attempt), sampled + [True] * len(encode(attempt))
    model = Scripted(tokens + encode(" \\boxed{5}"), len(tokenizer))
    chat, config = Chat(model, tokenizer, "chatml"), train.Config(**dict(max_new_tokens=200) | options)
    batch = rollout(model, chat, [problem], [allowed], rules, config, engine=Engine(model, 1, 400, 1.0, schedule))
    length = batch.length_D.item()
    assert plain_form(batch, 0)[:2] == (tokens[:length], sampled[:length])
    assert plain_form(batch, 0) == rollout_one(model, chat, problem, allowed, rules, config)
    return batch, spans


BY_HAND = {  # attempts allowed, what the model writes, the answers, the reward
    "wrong, wrong, right": (4, ["5, 17. \\boxed{17}", "\\boxed{29}", "5. \\boxed{5}"], ["17", "29", "5"], 1.0),
    "the last attempt is wrong": (2, ["\\boxed{17}", "\\boxed{29}"], ["17", "29"], -0.5),
    "a box ends the attempt": (1, ["\\boxed{17}"], ["17"], -0.5),  # the script goes on with a right one
    "an end token is sampled, not forced again": (2, ["5, 17<|im_end|>", "17<|im_end|>"], [None, None], -1.0),
    "any box counts": (3, ["\\boxed{17}", "5<|im_end|>", "17<|im_end|>"], ["17", None, None], -0.5),
}


@pytest.mark.parametrize("schedule", [(1, 0), (2, 0), (5, 1)], ids=str)
@pytest.mark.parametrize("allowed, written, answers, value", BY_HAND.values(), ids=BY_HAND)
def test_dialogues_written_by_hand(tokenizer, allowed, written, answers, value, schedule):
    """Engine and `rollout_one` (see `play_both`) write exactly these: tokens, mask, spans, answers, reward."""
    batch, spans = play_both(tokenizer, allowed, written, schedule)
    (attempts,) = batch.attempts
    assert [(a.start, a.end) for a in attempts] == spans and batch.length_D.item() == spans[-1][1]
    assert [a.text for a in attempts] == [text.removesuffix("<|im_end|>") for text in written]
    assert [(a.answer, a.correct) for a in attempts] == [(answer, answer == "5") for answer in answers]
    assert (batch.reward_D.item(), batch.used_D.item(), batch.allowed_D.item()) == (value, len(written), allowed)
    assert not batch.truncated_D.item() and not any(a.truncated for a in attempts)
    text = tokenizer.decode(batch.tokens_DT[0])
    assert f"You have {allowed} attempts to answer" in text and text.endswith("<|im_start|>assistant\n" + written[-1])
    said = re.findall(r"You have (\d) attempts left\. Try an alternative\.<\|im_end\|>", text)
    assert said == [str(allowed - i) for i in range(1, len(written))]


def test_every_attempts_reward_is_at_its_last_token(tokenizer):
    batch, spans = play_both(tokenizer, 4, BY_HAND["wrong, wrong, right"][1], reward=lambda *_: [0.25, -0.5, 1.0])
    expected_T = torch.zeros(batch.length_D)
    expected_T[[end - 1 for _, end in spans]] = torch.tensor([0.25, -0.5, 1.0])
    assert torch.equal(batch.reward_DT[0], expected_T) and batch.reward_D.item() == 0.75


def test_an_attempt_out_of_budget_counts_as_wrong(tokenizer):
    long = "5, 17, 29, 5, 17, 29, 5, 17"
    budget = len(tokenizer.encode(long, add_special_tokens=False))
    batch, spans = play_both(tokenizer, 2, [long, "5. \\boxed{5}"], max_attempt_tokens=budget)
    assert [a.truncated for a in batch.attempts[0]] == [True, False] and batch.length_D.item() == spans[1][1]
    assert batch.reward_D.item() == 1.0 and not batch.truncated_D.item()


def test_a_dialogue_out_of_budget_is_truncated(tokenizer):
    attempts = ["5. \\boxed{17}", "5, 17. \\boxed{5}"]
    _, ((first, first_end), (second, second_end)) = play_both(tokenizer, 2, attempts)
    for cut in range(first_end, second_end + 1):
        batch, _ = play_both(tokenizer, 2, attempts, (3, 0), max_new_tokens=cut - first)
        right = cut == second_end  # the box closes just in time
        end = cut if cut > second else first_end  # no room for feedback and one more token
        found = batch.length_D.item(), batch.truncated_D.item(), batch.reward_D.item()
        assert found == (end, not right, 1.0 if right else -0.5)


# -------------------- Against the plain loop
@pytest.mark.parametrize("temperature", [1.0, 0.6, 0.0])
def test_the_same_dialogues_as_the_plain_loop(model, tokenizer, temperature):
    dialogues = small_rollout(model, tokenizer, temperature, seed=(3, 1))
    model.set_attn_implementation("eager")  # the model's own attention
    one = partial(rollout_one, rules=RULES, config=train.Config(**OPTIONS), temperature=temperature, seed=(3, 1))
    for d, problem in enumerate(PROBLEMS):
        assert plain_form(dialogues, d) == one(model, Chat(model, tokenizer, "chatml"), problem, ALLOWED[d], index=d)


def test_the_plain_loop_shares_no_code_with_the_engine():
    own = {name for name, thing in vars(stage).items() if getattr(thing, "__module__", None) == "rollout"}
    assert own & set(rollout_one.__wrapped__.__code__.co_names) == {"Attempt"}


@pytest.mark.parametrize("slots, schedule", [(3, None), (3, (4, 0)), (64, (7, 0)), (5, (4, 1)), (64, (3, 2))])
def test_the_same_dialogues_whatever_the_schedule(model, tokenizer, dialogues, slots, schedule):
    assert_same(small_rollout(model, tokenizer, slots=slots, schedule=schedule), dialogues)


def test_equal_prompts_are_prefilled_once_and_copied(model, tokenizer):
    """Four groups of four, which answer the same question with the same number of attempts allowed."""

    def watch(module, args, kwargs):
        prefilled.extend(kwargs["input_ids"] if kwargs["cache"].mask is None else [])

    problems, allowed = ([x for x in each[:4] for _ in range(4)] for each in (PROBLEMS, ALLOWED))
    prefilled, hook = [], model.base_model.register_forward_pre_hook(watch, with_kwargs=True)
    copied = small_rollout(model, tokenizer, asked=(problems, allowed), slots=16)
    assert len(prefilled) == 4
    computed = small_rollout(model, tokenizer, asked=(problems, allowed), slots=1)
    assert len(prefilled) == 4 + 16
    hook.remove()
    assert_same(copied, computed)


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_logits_that_are_not_finite_end_a_rollout(tokenizer, temperature):
    model = small_model(tokenizer)
    model.lm_head.weight.data.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="lower the learning rates"):
        small_rollout(model, tokenizer, temperature)
    assert model.config._attn_implementation == "sdpa"  # as it was


# -------------------- Against the full forward pass
@pytest.mark.parametrize("slots, schedule, temperature", [(64, None, 1.0), (5, (4, 0), 1.0), (3, None, 0.7)])
def test_every_log_probability_equals_the_full_forward_pass(model, tokenizer, slots, schedule, temperature):
    """Rows at different positions, refilled over stale cache (few slots), rolled back (4 steps a call)."""
    batch = small_rollout(model, tokenizer, temperature, slots=slots, schedule=schedule)
    _, expected_A = full_forward(model, batch, temperature)
    torch.testing.assert_close(batch.logp_DT[batch.sampled_DT], expected_A, atol=1e-5, rtol=0)
    assert len(expected_A) > 300 and (batch.logp_DT[~batch.sampled_DT] == 0).all()


@pytest.mark.parametrize("temperature", [1.0, 0.0])
@pytest.mark.parametrize("path", ["cpu", "graphs"])
def test_bfloat16_is_the_same_up_to_ties(tokenizer, temperature, path, request):
    """Log-probabilities as in the full forward pass in bfloat16, and greedy tokens the best ones up to ties."""
    if path == "graphs":
        request.getfixturevalue("graphs")
    model = small_model(tokenizer).to(torch.bfloat16)
    batch = small_rollout(model, tokenizer, temperature, slots=12, schedule=(4, 1))
    (logits_AV, expected_A), logp_A = full_forward(model, batch), batch.logp_DT[batch.sampled_DT]
    assert logp_A.dtype == torch.float32 and len(logp_A) > 300
    assert (logp_A - expected_A).abs().mean() < 2e-2
    if temperature == 0:  # two steps of bfloat16 between 4 and 8, where the best logits are
        assert (logits_AV.log_softmax(-1).amax(-1) - expected_A).max() <= 2**-4


# -------------------- Sampling
def test_sample_inverts_the_cumulative_distribution():
    """And never takes an impossible token, not even at the ends."""
    logits = torch.tensor([0, 0.1, 0.2, 0, 0.7, 0]).log().expand(7, 6)
    uniforms = torch.tensor([0.0, 0.0999, 0.1001, 0.2999, 0.3001, 1 - 2**-24, 1.0])
    for temperature, expected in ((1.0, [1, 1, 2, 2, 4, 4, 4]), (0.0, [4] * 7)):  # greedy: the model's own logp as well
        token, logp = sample(logits, uniforms, temperature)
        assert token.tolist() == expected
        torch.testing.assert_close(logp, logits[0, token])


@pytest.mark.parametrize("vocabulary, temperature", [(4096, 1.0), (4160, 0.5), (4097, 2.0), (704, 0.6)])
def test_sample_agrees_with_float64(vocabulary, temperature):
    """In blocks of 256, of 64, of 1, and without blocks."""
    generator = torch.Generator().manual_seed(0)
    logits, uniform = 3 * torch.randn(500, vocabulary, generator=generator), torch.rand(500, generator=generator)
    p = (logits.double() / temperature).softmax(-1)
    expected = torch.searchsorted(p.cumsum(-1), uniform.double()[:, None], right=True)[:, 0]
    token, logp = sample(logits, uniform, temperature)
    assert (token == expected).sum() >= 498  # a uniform number within rounding of a border may fall on either side
    torch.testing.assert_close(logp.double(), p.gather(-1, token[:, None])[:, 0].log(), atol=1e-5, rtol=0)


# -------------------- Memory, and the progress bar
def test_a_cache_that_does_not_fit_is_refused_before_it_is_allocated(model, tmp_path, monkeypatch):
    """That it does not fit the machine, or its container."""
    assert cache_bytes(model.config, 24, 177, 4) == Engine(model, 24, 145, 1.0).cache.kv.nbytes
    monkeypatch.setattr("support.memory.CONTAINER_LIMIT", limit := tmp_path / "memory.max")
    for most, slots in (("max", 2**30), (f"{2**80}", 2**30), ("500000000", 8)):
        limit.write_text(f"{most}\n")
        size = re.escape(f"{slots / 8:.3g} GiB")
        with pytest.raises(OSError, match=f"cache takes {size}, more than is free: lower --slots or --max_new_tokens"):
            KVCache(Scripted([], vocabulary=1), slots, 2**20)


def test_the_progress_bar_says_the_running_accuracy(model, tokenizer, monkeypatch):
    bar = mock.Mock()
    monkeypatch.setattr(stage, "tqdm", lambda **options: bar)
    batch = small_rollout(model, tokenizer)
    said = [call.args[0] for call in bar.set_postfix_str.call_args_list]
    assert len(said) == bar.update.call_count == len(PROBLEMS) and 0 < batch.correct_D.sum() < len(said)
    assert said[-1] == f"{batch.correct_D.float().mean():.1%} solved"


# -------------------- The CUDA path, played on the CPU
class Recorded(TorchDispatchMode):
    """A CUDA graph on the CPU: what `run` computes, operation by operation, to be computed again on the same tensors.
    Whatever the host decides while it records stays as it was; asking the device for a value is an error."""

    def __init__(self, run):
        super().__init__()
        self.calls = []
        with self:
            run()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        aten = torch.ops.aten  # these wait for the device, or copy from memory of the host that a graph may not read
        assert operation not in (aten._local_scalar_dense.default, aten.nonzero.default, aten.lift_fresh.default)
        result = operation(*args, **(kwargs or {}))
        if not operation.is_view:
            self.calls.append((operation, args, kwargs or {}, result))
        return result

    def replay(self):
        for operation, args, kwargs, results in self.calls:
            again = operation(*args, **kwargs)
            for old, new in zip(*([x] if isinstance(x, torch.Tensor) else x for x in (results, again))):
                old.copy_(new)


def plain_flash(query, key, value, cu_seqlens_q, cu_seqlens_k, max_q, max_k, *flags, scale, seqused_k, **unused):
    """What the operator computes: queries and keys of all rows one after the other, `seqused_k` keys each."""
    R, E = len(seqused_k), query.shape[-1]
    assert flags == (0.0, False, False)  # dropout, causal mask, debug mask
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == seqused_k.dtype == torch.int32
    assert cu_seqlens_q.shape == cu_seqlens_k.shape == (R + 1,) and seqused_k.is_contiguous()
    assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1 and E % 8 == 0
    assert key.shape == value.shape == (R * max_k, key.shape[1], E) and query.shape[1] % key.shape[1] == 0
    out = torch.empty_like(query)
    for row, used in enumerate(seqused_k.numpy()):  # numpy: what the kernel reads on the device
        (first, last), (start, end) = (starts.numpy()[row : row + 2] for starts in (cu_seqlens_q, cu_seqlens_k))
        assert 0 < used <= max_k == end - start and last - first <= max_q
        parts = query[first:last], key[start : start + used], value[start : start + used]
        q, k, v = (x.transpose(0, 1)[None] for x in parts)
        out[first:last] = F.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=True)[0].transpose(0, 1)
    return out, *(query.new_zeros(0) for _ in range(4))


@pytest.fixture
def graphs(monkeypatch):
    """The step as on CUDA with 16-bit weights: recorded once for each number of rows, a plain flash attention."""
    made = []

    def capture(run, other):
        run()  # as the real one does
        made.append(Recorded(run))
        return made[-1]

    library = torch.library.Library("aten", "IMPL")
    library.impl("_flash_attention_forward", plain_flash, "CPU")
    monkeypatch.setattr(stage, "has_flash", lambda *_: True)
    monkeypatch.setattr(stage, "capture", capture)
    yield made
    library._destroy()


@pytest.mark.parametrize("slots, schedule", [(5, (4, 1)), (64, (3, 2))])
def test_graphs_write_the_same_dialogues(model, tokenizer, dialogues, graphs, slots, schedule):
    """Few graphs serve all steps, and one engine all rollouts: what earlier dialogues left in it is never read. With 64
    slots up to four dialogues wait for each other, while the others go on."""
    engine = Engine(model, slots, 400, 1.0, schedule)
    others = small_rollout(model, tokenizer, seed=(1,), engine=engine)
    assert not torch.equal(others.tokens_DT[:, :60], dialogues.tokens_DT[:, :60])
    assert_same(small_rollout(model, tokenizer, engine=engine), dialogues)
    assert 1 <= len(graphs) <= 1 + np.ceil(np.log2(min(slots, len(PROBLEMS))))


def test_flash_attention_gives_the_operator_what_it_takes():
    """On the meta device: its arguments, which are not documented, and the cache's layout for Qwen2.5-1.5B."""
    names = [argument.name for argument in torch.ops.aten._flash_attention_forward.default._schema.arguments]
    first = "query key value cum_seq_q cum_seq_k max_q max_k dropout_p is_causal return_debug_mask"
    assert names[:10] == first.split() and {"scale", "seqused_k"} <= set(names[10:])
    query = torch.empty(8, 12, 1, 128, dtype=torch.bfloat16, device="meta")
    cache = torch.empty(2, 8, 2, 4096, 128, dtype=torch.bfloat16, device="meta")
    starts = torch.empty(17, dtype=torch.int32, device="meta")
    out = flash_attention(query, cache[0], cache[1], (starts, starts, starts[:16]), 0.1)
    assert out.shape == query.shape and out.dtype == query.dtype


def test_where_flash_attention_runs(monkeypatch):
    usual = dict(slots=64, device="cuda", dtype=torch.bfloat16, capability=(9, 0), head_dim=128, built=True)
    runs = [{}, dict(dtype=torch.float16), dict(capability=(8, 0)), dict(head_dim=256)]
    does_not = [dict(device="mps"), dict(device="cpu"), dict(dtype=torch.float32), dict(capability=(7, 5))]
    does_not += [dict(head_dim=264), dict(head_dim=12), dict(built=False), dict(slots=2**15)]
    for changes in runs + does_not:
        case = SimpleNamespace(num_attention_heads=2, **usual | changes)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: case.capability)
        monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: case.built)
        model = SimpleNamespace(device=torch.device(case.device), dtype=case.dtype, config=case)
        assert has_flash(model, case.slots) is (changes in runs), changes
