r"""Rollout: questions + model -> Dialogues, by the attempt loop of the paper (section 3).

    1. `Attempt`, `Dialogues`   what a rollout returns and every later stage reads
    2. `rollout_one`            the algorithm: one dialogue, one token at a time; enough to understand the method
    3. `KVCache`, attention     the hand-written key/value cache, and how a transformers model reads it
    4. `Engine`                 many dialogues side by side: prefill, decode, compact
    5. `rollout`                the attempt loop over the engine: what `rollout_one` does, up to rounding, but fast

Tokens in, tokens out: tokens are decoded for grading and display, but the text is never encoded again. A token is
sampled by inverse transform: the cumulative distribution is inverted at a uniform number, which depends only on seed,
dialogue and position. So, up to rounding, a seed gives the same dialogues with any number of slots.

A name ends in the shape of its tensor: tokens_DT is (D, T).
Shapes: D dialogues, T tokens of the longest one, V vocabulary
        S slots of the engine, C cache positions of each, R rows (a slot each), N new tokens of each
        L layers, H key/value heads, G query heads for each of them
"""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import AttentionInterface

from data import Problem
from data.chat import Chat
from support.check import check_fit
from support.cuda import capture, flash_attention, flash_sequences, has_flash
from support.memory import OVERRUN, PREFILL_TOKENS, allocate_cache
from support.models import kv_heads_and_size, to_device


# -------------------- 1. The contract: what a rollout returns
@dataclass
class Attempt:
    """One attempt: tokens[start:end] of its dialogue, all of them written by the model."""

    start: int
    end: int
    text: str  # decoded, without the end token
    answer: str | None  # content of the first closed box; None without one
    truncated: bool  # cut off by a token budget
    correct: bool = False


@dataclass
class Dialogues:
    r"""The contract between the stages: tensors on the CPU, in the order of the questions. A dialogue of two attempts;
    the box ends the first one, so the end token after it is forced:

    tokens_DT    <prompt ...> 2 . \boxed{ 2 } <|im_end|> ... incorrect ... 2 , 9 . \boxed{ 9 }
    sampled_DT    0 0 0 0 0 0 1 1 1       1 1 0          0   0         0   1 1 1 1 1       1 1    the model wrote it
    reward_DT     0 0 0 0 0 0 0 0 0       0 0 0          0   0         0   0 0 0 0 0       0 1    at an attempt's end
    """

    tokens_DT: torch.Tensor  # int64, every token exactly as sampled or forced; right-padded with 0
    sampled_DT: torch.Tensor  # bool, True where the model wrote the token (an end token too): these enter the losses
    logp_DT: torch.Tensor  # float32, log-probability when it was sampled (greedy: at temperature 1); 0 where forced
    reward_DT: torch.Tensor  # float32, the reward of each attempt at its last token; 0 elsewhere
    length_D: torch.Tensor  # int64, tokens of the dialogue
    prompt_length_D: torch.Tensor  # int64; for analyses and forks, no stage reads it
    allowed_D: torch.Tensor  # int64, attempts that the prompt allowed
    used_D: torch.Tensor  # int64, attempts written
    truncated_D: torch.Tensor  # bool, ended because a token budget ran out, or left no room for another attempt
    attempts: list[list[Attempt]]  # the one field that is no tensor (support/ranks.py:gather_rows goes by suffixes)

    def select(self, indices: torch.Tensor) -> "Dialogues":
        """Only these dialogues."""
        tensors = {name: x[indices] for name, x in vars(self).items() if name != "attempts"}
        return Dialogues(**tensors, attempts=[self.attempts[d] for d in indices.tolist()])

    @property
    def reward_D(self) -> torch.Tensor:
        """The reward of each dialogue, float32."""
        return self.reward_DT.sum(1)

    @property
    def correct_D(self) -> torch.Tensor:
        """True where the last attempt was correct."""
        return torch.tensor([attempts[-1].correct for attempts in self.attempts])


# -------------------- 2. The algorithm, one dialogue at a time
@torch.no_grad()
def rollout_one(model, chat, problem, allowed: int, rules, config, temperature=1.0, seed=(0,), index=0):
    """One dialogue, with a full forward pass for every token: slow, for readers and tests. `rules` find the answer of
    an attempt and grade it (reward.py:Rules). Returns the dialogue's tokens, a mask of those the model wrote, and its
    attempts. Up to rounding, `rollout` gives the same, with rewards and log-probabilities."""
    tokens = chat.prompt(problem.question, allowed)
    prompt_length, dialogue_limit = len(tokens), len(tokens) + config.max_new_tokens
    sampled, attempts = [False] * prompt_length, []
    uniforms = np.random.default_rng((*seed, index)).random(config.max_new_tokens, dtype=np.float32)
    for attempts_left in reversed(range(allowed)):  # after this one
        # The model writes until it closes a box or ends its turn, or a budget runs out.
        start, answer, ended = len(tokens), None, False
        attempt_limit = min(dialogue_limit, start + (config.max_attempt_tokens or config.max_new_tokens))
        while not ended and len(tokens) < attempt_limit:
            logits_V = model(torch.tensor([tokens], device=model.device)).logits[0, -1].cpu().double()
            if temperature == 0:
                token = int(logits_V.argmax())
            else:  # the first token at which the cumulative probability exceeds the uniform number
                cumulative_V = (logits_V / temperature).softmax(-1).cumsum(-1)
                token = int(torch.searchsorted(cumulative_V, uniforms[len(tokens) - prompt_length].item(), right=True))
            tokens.append(token)
            sampled.append(True)
            ends_turn = token in chat.end_tokens
            text = chat.decode(tokens[start:-1] if ends_turn else tokens[start:])
            answer = None if ends_turn else rules.extract(text)  # no earlier token closed a box
            ended = ends_turn or answer is not None
        correct = answer is not None and rules.is_equal(answer, problem.gold)
        attempts.append(Attempt(start, len(tokens), text, answer, truncated=not ended, correct=correct))
        if correct or attempts_left == 0:
            break

        # After a wrong attempt the feedback is forced, in the same context.
        feedback = chat.feedback_after(tokens[-1], attempts_left, attempts[-1], problem.gold)
        if len(tokens) + len(feedback) >= dialogue_limit:  # no room for another attempt
            break
        tokens += feedback
        sampled += [False] * len(feedback)
    return tokens, sampled, attempts


# -------------------- 3. The key/value cache, and the attention that reads it
# A slot is one dialogue's place in the cache. A forward pass feeds N new tokens to each of R slots. What its
# attention reads:
#     prompts          only these tokens
#     feedback         the first `span` positions of these slots, under a mask
#     a decode step    each slot up to its own length (`sequences`); without flash attention, as for feedback
class KVCache:
    """Keys and values of the engine's slots. Every slot is written at its own positions."""

    def __init__(self, model, slots: int, capacity: int):
        L, (H, head_size) = model.config.num_hidden_layers, kv_heads_and_size(model.config)
        self.kv = allocate_cache((L, 2, slots, H, capacity, head_size), model.dtype, model.device)
        self.slot_S = torch.arange(slots, device=model.device)

    def prepare(self, rows: torch.Tensor | slice, position_RN, span=None, length_R=None) -> None:
        """Before a forward pass: where it writes, and what its attention reads. Without a `span`: only the new tokens.
        With one: that many positions of each slot in `rows`, masked. With `length_R`: that many, by flash attention."""
        self.rows, self.slot_R, self.position_RN, self.span = rows, self.slot_S[rows], position_RN, span
        self.mask = self.sequences = None  # prompts need neither
        if length_R is not None:
            H, C = self.kv.shape[3:5]
            self.sequences = flash_sequences(length_R, H, C)
        elif span is not None:  # (R, 1, N, span): 0 up to a token's own position, -inf after it
            masked = torch.arange(span, device=self.kv.device) > position_RN[:, None, :, None]
            self.mask = torch.where(masked, -torch.inf, 0.0).to(self.kv.dtype)

    def update(self, key, value, layer_index: int):
        """Store the layer's new keys and values, (R, H, N, head size) each. Returns what its attention reads."""
        layer = self.kv[layer_index]
        for cached, new in zip(layer, (key, value)):
            # (R, N, H, head size): the dimensions of indices around a slice come first
            cached[self.slot_R[:, None], :, self.position_RN] = new.transpose(1, 2)
        return (key, value) if self.span is None else layer[:, self.rows, :, : self.span]  # no copy for a slice

    def copy(self, source_R: torch.Tensor, target_R: torch.Tensor, span: int) -> None:
        """Copy the first `span` positions of these slots to other slots, or swap slots."""
        for layer in self.kv:  # one by one: the temporary copy takes memory
            layer[:, target_R, :, :span] = layer[:, source_R, :, :span]


@torch.compiler.disable  # the layers around it may be compiled (support/cuda.py)
def engine_attention(module, query, key, value, attention_mask, scaling, cache: KVCache, **kwargs):
    """Attention for `transformers.AttentionInterface`: query (R, H * G, N, head size), key and value (R, H, N, head
    size). A `cache` given to the model arrives here unchanged; transformers uses none of its own, and makes no mask."""
    key, value = cache.update(key, value, module.layer_idx)
    G = query.shape[1] // key.shape[1]
    if cache.span is None:  # prompts: causal over right-padded rows, where no token sees the padding after it
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=G > 1)
    elif cache.sequences is None:  # feedback, or a decode step without flash attention: the cache under a mask
        # The G query heads that share a key are treated as more queries, so that the key is read once. Otherwise CUDA
        # would copy it G times: flash attention takes no mask, memory-efficient attention no groups of heads.
        grouped = query.unflatten(1, (-1, G)).flatten(2, 3)  # (R, H, G * N, head size)
        mask = cache.mask.repeat(1, 1, G, 1)
        out = F.scaled_dot_product_attention(grouped, key, value, mask, scale=scaling).reshape(query.shape)
    else:  # a decode step with flash attention: each slot up to its own length
        out = flash_attention(query, key, value, cache.sequences, scaling)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register("engine", engine_attention)


# -------------------- 4. The engine: many dialogues side by side
@dataclass(eq=False)  # hashed by identity
class LiveDialogue:
    """A dialogue in progress, as the host (the CPU) knows it."""

    index: int  # its random numbers are those of (*seed, index)
    problem: Problem
    allowed: int
    tokens: list[int]  # the prompt, finished attempts, feedback, and what the host has seen of the current attempt
    dialogue_limit: int  # where the dialogue ends at the latest
    slot: int = -1  # of the engine; it changes when slots are compacted
    position: int = 0  # the cache holds, or will hold, the tokens before it; 0: the prompt is still to be prefilled
    start: int = 0  # of the current attempt
    attempt_limit: int = 0  # where the current attempt ends at the latest
    attempts: list[Attempt] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)  # of `tokens`, 0 where forced

    def start_attempt(self, config) -> None:
        self.logps += [0.0] * (len(self.tokens) - len(self.logps))  # of the prompt or feedback before it
        self.start = len(self.tokens)
        self.attempt_limit = min(self.dialogue_limit, self.start + (config.max_attempt_tokens or config.max_new_tokens))


class Engine:
    """S slots on the device, a dialogue in each, and three operations on them:

        prefill   forced tokens, a prompt or feedback, go into the cache, many tokens of many slots at once;
        decode    the model samples one token for every active slot;
        compact   active slots move to the front, so that a step computes little for inactive slots.

    Invariant: the cache holds a slot's tokens before `position`. The one at `position` is in `token_S`: sampled or
    forced, not yet fed to the model. The host knows all positions without asking: an active slot advances by one per
    step. A slot that wrote past the end of its attempt is rolled back, by resetting its position: what the cache holds
    from there on is not used before it is overwritten.

    A slot is active from its prefill until the host sees its attempt end. Otherwise it waits for a prefill, or it is
    free (None in `in_slot`). With flash attention a step is a CUDA graph, which may include inactive slots."""

    def __init__(self, model, slots: int, longest: int, temperature: float, schedule: tuple[int, int] | None = None):
        """For dialogues of at most `longest` tokens; OSError when the cache does not fit. `schedule`, for tests: how
        many steps a call of `decode_async` starts, and how many calls later the host reads it."""
        self.model, self.temperature, self.device = model, temperature, model.device
        self.to_device = partial(to_device, device=model.device)
        self.flash = has_flash(model, slots)  # then a decode step is a CUDA graph
        # a GPU decodes on while the host reads; on a CPU, steps past the end of an attempt would only take time
        self.steps_per_call, self.calls_ahead = schedule or ((1, 0) if self.device.type == "cpu" else (4, 1))
        assert self.steps_per_call * (self.calls_ahead + 1) <= OVERRUN  # a slot may write this far past its end
        self.capacity = longest + OVERRUN  # room for tokens that will be discarded, and for the padding of a prefill
        self.cache = KVCache(model, slots, self.capacity)
        self.uniform_SC = torch.zeros(slots, self.capacity, device=self.device)
        self.logp_S = torch.zeros(slots, device=self.device)  # of token_S
        self.token_S, self.position_S = torch.zeros(2, slots, dtype=torch.long, device=self.device)
        self.active_count = torch.zeros((), dtype=torch.long, device=self.device)  # len(active), for steps to read
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}  # by number of slots
        self.in_slot: list[LiveDialogue | None] = [None] * slots  # from here on, the host's side
        self.active: list[LiveDialogue] = []  # those in active slots

    def admit(self, live: LiveDialogue, uniforms: np.ndarray) -> None:
        """Give a free slot to a dialogue. Uniform number i is for the i-th token after the prompt."""
        live.slot = self.in_slot.index(None)
        self.in_slot[live.slot] = live
        self.uniform_SC[live.slot, len(live.tokens) : live.dialogue_limit] = self.to_device(uniforms)

    def prefill(self, batch: list[LiveDialogue]) -> None:
        """Feed prompts, or feedback, except for the last token: a step feeds that. The dialogues become active."""
        slot_R = self.to_device([live.slot for live in batch])
        if batch[0].position > 0:  # feedback
            self.fill_cache(batch)
        else:  # equal prompts, as in a group, are computed once and copied (docs/speed.md)
            first: dict[tuple, LiveDialogue] = {}  # the first dialogue with each prompt
            sources = [first.setdefault(tuple(live.tokens), live) for live in batch]
            self.fill_cache(list(first.values()))
            if len(first) < len(batch):
                source_R = self.to_device([live.slot for live in sources])
                self.cache.copy(source_R, slot_R, span=max(len(live.tokens) for live in batch) - 1)

        for live in batch:
            live.position = len(live.tokens) - 1
        self.token_S[slot_R] = self.to_device([live.tokens[-1] for live in batch])
        self.position_S[slot_R] = self.to_device([live.position for live in batch])
        self.active += batch

    @torch.compiler.set_stance("force_eager")  # compiled, it is no faster (docs/speed.md)
    def fill_cache(self, batch: list[LiveDialogue]) -> None:
        """A forward pass over the tokens of these dialogues that the cache lacks: only prompts, or only feedback."""
        new_tokens = [torch.tensor(live.tokens[live.position : -1], dtype=torch.long) for live in batch]
        tokens_RN = self.to_device(pad_sequence(new_tokens, batch_first=True))
        slot_R, start_R = self.to_device([[live.slot for live in batch], [live.position for live in batch]])
        # padding is written after the slot's tokens, and at most at the last position, which no dialogue reaches
        position_RN = start_R[:, None] + torch.arange(tokens_RN.shape[1], device=self.device)
        position_RN = position_RN.clamp(max=self.capacity - 1)
        # a prompt has nothing before it: its attention does not need the cache
        span = None if batch[0].position == 0 else max(len(live.tokens) for live in batch) - 1
        self.cache.prepare(slot_R, position_RN, span)
        self.model.base_model(input_ids=tokens_RN, position_ids=position_RN, cache=self.cache, use_cache=False)
        self.cache.mask = None  # frees its memory now: steps that are graphs do not call `prepare`

    def compact(self) -> None:
        """Make the active slots the first ones: those at the back change places with as many gaps at the front."""
        front, active = set(range(len(self.active))), {live.slot for live in self.active}
        gaps, back = sorted(front - active), sorted(active - front)
        if gaps:
            source, target = back + gaps, gaps + back  # both ways: a dialogue in a gap may wait for its prefill
            swapped = [self.in_slot[slot] for slot in source]
            for live, slot in zip(swapped, target):
                self.in_slot[slot] = live
                if live:
                    live.slot = slot

            source_R, target_R = self.to_device(source), self.to_device(target)
            self.cache.copy(source_R, target_R, max(live.position for live in swapped if live))
            for each_S in (self.uniform_SC, self.token_S, self.position_S):
                each_S[target_R] = each_S[source_R]
        self.active = self.in_slot[: len(front)]  # in the order of slots

    def decode_async(self, steps: int) -> Iterator[tuple[LiveDialogue, list[int], list[float]]]:
        """Start this many decode steps of the active slots. Nothing waits for them until the iterator is read."""
        self.compact()
        n_active, cuda = len(self.active), self.device.type == "cuda"
        for live in self.active:
            live.position += steps
        if self.flash:
            decode_step = self.graph(n_active).replay
        else:
            decode_step = partial(self.step, n_active, span=max(live.position for live in self.active))

        self.active_count.fill_(n_active)
        token_NR, logp_NR = (x_S.new_empty(steps, n_active) for x_S in (self.token_S, self.logp_S))
        for n in range(steps):
            decode_step()
            token_NR[n], logp_NR[n] = self.token_S[:n_active], self.logp_S[:n_active]
        token_NR, logp_NR = (x_NR.to("cpu", non_blocking=cuda) for x_NR in (token_NR, logp_NR))
        event = torch.cuda.current_stream().record_event() if cuda else None
        active = [(live, len(live.attempts)) for live in self.active]  # with the number of finished attempts
        return self.read(active, token_NR, logp_NR, event)

    @staticmethod
    def read(active, token_NR, logp_NR, event) -> Iterator[tuple[LiveDialogue, list[int], list[float]]]:
        """Wait, then yield each dialogue, its new tokens and their log-probabilities, unless its attempt had ended."""
        if event:
            event.synchronize()
        if not logp_NR.isfinite().all():
            raise FloatingPointError("the model's logits are not finite: in training, lower the learning rates")
        for (live, n_attempts), tokens, logps in zip(active, token_NR.T.tolist(), logp_NR.T.tolist()):
            if len(live.attempts) == n_attempts:  # else the tokens come after the attempt's end
                yield live, tokens, logps

    def step(self, R: int, span: int) -> None:
        """Feed the tokens of the first R slots and sample the next ones, without waiting for the device. Attention
        reads at most `span` positions of each slot. An inactive slot, which only a graph can have, stays as it is."""
        slot_R, position_R = self.cache.slot_S[:R], self.position_S[:R]
        active_R = slot_R < self.active_count
        # an inactive slot reads only one position; what it samples and writes is never used
        length_R = position_R * active_R + 1 if self.flash else None
        self.cache.prepare(slice(R), position_R[:, None], span, length_R)
        inputs = dict(input_ids=self.token_S[:R, None], position_ids=position_R[:, None])
        logits_RV = self.model(**inputs, cache=self.cache, use_cache=False).logits[:, -1]
        token_R, self.logp_S[:R] = sample(logits_RV, self.uniform_SC[slot_R, position_R + 1], self.temperature)
        self.token_S[:R] = torch.where(active_R, token_R, self.token_S[:R])
        self.position_S[:R] += active_R

    def graph(self, n_active: int) -> torch.cuda.CUDAGraph:
        """A step of at least the active slots as a CUDA graph: captured once, then replayed without Python. It covers
        all slots, half, a quarter ..., so graphs are few. Several never shrink to 1: torch.compile treats 1 apart."""
        R = len(self.in_slot)
        while R > 2 and (R + 1) // 2 >= n_active:
            R = (R + 1) // 2
        if R not in self.graphs:
            self.active_count.zero_()  # no slot moves on in the run before the capture; `decode_async` sets it later
            self.graphs[R] = capture(partial(self.step, R, self.capacity), next(iter(self.graphs.values()), None))
        return self.graphs[R]


@torch.compile  # eager until `fuse_layers`: importing support/cuda.py turns all compilation off
def sample(logits_RV: torch.Tensor, uniform_R: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """One token from each of R distributions, by inverting the cumulative distribution at `uniform_R`, and its
    log-probability (float32). Temperature 0 takes the most probable token and its log-probability at temperature 1.
    A large vocabulary is searched in two stages: B blocks, then the W tokens of one."""
    if temperature not in (0, 1):
        logits_RV = logits_RV.float() / temperature
    p_RV = logits_RV.softmax(-1, dtype=torch.float32)
    R, V = p_RV.shape
    if temperature == 0:
        token_R1 = p_RV.argmax(-1, keepdim=True)
    elif V < 4096:
        token_R1, _ = inverse_cdf(p_RV, uniform_R[:, None])
    else:  # one cumulative sum over a large vocabulary would be slow and inexact
        W = math.gcd(V, 256)  # a divisor of V
        p_RBW = p_RV.view(R, -1, W)
        block_R1, fraction_R1 = inverse_cdf(p_RBW.sum(-1), uniform_R[:, None])
        p_RW = p_RBW[torch.arange(R, device=p_RV.device), block_R1[:, 0]]
        token_R1 = block_R1 * W + inverse_cdf(p_RW, fraction_R1)[0]
    return token_R1[:, 0], p_RV.gather(-1, token_R1)[:, 0].log()


def inverse_cdf(p_RK: torch.Tensor, uniform_R1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For each uniform number u: the first of K entries at which the cumulative sum of p exceeds u times its total (so
    never an entry where p is 0), and how far into that entry this target falls, from 0 to 1."""
    cumulative_RK = p_RK.cumsum(-1)
    total_R1 = cumulative_RK[:, -1:]
    # strictly below the total, so that rounding never selects an entry of 0 after the last possible one
    target_R1 = torch.minimum(uniform_R1 * total_R1, total_R1 * (1 - 2**-23))
    index_R1 = torch.searchsorted(cumulative_RK, target_R1, right=True).clamp(max=p_RK.shape[-1] - 1)  # NaN gives K
    before_R1 = F.pad(cumulative_RK, (1, 0)).gather(-1, index_R1)
    return index_R1, ((target_R1 - before_R1) / p_RK.gather(-1, index_R1)).clamp(0, 1)


# -------------------- 5. The attempt loop
def ended_attempt(live: LiveDialogue, n_new: int, chat: Chat, rules) -> Attempt | None:
    """The current attempt, if one of the last `n_new` tokens ends it: closed box, end token or end of its budget."""
    start, tokens, limit = live.start, live.tokens, live.attempt_limit
    for i in range(len(tokens) - n_new, min(len(tokens), limit)):
        if tokens[i] in chat.end_tokens:
            return Attempt(start, i + 1, chat.decode(tokens[start:i]), None, truncated=False)
        if tokens[i] in chat.brace_tokens:  # only these can close a box; `rollout_one` looks after every token
            text = chat.decode(tokens[start : i + 1])
            if (answer := rules.extract(text)) is not None:
                return Attempt(start, i + 1, text, answer, truncated=False)
    if len(tokens) >= limit:
        return Attempt(start, limit, chat.decode(tokens[start:limit]), None, truncated=True)
    return None


def next_attempt(live: LiveDialogue, attempt: Attempt, chat: Chat, rules, config) -> bool:
    """Grade an ended attempt and drop later tokens. Append the feedback and start the next one, or return False."""
    del live.tokens[attempt.end :], live.logps[attempt.end :]
    attempt.correct = attempt.answer is not None and rules.is_equal(attempt.answer, live.problem.gold)
    live.attempts.append(attempt)

    attempts_left = live.allowed - len(live.attempts)
    if attempt.correct or attempts_left == 0:
        return False
    feedback = chat.feedback_after(live.tokens[-1], attempts_left, attempt, live.problem.gold)
    if len(live.tokens) + len(feedback) >= live.dialogue_limit:  # no room for another attempt
        return False
    live.position = len(live.tokens) - 1  # rolled back; the last token of an attempt might not be cached yet
    live.tokens += feedback
    live.start_attempt(config)
    return True


def prefill_batches(to_prefill: list[LiveDialogue]) -> Iterator[list[LiveDialogue]]:
    """The dialogues that need prefill, in batches of bounded size: all prompts or all feedback, of similar length."""

    def kind_and_length(live):  # kind: True for feedback
        return live.position > 0, len(live.tokens) - live.position

    batch: list[LiveDialogue] = []
    for live in sorted(to_prefill, key=kind_and_length):
        if batch:
            (kind, length), (first_kind, shortest) = kind_and_length(live), kind_and_length(batch[0])
            if kind != first_kind or length > 2 * shortest or length * (len(batch) + 1) > PREFILL_TOKENS:
                yield batch
                batch = []
        batch.append(live)
    yield batch


def attempt_loop(engine: Engine, all_live: list[LiveDialogue], chat: Chat, rules, config, seed, progress) -> None:
    """The model writes these dialogues to their ends."""
    # the dialogues that may become longest go first, so that fewer slots are idle at the end
    queue = deque(sorted(all_live, key=lambda live: -live.allowed))
    to_prefill, n_finished, n_solved = [], 0, 0
    # What `decode_async` returned, oldest first. It is read `calls_ahead` calls later; the first reads find nothing.
    unread = deque([()] * engine.calls_ahead)
    bar = tqdm(total=len(all_live), desc=progress, unit="dialogue", leave=False, disable=None if progress else True)
    while n_finished < len(all_live):
        # Free slots take the next questions.
        while queue and None in engine.in_slot:
            to_prefill.append(live := queue.popleft())
            uniforms = np.random.default_rng((*seed, live.index)).random(config.max_new_tokens, dtype=np.float32)
            engine.admit(live, uniforms)

        # Prompts and feedback go into the cache when no slot is active or enough dialogues wait: a prefill interrupts
        # decoding, on a GPU for as long as several steps (docs/speed.md).
        enough = len(engine.active) // 4 if engine.device.type == "cuda" else len(engine.in_slot) // 16
        if to_prefill and (len(to_prefill) >= enough or not engine.active):
            for batch in prefill_batches(to_prefill):
                engine.prefill(batch)
            to_prefill.clear()

        # The model writes. The host reads this call or, on a GPU, an earlier one, so that the device need not wait.
        unread.append(engine.decode_async(engine.steps_per_call))
        for live, tokens, logps in unread.popleft():
            live.tokens += tokens
            live.logps += logps
            attempt = ended_attempt(live, len(tokens), chat, rules)
            if attempt is None:
                continue

            # An attempt has ended. It is graded; feedback follows, or the slot is free for the next question.
            engine.active.remove(live)
            if next_attempt(live, attempt, chat, rules, config):
                to_prefill.append(live)
            else:
                engine.in_slot[live.slot] = None
                n_finished += 1
                n_solved += attempt.correct
                bar.set_postfix_str(f"{n_solved / n_finished:.1%} solved", refresh=False)
                bar.update()
    bar.close()


def to_dialogues(finished: list[LiveDialogue], rules) -> Dialogues:
    """Reward finished dialogues and pad them into one batch."""
    tokens_DT = pad_sequence([torch.tensor(live.tokens) for live in finished], batch_first=True)
    logp_DT = pad_sequence([torch.tensor(live.logps) for live in finished], batch_first=True)
    sampled_DT, reward_DT = torch.zeros(tokens_DT.shape, dtype=torch.bool), torch.zeros(tokens_DT.shape)
    truncated_D = torch.zeros(len(finished), dtype=torch.bool)
    for d, live in enumerate(finished):
        for attempt, reward in zip(live.attempts, rules.reward(live.attempts, live.problem.gold), strict=True):
            sampled_DT[d, attempt.start : attempt.end] = True
            reward_DT[d, attempt.end - 1] = reward
        last, more_allowed = live.attempts[-1], len(live.attempts) < live.allowed
        truncated_D[d] = last.truncated or (more_allowed and not last.correct)
    sizes = [(len(live.tokens), live.attempts[0].start, live.allowed, len(live.attempts)) for live in finished]
    length_D, prompt_length_D, allowed_D, used_D = torch.tensor(sizes).T
    tensors = tokens_DT, sampled_DT, logp_DT, reward_DT, length_D, prompt_length_D, allowed_D, used_D, truncated_D
    return Dialogues(*tensors, attempts=[live.attempts for live in finished])


@torch.no_grad()
def rollout(
    model, chat, problems, allowed, rules, config, temperature=1.0, seed=(0,), first_index=0, progress=None, engine=None
) -> Dialogues:
    """The model answers problem i in at most allowed[i] attempts (paper, section 3).

    `rules` extract, grade and reward (reward.py:Rules). `config` gives slots, max_new_tokens and
    max_attempt_tokens (train.py:Config). Temperature 0 is greedy. Dialogue i draws its random numbers from (*seed,
    first_index + i). `progress` labels a progress bar on a terminal. `engine`: used in place of a new one. ValueError
    when model or prompts do not fit, OSError when the cache does not, FloatingPointError when logits are not finite."""
    all_live = []
    for index, (problem, n) in enumerate(zip(problems, allowed, strict=True), first_index):
        prompt = chat.prompt(problem.question, n)
        all_live.append(LiveDialogue(index, problem, n, prompt, dialogue_limit=len(prompt) + config.max_new_tokens))
        all_live[-1].start_attempt(config)
    longest = check_fit(model, max(len(live.tokens) for live in all_live), config.max_new_tokens)
    engine = engine or Engine(model, min(config.slots or len(all_live), len(all_live)), longest, temperature)
    assert engine.temperature == temperature, "the engine has another temperature: make a new one"
    own_attention = model.config._attn_implementation
    model.set_attn_implementation("engine")  # only for this rollout: `engine_attention` needs a cache
    try:
        attempt_loop(engine, all_live, chat, rules, config, seed, progress)
    finally:
        model.set_attn_implementation(own_attention)
    return to_dialogues(all_live, rules)
