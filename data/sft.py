"""Supervised warm-up: a base model that knows how an attempt is written, and nothing of what feedback is for.

A *worked dialogue* has the turns of a real one, its attempts written by a teacher. The teacher never looks back at the
earlier attempts, so that whatever a model makes of the feedback later, it has from reinforcement learning.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

from data.chat import Chat


def worked_dialogue(chat: Chat, question: str, allowed: int, attempts: list[str]) -> tuple[list[int], list[int]]:
    """Tokens of a dialogue in which `allowed` attempts are allowed and these are made, and the same with -100 wherever
    they are not the teacher's."""
    tokens = chat.prompt(question, allowed)
    target = [-100] * len(tokens)
    for used, attempt in enumerate(attempts):
        if used:
            forced = chat.feedback_after(tokens[-1], allowed - used)
            tokens, target = tokens + forced, target + [-100] * len(forced)
        written = chat.encode(attempt)
        tokens, target = tokens + written, target + written
    return tokens, target


def warm_up(
    model,
    dialogues: list[tuple[list[int], list[int]]],
    batch: int,
    lr: float,
    rng: np.random.Generator,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Train a float32 model on worked dialogues, once on each, `batch` a step; the attempts' tokens alone are in the
    loss. `dtype` is that of the computation."""
    dialogues, steps = list(dialogues), len(dialogues) // batch
    for start in range(0, len(dialogues), 16 * batch):  # batches of similar length, for less padding
        dialogues[start : start + 16 * batch] = sorted(dialogues[start : start + 16 * batch], key=lambda d: len(d[0]))
    order = np.concatenate([start + rng.permutation(min(16, steps - start)) for start in range(0, steps, 16)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    for i in (bar := tqdm(order, desc="warm-up", unit="step", mininterval=1)):
        tokens, targets = zip(*dialogues[i * batch : (i + 1) * batch])
        tokens_BT = pad_sequence(list(map(torch.tensor, tokens)), batch_first=True).to(model.device)
        target_BT = pad_sequence(list(map(torch.tensor, targets)), batch_first=True, padding_value=-100)
        target_BT = target_BT.to(model.device)
        written_BT = target_BT[:, 1:] != -100
        # anew in every step: inside, weights are rounded once
        with torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
            # hidden states first: only the teacher's own tokens need logits
            hidden_BTE = model.base_model(input_ids=tokens_BT, use_cache=False).last_hidden_state[:, :-1]
            logits_AV = model.lm_head(hidden_BTE[written_BT])
        loss = F.cross_entropy(logits_AV.float(), target_BT[:, 1:][written_BT])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
