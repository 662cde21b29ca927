"""Train: the loop of multi-attempt reinforcement learning. Start reading here: `train` is the algorithm.

    python train.py --preset miniature                  # number riddles, on the base model that `make train` builds
    python train.py --preset paper                      # Qwen2.5-Math-1.5B on MATH, the paper's settings
    python train.py --resume --out runs/NAME            # resume a stopped run exactly (on a GPU: up to rounding)
    python train.py --resume --out runs/NAME --steps N  # extend it: more steps at the last learning rate
    torchrun --nproc-per-node 8 train.py --preset paper # the same run, shared by eight GPUs

Each step: rollout with rewards -> reference log-probs and values -> one PPO update. A name ends in the shape of its
tensor: value_DT is D dialogues by T tokens (see rollout.py and ppo.py). A run writes into its folder:

    config.json            all options, versions, fingerprints of base model and data
    metrics.jsonl          one line a step
    dialogues/             one dialogue of the first, the last and every few steps, as text with verdicts
    checkpoint-STEP.pt     the last few, for --resume
    model/                 the trained model, an ordinary Hugging Face folder
    training.png           metrics, drawn again with every checkpoint; python -m support.plots overlays runs
    evaluation.json        base and trained model at 1, 2, ... attempts, with all dialogues; accuracy.png plots it

On Ctrl-C or SIGTERM the run finishes its step, saves and stops; a second one of the same kind stops it at once.
All randomness comes from the seed and the number of the step, so a resumed run has no random state to restore.
"""

import copy
import shlex
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from tqdm import tqdm

from data import Problem, load, question_key
from data.chat import CHAT_TEMPLATES, FEEDBACK_HELP, TEMPLATE_HELP, Chat
from evaluate import accuracy_at_k, dialogue_record, evaluate
from ppo import Optimizer, action_logps, informative_dialogues, reference_logps_and_values, update
from reward import RULES
from rollout import Engine, rollout
from support import ranks
from support.check import check_fit, check_model
from support.cli import NOT_NEGATIVE, POSITIVE, between, fail, one_of, option, require, stop_on_signal
from support.cuda import fuse_layers
from support.files import locked_folder, save_json
from support.memory import plan_run
from support.models import load_model, move, moved, pick_device, pick_dtype, recompute_activations, save_model
from support.plots import plot_accuracy, table
from support.presets import PRESETS
from support.run import Run, describe, in_brief, open_log, parse_run, stage_speeds, training_metrics

# Each makes a field of Config from (default, help, check). The group is the option's heading in --help.
task, rollouts = partial(option, group="task"), partial(option, group="rollout")
rewards, learning = partial(option, group="reward"), partial(option, group="PPO")
running, machine = partial(option, group="run"), partial(option, group="machine")


@dataclass
class Config:
    """Every option of a run. The defaults train as the paper does, and evaluate less than it does (docs/scale.md)."""

    preset: str = task("paper", f"options to start from: {', '.join(PRESETS)}", one_of(*PRESETS))
    model: str = task("Qwen/Qwen2.5-Math-1.5B", "base model: folder or hub name")
    data: str = task("math-train", "training questions: a name from `python -m data`, or a .jsonl file")
    min_attempts: int = task(1, "attempts allowed are drawn uniformly from min_attempts..max_attempts", POSITIVE)
    max_attempts: int = task(5, "most attempts allowed; 1 is the paper's single-attempt baseline", POSITIVE)
    feedback: str = task("paper", FEEDBACK_HELP)
    chat_template: str = task("chatml", TEMPLATE_HELP, one_of(*CHAT_TEMPLATES, "auto"))
    max_prompt_tokens: int = task(1024, "training questions with a longer prompt are left out", POSITIVE)

    dialogues: int = rollouts(1024, "dialogues in a step", POSITIVE)
    group_size: int = rollouts(1, "dialogues of each question in a step; from 2 on there is no critic", POSITIVE)
    temperature: float = rollouts(1.0, "sampling temperature, also that of the policy in PPO", POSITIVE)
    max_new_tokens: int = rollouts(3000, "token budget of a dialogue after its prompt, feedback included", POSITIVE)
    max_attempt_tokens: int | None = rollouts(None, "token budget of a single attempt; none: no such limit", POSITIVE)
    slots: int | None = rollouts(None, "dialogues decoded in parallel, for speed; none, auto: all that fit", POSITIVE)

    attempt_discount: float = rewards(1.0, "a correct attempt i is worth attempt_discount^(i-1)", between(0, 1))
    unboxed_reward: float = rewards(-1.0, "reward of a failed dialogue without any box", between(-1, 0))
    wrong_reward: float = rewards(0.0, "added for each wrong attempt, besides the dialogue's reward", between(-1, 0))
    repeat_penalty: float = rewards(0.0, "taken from an attempt that gives an earlier answer again", NOT_NEGATIVE)

    lr: float = learning(5e-7, "peak learning rate of the actor", POSITIVE)
    critic_lr: float = learning(1e-5, "peak learning rate of the critic", POSITIVE)
    lr_warmup: float = learning(0.03, "share of steps with a linear warm-up, then cosine to a tenth", between(0, 1))
    lr_steps: int | None = learning(None, "length of the learning rate schedule in steps; none: all steps", POSITIVE)
    minibatches: int = learning(8, "minibatches in each epoch, one optimiser step each", POSITIVE)
    epochs: int = learning(1, "passes over the dialogues of a step", POSITIVE)
    gamma: float = learning(1.0, "discount of the reward per token; not used with --group_size", between(0, 1))
    gae_lambda: float = learning(0.99, "lambda of GAE; not used with --group_size", between(0, 1))
    normalise: str = learning("std", "scaling of advantages: none, centre, std", one_of("none", "centre", "std"))
    clip: float = learning(0.2, "PPO's clip range of the probability ratio", POSITIVE)
    clip_high: float | None = learning(None, "clip range above 1 (Clip-Higher); none: that of --clip", POSITIVE)
    value_clip: float = learning(0.2, "clip range of the change of values", POSITIVE)
    loss_mean: str = learning("tokens", "losses are means over tokens or over dialogues", one_of("tokens", "dialogues"))
    kl_coef: float = learning(0.01, "weight of the KL to the base model in the loss", NOT_NEGATIVE)
    max_grad_norm: float = learning(1.0, "gradients are clipped to this norm", POSITIVE)
    drop_truncated: bool = learning(False, "leave dialogues that ran out of tokens out of the loss")
    drop_uniform_groups: bool = learning(False, "learn only from groups whose dialogues got different rewards")
    calibrated: bool = learning(False, "groups: the group's mean in place of own later rewards (CAL-GRPO)")

    steps: int = running(1280, "a rollout and a PPO update each; --resume may raise it", POSITIVE)
    seed: int = running(0, "random seed", NOT_NEGATIVE)
    out: str | None = running(None, "folder of the run; none: runs/PRESET-DATE-TIME")
    resume: bool = running(False, "resume the run in --out, with its own options")
    eval_data: str | None = running("math500", "test questions at the end, all as one set; none: no evaluation")
    eval_limit: int | None = running(None, "ask only the first N evaluation and validation questions", POSITIVE)
    eval_attempts: int = running(5, "evaluate with 1, 2, ... up to this many attempts allowed", POSITIVE)
    eval_every: int | None = running(None, "steps between evaluations on --validation_data; none: never", POSITIVE)
    validation_data: str = running("math-validation", "questions of --eval_every: choose settings by these")
    save_every: int = running(20, "steps between checkpoints", POSITIVE)
    keep_checkpoints: int = running(2, "how many of the last checkpoints stay", POSITIVE)
    export_checkpoints: bool = running(False, "with every checkpoint, write a model folder model-STEP/, which stays")
    show_every: int = running(10, "steps between the dialogues written to dialogues/", POSITIVE)
    log_to: str | None = running(None, "tensorboard or wandb: send metrics there too", one_of("tensorboard", "wandb"))

    device: str = machine("auto", "auto, cpu, cuda or mps")
    dtype: str = machine("auto", "auto: bfloat16 on CUDA, float32 elsewhere", one_of("auto", "float32", "bfloat16"))
    micro_batch_tokens: int = machine(10000, "tokens in a forward pass of the update: memory, not results", POSITIVE)
    compile: bool = machine(True, "fuse small kernels by torch.compile, only on CUDA; slow to start, then faster")
    gradient_checkpointing: bool = machine(False, "compute activations twice in the update to save memory")
    offload: bool = machine(False, "keep optimiser states in host memory between their uses")


# Numpy's seeds: (seed, step, d) for the tokens of dialogue d, (seed, pass, 0, ORDER) for the order of the questions,
# and likewise (seed, step, 0, ALLOWED), (seed, step, 0, SHUFFLE). None is 0: to numpy, (s, t, 0, 0) is (s, t, 0).
ORDER, ALLOWED, SHUFFLE = 1, 2, 3


# -------------------- The algorithm
def build_run(config: Config) -> Run:
    """Actor, critic and reference start as the same pretrained model (paper, section 4); the critic's scalar head
    starts at 0. With --group_size above 1 there is no critic."""
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    actor, tokenizer = load_model(config.model, device, dtype)
    chat = Chat(actor, tokenizer, config.chat_template, config.feedback)
    actor.set_attn_implementation("causal")  # without a mask (support/models.py); copies inherit it
    reference = copy.deepcopy(actor).requires_grad_(False)
    move(reference.parameters(), torch.device("cpu"))  # between its uses; buffers stay on the device
    total_steps = (config.lr_steps or config.steps) * config.epochs * config.minibatches
    warmup_steps = int(config.lr_warmup * total_steps)
    shared = warmup_steps, total_steps, config.max_grad_norm, config.offload
    critic, optimizers = None, [Optimizer(actor, config.lr, *shared)]
    if config.group_size == 1:
        critic = copy.deepcopy(actor.base_model)
        critic.score = torch.nn.Linear(actor.config.hidden_size, 1, device=device, dtype=dtype)
        torch.nn.init.zeros_(critic.score.weight)
        torch.nn.init.zeros_(critic.score.bias)
        optimizers.append(Optimizer(critic, config.critic_lr, *shared))
    if config.compile and device.type == "cuda":
        fuse_layers(*filter(None, (actor, critic, reference)))
    check_model(actor, chat, rollout, action_logps)
    if config.gradient_checkpointing:
        recompute_activations(*filter(None, (actor, critic)))
    return Run(config, chat, actor, critic, reference, optimizers)


def train(run: Run, problems: list, validation: list, log: Callable, stop_requested: Callable) -> bool:
    """Steps run.step + 1 .. config.steps of the algorithm (paper, section 3). False when it stopped on request."""
    config, actor, critic, reference, optimizers = run.config, run.actor, run.critic, run.reference, run.optimizers
    reward_options = dict(attempt_discount=config.attempt_discount, unboxed_reward=config.unboxed_reward)
    reward_options |= dict(wrong_reward=config.wrong_reward, repeat_penalty=config.repeat_penalty)
    rules = RULES._replace(reward=partial(RULES.reward, **reward_options))
    stopping, is_rank0 = False, ranks.rank() == 0
    with tqdm(total=config.steps, initial=run.step, unit="step", disable=None if is_rank0 else True) as bar:
        while run.step < config.steps and not stopping:
            run.step += 1
            seed = config.seed, run.step
            clock = [time.perf_counter()]

            # 1. The model answers questions, in at most N attempts each, and every dialogue gets its reward.
            asked, allowed = draw_questions_and_attempts(config, problems, run.step)
            own = ranks.own_slice(config.dialogues, config.group_size)
            settings = dict(temperature=config.temperature, seed=seed, first_index=own.start, engine=run.engine)
            with moved(run.offloaded_in_rollout, torch.device("cpu")):  # AdamW's states, if slots need the room
                written = rollout(actor, run.chat, asked[own], allowed[own], rules, config, **settings)
            dialogues = kept = ranks.gather_rows(written)
            if config.drop_uniform_groups:  # here, so that part 2 skips the other groups
                kept = dialogues.select(informative_dialogues(dialogues, config))
            clock.append(time.perf_counter())

            # 2. Log-probabilities of the reference model (the frozen base) and values of the critic, before the update.
            with moved(list(reference.parameters()), actor.device):  # on a GPU it is there only now
                ref_logp_DT, value_DT = reference_logps_and_values(reference, critic, kept, config)
            clock.append(time.perf_counter())

            # 3. Clipped PPO on the model-written tokens.
            shuffle_seed = (*seed, 0, SHUFFLE)
            metrics = update(actor, critic, optimizers, kept, ref_logp_DT, value_DT, config, shuffle_seed)
            clock.append(time.perf_counter())

            metrics = {"step": run.step} | training_metrics(dialogues) | metrics | stage_speeds(dialogues, kept, clock)
            if actor.device.type == "cuda":  # peak bytes of tensors so far
                metrics |= {"device_memory": torch.cuda.max_memory_allocated(), "planned_memory": run.planned_memory}
            if config.eval_every and run.step % config.eval_every == 0:
                with moved(run.offloaded_in_rollout, torch.device("cpu")):
                    metrics |= validate(run, validation)
            if is_rank0:
                d = int((dialogues.used_D > 1).byte().argmax())  # the first with feedback, else dialogue 0
                run.record(metrics, dialogue_record(dialogues, d, asked[d], run.chat))
                log(metrics)
            bar.set_postfix_str(in_brief(metrics), refresh=False)
            bar.update()
            stopping = any(ranks.all_gather(stop_requested()))
            if run.step % config.save_every == 0 or run.step == config.steps or stopping:
                run.save()
    return not stopping


def draw_questions_and_attempts(config: Config, problems: list[Problem], step: int) -> tuple[list[Problem], list[int]]:
    """The question of each dialogue of a step, and how many attempts it is allowed.

    Every pass over the questions is a new permutation and asks each once; a step may span several passes. The
    dialogues of a group are neighbours, with the same question and the same number of attempts."""
    n_questions = config.dialogues // config.group_size
    # question i of the whole run is the one at place i % len(problems) of pass i // len(problems)
    passes, places = np.divmod((step - 1) * n_questions + np.arange(n_questions), len(problems))
    orders = {p: np.random.default_rng((config.seed, p, 0, ORDER)).permutation(len(problems)) for p in set(passes)}
    chosen = np.repeat([orders[p][place] for p, place in zip(passes, places)], config.group_size)
    rng = np.random.default_rng((config.seed, step, 0, ALLOWED))
    allowed = rng.integers(config.min_attempts, config.max_attempts + 1, size=n_questions)
    return [problems[i] for i in chosen], allowed.repeat(config.group_size).tolist()


def validate(run: Run, problems: list[Problem]) -> dict:
    """Greedy accuracy on the validation questions, which are split among the ranks."""
    own = problems[ranks.rank() :: ranks.world_size()]
    records = sum(ranks.all_gather(evaluate(run.actor, run.chat, own, [run.config.eval_attempts], run.config)), [])
    (row,) = accuracy_at_k(records)["by_attempts"]
    return {f"validation_{name}": row[name] for name in ("accuracy", "accuracy_first", "repeated")}


# -------------------- The command line
def read_inputs(argv: list[str] | None) -> tuple[Config, dict[str, list[Problem]]]:
    """The options, and the questions by the option that names them. Invalid questions raise ValueError or OSError."""
    config = parse_run(Config, argv, __doc__)
    require(config, "max_attempts", "be at least --min_attempts", lambda n: n >= config.min_attempts)
    require(config, "minibatches", "be at most --dialogues", lambda n: n <= config.dialogues)
    require(config, "group_size", f"divide --dialogues {config.dialogues}", lambda n: config.dialogues % n == 0)
    for name in ("drop_uniform_groups", "calibrated"):
        require(config, name, "be false without --group_size", lambda on: not on or config.group_size > 1)
    enough = f"give each of {ranks.world_size()} processes a question"
    require(config, "dialogues", enough, lambda n: n // config.group_size >= ranks.world_size())
    questions = {"data": load(config.data)}
    known = {question_key(p.question) for p in questions["data"]}
    sources = {"validation_data": config.validation_data if config.eval_every else None, "eval_data": config.eval_data}
    for name, source in sources.items():
        questions[name] = load(source)[: config.eval_limit] if source else []
        if both := [p.question for p in questions[name] if question_key(p.question) in known]:
            raise ValueError(f"{len(both)} questions of --{name} are in --data as well, the first: {both[0]!r}")
    return config, questions


def fitting_problems(run: Run, questions: dict[str, list[Problem]]) -> tuple[list[Problem], int]:
    """Training questions with short enough prompts, and tokens of the longest dialogue. ValueError if nothing fits."""
    config, training = run.config, questions["data"]
    limit = config.max_prompt_tokens
    problems = [p for p in training if len(run.chat.prompt(p.question, config.max_attempts)) <= limit]
    if not problems:
        raise ValueError(f"no question of {config.data} has a prompt of at most {limit} tokens")
    if len(problems) < len(training) and ranks.rank() == 0:
        print(f"left out {len(training) - len(problems)} questions with prompts of more than {limit} tokens")
    attempts = max(config.max_attempts, config.eval_attempts)
    asked = problems + questions["validation_data"] + questions["eval_data"]
    longest_prompt = max(len(run.chat.prompt(p.question, attempts)) for p in asked)
    return problems, check_fit(run.actor, longest_prompt, config.max_new_tokens)


def finish(run: Run, held_out: list[Problem]) -> None:
    """Save the trained model, evaluate it and the base model, print a dialogue, the table and what went wrong."""
    config = run.config
    save_model(run.actor, run.chat.tokenizer, run.folder / "model")
    last_dialogue = run.folder / "dialogues" / f"step-{run.step:06d}.txt"
    print(f"\nA dialogue of step {run.step}:\n\n{last_dialogue.read_text(encoding='utf-8')}")
    run.engine, run.optimizers, run.checkpointed, run.offloaded_in_rollout = None, [], {}, []  # they hold device memory
    if held_out:
        results, counts = {}, range(1, config.eval_attempts + 1)
        for name, model, other in (("base", run.reference, run.actor), ("trained", run.actor, run.reference)):
            other.cpu()  # there may be no memory for both
            model.to(pick_device(config.device))
            records = evaluate(model, run.chat, held_out, counts, config, progress=f"evaluate {name}")
            results[name] = accuracy_at_k(records) | {"dialogues": sum(records, [])}
        save_json(results, run.folder / "evaluation.json")
        plot_accuracy(results, run.folder / "accuracy.png")
        print(f"\n{config.eval_data}, {len(held_out)} questions, accuracy in % with 95% interval\n\n{table(results)}\n")
    print(*run.warnings(), f"{run.folder}/ has the trained model (in model/), metrics, dialogues and plots", sep="\n")


def main(argv: list[str] | None = None) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C
    run, resume_hint = None, ""  # for the errors below
    try:
        ranks.join()
        is_rank0 = ranks.rank() == 0  # asked now: after `ranks.leave` every process has rank 0
        config, questions = ranks.on_rank0(read_inputs, argv)
        with ExitStack() as until_the_end:
            ranks.on_rank0(until_the_end.enter_context, locked_folder(config.out))
            run = build_run(config)
            problems, longest = fitting_problems(run, questions)
            if is_rank0:
                print(describe(config, run.actor, len(problems)))
            keep_engine = plan_run(run, longest)  # sets config.slots, run.offloaded_in_rollout, run.planned_memory
            run.engine = Engine(run.actor, config.slots, longest, config.temperature) if keep_engine else None
            log = open_log(config.log_to if is_rank0 else None, config.out, run.given)
            ranks.on_rank0(run.write_config, questions)
            if config.resume:
                run.restore()
            # from here on an error names its step and how to resume, and a ValueError shows its traceback: it is a bug
            start = "python" if ranks.world_size() == 1 else "torchrun ..."
            resume_hint = f"; resume with: {start} train.py --resume --out {shlex.quote(config.out)}"
            with stop_on_signal() as stop_requested:
                finished = train(run, problems, questions["validation_data"], log, stop_requested)
            ranks.leave()  # nobody waits for the evaluation; from here on every process is rank 0 of 1
            if not finished:
                raise KeyboardInterrupt  # to end like a Ctrl-C
            if is_rank0:
                finish(run, questions["eval_data"])
    except FloatingPointError as error:  # the run has diverged
        fail(error, "; start a new run, as --resume keeps the options", f"step {run.step}: ")
    except (KeyboardInterrupt, ValueError, OSError, torch.OutOfMemoryError) as error:  # OSError: also a lost process
        fail(error, resume_hint, f"step {run.step}: " if resume_hint else "")


if __name__ == "__main__":
    main()
