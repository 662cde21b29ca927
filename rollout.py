"""Rollout: questions + model -> Dialogues. Hand-written KV-cached sampling and the batched attempt loop.

A grid of S rows shares one preallocated KV cache. Two things happen to a row, and they are the whole attempt loop:

    feed     *forced* tokens, a prompt or a feedback turn ("Your answer is incorrect. You have 2 attempts left. ..."),
             go into the cache behind what the row already holds, many tokens of many rows at once;
    decode   the model samples one token for every active row, until a row's attempt ends at the first closed
             \\boxed{...}, an end token, or the end of the budget.

After a wrong attempt come feedback and the next attempt; after a dialogue the next question takes its row. The host
looks every `stride` steps at what was written; on CUDA while the next steps run already, so that the GPU never waits
for it. A row that wrote past the end of its attempt is rolled back by resetting its position: what lies behind it is
never read. Tokens in, tokens out: text is decoded to be graded and shown, never encoded again.

Active rows are kept at the front (`Grid.arrange`): a step computes nothing for rows that wait. On the CPU the longest
come first, and attention reads each block of rows only as far as the longest of them reaches. On CUDA with 16-bit
weights a step is a CUDA graph, and flash attention reads each row up to its own length, kept on the device. Randomness
belongs to the dialogue: position t of dialogue d always uses the same uniform number, so the same seed gives the same
dialogues with 1 row or with 256, whatever the order in which they are filled.

Shapes: D dialogues, S rows ("slots"), C cache positions of a row, V vocabulary, R rows of a call, N tokens of each,
        L layers, H key/value heads, G query heads of each, E head dimension; W tokens that are neighbours in V.
"""

import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from data.cache import SlotCache, capture, has_flash, mask_behind
from data.chat import Chat
from data.dialogues import Attempt, Dialogues
from support.models import check_fit, explain_cache

FEED_TOKENS = 16384  # fed in one forward pass, padding included


# -------------------- The grid: one cache, one step
class Grid:
    """S rows on the device. Invariant of a row: its cache holds what comes before `position`, and `token`, which stands
    there, is decided, too. The host knows every position without asking, as an active row moves on by one in a step."""

    def __init__(self, model, slots: int, capacity: int, temperature: float):
        self.model, self.temperature, self.device, self.flash = model, temperature, model.device, has_flash(model)
        self.block = 128 if self.device.type == "cpu" else capacity  # lengths in a block of rows differ by less
        self.cache = SlotCache(model.config, slots, capacity, model.dtype, self.device, self.flash)
        self.uniform_SC = torch.zeros(slots, capacity, device=self.device)
        self.logp_S = torch.zeros(slots, device=self.device)  # of `token`
        self.token_S, self.position_S = torch.zeros(2, slots, dtype=torch.long, device=self.device)
        self.active = torch.zeros((), dtype=torch.long, device=self.device)  # rows that move on in a step
        # By the number of rows. They live as long as the grid, one rollout: to capture a step again takes a fraction of
        # a second, and to keep the graphs would keep the cache while the update needs its memory.
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self.slots: list[Slot | None] = [None] * slots  # whose row it is
        self.length_S = np.zeros(slots, dtype=np.int64)  # `position`, as the host knows it
        self.active_S = np.zeros(slots, dtype=bool)

    def send(self, values) -> torch.Tensor:
        """To the device without waiting for what runs there."""
        return torch.as_tensor(values).to(self.device, non_blocking=True)

    def feed(self, slots: list["Slot"]) -> None:
        """Take the tokens of these dialogues that the cache does not hold, whatever stood in their place, and make the
        rows active. The last token is left for the next step to feed. A prompt that several share is fed once."""
        rows, last = [slot.row for slot in slots], [slot.tokens[-1] for slot in slots]
        self.length_S[rows], self.active_S[rows] = [len(slot.tokens) - 1 for slot in slots], True
        rows_R = self.send(rows)
        self.token_S[rows_R], self.position_S[rows_R] = self.send(last), self.send(self.length_S[rows])
        leaders = {(slot.row if slot.cached else tuple(slot.tokens)): slot for slot in slots}
        leader_R = self.send([leaders[slot.row if slot.cached else tuple(slot.tokens)].row for slot in slots])
        slots = list(leaders.values())

        tokens = [torch.tensor(slot.tokens[slot.cached : -1], dtype=torch.long) for slot in slots]
        tokens_RN = self.send(pad_sequence(tokens, batch_first=True))
        rows_L, start_L = self.send([[slot.row for slot in slots], [slot.cached for slot in slots]])
        # padding lies behind the length as well, and at most at the last position, which no dialogue reaches
        position_RN = start_L[:, None] + torch.arange(tokens_RN.shape[1], device=self.device)
        position_RN = position_RN.clamp(max=self.uniform_SC.shape[1] - 1)
        span = int(self.length_S[rows].max())
        new = slots[0].cached == 0  # nothing to look back at: causal attention needs neither the cache nor a mask
        mask = None if new else mask_behind(position_RN, span, self.model.dtype)
        self.cache.aim(rows_L, position_RN, 0 if new else span)
        self.model.base_model(
            input_ids=tokens_RN,
            position_ids=position_RN,
            past_key_values=self.cache,
            attention_mask=mask,
            use_cache=True,
        )
        if len(slots) < len(rows):
            for layer in self.cache.kv:  # one by one: the copy on the way takes memory
                layer[:, rows_R, :, :span] = layer[:, leader_R, :, :span]

    def arrange(self) -> list[tuple[int, int, int]]:
        """Bring the active rows to the front, the longest first, with few moves. Returns the blocks of rows that differ
        little in length: (first, last, longest length)."""
        rank_S = np.where(self.active_S, self.length_S // self.block, -1)
        order_S = -np.sort(-rank_S)
        to = np.flatnonzero(rank_S != order_S)
        if len(to):
            source = to[np.argsort(-rank_S[to], kind="stable")]
            top = int(self.length_S[source].max()) + 1
            to_R, source_R = self.send(to), self.send(source)
            for layer in self.cache.kv:
                layer[:, to_R, :, :top] = layer[:, source_R, :, :top]
            for each_S in (self.uniform_SC, self.token_S, self.position_S):
                each_S[to_R] = each_S[source_R]
            for each_S in (self.length_S, self.active_S):
                each_S[to] = each_S[source]
            for row, slot in zip(to.tolist(), [self.slots[row] for row in source]):
                self.slots[row] = slot
                if slot:
                    slot.row = row
        edges = [0, *np.flatnonzero(np.diff(order_S, append=-2)) + 1]
        return [(i, j, int(self.length_S[i:j].max())) for i, j in zip(edges, edges[1:]) if order_S[i] >= 0]

    def launch(self, count: int) -> Iterator[tuple["Slot", list[int], list[float]]]:
        """Start `count` decode steps of the active rows. The iterator waits for them and gives the tokens that a row
        wrote and their log-probabilities, unless its attempt has been ended in the meantime."""
        blocks = [(first, last, longest + count) for first, last, longest in self.arrange()]
        active, R = blocks[-1][1], len(self.slots)
        while R > 1 and -(-R // 2) >= active:  # all rows, a half, a quarter ...: few shapes, so few graphs
            R = -(-R // 2)
        step = self.captured(R) if self.flash else partial(self.step, active, blocks)
        self.active.fill_(active)
        written = []
        for _ in range(count):
            step()
            written.append((self.token_S[:active].clone(), self.logp_S[:active].clone()))
        self.length_S[:active] += count
        cuda = self.device.type == "cuda"
        tokens_NR, logp_NR = (torch.stack(each_NR).to("cpu", non_blocking=cuda) for each_NR in zip(*written))
        landed = torch.cuda.current_stream().record_event() if cuda else None
        riders = [(slot, len(slot.attempts)) for slot in self.slots[:active]]

        def land():
            if landed:
                landed.synchronize()
            for (slot, attempt), tokens, logps in zip(riders, tokens_NR.T.tolist(), logp_NR.T.tolist()):
                if attempt == len(slot.attempts):
                    yield slot, tokens, logps

        return land()

    def captured(self, R: int) -> Callable[[], None]:
        """The step of R rows as a CUDA graph, in which nothing waits for Python."""
        if R not in self.graphs:
            self.active.zero_()  # no row moves on in the run before the capture: the next step writes it all again
            self.graphs[R] = capture(partial(self.step, R), next(iter(self.graphs.values()), None))
        return self.graphs[R].replay

    def step(self, R: int, blocks: list[tuple[int, int, int]] | None = None) -> None:
        """Feed the tokens of the first R rows and sample the next ones. It does not wait for the device; without
        blocks, all that it depends on but R is on the device."""
        rows_R, position_R = torch.arange(R, device=self.device), self.position_S[:R]
        active_R, next_R = rows_R < self.active, position_R + 1
        self.cache.aim(rows_R, position_R[:, None], None)
        if blocks:
            reach = dict(blocks=blocks, attention_mask=mask_behind(position_R[:, None], blocks[0][2], self.model.dtype))
        else:  # rows that wait look at one position, and write where they stand, behind all that they need
            starts = torch.arange(R + 1, dtype=torch.int32, device=self.device)
            lengths = starts, starts * self.uniform_SC.shape[1], (position_R * active_R + 1).int()
            reach = dict(lengths=lengths, attention_mask=None)
        logits_RV = self.model(
            input_ids=self.token_S[:R, None],
            position_ids=position_R[:, None],
            use_cache=True,
            past_key_values=self.cache,
            **reach,
        ).logits[:, -1]
        token_R, self.logp_S[:R] = sample(logits_RV, self.uniform_SC[rows_R, next_R], self.temperature)
        self.token_S[:R] = torch.where(active_R, token_R, self.token_S[:R])
        self.position_S[:R] += active_R


def sample(logits_RV: torch.Tensor, uniform_R: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """One token per row by inverting the cumulative distribution at `uniform_R`, and its log-probability (float32).
    Temperature 0 takes the most probable token and reports its log-probability at temperature 1."""
    if temperature not in (0, 1):
        logits_RV = logits_RV.float() / temperature
    p_RV = logits_RV.softmax(-1, dtype=torch.float32)
    R, V = p_RV.shape
    if temperature == 0:
        token_R1 = p_RV.argmax(-1, keepdim=True)
    else:  # in a large vocabulary first among groups of W neighbours, W a power of two that divides V, then in one
        p_RGW = p_RV.view(R, -1, min(V & -V, 256) if V >= 4096 else 1)
        group_R1, rest_R1 = invert(p_RGW.sum(-1), uniform_R[:, None])
        p_RW = p_RGW[torch.arange(R, device=p_RV.device), group_R1[:, 0]]
        token_R1 = group_R1 * p_RW.shape[1] + invert(p_RW, rest_R1)[0]
    return token_R1[:, 0], p_RV.gather(-1, token_R1)[:, 0].log()


def invert(p_RN: torch.Tensor, uniform_R1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where in the cumulative sums of p each uniform number falls: the entry, never one of 0, and how far into it."""
    cdf_RN = F.pad(p_RN.cumsum(-1), (1, 0))
    total_R1 = cdf_RN[:, -1:]
    # strictly below the total, so that rounding never selects an entry of 0 behind the last possible one
    target_R1 = torch.minimum(uniform_R1 * total_R1, total_R1 * (1 - 2**-23))
    entry_R1 = torch.searchsorted(cdf_RN[:, 1:].contiguous(), target_R1, right=True)
    return entry_R1, ((target_R1 - cdf_RN.gather(-1, entry_R1)) / p_RN.gather(-1, entry_R1)).clamp(0, 1)


# -------------------- The attempt loop
WRONG: Future = Future()  # the verdict on an attempt without a box
WRONG.set_result(False)


@dataclass(eq=False)
class Slot:
    """The host's view of a dialogue that is under way."""

    dialogue: int
    row: int
    tokens: list[int]  # the prompt, finished attempts, feedback, and what it has seen of the current attempt
    limit: int  # the current attempt must end before this position
    left: int  # attempts left, the current one included
    start: int  # of the current attempt
    cached: int = 0  # the cache holds so many of `tokens` for good
    scanned: int = 0  # tokens of the current attempt that have been looked at
    attempts: list[Attempt] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)  # of the tokens of all attempts
    verdict: Future | None = None  # on the last attempt


def find_end(slot: Slot, chat: Chat, extract: Callable[[str], str | None]) -> Attempt | None:
    """The current attempt, if it ends within the tokens written so far: at the first closed box, at an end token, or at
    the slot's limit. Tokens behind that end were sampled in vain."""
    start, room, written = slot.start, slot.limit - slot.start, slot.tokens[slot.start :]
    for i in range(slot.scanned, min(len(written), room)):
        if written[i] in chat.ends:
            return Attempt(start, start + i + 1, chat.text(written[:i]), None, truncated=False)
        if written[i] in chat.closing:
            text = chat.text(written[: i + 1])
            if (answer := extract(text)) is not None:
                return Attempt(start, start + i + 1, text, answer, truncated=False)
    if len(written) >= room:
        return Attempt(start, slot.limit, chat.text(written[:room]), None, truncated=True)
    slot.scanned = len(written)
    return None


def next_attempt(slot: Slot, chat: Chat, end_of_budget: int, attempt_budget: int) -> bool:
    """Put the feedback behind a wrong attempt and open the next one; False when the dialogue is over."""
    last = slot.attempts[-1]
    slot.left -= 1
    if last.correct or slot.left == 0:
        return False
    feedback = chat.feedback_after(slot.tokens[-1], slot.left)
    start = len(slot.tokens) + len(feedback)
    if start >= end_of_budget:  # no room for another attempt
        last.truncated = True
        return False
    slot.cached = len(slot.tokens) - 1  # the last token of an attempt need not have been fed
    slot.tokens += feedback
    slot.start, slot.limit, slot.scanned = start, min(end_of_budget, start + attempt_budget), 0
    return True


def feeds(waiting: list[Slot]) -> Iterator[list[Slot]]:
    """What waits to be fed, in batches of prompts or of feedback of similar length (less padding) and bounded size."""
    batch: list[Slot] = []
    for slot in sorted(waiting, key=lambda slot: (slot.cached > 0, len(slot.tokens) - slot.cached)):
        length = len(slot.tokens) - slot.cached
        if batch and (
            (slot.cached > 0) != (batch[0].cached > 0)
            or length * (len(batch) + 1) > FEED_TOKENS
            or length > 2 * (len(batch[0].tokens) - batch[0].cached)
        ):
            yield batch
            batch = []
        batch.append(slot)
    yield batch


@torch.no_grad()
def rollout(
    model,
    tokenizer,
    questions: list[str],
    golds: list[str],
    allowed: list[int],
    *,
    extract: Callable,
    grade: Callable,
    reward: Callable,
    template: str = "chatml",
    feedback: str = "paper",
    slots: int = 256,
    max_new_tokens: int = 3000,
    max_attempt_tokens: int | None = None,
    temperature: float = 1.0,
    seed: tuple[int, ...] = (0,),
    first: int = 0,
    stride: int | None = None,
    ahead: int | None = None,
    progress: str | None = None,
) -> Dialogues:
    """Let the model answer every question in up to `allowed` attempts (paper, section 3).

    extract(text)                      the first closed box of an attempt, or None
    grade(answer, gold)                the verdict, an object with done() and result() such as a Future; the row waits
                                       for it while others go on
    reward(correct, boxed, attempts)   the dialogue's reward, from its last attempt
    template, feedback                 how turns are written and what is said after a wrong attempt, see data/chat.py
    slots                              dialogues written side by side
    max_new_tokens                     budget for everything after the prompt, feedback included
    max_attempt_tokens                 budget for one attempt; an attempt that runs out counts as wrong
    temperature, seed                  0 is greedy; seed and index of a dialogue make its random numbers
    first                              index of the first dialogue, when others of the step are written elsewhere
    stride, ahead                      the host looks every `stride` steps, when `ahead` times as many more have been
                                       launched: 1 and 0, on CUDA 8 and 1, else 8 and 0 (to look stalls the device)
    progress                           label of a progress bar; none without

    Raises ValueError when the model, the tokenizer, the cache or the longest prompt does not fit.
    """
    model.set_attn_implementation("slots")
    chat = Chat(model, tokenizer, template, feedback)
    events = chat.ends | chat.closing
    stride = stride or (1 if model.device.type == "cpu" else 8)
    ahead = int(model.device.type == "cuda") if ahead is None else ahead
    prompts = [chat.prompt(question, n) for question, n in zip(questions, allowed, strict=True)]
    # positions more for tokens sampled in vain, and one for the padding of a feed
    capacity = check_fit(model, max(map(len, prompts)), max_new_tokens) + (1 + ahead) * stride + 1
    slots = min(slots, len(prompts))
    if progress:
        print(progress, explain_cache(model.config, slots, capacity, model.dtype.itemsize), sep=": ", file=sys.stderr)
    grid = Grid(model, slots, capacity, temperature)
    attempt_budget = min(max_new_tokens, max_attempt_tokens or max_new_tokens)
    # the dialogues that may become longest go first, so that few rows are left alone at the end
    queue = deque(sorted(range(len(prompts)), key=lambda d: -allowed[d]))
    waiting, flying, grading, finished, solved = [], deque(), [], {}, 0
    bar = tqdm(total=len(prompts), desc=progress, unit="dialogue", leave=False, disable=progress is None)
    while len(finished) < len(prompts):
        # Free rows take the next questions.
        while queue and None in grid.slots:
            row, d = grid.slots.index(None), queue.popleft()
            n = len(prompts[d])
            grid.slots[row] = Slot(d, row, list(prompts[d]), n + attempt_budget, allowed[d], start=n)
            uniforms = np.random.default_rng((*seed, first + d)).random(max_new_tokens, dtype=np.float32)
            grid.uniform_SC[row, n : n + max_new_tokens] = grid.send(uniforms)
            waiting.append(grid.slots[row])

        # Prompts and feedback are fed. That costs about as much as a step, so a few dialogues wait for each other.
        if waiting and (len(waiting) >= len(grid.slots) // 16 or not grid.active_S.any()):
            for batch in feeds(waiting):
                grid.feed(batch)
            waiting.clear()

        # The model writes, and what it wrote is looked at where an attempt may have ended.
        writing = grid.active_S.any()
        if writing:
            flying.append(grid.launch(stride))
        for slot, tokens, logps in flying.popleft() if len(flying) > ahead * writing else ():
            slot.tokens += tokens
            slot.logps += logps
            if len(slot.tokens) < slot.limit and events.isdisjoint(tokens):
                continue
            if attempt := find_end(slot, chat, extract):
                surplus = len(slot.tokens) - attempt.end
                slot.tokens, slot.logps = slot.tokens[: attempt.end], slot.logps[: len(slot.logps) - surplus]
                slot.attempts.append(attempt)
                slot.verdict = WRONG if attempt.answer is None else grade(attempt.answer, golds[slot.dialogue])
                grading.append(slot)
                grid.active_S[slot.row] = False

        # A verdict opens the next attempt or ends the dialogue; with nothing else to do, wait for one.
        if grading and not waiting and not grid.active_S.any():
            grading[0].verdict.result()
        for slot in [slot for slot in grading if slot.verdict.done()]:
            grading.remove(slot)
            slot.attempts[-1].correct = slot.verdict.result()
            if next_attempt(slot, chat, len(prompts[slot.dialogue]) + max_new_tokens, attempt_budget):
                waiting.append(slot)
            else:
                finished[slot.dialogue], grid.slots[slot.row] = slot, None
                solved += slot.attempts[-1].correct
                bar.set_postfix_str(f"{solved / len(finished):.1%} solved", refresh=False)
                bar.update()
    bar.close()
    tokens, logps, attempts = zip(*((slot.tokens, slot.logps, slot.attempts) for _, slot in sorted(finished.items())))
    rewards = [reward(each[-1].correct, each[-1].answer is not None, len(each)) for each in attempts]
    return Dialogues.collect(tokens, logps, list(attempts), prompts, allowed, rewards)
