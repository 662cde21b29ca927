"""Rollout: questions + model -> Dialogues. Hand-written KV-cached sampling and the batched attempt loop.

A fixed grid of S slots shares one preallocated KV cache and is stepped one token at a time by one function of fixed
shape (`Grid.step`). In every step a slot feeds one token to the model and then either samples its next token or takes
the next *forced* one. That single rule gives the whole attempt loop:

    prompt      forced tokens whose keys and values a batched prefill has already written;
    attempt     sampled tokens, until the first closed \\boxed{...}, an end token, or the end of the budget;
    feedback    forced tokens again ("Your answer is incorrect. You have 2 attempts left. ..."), in the same cache;
    next        the finished slot takes the next question from the queue.

The host looks at the grid every `stride` steps, and only at rows that sampled an end token or a closing brace. A slot
that wrote past the token that closed its box is rolled back to it, by resetting its length: what lies behind the
length is never read. Tokens in, tokens out: text is decoded to be graded and shown, and never encoded again.

Randomness belongs to the dialogue: position t of dialogue d always uses the same uniform number, so the same seed
gives the same dialogues with 1 slot or with 256, whatever the order in which slots are filled.

Shapes: D dialogues, T tokens of the longest dialogue, S slots, C cache positions a slot has, V vocabulary,
        L layers, H key/value heads, G query heads per key/value head, E head dimension.
"""

from collections import deque
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import AttentionInterface

from data.chat import Chat
from data.models import check_fit


# ---------------------------------------------------------------------------------------------------------------------
# The contract between the stages


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
    """What a rollout returns and every later stage reads: tensors on the CPU, in the order of the questions."""

    tokens_DT: torch.Tensor  # int64, every token exactly as sampled or forced; right-padded with 0
    sampled_DT: torch.Tensor  # bool, True where the model wrote the token (a sampled end token included)
    logp_DT: torch.Tensor  # float32, log-probability under the distribution that it was sampled from; 0 where forced
    length_D: torch.Tensor  # int64, tokens of the dialogue
    prompt_length_D: torch.Tensor  # int64
    allowed_D: torch.Tensor  # int64, attempts that the prompt allowed
    used_D: torch.Tensor  # int64, attempts written
    reward_D: torch.Tensor  # float32
    truncated_D: torch.Tensor  # bool, ended because a token budget ran out
    attempts: list[list[Attempt]] = field(repr=False)

    @property
    def correct_D(self) -> torch.Tensor:
        """True where the last attempt was correct."""
        return torch.tensor([attempts[-1].correct for attempts in self.attempts])


# ---------------------------------------------------------------------------------------------------------------------
# The grid: one cache, one step


def slot_attention(module, query, key, value, attention_mask, scaling, **kwargs):
    """Attention for `transformers.AttentionInterface`.

    With a mask it is a decode step: one query per row over the cache, grouped by key/value head so that the cache is
    never copied; on CPU matmul-softmax-matmul is faster than SDPA for a single query. Without a mask it is ordinary
    causal attention over right-padded rows (prefill, training), where padding needs no mask because nothing before
    it looks at it.
    """
    if attention_mask is None:
        grouped = query.shape[1] != key.shape[1]
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=grouped)
        return out.transpose(1, 2).contiguous(), None
    S, heads, _, E = query.shape
    query = query.reshape(S, key.shape[1], -1, E)  # (S, H, G, E)
    scores = (query @ key.transpose(2, 3)).float() * scaling + attention_mask  # (S, H, G, span)
    out = scores.softmax(-1).to(value.dtype) @ value  # (S, H, G, E)
    return out.reshape(S, 1, heads, E), None


AttentionInterface.register("slots", slot_attention)


class SlotCache:
    """The `past_key_values` that transformers' attention layers call: each row is written at its own position."""

    def __init__(self, config, slots: int, capacity: int, dtype: torch.dtype, device: torch.device):
        heads = config.num_key_value_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        # zeros, not empty: a masked NaN would still poison the softmax-weighted sum
        self.kv = torch.zeros(config.num_hidden_layers, 2, slots, heads, capacity, size, dtype=dtype, device=device)
        self.rows, self.position, self.span = None, None, None

    def update(self, key, value, layer_idx: int, *args, **kwargs):
        """Store (rows, H, tokens, E) and return what attention reads: the new tokens in a prefill, the row's history
        up to `span` in a decode step."""
        keys, values = self.kv[layer_idx]  # (S, H, C, E) each
        if self.position is None:  # prefill
            keys[self.rows, :, : key.shape[2]] = key
            values[self.rows, :, : key.shape[2]] = value
            return key, value
        keys[self.rows, :, self.position] = key[:, :, 0]
        values[self.rows, :, self.position] = value[:, :, 0]
        return keys[: len(self.rows), :, : self.span], values[: len(self.rows), :, : self.span]


class Grid:
    """S slots on the device. Invariant of a row: the cache holds tokens[:length], and tokens[:known] are decided."""

    def __init__(self, model, slots: int, capacity: int, temperature: float, event_tokens: set[int]):
        device = model.device
        self.model, self.temperature = model, temperature
        self.event_V = torch.zeros(model.config.vocab_size, dtype=torch.bool, device=device)
        self.event_V[list(event_tokens)] = True
        self.cache = SlotCache(model.config, slots, capacity, model.dtype, device)
        self.rows_S = torch.arange(slots, device=device)
        self.tokens_SC = torch.zeros(slots, capacity, dtype=torch.long, device=device)
        self.logp_SC = torch.zeros(slots, capacity, device=device)
        self.uniform_SC = torch.zeros(slots, capacity, device=device)
        self.length_S = torch.zeros(slots, dtype=torch.long, device=device)
        self.known_S = torch.ones(slots, dtype=torch.long, device=device)
        self.limit_S = torch.zeros(slots, dtype=torch.long, device=device)
        self.active_S = torch.zeros(slots, dtype=torch.bool, device=device)
        self.event_S = torch.zeros(slots, dtype=torch.bool, device=device)

    def prefill(self, rows: list[int], prompts: list[list[int]]) -> None:
        """Write the keys and values of new prompts, all but their last token, which the first decode step feeds."""
        device = self.rows_S.device
        length = max(map(len, prompts))
        batch = torch.zeros(len(rows), length, dtype=torch.long)
        for i, prompt in enumerate(prompts):
            batch[i, : len(prompt)] = torch.tensor(prompt)
        batch, rows_R = batch.to(device), torch.tensor(rows, device=device)
        self.cache.rows, self.cache.position = rows_R, None
        if length > 1:
            positions = torch.arange(length - 1, device=device)[None]
            self.model.base_model(
                input_ids=batch[:, :-1], position_ids=positions, past_key_values=self.cache, use_cache=True
            )
        known = torch.tensor([len(prompt) for prompt in prompts], device=device)
        self.tokens_SC[rows_R, :length] = batch
        self.known_S[rows_R], self.length_S[rows_R] = known, known - 1

    def occupy(self, s: int, start: int, limit: int, uniforms: np.ndarray) -> None:
        """Start a dialogue in row s: its prompt ends before `start`; `uniforms` decide its tokens from there on."""
        self.uniform_SC[s, start : start + len(uniforms)] = torch.from_numpy(uniforms)
        self.limit_S[s], self.active_S[s] = limit, True

    def force(self, s: int, start: int, tokens: list[int], limit: int) -> None:
        """Roll row s back to its first `start` tokens and let these tokens follow; the row goes on until `limit`."""
        end = start + len(tokens)
        self.tokens_SC[s, start:end] = torch.tensor(tokens)
        self.length_S[s] = self.length_S[s].clamp(max=start)
        self.known_S[s], self.limit_S[s], self.active_S[s] = end, limit, True

    def release(self, s: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Empty row s; its first `end` tokens and their log-probabilities, on the CPU."""
        self.length_S[s], self.known_S[s], self.active_S[s] = 0, 1, False
        return self.tokens_SC[s, :end].cpu().clone(), self.logp_SC[s, :end].cpu().clone()

    def steps(self, count: int) -> list[int]:
        """Run `count` steps; the active rows that sampled an end token or a closing brace or ran out of budget.

        Attention reads the cache up to the longest row, rounded up so that shapes repeat.
        """
        self.event_S.zero_()
        longest = int(self.length_S.max()) + count
        span = min(self.tokens_SC.shape[1], -(-longest // 32) * 32)
        for _ in range(count):
            self.step(span)
        return self.event_S.nonzero()[:, 0].tolist()

    def step(self, span: int) -> None:
        """Feed one token of every slot and decide the next; attention reads the first `span` cache positions.

        No host synchronisation and the same shapes in every call with the same span. Rows that are not active compute
        as well, but do not advance, and what they write lies behind their length.
        """
        position_S = self.length_S.clone()
        self.cache.rows, self.cache.position, self.cache.span = self.rows_S, position_S, span
        visible = torch.arange(span, device=position_S.device) <= position_S[:, None]
        mask = torch.zeros(visible.shape, device=position_S.device).masked_fill_(~visible, -torch.inf)
        logits_SV = self.model(
            input_ids=self.tokens_SC[self.rows_S, position_S][:, None],
            position_ids=position_S[:, None],
            attention_mask=mask[:, None, None],  # a 4D mask reaches the attention function as it is
            past_key_values=self.cache,
            use_cache=True,
        ).logits[:, -1]
        next_S = position_S + 1
        token_S, logp_S = sample(logits_SV, self.uniform_SC[self.rows_S, next_S], self.temperature)
        forced_S = next_S < self.known_S
        token_S = torch.where(forced_S, self.tokens_SC[self.rows_S, next_S], token_S)
        self.tokens_SC[self.rows_S, next_S] = token_S
        self.logp_SC[self.rows_S, next_S] = logp_S
        self.length_S += self.active_S
        self.known_S = torch.maximum(self.known_S, self.length_S + 1)
        self.event_S |= self.active_S & ~forced_S & (self.event_V[token_S] | (self.known_S >= self.limit_S))

    def shrink(self, keep: list[int]) -> None:
        """Keep only these rows, in this order: the tail of a rollout should not pay for a full grid."""
        rows = torch.tensor(keep, device=self.rows_S.device)
        for layer in self.cache.kv:  # layer by layer, so that the copy made on the way stays small
            layer[:, : len(keep)] = layer[:, rows]
        for name, tensor in vars(self).items():
            if name.endswith(("_S", "_SC")):
                setattr(self, name, tensor[rows].clone())
        self.rows_S = torch.arange(len(keep), device=rows.device)


def sample(logits_SV: torch.Tensor, uniform_S: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """One token per row by inverting the cumulative distribution at `uniform_S`, and its log-probability (float32).

    Temperature 0 takes the most probable token and reports its log-probability at temperature 1.
    """
    logp_SV = (logits_SV.float() / (temperature or 1.0)).log_softmax(-1)
    if temperature == 0:
        token_S = logp_SV.argmax(-1)
    else:
        cdf_SV = logp_SV.exp().cumsum(-1)
        total_S = cdf_SV[:, -1]
        # strictly below the total, so that rounding never selects a token of probability 0 behind the last possible one
        target_S = torch.minimum(uniform_S * total_S, total_S * (1 - 2**-23))
        token_S = torch.searchsorted(cdf_SV, target_S[:, None], right=True)[:, 0]
    return token_S, logp_SV.gather(-1, token_S[:, None])[:, 0]


# ---------------------------------------------------------------------------------------------------------------------
# The attempt loop


WRONG: Future = Future()  # the verdict on an attempt without a box
WRONG.set_result(False)


@dataclass
class Slot:
    """The host's view of an occupied slot."""

    dialogue: int
    prompt_length: int
    left: int  # attempts left, the current one included
    start: int  # first token of the current attempt
    scanned: int  # tokens before this one have been looked at
    limit: int  # the current attempt must end before this position
    attempts: list[Attempt] = field(default_factory=list)
    verdict: Future | None = None  # set while the last attempt is being graded: the slot is parked


def find_end(tokens: list[int], slot: Slot, chat: Chat, extract: Callable[[str], str | None]) -> Attempt | None:
    """The current attempt, if it ends within these tokens of its dialogue: at the first closed box, at an end token,
    or at the slot's limit. Tokens behind that end were sampled in vain."""
    for position in range(slot.scanned, min(len(tokens), slot.limit)):
        if tokens[position] in chat.ends:
            return Attempt(slot.start, position + 1, chat.text(tokens[slot.start : position]), None, truncated=False)
        if tokens[position] in chat.closing:
            text = chat.text(tokens[slot.start : position + 1])
            if (answer := extract(text)) is not None:
                return Attempt(slot.start, position + 1, text, answer, truncated=False)
    if len(tokens) >= slot.limit:
        return Attempt(slot.start, slot.limit, chat.text(tokens[slot.start : slot.limit]), None, truncated=True)
    slot.scanned = len(tokens)
    return None


def next_attempt(slot: Slot, grid: Grid, s: int, chat: Chat, budget: int, attempt_budget: int | None) -> bool:
    """Force the feedback after a wrong attempt and open the next one; False when the dialogue is over."""
    last = slot.attempts[-1]
    slot.left -= 1
    if last.correct or slot.left == 0:
        return False
    forced = chat.feedback_after(int(grid.tokens_SC[s, last.end - 1]), slot.left)
    slot.start = slot.scanned = last.end + len(forced)
    end_of_budget = slot.prompt_length + budget
    if slot.start >= end_of_budget:  # no room for another attempt
        last.truncated = True
        return False
    slot.limit = min(end_of_budget, slot.start + (attempt_budget or budget))
    grid.force(s, last.end, forced, slot.limit)
    return True


def collect(finished: list[tuple], allowed: list[int], reward: Callable[[bool, bool, int], float]) -> Dialogues:
    """Pad finished dialogues (slot, tokens, log-probabilities) into one batch and give each its reward."""
    slots, tokens, logps = zip(*finished)
    sampled = [torch.zeros(len(row), dtype=torch.bool) for row in tokens]
    for slot, row in zip(slots, sampled):
        for attempt in slot.attempts:
            row[attempt.start : attempt.end] = True
    sampled_DT = pad_sequence(sampled, batch_first=True)
    last = [slot.attempts[-1] for slot in slots]
    rewards = [reward(a.correct, a.answer is not None, len(slot.attempts)) for slot, a in zip(slots, last)]
    return Dialogues(
        tokens_DT=pad_sequence(list(tokens), batch_first=True),
        sampled_DT=sampled_DT,
        logp_DT=pad_sequence(list(logps), batch_first=True).masked_fill(~sampled_DT, 0.0),
        length_D=torch.tensor([len(row) for row in tokens]),
        prompt_length_D=torch.tensor([slot.prompt_length for slot in slots]),
        allowed_D=torch.tensor(allowed),
        used_D=torch.tensor([len(slot.attempts) for slot in slots]),
        reward_D=torch.tensor(rewards, dtype=torch.float32),
        truncated_D=torch.tensor([slot.attempts[-1].truncated for slot in slots]),
        attempts=[slot.attempts for slot in slots],
    )


@torch.no_grad()
def rollout(
    model,
    tokenizer,
    questions: list[str],
    golds: list[str],
    allowed: list[int],
    *,
    extract: Callable[[str], str | None],
    grade: Callable[[str, str], Future],
    reward: Callable[[bool, bool, int], float],
    template: str = "chatml",
    slots: int = 256,
    max_new_tokens: int = 3000,
    max_attempt_tokens: int | None = None,
    temperature: float = 1.0,
    seed: tuple[int, ...] = (0,),
    stride: int | None = None,
    progress: str | None = None,
) -> Dialogues:
    """Let the model answer every question in up to `allowed` attempts (paper, section 3).

    extract(text)                      the first closed box of an attempt, or None
    grade(answer, gold)                a Future of the verdict; the slot is parked until it is there
    reward(correct, boxed, attempts)   the dialogue's reward, from its last attempt
    max_new_tokens                     budget for everything after the prompt, feedback included
    max_attempt_tokens                 budget for one attempt; an attempt that runs out counts as wrong
    temperature                        0 is greedy
    seed                               together with a dialogue's index it makes the dialogue's random numbers
    stride                             steps between two looks of the host: 1 on CPU, else 8 (a look stalls the device)
    progress                           label of a progress bar; none without

    Raises ValueError when the model, the tokenizer or the longest prompt does not fit.
    """
    model.set_attn_implementation("slots")
    chat = Chat(model, tokenizer, template)
    stride = stride or (1 if model.device.type == "cpu" else 8)
    prompts = [chat.prompt(question, n) for question, n in zip(questions, allowed, strict=True)]
    # one position more for the token that a parked row writes, again and again, behind its last one
    capacity = check_fit(model, max(map(len, prompts)), max_new_tokens) + stride + 1
    grid = Grid(model, min(slots, len(prompts)), capacity, temperature, chat.ends | chat.closing)
    occupied: list[Slot | None] = [None] * len(grid.rows_S)
    queue, finished = deque(range(len(prompts))), {}
    bar = tqdm(total=len(prompts), desc=progress, unit="dialogue", leave=False, disable=progress is None)
    while len(finished) < len(prompts):
        free = [s for s, slot in enumerate(occupied) if slot is None]
        if queue and len(free) >= max(1, len(occupied) // 8):  # a prefill costs a step: refill several slots at a time
            filled = free[: len(queue)]
            for s in filled:
                d = queue.popleft()
                n = len(prompts[d])
                limit = n + min(max_new_tokens, max_attempt_tokens or max_new_tokens)
                occupied[s] = Slot(d, n, allowed[d], start=n, scanned=n, limit=limit)
                uniforms = np.random.default_rng((*seed, d)).random(max_new_tokens, dtype=np.float32)
                grid.occupy(s, n, limit, uniforms)
            grid.prefill(filled, [prompts[occupied[s].dialogue] for s in filled])
        elif not queue and len(free) * 2 >= len(occupied):
            keep = [s for s, slot in enumerate(occupied) if slot is not None]
            grid.shrink(keep)
            occupied = [occupied[s] for s in keep]

        if any(slot and not slot.verdict for slot in occupied):
            for s in grid.steps(stride):
                slot = occupied[s]
                decided = grid.tokens_SC[s, : grid.known_S[s]].tolist()
                if attempt := find_end(decided, slot, chat, extract):
                    slot.attempts.append(attempt)
                    slot.verdict = grade(attempt.answer, golds[slot.dialogue]) if attempt.answer is not None else WRONG
                    grid.active_S[s] = False
        else:
            wait([slot.verdict for slot in occupied if slot], return_when=FIRST_COMPLETED)

        for s, slot in enumerate(occupied):
            if slot and slot.verdict and slot.verdict.done():
                slot.attempts[-1].correct, slot.verdict = slot.verdict.result(), None
                if not next_attempt(slot, grid, s, chat, max_new_tokens, max_attempt_tokens):
                    finished[slot.dialogue] = (slot, *grid.release(s, slot.attempts[-1].end))
                    occupied[s] = None
                    bar.update()
    bar.close()
    return collect([finished[d] for d in range(len(prompts))], allowed, reward)
