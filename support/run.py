"""A run: its options checked, its questions, models, optimisers and files."""

import copy
import json
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from transformers import AutoModelForTokenClassification

from data import Problem, load, question_key
from data.chat import Chat
from data.optimizer import Optimizer
from support import ranks
from support.cli import last_checkpoint, need, save_checkpoint, whole
from support.memory import explain_memory
from support.models import check_fit, load_model, move, pick_device, pick_dtype, recomputing


def check(config) -> None:
    """ValueError for a value out of range."""
    positive = (
        "eval_limit eval_attempts steps dialogues group_size min_attempts temperature max_prompt_tokens max_new_tokens "
        "max_attempt_tokens minibatches epochs lr critic_lr max_grad_norm clip value_clip micro_batch_tokens slots "
        "save_every keep_checkpoints show_every"
    )
    need(config, positive, "be greater than 0", lambda value: value > 0)
    need(config, "attempt_discount warmup gamma gae_lambda", "lie between 0 and 1", lambda value: 0 <= value <= 1)
    need(config, "kl_coef seed", "be 0 or more", lambda value: value >= 0)
    need(config, "unboxed_reward", "lie between -1 and 0", lambda value: -1 <= value <= 0)
    need(config, "max_attempts", "be at least --min_attempts", lambda value: value >= config.min_attempts)
    need(config, "minibatches", "be at most --dialogues", lambda value: value <= config.dialogues)
    need(config, "group_size", f"divide --dialogues {config.dialogues}", lambda value: config.dialogues % value == 0)
    groups, processes = config.dialogues // config.group_size, ranks.count()
    need(config, "drop_equal", "be false without --group_size", lambda value: not value or config.group_size > 1)
    need(config, "dialogues", f"give each of {processes} processes a question", lambda _: groups >= processes)
    need(config, "kl_estimator", "be k3 or k3_weighted", lambda value: value in ("k3", "k3_weighted"))
    need(config, "log_to", "be tensorboard, wandb or none", lambda value: value in ("tensorboard", "wandb"))


def load_questions(config) -> tuple[list[Problem], list[Problem]]:
    """Training and evaluation questions; ValueError when one stands in both."""
    training = load(config.data)
    held_out = load(config.eval_data)[: config.eval_limit] if config.eval_data else []
    known = {question_key(p.question) for p in training}
    if shared := [p.question for p in held_out if question_key(p.question) in known]:
        raise ValueError(f"{len(shared)} questions of --eval_data are in --data as well, the first: {shared[0]!r}")
    return training, held_out


class Run:
    """The state of a run and its folder. Raises ValueError when the questions do not fit the model."""

    def __init__(self, config, problems: list[Problem], held_out: list[Problem] = ()):
        device = pick_device(config.device)
        dtype = pick_dtype(config.dtype, device)
        torch.manual_seed(config.seed)
        self.config, self.folder, self.step = config, Path(config.out), 0
        self.actor, self.tokenizer = load_model(config.model, device, dtype)
        self.reference = copy.deepcopy(self.actor).requires_grad_(False)
        updates = config.steps * config.epochs * config.minibatches
        schedule = (int(config.warmup * updates), updates, config.max_grad_norm)
        self.actor_optimizer = Optimizer(self.actor, config.lr, *schedule)
        self.critic = self.critic_optimizer = None
        if config.group_size == 1:
            self.critic = AutoModelForTokenClassification.from_pretrained(config.model, num_labels=1, dtype=dtype)
            self.critic.to(device).eval()
            for weight in self.critic.score.parameters():  # the critic starts out expecting 0
                torch.nn.init.zeros_(weight)
            self.critic_optimizer = Optimizer(self.critic, config.critic_lr, *schedule)
        with self.at_hand(self.reference, self.actor_optimizer, self.critic_optimizer):
            pass  # parks them
        names = ("actor", "critic", "actor_optimizer", "critic_optimizer")  # what a checkpoint holds
        self.parts = {name: getattr(self, name) for name in names if getattr(self, name) is not None}

        self.asking = dict(  # how questions are asked, in training and in the evaluation
            template=config.chat_template,
            feedback=config.feedback,
            slots=config.slots,
            max_new_tokens=config.max_new_tokens,
            max_attempt_tokens=config.max_attempt_tokens,
        )
        chat = Chat(self.actor, self.tokenizer, config.chat_template, config.feedback)
        limit = config.max_prompt_tokens
        self.problems = [p for p in problems if len(chat.prompt(p.question, config.max_attempts)) <= limit]
        if not self.problems:
            raise ValueError(f"no question of {config.data} has a prompt of at most {limit} tokens")
        if (left_out := len(problems) - len(self.problems)) and ranks.rank() == 0:
            print(f"left out {left_out} questions with prompts of more than {limit} tokens")
        attempts = max(config.max_attempts, config.eval_attempts)
        longest = max(len(chat.prompt(p.question, attempts)) for p in [*self.problems, *held_out])
        capacity = check_fit(self.actor, longest, config.max_new_tokens)
        if device.type == "cuda" and ranks.rank() == 0:
            print(self.memory(torch.cuda.get_device_properties(device).total_memory, capacity))

    def memory(self, available: int, capacity: int) -> str:
        """The memory plan, before the long work starts."""
        config, model = self.config, self.actor
        return explain_memory(
            available,
            shape=model.config,
            parameters=model.num_parameters(),
            element=model.dtype.itemsize,
            slots=min(config.slots, config.dialogues),
            capacity=capacity,
            micro_batch_tokens=config.micro_batch_tokens,
            processes=ranks.count(),
            critic=self.critic is not None,
            offload=config.offload,
            gradient_checkpointing=config.gradient_checkpointing,
        )

    @contextmanager
    def at_hand(self, *things):
        """With --offload these models or optimisers wait in host memory and are on the device only inside."""

        def tensors():  # an optimiser has more of them after its first step
            for thing in filter(None, things):
                yield from thing.parked() if isinstance(thing, Optimizer) else thing.parameters()

        if self.config.offload:
            move(tensors(), self.actor.device)
        yield
        if self.config.offload:
            move(tensors(), torch.device("cpu"))

    def recomputing(self):
        """The context of the update that --gradient_checkpointing asks for."""
        models = filter(None, (self.actor, self.critic))
        return recomputing(*models) if self.config.gradient_checkpointing else nullcontext()

    def save(self) -> None:
        state = {name: part.state_dict() for name, part in self.parts.items()} | {"step": self.step}
        if ranks.rank() == 0:
            save_checkpoint(state, self.folder, self.config.keep_checkpoints)

    def restore(self) -> None:
        """Continue from the last checkpoint: metrics written after it are dropped, because those steps come again."""
        if path := ranks.first_decides(lambda: last_checkpoint(self.folder)):
            state = torch.load(path, map_location="cpu", weights_only=True)
            with self.at_hand(self.actor_optimizer, self.critic_optimizer):
                for name, part in self.parts.items():
                    part.load_state_dict(state[name])
            self.step = state["step"]
        metrics = self.folder / "metrics.jsonl"
        if metrics.exists() and ranks.rank() == 0:
            with whole(metrics) as path:  # one line a step
                path.write_text("".join(metrics.read_text().splitlines(keepends=True)[: self.step]))

    def record(self, metrics: dict, dialogues) -> None:
        """Append the step's line to metrics.jsonl and, every few steps, write one dialogue as text."""
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(metrics) + "\n")
        if self.step % self.config.show_every == 0:
            d = int(dialogues.used_D.argmax())  # the first of those with the most attempts
            tokens = dialogues.tokens_DT[d, : dialogues.length_D[d]].tolist()
            lines = [self.tokenizer.decode(tokens), f"----- step {self.step}: reward {dialogues.reward_D[d]:+.2f}"]
            for i, attempt in enumerate(dialogues.attempts[d], 1):
                verdict = "correct" if attempt.correct else "out of tokens" if attempt.truncated else "incorrect"
                lines.append(f"----- attempt {i}: {verdict}, answer {attempt.answer!r}")
            shown = self.folder / "dialogues" / f"step-{self.step:06d}.txt"
            shown.parent.mkdir(exist_ok=True)
            shown.write_text("\n".join(lines) + "\n", encoding="utf-8")


def speeds(dialogues, learned, clock: list[float]) -> dict:
    """Tokens per second of each stage: sampled ones in the rollout, elsewhere all of the dialogues learned from."""
    sampled, total = int(dialogues.sampled_DT.sum()), int(learned.length_D.sum())
    stages = zip(("rollout", "score", "update"), (sampled, total, total), clock, clock[1:])
    rates = {f"{stage}_tokens_per_second": tokens / (end - start) for stage, tokens, start, end in stages}
    return rates | {"seconds": clock[-1] - clock[0]}
