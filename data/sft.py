"""Supervised fine-tuning: gives a base model that knows how an attempt is written, but not what feedback is for.

A *worked dialogue* has the turns of a real one, and a teacher writes its attempts. The teacher never looks back at the
earlier attempts. So whatever a model makes of the feedback later, it has learned in reinforcement learning.
Shapes: B dialogues, T tokens of a dialogue, A tokens that the teacher wrote, E hidden size, V vocabulary.
"""

from collections.abc import Callable
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

from data.chat import Chat
from support.models import logits_of


def boxed(attempt: str) -> SimpleNamespace:
    """An attempt that ends with its box, with the fields that feedback may use."""
    return SimpleNamespace(text=attempt, answer=attempt.partition("\\boxed{")[2][:-1])


def worked_dialogue(chat: Chat, problem, max_attempts: int, teacher: Callable, rng) -> tuple[list[int], list[int]]:
    """The tokens of a dialogue, and the targets of the loss: the same tokens, with -100 in place of those that the
    teacher did not write. The number allowed is drawn; teacher(problem, allowed, rng) writes the attempts."""
    allowed = int(rng.integers(1, max_attempts + 1))
    tokens, targets, forced = [], [], chat.prompt(problem.question, allowed)
    for used, attempt in enumerate(teacher(problem, allowed, rng), 1):
        written = chat.encode(attempt)
        tokens += forced + written
        targets += [-100] * len(forced) + written
        forced = chat.feedback_after(tokens[-1], allowed - used, boxed(attempt), problem.gold)
    return tokens, targets


def fine_tune(model, dialogues: list[tuple], batch: int, lr: float, rng, dtype=torch.float32) -> None:
    """Train a float32 model on worked dialogues: one pass, `batch` dialogues a step, the loss only on the attempts.
    Incomplete batches are left out. `dtype` is that of the computation."""
    batches = []
    for start in range(0, len(dialogues), 16 * batch):  # dialogues of similar length together, for less padding
        by_length = sorted(dialogues[start : start + 16 * batch], key=lambda dialogue: len(dialogue[0]))
        batches += [by_length[i * batch : (i + 1) * batch] for i in rng.permutation(len(by_length) // batch)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, len(batches) // 20, len(batches))
    for dialogues_of_step in (bar := tqdm(batches, desc="supervised fine-tuning", unit="step", mininterval=1)):
        tokens, targets = zip(*dialogues_of_step)
        tokens_BT = pad_sequence(list(map(torch.tensor, tokens)), batch_first=True).to(model.device)
        target_BT = pad_sequence(list(map(torch.tensor, targets)), batch_first=True, padding_value=-100)
        next_BT = target_BT[:, 1:].to(model.device)
        # a new context in every step: within one, each weight is rounded only once
        with torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
            # logits only where the teacher wrote the next token
            outputs = model.base_model(input_ids=tokens_BT, use_cache=False)
            logits_AV = logits_of(model, outputs, outputs.last_hidden_state[:, :-1][next_BT != -100])
        loss = F.cross_entropy(logits_AV.float(), next_BT[next_BT != -100])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
