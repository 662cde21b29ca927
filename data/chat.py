"""The dialogue as text and as tokens: how a model writes chat turns, and the paper's wording.

system      the task, and how many attempts are allowed
user        the question
assistant   first attempt                     <- written by the model
system      "Your answer is incorrect. ..."   <- feedback, only after a wrong attempt
assistant   second attempt                    <- written by the model
"""

import re
from collections.abc import Callable
from functools import lru_cache
from types import SimpleNamespace
from typing import NamedTuple

from jinja2 import TemplateError


class ChatTemplate(NamedTuple):
    """What is written around the texts of a dialogue."""

    prompt: str  # all before the first attempt, around {system} and {question}
    end: str  # the special token that ends the model's turn
    feedback: str  # all between a wrong attempt and the next one, `end` included, around {feedback}


CHAT_TEMPLATES = {
    "chatml": ChatTemplate(
        "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>",
        "<|im_end|>\n<|im_start|>system\n{feedback}<|im_end|>\n<|im_start|>assistant\n",
    ),
    "llama3": ChatTemplate(
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n{question}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
        "<|eot_id|><|start_header_id|>system<|end_header_id|>\n\n{feedback}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
}
TEMPLATE_HELP = f"how the model writes chat turns: {', '.join(CHAT_TEMPLATES)}, or auto: as its tokenizer says"

# The paper's wording (the authors' code), "1 attempts" included.
SYSTEM = (
    "Please reason step by step, and put your final answer within \\boxed{}. You have {attempts} attempts to answer "
    "the questions, and you should provide the full reasoning steps in each attempt."
)
# What follows a wrong attempt: a text, in which {attempts} is how many are left and {answer} the wrong answer, or a
# function (attempts_left, attempt, gold) -> text (rollout.py:Attempt; its `answer` is None without a box).
Feedback = str | Callable[[int, object, str], str]
FEEDBACKS: dict[str, Feedback] = {
    "paper": "Your answer is incorrect. You have {attempts} attempts left. Try an alternative.",
    "uncounted": "Your answer is incorrect. Try an alternative.",
    # a control, about as long as the paper's
    "uninformative": "Please reason step by step, and put your final answer within \\boxed{}",
}
FEEDBACK_HELP = f"after a wrong attempt: {', '.join(FEEDBACKS)}, or a text of your own with {{attempts}} or {{answer}}"

# If a question spells a special token, such as <|im_end|>, its text must not become that token. Chat.escape puts this
# noncharacter into it, and Chat.encode cuts the text there.
CUT = "\ufdd0"


def resolve_feedback(feedback: Feedback) -> Feedback:
    """The feedback with this name, or the text or function itself. ValueError for an unknown name or placeholder."""
    if callable(feedback) or feedback in FEEDBACKS:
        return FEEDBACKS.get(feedback, feedback)
    if re.fullmatch(r"[\w-]+", feedback, re.ASCII):
        raise ValueError(f"unknown feedback {feedback!r}: choose one of {', '.join(FEEDBACKS)}, or write a sentence")
    # the braces of \boxed{x} and \frac{a}{b} follow a letter, brace or backslash: they are not placeholders
    if unknown := set(re.findall(r"(?<![A-Za-z0-9_}\\])\{([\w ]+)\}", feedback)) - {"attempts", "answer"}:
        raise ValueError(f"the feedback {feedback!r} has {{{unknown.pop()}}}: it may have {{attempts}} and {{answer}}")
    return feedback


def fill_feedback(feedback: Feedback, attempts_left: int, attempt, gold: str) -> str:
    """What the feedback says after this attempt."""
    if callable(feedback):
        try:
            return feedback(attempts_left, attempt, gold)
        except (ValueError, OSError) as error:  # which would end the program in one sentence, without its place
            raise RuntimeError("the feedback function failed") from error
    values = {"attempts": str(attempts_left), "answer": attempt.answer or ""}
    # a LaTeX command keeps its braces: \boxed{answer} becomes \boxed{7}
    feedback = re.sub(r"(\\[a-zA-Z]+)\{(attempts|answer)\}", r"\1{{\2}}", feedback)
    return re.sub(r"\{(attempts|answer)\}", lambda name: values[name[1]], feedback)


def prompt_text(template: ChatTemplate, question: str, allowed: int) -> str:
    """Everything before the first attempt: system turn with the number of attempts, question, opened answer turn."""
    system = SYSTEM.replace("{attempts}", str(allowed))
    return template.prompt.replace("{system}", system).replace("{question}", question)


def own_template(tokenizer) -> ChatTemplate:
    """The chat template that comes with the tokenizer (`apply_chat_template`). Feedback is what it writes between an
    assistant turn and the next one. A template that refuses system turns, first or after an attempt, gets user turns
    in their place. ValueError when there is no such template, or it cannot write a dialogue of this kind."""

    def write(*turns: tuple[str, str]) -> str:
        messages = [{"role": role, "content": content} for role, content in turns]
        # Llama 3.2 writes today's date into the prompt, unless it is given one: a run must be the same tomorrow
        fixed = dict(tokenize=False, add_generation_prompt=True, date_string="26 Jul 2024")
        return tokenizer.apply_chat_template(messages, **fixed)

    # the turns of the prompt, by the role that gives the feedback
    prompts = {"system": [("system", "{system}"), ("user", "{question}")], "user": [("user", "{system}\n\n{question}")]}
    for role, turns in prompts.items():
        try:
            prompt = write(*turns)
            dialogue = write(*turns, ("assistant", "{attempt}"), (role, "{feedback}"))
            before, _, after = dialogue.partition("{attempt}")
        except (TemplateError, TypeError, ValueError):  # the template refuses these turns, or there is none
            continue
        after = after.lstrip()
        end = special_tokens(tokenizer).match(after)
        whole = "{system}" in prompt and "{question}" in prompt and "{feedback}" in after
        # the prompt must stay as it was, and feedback must open an answer turn as the question does (unlike Phi-4's)
        opened = prompt.rpartition("{question}")[2] == after.rpartition("{feedback}")[2]
        if whole and end and before.rstrip() == prompt.rstrip() and opened:
            return ChatTemplate(prompt, end[0], after)
    raise ValueError("the tokenizer has no chat template of its own that can write a dialogue of several attempts")


def special_tokens(tokenizer, template: str = "") -> re.Pattern:
    """Matches a special token, or another added token that is in the template; of several, the longest."""
    added = [x for x in tokenizer.added_tokens_decoder.values() if not x.content.isspace()]  # such as Gemma's newlines
    names = sorted((x.content for x in added if x.special or x.content in template), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, names)) or "(?!)")


class Chat:
    """A chat template and a feedback for a model's tokenizer: only here does text become tokens, or tokens text.

    `template` is a name of CHAT_TEMPLATES or "auto", `feedback` a name of FEEDBACKS, a text, or a function. ValueError
    for a feedback or template that cannot be used with this tokenizer."""

    def __init__(self, model, tokenizer, template: str, feedback: Feedback = "paper"):
        self.tokenizer, self.feedback = tokenizer, resolve_feedback(feedback)
        self.encode_piece = lru_cache(1 << 14)(lambda text: self.tokenizer(text, add_special_tokens=False)["input_ids"])
        self.template = own_template(tokenizer) if template == "auto" else CHAT_TEMPLATES[template]
        if len(end := self.encode(self.template.end)) != 1:
            unknown = f"the token {self.template.end} of the chat template {template!r}"
            raise ValueError(f"the tokenizer does not know {unknown}: choose another --chat_template")
        self.turn_end = end[0]
        eos = model.generation_config.eos_token_id
        self.end_tokens = {self.turn_end, tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])} - {None}
        # A box can only close at one of these, so a rollout looks nowhere else. "<0x7D>" is the byte token of "}".
        self.brace_tokens = {token for text, token in tokenizer.get_vocab().items() if "}" in text or text == "<0x7D>"}
        self.special = special_tokens(tokenizer, "".join(self.template))

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without any that the tokenizer would put before or after it."""
        return sum(map(self.encode_piece, text.split(CUT)), [])

    def escape(self, text: str) -> str:
        """Splits whatever looks like a special token, so that a question cannot forge a turn."""
        return self.special.sub(lambda name: name[0][:1] + CUT + name[0][1:], text)

    def prompt(self, question: str, allowed: int) -> list[int]:
        return self.encode(prompt_text(self.template, self.escape(question), allowed))

    def feedback_after(self, last_token: int, attempts_left: int, attempt, gold: str) -> list[int]:
        """The tokens after a wrong attempt: forced, not sampled. A turn that the model has ended is not ended twice."""
        words = self.escape(fill_feedback(self.feedback, attempts_left, attempt, gold))
        tokens = self.encode(self.template.feedback.replace("{feedback}", words))
        return tokens[1:] if last_token == self.turn_end else tokens

    def try_feedback(self) -> str:
        """The feedback after two made-up answers and after none. An error in your own function is raised here."""
        tokens = []
        for attempts_left, answer in ((1, "1"), (2, "2"), (1, None)):
            text = rf"\boxed{{{answer or ''}}}"
            attempt = SimpleNamespace(start=0, end=1, text=text, answer=answer, truncated=False, correct=False)
            tokens += self.feedback_after(-1, attempts_left, attempt, "3")
        return self.decode(tokens)

    def decode(self, tokens: list[int]) -> str:
        """The text of these tokens unchanged, special tokens included."""
        return self.tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
