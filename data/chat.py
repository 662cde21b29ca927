"""The dialogue as text and as tokens: a chat template for each kind of model, and the paper's wording.

system      the task, and how many attempts are allowed
user        the question
assistant   first attempt                     <- written by the model
system      "Your answer is incorrect. ..."   <- feedback, only after a wrong attempt
assistant   second attempt                    <- written by the model
"""

from functools import cache
from typing import NamedTuple


class ChatTemplate(NamedTuple):
    """How one kind of model writes a chat turn. `turn` is formatted with `role` and `content`."""

    begin: str  # before the first turn
    turn: str
    answer: str  # opens the model's turn
    end: str  # the special token that ends a turn


CHAT_TEMPLATES = {
    "chatml": ChatTemplate("", "<|im_start|>{role}\n{content}<|im_end|>\n", "<|im_start|>assistant\n", "<|im_end|>"),
    "llama3": ChatTemplate(
        "<|begin_of_text|>",
        "<|start_header_id|>{role}<|end_header_id|>\n\n{content}<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
    ),
}

# The paper's wording (the authors' code), "1 attempts" included.
SYSTEM = (
    "Please reason step by step, and put your final answer within \\boxed{{}}. You have {attempts} attempts to answer "
    "the questions, and you should provide the full reasoning steps in each attempt."
)
# What follows a wrong attempt: the paper's wording, the same without the number of attempts left, or a control that is
# as long as the paper's (in the miniature it has as many tokens) and does not say that the attempt was wrong.
FEEDBACKS = {
    "paper": "Your answer is incorrect. You have {attempts} attempts left. Try an alternative.",
    "uncounted": "Your answer is incorrect. Try an alternative.",
    "uninformative": "Please reason step by step, and put your final answer within \\boxed{{}}",
}


def prompt_text(template: ChatTemplate, question: str, attempts: int) -> str:
    """Everything before the first attempt: system turn with the number of attempts, question, opened answer turn."""
    system = template.turn.format(role="system", content=SYSTEM.format(attempts=attempts))
    return template.begin + system + template.turn.format(role="user", content=question) + template.answer


def feedback_text(template: ChatTemplate, attempts_left: int, feedback: str = "paper") -> str:
    """Everything between a wrong attempt and the next one, from the end token of the attempt's turn on."""
    end_of_turn = template.turn[template.turn.index(template.end) :]
    content = FEEDBACKS[feedback].format(attempts=attempts_left)
    return end_of_turn + template.turn.format(role="system", content=content) + template.answer


class Chat:
    """A chat template and a feedback for a model's tokenizer: only here does text become tokens, or tokens text.
    ValueError for an unknown template or feedback, or a tokenizer without the template's end token."""

    def __init__(self, model, tokenizer, template: str, feedback: str = "paper"):
        for what, name, known in ("chat template", template, CHAT_TEMPLATES), ("feedback", feedback, FEEDBACKS):
            if name not in known:
                raise ValueError(f"unknown {what} {name!r}: choose one of {', '.join(known)}")
        self.tokenizer, self.template = tokenizer, CHAT_TEMPLATES[template]
        if len(end := self.encode(self.template.end)) != 1:
            raise ValueError(
                f"the tokenizer does not know the token {self.template.end} of the chat template {template!r}: "
                f"choose another of {', '.join(CHAT_TEMPLATES)}"
            )
        self.turn_end = end[0]
        eos = model.generation_config.eos_token_id if model.generation_config else None
        self.end_tokens = {self.turn_end, tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])} - {None}
        # An attempt can only end at an end token or at one that contains a closing brace, so a rollout looks for a box
        # after these alone. "<0x7D>" is the byte token of "}".
        self.brace_tokens = {token for text, token in tokenizer.get_vocab().items() if "}" in text or text == "<0x7D>"}
        self.feedback_tokens = cache(lambda left: self.encode(feedback_text(self.template, left, feedback)))

    def encode(self, text: str) -> list[int]:
        """The tokens of a text. Special tokens only where the text spells them."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def prompt(self, question: str, attempts: int) -> list[int]:
        return self.encode(prompt_text(self.template, question, attempts))

    def feedback_after(self, last_token: int, attempts_left: int) -> list[int]:
        """The forced tokens after an attempt. A turn that the model has ended itself is not ended twice."""
        tokens = self.feedback_tokens(attempts_left)
        return tokens[1:] if last_token == self.turn_end else tokens

    def text(self, tokens: list[int]) -> str:
        """The text of these tokens unchanged, special tokens included."""
        return self.tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
