"""Train: the loop of multi-attempt reinforcement learning. Start reading here: `train` is the algorithm.

    python train.py --preset miniature                  # number riddles on a laptop, minutes (`make train`)
    python train.py --preset paper                      # Qwen2.5-Math-1.5B on MATH, the paper's settings
    python train.py --preset paper --max_attempts 1     # the paper's baseline: the same code with a single attempt
    python train.py --resume --out runs/NAME            # go on where a killed run stopped, exactly
    torchrun --nproc-per-node 8 train.py --preset paper # the same run, shared by eight GPUs

Each step: rollout (rollout.py) -> reward (reward.py) -> one PPO update (ppo.py). A run writes into its folder:

    config.json            all options
    metrics.jsonl          one line a step
    dialogues/             a whole dialogue as text, every few steps
    checkpoint-STEP.pt     the last few, for --resume
    model/                 the trained model, an ordinary Hugging Face folder
    evaluation.json, accuracy.png, training.png     base and trained model at 1, 2, ... attempts

Ctrl-C or SIGTERM let the step end, save and stop; a second one stops at once.

All randomness is derived from (seed, step), so a resumed run has no random state to restore: dialogue d of a step uses
the stream (seed, step, d), everything else (seed, step or pass, 0, a number of its own).
"""

import json
import signal
import sys
import time
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import torch
from tqdm import tqdm
from transformers.hf_argparser import HfArg

from data import Problem
from evaluate import evaluate, summarise
from ppo import differing, score, update
from reward import Grader, extract_boxed, reward
from rollout import rollout
from support import ranks
from support.cli import asked_to_stop, fail, open_log, output_folder, parse_run, save_json
from support.models import save_model
from support.plots import plot_accuracy, plot_training, table
from support.run import Run, check, load_questions, speeds


@dataclass
class Config:
    """Every option of a run. The defaults are the paper's values."""

    preset: str = HfArg(default="paper", help="set of options to start from: paper, miniature, smollm2 or smoke")
    model: str = HfArg(default="Qwen/Qwen2.5-Math-1.5B", help="base model: folder or hub name")
    data: str = HfArg(default="math-train", help="training questions: a name from `python -m data`, or a .jsonl file")
    eval_data: str | None = HfArg(default="math500", help="questions of the evaluation at the end; none: do without")
    eval_limit: int | None = HfArg(default=None, help="evaluate on the first so many of them")
    eval_attempts: int = HfArg(default=5, help="evaluate with 1, 2, ... up to this many attempts allowed")
    out: str | None = HfArg(default=None, help="folder of the run; none: runs/PRESET-DATE-TIME")
    resume: bool = HfArg(default=False, help="go on with the run in --out, with its own options")
    seed: int = HfArg(default=0, help="makes all random numbers of the run")
    steps: int = HfArg(default=1280, help="rollouts with one PPO update each")
    dialogues: int = HfArg(default=1024, help="dialogues in a step")
    group_size: int = HfArg(default=1, help="dialogues of each question in a step; from 2 on there is no critic")
    min_attempts: int = HfArg(default=1, help="attempts allowed are uniform in min_attempts..max_attempts")
    max_attempts: int = HfArg(default=5, help="1 is the paper's single-attempt baseline")
    temperature: float = HfArg(default=1.0, help="of sampling, and of the policy that PPO trains")
    max_prompt_tokens: int = HfArg(default=1024, help="training questions with a longer prompt are left out")
    max_new_tokens: int = HfArg(default=3000, help="token budget of a dialogue after its prompt, feedback included")
    max_attempt_tokens: int | None = HfArg(default=None, help="token budget of a single attempt; none: no such limit")
    attempt_discount: float = HfArg(default=1.0, help="a correct attempt i is worth attempt_discount^(i-1)")
    unboxed_reward: float = HfArg(default=-1.0, help="of a failed dialogue without a box in its last attempt")
    minibatches: int = HfArg(default=8, help="optimiser steps on the dialogues of a step, in each epoch")
    epochs: int = HfArg(default=1, help="passes over the dialogues of a step")
    lr: float = HfArg(default=5e-7, help="peak learning rate of the actor")
    critic_lr: float = HfArg(default=1e-5, help="peak learning rate of the critic")
    warmup: float = HfArg(default=0.03, help="share of the steps with rising learning rate; then cosine to a tenth")
    max_grad_norm: float = HfArg(default=1.0, help="gradients are clipped to this norm")
    gamma: float = HfArg(default=1.0, help="discount of the reward per token")
    gae_lambda: float = HfArg(default=0.99, help="lambda of generalised advantage estimation")
    clip: float = HfArg(default=0.2, help="PPO's clip range of the probability ratio")
    value_clip: float = HfArg(default=0.2, help="clip range of the critic's change")
    kl_coef: float = HfArg(default=0.01, help="weight of the KL to the base model in the loss")
    kl_estimator: str = HfArg(default="k3", help="of that KL: k3, or k3_weighted, whose gradient is the KL's own")
    drop_truncated: bool = HfArg(default=False, help="leave dialogues that ran out of tokens out of the loss")
    drop_equal: bool = HfArg(default=False, help="learn only from groups whose dialogues got different rewards")
    micro_batch_tokens: int = HfArg(default=4096, help="tokens in a forward pass of the update; memory, not results")
    slots: int = HfArg(default=192, help="dialogues written side by side; memory and speed, not results")
    chat_template: str = HfArg(default="chatml", help="how the model writes chat turns: chatml or llama3")
    feedback: str = HfArg(default="paper", help="after a wrong attempt: paper, uncounted or uninformative (a control)")
    gradient_checkpointing: bool = HfArg(default=False, help="compute activations twice in the update to save memory")
    offload: bool = HfArg(default=False, help="keep base model and optimiser states in host memory between their uses")
    device: str = HfArg(default="auto", help="auto, cpu, cuda or mps")
    dtype: str = HfArg(default="auto", help="auto (bfloat16 on CUDA, float32 elsewhere), float32 or bfloat16")
    save_every: int = HfArg(default=20, help="steps between checkpoints")
    keep_checkpoints: int = HfArg(default=2, help="how many of the last checkpoints stay")
    show_every: int = HfArg(default=10, help="steps between the dialogues written to dialogues/")
    log_to: str | None = HfArg(default=None, help="tensorboard or wandb (to be installed): metrics go there as well")


PRESETS = {
    "paper": {},
    "miniature": dict(
        model="runs/miniature/base",
        data="riddles-train",
        eval_data="riddles-test",
        steps=100,
        dialogues=512,
        minibatches=4,
        lr=6e-4,
        critic_lr=2e-3,
        gae_lambda=0.95,
        kl_coef=0.02,
        max_new_tokens=160,
        slots=512,
        micro_batch_tokens=2048,
        save_every=50,
        show_every=10,
    ),
    "smollm2": dict(
        model="runs/smollm2/base",
        data="mawps-easy-train",
        eval_data="mawps-easy-test",
        steps=64,
        dialogues=64,
        max_attempts=3,
        group_size=8,
        drop_equal=True,
        minibatches=2,
        lr=5e-5,
        max_new_tokens=256,
        max_attempt_tokens=32,
        slots=64,
        micro_batch_tokens=1024,
        save_every=8,
        show_every=1,
    )
    | (dict(steps=200, dialogues=512, slots=512, micro_batch_tokens=16384) if torch.cuda.is_available() else {}),
    "smoke": dict(
        model="runs/smoke/base",
        data="riddles-train",
        eval_data="riddles-validation",
        eval_limit=8,
        steps=2,
        dialogues=8,
        eval_attempts=3,
        minibatches=2,
        lr=1e-4,
        max_new_tokens=96,
        max_attempt_tokens=24,
        slots=4,
        save_every=1,
        show_every=1,
    ),
}


# -------------------- The algorithm
def train(config: Config, run: Run, grade, log, asked) -> bool:
    """Steps run.step + 1 .. config.steps of the algorithm (paper, section 3). False when it stopped as `asked()`."""
    actor, critic, reference = run.actor, run.critic, run.reference
    stopping = False
    quiet = ranks.rank() > 0
    with tqdm(total=config.steps, initial=run.step, desc="train", unit="step", disable=quiet) as bar:
        while run.step < config.steps and not stopping:
            run.step += 1
            clock = [time.perf_counter()]

            # 1. The model answers questions, in 1..N attempts each, and every dialogue gets its reward.
            problems, allowed = draw(config, run.problems, run.step)
            mine = share(config)
            dialogues = rollout(
                actor,
                run.tokenizer,
                [p.question for p in problems[mine]],
                [p.answer for p in problems[mine]],
                allowed[mine],
                extract=extract_boxed,
                grade=grade,
                reward=partial(reward, discount=config.attempt_discount, unboxed=config.unboxed_reward),
                temperature=config.temperature,
                seed=(config.seed, run.step),
                first=mine.start,
                **run.asking,
            )
            dialogues = learned = ranks.gather_rows(dialogues)
            if config.drop_equal:
                learned = dialogues.select(differing(dialogues.reward_D, config.group_size))
            clock.append(time.perf_counter())

            # 2. What the frozen base model and the critic say of every action, before anything changes.
            with run.at_hand(reference):
                scores = score(learned, reference, critic, config.temperature, config.micro_batch_tokens)
            clock.append(time.perf_counter())

            # 3. Clipped PPO on the model-written tokens.
            optimizers = run.actor_optimizer, run.critic_optimizer
            with run.at_hand(*optimizers), run.recomputing():
                seed = config.seed, run.step, 0, 3
                losses = update(actor, critic, *optimizers, learned, *scores, config, seed=seed)
            clock.append(time.perf_counter())

            metrics = {"step": run.step} | summarise(dialogues) | losses
            metrics |= {"learned": len(learned.attempts) / config.dialogues} | speeds(dialogues, learned, clock)
            if not quiet:
                run.record(metrics, dialogues)
                log(metrics)
            bar.set_postfix(reward=f"{metrics['reward']:.2f}", accuracy=f"{metrics['accuracy']:.2f}")
            bar.update()
            stopping = any(ranks.gather(asked()))
            if run.step % config.save_every == 0 or run.step == config.steps or stopping:
                run.save()
    return not stopping


def graded_now(grader: Grader, answer: str, gold: str):
    """`grader.submit`, with the verdict there on return (most are instant). When a late verdict arrives decides which
    rows share a batch, and so how they are rounded: on the CPU, where runs are exact, the rollout waits for it."""
    verdict = grader.submit(answer, gold)
    verdict.result()
    return verdict


def draw(config: Config, problems: list[Problem], step: int) -> tuple[list[Problem], list[int]]:
    """The question of each dialogue of a step, and how many attempts it is allowed.

    Every pass over the questions is a new permutation and asks each once; a step may span two passes. The dialogues of
    a group are neighbours and agree in both.
    """
    questions = config.dialogues // config.group_size
    orders, chosen = {}, []
    for i in range((step - 1) * questions, step * questions):
        epoch, position = divmod(i, len(problems))
        if epoch not in orders:
            orders[epoch] = np.random.default_rng((config.seed, epoch, 0, 1)).permutation(len(problems))
        chosen += [problems[orders[epoch][position]]] * config.group_size
    rng = np.random.default_rng((config.seed, step, 0, 2))
    allowed = rng.integers(config.min_attempts, config.max_attempts + 1, size=questions)
    return chosen, allowed.repeat(config.group_size).tolist()


def share(config: Config) -> slice:
    """The dialogues of a step that this rank writes: neighbours, and whole groups."""
    groups = config.dialogues // config.group_size
    first, last = (groups * rank // ranks.count() * config.group_size for rank in (ranks.rank(), ranks.rank() + 1))
    return slice(first, last)


# -------------------- The command line
def report(config: Config, run: Run, held_out: list[Problem], grade) -> None:
    """Evaluate the base and the trained model, print the table, draw the plots."""
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    plot_training(rows, run.folder / "training.png")
    if held_out:
        results = {}
        for name, model in (("base", run.reference), ("trained", run.actor)):
            model.to(run.actor.device)
            same = dict(attempts=config.eval_attempts, grade=grade, **run.asking)
            results[name] = evaluate(model, run.tokenizer, held_out, progress=f"evaluate {name}", **same)
        save_json(results, run.folder / "evaluation.json")
        plot_accuracy(results, run.folder / "accuracy.png")
        print(f"\n{config.eval_data}, {len(held_out)} questions, accuracy in % with 95% interval\n\n{table(results)}\n")


def prepare(argv: list[str] | None) -> tuple[Config, list[Problem], list[Problem]]:
    """The options, training and evaluation questions; ValueError or OSError for what is wrong with them."""
    config = parse_run(Config, PRESETS, sys.argv[1:] if argv is None else argv)
    check(config)
    return config, *load_questions(config)


def main(argv: list[str] | None = None) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        ranks.join()
        first = ranks.rank() == 0
        config, training, held_out = ranks.first_decides(partial(prepare, argv))
        run = Run(config, training, held_out)
        log = open_log(config.log_to if first else None, config.out, asdict(config))
        if first:
            output_folder(config.out)
        if config.resume:
            run.restore()
        elif first:
            save_json(asdict(config), run.folder / "config.json")
    except (ValueError, OSError) as error:
        fail(error)
    except KeyboardInterrupt:  # there is nothing yet to save
        raise SystemExit(130) from None
    if first:
        print(f"{config.out}: {config.model}, {run.actor.num_parameters():,} parameters, {len(run.problems)} questions")
    try:
        with Grader() as grader:
            grade = partial(graded_now, grader) if run.actor.device.type == "cpu" else grader.submit
            with asked_to_stop() as asked:
                finished = train(config, run, grade, log, asked)
            ranks.leave()
            if not finished:
                raise KeyboardInterrupt
            if first:
                save_model(run.actor, run.tokenizer, run.folder / "model")
                report(config, run, held_out, grade)
                print(f"{config.out}/model/ is the trained model, {config.out}/ has its metrics, dialogues and plots")
    except KeyboardInterrupt:
        print(f"\nstopped; go on with: python train.py --resume --out {config.out}", file=sys.stderr)
        raise SystemExit(130) from None
    except FloatingPointError as error:
        fail(f"step {run.step}: {error}; the checkpoints in {config.out} are from before")
    except (OSError, ValueError, torch.OutOfMemoryError) as error:  # full disk, lost process
        why = str(error).splitlines()[0]
        fail(f"step {run.step}: {why}; go on with: python train.py --resume --out {config.out}")


if __name__ == "__main__":
    main()
