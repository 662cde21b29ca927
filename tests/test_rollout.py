"""The engine against the full forward, against a naive sampler, and against dialogues written out by hand."""

import copy
from concurrent.futures import Future
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import settled, small_model
from torch.utils._python_dispatch import TorchDispatchMode

import data.cache
import evaluate
import rollout as engine
import train
from data.cache import SlotCache, flash_attention, folded_attention, has_flash, mask_behind
from data.chat import CHAT_TEMPLATES, Chat, feedback_text, prompt_text
from reward import extract_boxed
from rollout import Grid, Slot, rollout, sample
from support.models import cache_bytes, load_model, pick_device, pick_dtype, save_model

QUESTIONS = [
    f"I am thinking of a number below {20 + 3 * i}. Divided by {3 + i % 9} it leaves {i % 3}. What is my number?"
    + " Think of 5, 17 and 29." * (i % 4)
    for i in range(24)
]
GOLDS = ["5"] * len(QUESTIONS)
ALLOWED = [1 + i % 4 for i in range(len(QUESTIONS))]


def verdict(answer: str, gold: str) -> bool:
    """Right about once in three, whatever the gold answer."""
    return len(answer) % 3 == 1


def reward(correct: bool, boxed: bool, attempts: int) -> float:
    return 1.0 if correct else -0.5 if boxed else -1.0


def run(model, tokenizer, questions=QUESTIONS, golds=GOLDS, allowed=ALLOWED, **options):
    standard = dict(max_new_tokens=90, max_attempt_tokens=25, slots=64, grade=lambda a, g: settled(verdict(a, g)))
    options = standard | options
    return rollout(model, tokenizer, questions, golds, allowed, extract=extract_boxed, reward=reward, **options)


def naive(model, tokenizer, d: int, temperature=1.0, seed=(0,), max_new_tokens=90, max_attempt_tokens=25):
    """The attempt loop once more, as plainly as possible: one dialogue, the whole model for every token, float64."""
    tokens = Chat(model, tokenizer, "chatml").prompt(QUESTIONS[d], ALLOWED[d])
    prompt, sampled, attempts = len(tokens), [], []
    uniforms = np.random.default_rng((*seed, d)).random(max_new_tokens, dtype=np.float32)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    sampled = [False] * prompt
    for left in range(ALLOWED[d], 0, -1):
        written = []
        while True:
            with torch.no_grad():
                logits = model(torch.tensor([tokens])).logits[0, -1].double().numpy()
            if temperature == 0:
                token = int(logits.argmax())
            else:
                p = np.exp(logits / temperature - (logits / temperature).max())
                token = int(np.searchsorted(np.cumsum(p / p.sum()), uniforms[len(tokens) - prompt], side="right"))
            tokens.append(token)
            sampled.append(True)
            written.append(token)
            text = tokenizer.decode(written[:-1] if token == end else written)
            answer = extract_boxed(text)
            out = len(written) == max_attempt_tokens or len(tokens) == prompt + max_new_tokens
            if token == end or answer is not None or out:
                break
        attempts.append((text, answer, answer is not None and verdict(answer, "5")))
        if attempts[-1][2] or left == 1:
            break
        feedback = tokenizer(feedback_text(CHAT_TEMPLATES["chatml"], left - 1), add_special_tokens=False)["input_ids"]
        feedback = feedback[1:] if token == end else feedback
        if len(tokens) + len(feedback) >= prompt + max_new_tokens:
            break
        tokens += feedback
        sampled += [False] * len(feedback)
    return tokens, sampled, attempts


def same(a, b) -> None:
    """Token for token the same dialogues with the same verdicts; log-probabilities up to float32 rounding."""
    for name in ("tokens_DT", "sampled_DT", "length_D", "prompt_length_D", "used_D", "reward_D", "truncated_D"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert a.attempts == b.attempts
    torch.testing.assert_close(a.logp_DT, b.logp_DT, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def dialogues(model, tokenizer):
    return run(model, tokenizer)


def test_the_sample_covers_what_the_tests_are_about(dialogues):
    """Right and wrong, boxed and ended without a box, truncated by an attempt's budget and by the dialogue's."""
    attempts = [a for attempts in dialogues.attempts for a in attempts]
    assert {a.correct for a in attempts} == {a.truncated for a in attempts} == {True, False}
    assert any(a.answer is None and not a.truncated for a in attempts)
    assert set(dialogues.used_D.tolist()) >= {1, 2, 3}
    assert set(dialogues.reward_D.tolist()) == {1.0, -0.5, -1.0}


@pytest.mark.parametrize("options", [{}, dict(slots=5, stride=4), dict(slots=3, stride=1), dict(temperature=0.7)])
def test_logps_equal_the_full_forward(model, tokenizer, options):
    """Rows at different positions, after refill over stale cache (few slots) and after rollback (stride 4)."""
    batch = run(model, tokenizer, **options)
    with torch.no_grad():
        logits = model(input_ids=batch.tokens_DT).logits / options.get("temperature", 1.0)
    logp_DT = logits[:, :-1].log_softmax(-1).gather(-1, batch.tokens_DT[:, 1:, None])[..., 0]
    mask = batch.sampled_DT[:, 1:]
    assert mask.sum() > 300
    torch.testing.assert_close(batch.logp_DT[:, 1:][mask], logp_DT[mask], atol=1e-5, rtol=0)
    assert (batch.logp_DT[~batch.sampled_DT] == 0).all()


def test_every_logit_equals_the_full_forward(model, tokenizer):
    """Decode steps of three rows at different positions; then one row is rolled back and given feedback, one is
    refilled with a shorter prompt over its stale cache, and the third goes on."""
    chat = Chat(model, tokenizer, "chatml")
    prompts = [chat.prompt(question, 3) for question in QUESTIONS[:4]]
    assert len({len(prompt) for prompt in prompts}) > 2
    grid = Grid(model, slots=3, capacity=120, temperature=1.0)
    grid.uniform_SC.copy_(torch.rand(3, 120, generator=torch.Generator().manual_seed(0)))

    def place(row, prompt):
        grid.slots[row] = Slot(row, row, list(prompt), limit=110, left=3, start=len(prompt))
        return grid.slots[row]

    def step_and_compare():
        caught = []
        hook = model.register_forward_hook(lambda module, args, output: caught.append(output.logits[:, -1]))
        flight = grid.launch(1)
        hook.remove()
        for slot in grid.slots:
            full_V = model(input_ids=torch.tensor([slot.tokens])).logits[0, -1]
            torch.testing.assert_close(caught[0][slot.row], full_V, atol=1e-5, rtol=1e-5)
        for slot, tokens, _ in flight:
            slot.tokens += tokens

    with torch.no_grad():
        model.set_attn_implementation("slots")
        first, second, third = [place(row, prompts[row]) for row in (0, 1, 2)]
        grid.feed([third, first, second])
        for _ in range(12):
            step_and_compare()
        # the first attempt is found to have ended 5 tokens behind the prompt
        del first.tokens[len(prompts[0]) + 5 :]
        first.cached = len(first.tokens) - 1
        first.tokens += chat.feedback_after(first.tokens[-1], 2)
        grid.feed([first])
        grid.feed([place(third.row, prompts[0])])
        assert len(set(grid.length_S.tolist())) == 3
        for _ in range(15):
            step_and_compare()


def test_arrange_keeps_active_rows_together_and_the_longest_first(model):
    """Random rows: every row keeps its own cache, tokens and numbers wherever it is moved."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        grid = Grid(model, slots=12, capacity=400, temperature=1.0)
        grid.active_S[:] = rng.random(12) < 0.7
        grid.length_S[:] = rng.integers(1, 390, size=12)
        grid.slots = [Slot(d, d, [], limit=0, left=1, start=0) for d in range(12)]
        for d in range(12):
            grid.cache.kv[:, :, d] = grid.uniform_SC[d] = grid.token_S[d] = grid.position_S[d] = d
        length, active = grid.length_S.copy(), grid.active_S.copy()
        blocks = grid.arrange()
        count = int(active.sum())
        assert grid.active_S.tolist() == [True] * count + [False] * (12 - count)
        assert sorted(slot.dialogue for slot in grid.slots) == list(range(12))
        for row, slot in enumerate(grid.slots):
            d = slot.dialogue
            assert slot.row == row and grid.length_S[row] == length[d] and grid.active_S[row] == active[d]
            assert (grid.cache.kv[:, :, row, :, : length[d]] == d).all() and (grid.uniform_SC[row] == d).all()
            assert grid.token_S[row] == grid.position_S[row] == d
        assert [row for first, last, _ in blocks for row in range(first, last)] == list(range(count))
        for first, last, longest in blocks:
            assert longest == grid.length_S[first:last].max() < grid.length_S[first:last].min() + grid.block
        longest = [longest for *_, longest in blocks]
        assert longest == sorted(longest, reverse=True)


SCHEDULES = [
    dict(slots=1),
    dict(slots=3),
    dict(slots=3, stride=4),
    dict(stride=7),
    dict(slots=5, stride=4, ahead=1),
    dict(stride=3, ahead=2),
]


@pytest.mark.parametrize("options", SCHEDULES)
def test_the_same_dialogues_whatever_the_schedule(model, tokenizer, dialogues, options):
    same(run(model, tokenizer, **options), dialogues)


@pytest.mark.parametrize("temperature", [1.0, 0.6, 0.0])
def test_the_same_dialogues_as_a_naive_loop(model, tokenizer, temperature):
    batch = run(model, tokenizer, temperature=temperature, seed=(3, 1))
    for d in range(len(QUESTIONS)):
        tokens, sampled, attempts = naive(model, tokenizer, d, temperature, seed=(3, 1))
        assert batch.tokens_DT[d, : batch.length_D[d]].tolist() == tokens
        assert batch.sampled_DT[d, : batch.length_D[d]].tolist() == sampled
        assert [(a.text, a.answer, a.correct) for a in batch.attempts[d]] == attempts


def test_another_seed_gives_other_dialogues(model, tokenizer, dialogues):
    assert not torch.equal(run(model, tokenizer, seed=(1,)).tokens_DT[:, :60], dialogues.tokens_DT[:, :60])


def check_bfloat16(tokenizer, temperature: float) -> None:
    """Against the full forward pass in bfloat16: log-probabilities, and every greedy token the best up to ties."""
    model = small_model(tokenizer).to(torch.bfloat16)
    batch = run(model, tokenizer, slots=6, temperature=temperature, stride=4, ahead=1)
    with torch.no_grad():
        logp_DTV = model(input_ids=batch.tokens_DT).logits[:, :-1].float().log_softmax(-1)
    full = logp_DTV.gather(-1, batch.tokens_DT[:, 1:, None])[..., 0]
    mask = batch.sampled_DT[:, 1:]
    assert batch.logp_DT.dtype == torch.float32 and mask.sum() > 300
    assert (batch.logp_DT[:, 1:][mask] - full[mask]).abs().mean() < 2e-2
    if temperature == 0:  # two steps of bfloat16 between 4 and 8, where the best logits lie
        assert (logp_DTV.amax(-1) - full)[mask].max() <= 2**-4


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_bfloat16_is_the_same_up_to_ties(tokenizer, temperature):
    check_bfloat16(tokenizer, temperature)


# ---------------------------------------------------------------------------------------------------------------------
# The CUDA path, played on the CPU


class Recorded(TorchDispatchMode):
    """A CUDA graph of the CPU: what `run` computes, operator by operator, to be computed again on the same tensors.
    Whatever the host decides while it records stays as it was; asking the device for a value is an error."""

    def __init__(self, run):
        super().__init__()
        self.calls = []
        with self:
            run()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        aten = torch.ops.aten  # these wait for the device, or copy from memory of the host that a graph may not read
        assert operator not in (aten._local_scalar_dense.default, aten.nonzero.default, aten.lift_fresh.default)
        result = operator(*args, **(kwargs or {}))
        if not operator.is_view:
            self.calls.append((operator, args, kwargs or {}, result))
        return result

    def replay(self):
        for operator, args, kwargs, results in self.calls:
            again = operator(*args, **kwargs)
            for old, new in zip(*([x] if isinstance(x, torch.Tensor) else x for x in (results, again))):
                old.copy_(new)


def flash_in_words(
    query,
    key,
    value,
    cum_seq_q,
    cum_seq_k,
    max_q,
    max_k,
    dropout_p,
    is_causal,
    return_debug_mask,
    *,
    scale=None,
    seqused_k=None,
    **kwargs,
):
    """The operator by its documentation: queries and keys of all rows one behind the other, `seqused_k` keys each."""
    assert (dropout_p, is_causal, return_debug_mask) == (0.0, False, False)
    R, E = len(seqused_k), query.shape[-1]
    assert cum_seq_q.dtype == cum_seq_k.dtype == seqused_k.dtype == torch.int32
    assert cum_seq_q.shape == cum_seq_k.shape == (R + 1,) and seqused_k.is_contiguous()
    assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1 and E % 8 == 0
    assert key.shape == value.shape == (R * max_k, key.shape[1], E) and query.shape[1] % key.shape[1] == 0
    out = torch.empty_like(query)
    for row, used in enumerate(seqused_k.numpy()):  # numpy: what the kernel reads on the device
        first, last = cum_seq_q.numpy()[row : row + 2]
        start = cum_seq_k.numpy()[row]
        assert 0 < used <= max_k == cum_seq_k.numpy()[row + 1] - start and last - first <= max_q
        q, k, v = query[first:last], key[start : start + used], value[start : start + used]
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        out[first:last] = F.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=True)[0].transpose(0, 1)
    return out, *(query.new_zeros(0) for _ in range(4))


@pytest.fixture
def graphs(monkeypatch):
    """The step as on CUDA with 16-bit weights: recorded once for each number of rows, flash attention in words."""
    made = []

    def capture(run, neighbour):
        run()  # as the real one does
        made.append(Recorded(run))
        return made[-1]

    library = torch.library.Library("aten", "IMPL")
    library.impl("_flash_attention_forward", flash_in_words, "CPU")
    monkeypatch.setattr(engine, "has_flash", lambda model: True)
    monkeypatch.setattr(engine, "capture", capture)
    yield made
    library._destroy()


@pytest.mark.parametrize("options", [dict(slots=5, stride=4, ahead=1), dict(stride=3, ahead=2)])
def test_graphs_write_the_same_dialogues(model, tokenizer, dialogues, graphs, options):
    same(run(model, tokenizer, **options), dialogues)
    rows = min(options.get("slots", 64), len(QUESTIONS))
    assert 1 <= len(graphs) <= 1 + np.ceil(np.log2(rows))


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_bfloat16_is_the_same_up_to_ties_with_graphs(tokenizer, graphs, temperature):
    check_bfloat16(tokenizer, temperature)


def test_late_verdicts_with_graphs(model, tokenizer, dialogues, graphs):
    """Rows that wait for a verdict stay as they are while their neighbours in the graph go on."""
    waiting = []

    def grade(answer, gold):
        waiting.append((Late(), answer))
        return waiting[-1][0]

    class Late(Future):
        def result(self):
            while not self.done():
                late, answer = waiting.pop()
                late.set_result(verdict(answer, "5"))
            return super().result()

    same(run(model, tokenizer, grade=grade, slots=6, stride=4, ahead=1), dialogues)


def test_flash_attention_gives_the_operator_what_it_takes():
    """On the meta device: argument names, and the shapes of Qwen2.5-1.5B."""
    query = torch.empty(8, 12, 128, dtype=torch.bfloat16, device="meta")
    cache = torch.empty(2, 8, 4096, 2, 128, dtype=torch.bfloat16, device="meta")
    starts = torch.empty(9, dtype=torch.int32, device="meta")
    out = flash_attention(query, cache[0], cache[1], starts, starts, starts[:8], 0.1)
    assert out.shape == query.shape and out.dtype == query.dtype


def test_folded_attention_is_that_of_grouped_heads():
    """Feedback of 5 tokens in rows that hold 3 and 9 before it: 6 query heads, 2 of keys."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, h, n, 8, generator=generator) for h, n in ((6, 5), (2, 14), (2, 14)))
    mask = mask_behind(torch.tensor([[3], [9]]) + torch.arange(5), 14, torch.float32)
    expected = F.scaled_dot_product_attention(query, key, value, mask, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(folded_attention(query, key, value, mask, 0.3), expected, atol=1e-6, rtol=1e-6)


def test_the_operator_of_flash_attention_is_the_one_that_is_called():
    """It has no documentation: its arguments as of torch 2.11, in their order; later ones may come behind."""
    arguments = torch.ops.aten._flash_attention_forward.default._schema.arguments
    said = [f"{argument.type} {argument.name}" for argument in arguments]
    assert said[:10] == [
        "Tensor query",
        "Tensor key",
        "Tensor value",
        "Optional[Tensor] cum_seq_q",
        "Optional[Tensor] cum_seq_k",
        "int max_q",
        "int max_k",
        "float dropout_p",
        "bool is_causal",
        "bool return_debug_mask",
    ]
    assert {"Optional[float] scale", "Optional[Tensor] seqused_k"} <= set(said[10:])
    assert all(argument.kwarg_only and argument.default_value is None for argument in arguments[10:])


def test_where_flash_attention_runs(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    for built in (True, False):
        monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: built)
        for device, dtype, capability, head, expected in (
            ("cuda", torch.bfloat16, (9, 0), 128, True),
            ("cuda", torch.float16, (8, 0), 256, True),
            ("cuda", torch.bfloat16, (9, 0), 264, False),
            ("cuda", torch.bfloat16, (9, 0), 12, False),
            ("cuda", torch.float32, (9, 0), 128, False),
            ("cuda", torch.float16, (7, 5), 128, False),
            ("mps", torch.bfloat16, None, 128, False),
            ("cpu", torch.bfloat16, None, 128, False),
        ):
            model = SimpleNamespace(device=torch.device(device), dtype=dtype, config=SimpleNamespace(head_dim=head))
            assert has_flash(model) is (expected and built)


def test_late_verdicts_change_nothing(model, tokenizer, dialogues):
    """Verdicts that come after other dialogues have moved on, the last ones when every row waits."""
    waiting = []

    class Late(Future):
        def result(self):
            if not self.done():  # the rollout has nothing else to do
                settle()
            return super().result()

    def settle():
        for late, answer in reversed(waiting):
            late.set_result(verdict(answer, "5"))
        waiting.clear()

    def grade(answer, gold):
        late = Late()
        waiting.append((late, answer))
        if len(waiting) == 3:
            settle()
        return late

    same(run(model, tokenizer, grade=grade, slots=7), dialogues)


# ---------------------------------------------------------------------------------------------------------------------
# Dialogues written by hand


class Scripted:
    """Stands in for a model: the token after position p is script[p + 1], whatever was fed."""

    def __init__(self, script: list[int], vocabulary: int):
        self.config = SimpleNamespace(
            num_hidden_layers=1,
            num_key_value_heads=1,
            num_attention_heads=1,
            hidden_size=2,
            vocab_size=vocabulary,
            max_position_embeddings=1000,
        )
        self.device, self.dtype, self.generation_config = torch.device("cpu"), torch.float32, None
        self.script = torch.tensor(script + [0] * 50)

    def set_attn_implementation(self, name):
        assert name == "slots"

    def base_model(self, input_ids, position_ids, attention_mask, past_key_values, use_cache):
        keys = torch.zeros(len(input_ids), 1, input_ids.shape[1], 2)
        past_key_values.update(keys, keys, 0)

    def __call__(self, input_ids, position_ids, attention_mask, past_key_values, use_cache, blocks):
        keys = torch.zeros(len(input_ids), 1, 1, 2)
        past_key_values.update(keys, keys, 0)
        logits = torch.full((*input_ids.shape, self.config.vocab_size), -50.0)
        return SimpleNamespace(logits=logits.scatter(-1, self.script[position_ids + 1][..., None], 0.0))


def play(tokenizer, allowed: int, attempts: list[str], garbage: int = 0, gold="5", **options):
    """A model that writes these attempts, and some garbage tokens after each that the engine must not keep."""

    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    chat = CHAT_TEMPLATES["chatml"]
    tokens = ids(prompt_text(chat, QUESTIONS[0], allowed))
    script, sampled, spans = list(tokens), [False] * len(tokens), []
    for i, attempt in enumerate(attempts):
        if i:
            forced = ids(feedback_text(chat, allowed - i))[attempts[i - 1].endswith("<|im_end|>") :]
            tokens, script, sampled = tokens + forced, script + forced, sampled + [False] * len(forced)
        written = ids(attempt)
        spans.append((len(tokens), len(tokens) + len(written)))
        tokens, script, sampled = tokens + written, script + written, sampled + [True] * len(written)
    # what the model would go on to write is wherever the script holds feedback: the engine must force over it
    model = Scripted(script, len(tokenizer))
    batch = rollout(
        model,
        tokenizer,
        [QUESTIONS[0]],
        [gold],
        [allowed],
        extract=extract_boxed,
        reward=reward,
        grade=lambda a, g: settled(a == g),
        **(dict(max_new_tokens=200) | options),
    )
    return batch, tokens, sampled, spans


@pytest.mark.parametrize("stride", [1, 2, 5])
def test_wrong_wrong_right(tokenizer, stride):
    attempts = ["5, 17. \\boxed{17}", "5, 17. \\boxed{29}", "5. \\boxed{5}"]
    batch, tokens, sampled, spans = play(tokenizer, 4, attempts, stride=stride)
    assert batch.tokens_DT[0].tolist() == tokens
    assert batch.sampled_DT[0].tolist() == sampled
    assert [(a.start, a.end) for a in batch.attempts[0]] == spans
    assert [(a.text, a.answer, a.correct) for a in batch.attempts[0]] == [
        (attempts[0], "17", False),
        (attempts[1], "29", False),
        (attempts[2], "5", True),
    ]
    assert (batch.reward_D.item(), batch.used_D.item(), batch.allowed_D.item()) == (1.0, 3, 4)
    assert not batch.truncated_D.item() and batch.length_D.item() == len(tokens)
    text = tokenizer.decode(tokens)
    assert "You have 4 attempts to answer" in text
    said = [f"You have {n} attempts left. Try an alternative.<|im_end|>" in text for n in (3, 2, 1)]
    assert said == [True, True, False]
    assert text.endswith("<|im_start|>assistant\n5. \\boxed{5}")


def test_the_last_wrong_attempt_ends_the_dialogue(tokenizer):
    batch, tokens, sampled, _ = play(tokenizer, 2, ["\\boxed{17}", "\\boxed{29}"])
    assert batch.tokens_DT[0].tolist() == tokens and batch.sampled_DT[0].tolist() == sampled
    assert batch.reward_D.item() == -0.5 and batch.used_D.item() == 2


def test_a_sampled_end_token_is_an_action_and_is_not_forced_again(tokenizer):
    batch, tokens, sampled, _ = play(tokenizer, 2, ["5, 17<|im_end|>", "17<|im_end|>"])
    assert batch.tokens_DT[0].tolist() == tokens and batch.sampled_DT[0].tolist() == sampled
    assert batch.sampled_DT[0, -1] and tokens[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert [a.text for a in batch.attempts[0]] == ["5, 17", "17"]
    assert batch.reward_D.item() == -1.0 and not batch.truncated_D.item()
    assert "17<|im_end|>\n<|im_start|>system" in tokenizer.decode(tokens)


def test_the_first_of_two_boxes_counts(tokenizer):
    batch, tokens, *_ = play(tokenizer, 1, ["\\boxed{17} \\boxed{5}"], stride=8)
    assert batch.attempts[0][0].answer == "17" and batch.reward_D.item() == -0.5
    assert tokenizer.decode(batch.tokens_DT[0]).endswith("\\boxed{17}")


def test_an_attempt_out_of_budget_counts_as_wrong(tokenizer):
    long = "5, 17, 29, 5, 17, 29, 5, 17"
    length = len(tokenizer(long, add_special_tokens=False)["input_ids"])
    batch, tokens, sampled, spans = play(tokenizer, 2, [long, "5. \\boxed{5}"], max_attempt_tokens=length)
    assert batch.tokens_DT[0].tolist() == tokens and batch.sampled_DT[0].tolist() == sampled
    assert [a.truncated for a in batch.attempts[0]] == [True, False]
    assert batch.reward_D.item() == 1.0 and not batch.truncated_D.item()


def test_a_dialogue_out_of_budget_is_truncated(tokenizer):
    attempts = ["5. \\boxed{17}", "5, 17. \\boxed{5}"]
    _, tokens, sampled, spans = play(tokenizer, 2, attempts)
    prompt = spans[0][0]
    for cut in range(spans[1][0] + 1, spans[1][1]):  # in the middle of the second attempt
        batch, *_ = play(tokenizer, 2, attempts, max_new_tokens=cut - prompt, stride=3)
        assert batch.tokens_DT[0].tolist() == tokens[:cut] and batch.sampled_DT[0].tolist() == sampled[:cut]
        assert batch.truncated_D.item() and batch.reward_D.item() == -1.0
    for cut in range(spans[0][1], spans[1][0] + 1):  # no room for feedback and one more token
        batch, *_ = play(tokenizer, 2, attempts, max_new_tokens=cut - prompt)
        assert batch.tokens_DT[0].tolist() == tokens[: spans[0][1]]
        assert batch.truncated_D.item() and batch.reward_D.item() == -0.5
    batch, *_ = play(tokenizer, 2, attempts, max_new_tokens=spans[1][1] - prompt)  # the box closes just in time
    assert not batch.truncated_D.item() and batch.reward_D.item() == 1.0


# ---------------------------------------------------------------------------------------------------------------------
# Sampling


def test_sample_inverts_the_cumulative_distribution():
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(6, 4)
    uniform = torch.tensor([0.0, 0.0999, 0.1001, 0.2999, 0.3001, 0.9999])
    token, logp = sample(logits, uniform, 1.0)
    assert token.tolist() == [0, 0, 1, 1, 2, 3]
    torch.testing.assert_close(logp, torch.tensor([0.1, 0.1, 0.2, 0.2, 0.3, 0.4]).log())


@pytest.mark.parametrize("vocabulary", [4096, 4160, 4097, 704])
def test_sample_agrees_with_float64(vocabulary):
    """In groups of 256, of 64, of 1, and without groups."""
    generator = torch.Generator().manual_seed(0)
    logits, uniform = 3 * torch.randn(500, vocabulary, generator=generator), torch.rand(500, generator=generator)
    p = logits.double().softmax(-1)
    expected = torch.searchsorted(p.cumsum(-1), uniform.double()[:, None], right=True)[:, 0]
    token, logp = sample(logits, uniform, 1.0)
    assert (token == expected).sum() >= 498  # a uniform number within rounding of a border may fall on either side
    torch.testing.assert_close(logp.double(), p.gather(-1, token[:, None])[:, 0].log(), atol=1e-5, rtol=0)


def test_sample_never_takes_an_impossible_token():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.5, -torch.inf]])
    for uniform in (0.0, 1 - 2**-24, 1.0):
        token, logp = sample(logits, torch.tensor([uniform]), 1.0)
        assert token.item() in (1, 3) and logp.isfinite()


def test_sample_frequencies_follow_the_temperature():
    logits = torch.tensor([0.0, 1.0, 2.0])
    uniform = (torch.arange(10000) + 0.5) / 10000
    for temperature in (0.5, 1.0, 2.0):
        token, logp = sample(logits.expand(10000, 3), uniform, temperature)
        p = (logits / temperature).softmax(-1)
        torch.testing.assert_close(token.bincount(minlength=3) / 10000, p, atol=2e-4, rtol=0)
        torch.testing.assert_close(logp, p.log()[token])


def test_temperature_0_is_greedy_and_reports_the_models_own_logp():
    logits = torch.tensor([[0.0, 3.0, 1.0]])
    token, logp = sample(logits, torch.tensor([0.99]), 0)
    assert token.item() == 1
    torch.testing.assert_close(logp, logits.log_softmax(-1)[:, 1])


# ---------------------------------------------------------------------------------------------------------------------
# What does not fit


def test_one_sentence_for_what_does_not_fit(tokenizer):
    model = small_model(tokenizer)
    with pytest.raises(ValueError, match="unknown chat template 'vicuna': choose one of chatml, llama3"):
        run(model, tokenizer, template="vicuna")
    with pytest.raises(ValueError, match="does not know the token <|eot_id|> of the chat template 'llama3'"):
        run(model, tokenizer, template="llama3")
    with pytest.raises(ValueError, match="and max_new_tokens 500 exceed the model's 512 positions: lower max_new_"):
        run(model, tokenizer, max_new_tokens=500)
    sliding = copy.deepcopy(model)
    sliding.config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(ValueError, match="sliding-window layers is not supported"):
        run(sliding, tokenizer)


def test_one_sentence_for_a_cache_that_does_not_fit():
    config = SimpleNamespace(num_hidden_layers=2, num_key_value_heads=2, hidden_size=8, num_attention_heads=2)
    with pytest.raises(ValueError, match="of 1073741824 slots with 1048576 positions takes 1.44e.08 GB, .*: lower"):
        SlotCache(config, 2**30, 2**20, torch.float32, torch.device("cpu"), flash=False)


def test_a_cache_that_does_not_fit_is_refused_before_it_is_allocated(monkeypatch):
    """On CUDA what is free is known: free for everybody, and what torch holds without using it."""
    config = SimpleNamespace(num_hidden_layers=2, num_key_value_heads=2, hidden_size=8, num_attention_heads=2)
    for name, value in (("mem_get_info", (1000, 9999)), ("memory_reserved", 700), ("memory_allocated", 500)):
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    real, allocated = torch.zeros, []
    monkeypatch.setattr(torch, "zeros", lambda shape, **_: allocated.append(shape) or real(shape))
    for capacity in (2, 3):  # 1 slot of 2 layers, keys and values, 2 heads, 4 numbers of 16 bits: 64 bytes a position
        SlotCache(config, 6, capacity, torch.bfloat16, torch.device("cuda"), flash=True)
    with pytest.raises(ValueError, match="of 5 slots with 4 positions takes 1.28e-06 GB, more than is free: lower"):
        SlotCache(config, 5, 4, torch.bfloat16, torch.device("cuda"), flash=True)
    assert allocated == [(2, 2, 6, 2, 2, 4), (2, 2, 6, 3, 2, 4)]


@pytest.mark.parametrize("command", [evaluate, train])
def test_one_sentence_of_a_command_for_a_cache_that_does_not_fit(command, tokenizer, tmp_path, monkeypatch, capsys):
    save_model(small_model(tokenizer), tokenizer, tmp_path / "base")
    (tmp_path / "questions.jsonl").write_text('{"question": "5 or 17?", "answer": "5"}\n')
    monkeypatch.setattr(data.cache, "os", SimpleNamespace(sysconf=lambda name: 100))  # 100 pages of 100 bytes
    monkeypatch.setattr(train.signal, "signal", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    options = "--model base --data questions.jsonl --out out --max_new_tokens 40 --slots 4 --device cpu"
    more = " --eval_data none --dialogues 4 --minibatches 1 --dtype float32" if command is train else ""
    with pytest.raises(SystemExit) as end:
        command.main((options + more).split())
    assert end.value.code not in (0, None)
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "free" in line]
    assert " GB, more than is free: lower --slots or --max_new_tokens" in said


def test_the_size_of_the_cache_is_said_before(model, tokenizer, capsys):
    run(model, tokenizer, progress="evaluate")
    grid = Grid(model, 24, 147, 1.0)
    assert cache_bytes(model.config, 24, 147, 4) == grid.cache.kv.nbytes == 2 * 2 * 24 * 2 * 147 * 8 * 4
    assert "evaluate: key/value cache of 2 layers x 2 x 24 slots x 2 heads x " in capsys.readouterr().err


def test_the_progress_bar_says_the_running_accuracy(model, tokenizer, monkeypatch):
    bar = mock.Mock()
    monkeypatch.setattr(engine, "tqdm", lambda **options: bar)
    batch = run(model, tokenizer, progress="evaluate")
    said = [call.args[0] for call in bar.set_postfix_str.call_args_list]
    assert len(said) == bar.update.call_count == len(batch.correct_D) and 0 < batch.correct_D.sum() < len(said)
    assert said[-1] == f"{batch.correct_D.float().mean():.1%} solved"


def test_one_sentence_for_what_cannot_be_loaded(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no model folder .*/nowhere"):
        load_model(f"{tmp_path}/nowhere", torch.device("cpu"), torch.float32)
    with pytest.raises(OSError, match="cannot be loaded: .*"):
        load_model(str(tmp_path), torch.device("cpu"), torch.float32)
    with pytest.raises(ValueError, match="device 'abacus' is not available here"):
        pick_device("abacus")
    with pytest.raises(ValueError, match="dtype 'int3' is not supported"):
        pick_dtype("int3", torch.device("cpu"))
    assert pick_dtype("auto", torch.device("cpu")) is torch.float32
