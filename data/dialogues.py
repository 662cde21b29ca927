"""The contract between the stages: what a rollout returns, and everything after it reads.

Shapes: D dialogues, T tokens of the longest dialogue.
"""

from dataclasses import dataclass, field, fields

import torch
from torch.nn.utils.rnn import pad_sequence


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

    @classmethod
    def collect(
        cls,
        tokens: list[list[int]],
        logps: list[list[float]],
        attempts: list[list[Attempt]],
        prompts: list[list[int]],
        allowed: list[int],
        rewards: list[float],
    ) -> "Dialogues":
        """Pad finished dialogues into one batch. Entry d of `logps` has those of the tokens that the model wrote."""
        tokens_DT = pad_sequence([torch.tensor(each) for each in tokens], batch_first=True)
        sampled_DT, logp_DT = torch.zeros(tokens_DT.shape, dtype=torch.bool), torch.zeros(tokens_DT.shape)
        for sampled_T, of_dialogue in zip(sampled_DT, attempts):
            for attempt in of_dialogue:
                sampled_T[attempt.start : attempt.end] = True
        logp_DT[sampled_DT] = torch.cat([torch.tensor(each) for each in logps])
        return cls(
            tokens_DT,
            sampled_DT,
            logp_DT,
            length_D=torch.tensor(list(map(len, tokens))),
            prompt_length_D=torch.tensor(list(map(len, prompts))),
            allowed_D=torch.tensor(allowed),
            used_D=torch.tensor(list(map(len, attempts))),
            reward_D=torch.tensor(rewards, dtype=torch.float32),
            truncated_D=torch.tensor([of_dialogue[-1].truncated for of_dialogue in attempts]),
            attempts=attempts,
        )

    def select(self, rows: torch.Tensor) -> "Dialogues":
        """Only these dialogues."""
        tensors = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name != "attempts"}
        return Dialogues(**tensors, attempts=[self.attempts[row] for row in rows.tolist()])

    @property
    def correct_D(self) -> torch.Tensor:
        """True where the last attempt was correct."""
        return torch.tensor([attempts[-1].correct for attempts in self.attempts])
