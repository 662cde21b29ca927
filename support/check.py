"""The checks at the start: does the longest dialogue fit? Do rollout and update compute what the model itself does?"""

import re
from textwrap import shorten
from types import SimpleNamespace

import torch

from support.memory import OVERRUN

# -------------------- By the configuration
ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}  # types of layers without a state
WINDOWS = r"(\w+_)?window(_size)?|attention_chunk_size|local_attention|index_topk\w*"  # entries that bound attention


def check_fit(model, longest_prompt: int, max_new_tokens: int) -> int:
    """How many tokens the longest dialogue has. ValueError if the configuration shows that the model cannot take it;
    what also shows in a short dialogue is left to `check_model`."""
    config, longest = model.config, longest_prompt + max_new_tokens
    values, layers = vars(config), set(getattr(config, "layer_types", None) or ())
    windows = {name: size for name, size in values.items() if re.fullmatch(WINDOWS, name) and type(size) is int}
    if layers == {"full_attention"} and hasattr(type(config), "layer_types"):
        windows.pop("sliding_window", None)  # the model reads layer_types, and no layer has the window
    unknown = layers - {"full_attention"} and not windows  # windows of unknown size
    narrow = unknown or any(0 < size < longest for size in windows.values())
    stateful = getattr(model, "_is_stateful", False) or layers - ATTENTION
    rope = values.get("rope_parameters") or {}
    longrope = "longrope" in str(rope) and longest + OVERRUN > (rope.get("original_max_position_embeddings") or 0)
    reasons = {
        "some layers keep a state (state-space, linear attention)": stateful,
        f"some layers do not see all of {longest} tokens": narrow,
        "its attention has a soft cap": values.get("attn_logit_softcapping"),
        "its positions are encoded by the longest dialogue of a batch": "dynamic" in str(rope) or longrope,
    }
    for reason, applies in reasons.items():
        if applies:
            raise ValueError(f"{config.model_type} is not supported: {reason}")

    positions = getattr(config, "max_position_embeddings", None)
    usable = positions and positions - (0 if rope else OVERRUN)  # learned positions must cover the overrun too
    if positions and 0 < positions and usable < longest:
        lengths = f"the longest prompt ({longest_prompt} tokens) and --max_new_tokens {max_new_tokens}"
        raise ValueError(f"{lengths} exceed the model's {usable} usable positions")
    return longest


# -------------------- By a short dialogue
# Prompts of 60 to 100 tokens, attempts of at most 16, feedback between them: a window of 16 or a logit scale shows in
# these. A longer window does not: `check_fit` refuses that by the configuration.
QUESTIONS = "How much is 1 + 1?", "How much is 12 + 30, and how much is it without the 12?"
BUDGET = SimpleNamespace(slots=2, max_new_tokens=80, max_attempt_tokens=16)
SEED = (2**32 - 1,)  # random numbers of no run
# The largest mean difference of log-probabilities that counts as rounding. SmolLM2-135M has 3e-6 and 0.055.
ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 0.2}


def check_model(model, chat, rollout, action_logps=None) -> None:
    """ValueError in one sentence for a model that is not supported: its weights are not finite, it fails in a short
    dialogue, or the log-probabilities of the rollout (or of the update, by `action_logps`) are not its own."""
    implementation = model.config._attn_implementation
    refused = f"{model.config.model_type} is not supported"
    for name, weight in model.named_parameters():
        if not weight.detach().sum().isfinite():
            raise ValueError(f"the model's weight {name} has values that are not finite")
        if "sink" in name:  # in bfloat16 its effect could pass for rounding
            raise ValueError(f"{refused}: its attention has sinks ({name})")
    problems = [SimpleNamespace(question=question, gold="2") for question in QUESTIONS]
    check_fit(model, max(len(chat.prompt(problem.question, 2)) for problem in problems), BUDGET.max_new_tokens)
    chat.try_feedback()  # an error in a function of your own is not the model's
    try:
        differences = logp_differences(model, chat, problems, rollout, action_logps)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a forward pass may raise that was not made for this
        raise ValueError(f"{refused}: a short dialogue ended with {shorten(repr(error), 150)}") from error
    finally:
        model.set_attn_implementation(implementation)
    for what, mean in differences.items():
        if not mean <= ROUNDING[model.dtype]:  # NaN too
            raise ValueError(f"{refused}: log-probabilities of the {what} differ from the model's own, by {mean:.2g}")


@torch.no_grad()
def logp_differences(model, chat, problems: list, rollout, action_logps) -> dict[str, float]:
    """Mean difference between the log-probabilities of sampled tokens and those of the model's own forward pass, with
    eager attention, one dialogue at a time, without a cache."""
    rules = SimpleNamespace(extract=lambda text: None, reward=lambda attempts, gold: [0.0] * len(attempts))
    dialogues = rollout(model, chat, problems, [2, 2], rules, BUDGET, seed=SEED)
    tokens_DT, sampled_DT = dialogues.tokens_DT.to(model.device), dialogues.sampled_DT
    logps = {"rollout": dialogues.logp_DT[sampled_DT]}
    if action_logps:
        logps["update"] = action_logps(model, tokens_DT, sampled_DT, 1.0)[0].cpu()
    model.set_attn_implementation("eager")
    own = []
    for tokens_T, sampled_T, length in zip(tokens_DT, sampled_DT, dialogues.length_D.tolist()):
        with torch.compiler.set_stance("force_eager"):
            logp_TV = model(input_ids=tokens_T[None, :length], use_cache=False).logits[0, :-1].float().log_softmax(-1)
        own.append(logp_TV.gather(-1, tokens_T[1:length, None])[sampled_T[1:length], 0].cpu())
    return {what: (logp_A - torch.cat(own)).abs().mean().item() for what, logp_A in logps.items()}
