"""What a chat template adds to a conversation: the next turn's text, markup kept apart from people's words.

Knows messages and how to tell what a template does with them; not how it is run (`template_process`) nor what
tokens are.

Stored token ids are the truth, so a turn never renders what is already stored. The template is rendered with
a random marker in the place of every message text; what stands after the last answer's marker is what the
new turn adds, and the markers divide it into pieces. A piece that is the template's own is markup (control
tokens are meant); a piece that came from a message never is, whatever somebody typed.
"""

from __future__ import annotations

import re
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from edgekv.errors import TemplateError
from edgekv.models.template_process import TemplateLimits, TemplateProcess, TemplateRefusedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgekv.models.gguf import GGUFFile
    from edgekv.models.tokenizer import Piece, Tokenizer

Message = dict[str, str]
Source = Literal["file", "chatml", "plain"]

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PLAIN = (
    "{% for message in messages %}{% if message.role == 'system' %}{{ message.content + '\n\n' }}"
    "{% else %}{{ ('User: ' if message.role == 'user' else 'Assistant: ') + message.content + '\n' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class TurnText:
    """What a turn adds.

    `prefix_unchanged` is False where the template, shown the whole dialogue, would not repeat what is stored
    before it: it drops an answer's thinking, say, or moves the system prompt.
    """

    prefix_unchanged: bool
    pieces: list[Piece]


class ChatTemplate:
    """One model's template. Any thread may call it; the sandbox process starts at the first use.

    `source` tells whose template it is: the file's, or for lack of one ChatML (where the vocabulary has its
    tokens) or plain "User:" and "Assistant:" lines. `stop` are texts that end an answer besides end tokens.
    """

    def __init__(
        self,
        text: str,
        *,
        bos: str = "",
        eos: str = "",
        end_texts: Sequence[str] = (),
        source: Source = "file",
        variables: Mapping[str, str | int | bool] | None = None,
        limits: TemplateLimits | None = None,
    ) -> None:
        self.source: Source = source
        self.stop: tuple[str, ...] = ("\nUser:",) if source == "plain" else ()
        self._end_texts = sorted((end for end in end_texts if end), key=len, reverse=True)
        self._variables = {"bos_token": bos, "eos_token": eos, **(variables or {})}
        self._process = TemplateProcess(text, limits or TemplateLimits())
        self._folds_system: bool | None = None

    @classmethod
    def from_gguf(cls, file: GGUFFile, tokenizer: Tokenizer, *, limits: TemplateLimits | None = None) -> Self:
        """The file's template, or the stand-in that suits its vocabulary; nothing is run yet."""
        text = file.metadata.get("tokenizer.chat_template")
        source: Source = "file"
        if not isinstance(text, str) or not text.strip():
            chatml = tokenizer.encode("<|im_start|>", special=True)
            source = "chatml" if len(chatml) == 1 and chatml[0] in tokenizer.control_ids else "plain"
            text = CHATML if source == "chatml" else PLAIN
        eos_id = file.metadata.get("tokenizer.ggml.eos_token_id")
        return cls(
            text,
            bos=_text_of(tokenizer, tokenizer.bos_id),
            eos=_text_of(tokenizer, eos_id if type(eos_id) is int else None),
            end_texts=[_text_of(tokenizer, end) for end in tokenizer.end_ids],
            source=source,
            limits=limits,
        )

    def render(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """The whole dialogue as the template writes it.

        Raises:
            TemplateError: the template failed, refused the messages, took too long or grew too large.
        """
        return self._render([self._settle_system(messages)], add_generation_prompt)[0]

    def render_pieces(self, messages: Sequence[Mapping[str, str]]) -> list[Piece]:
        """The whole dialogue up to where the next answer begins, as pieces (text, is markup)."""
        settled = self._settle_system(messages)
        return self._pieces(settled, 0)[1]

    def next_turn(
        self, history_messages: Sequence[Mapping[str, str]], answer_ended: bool, user_text: str
    ) -> list[Piece]:
        """What `user_text` adds after the stored tokens of `history_messages`, up to the next answer's start.

        `history_messages` is empty, a system message, or a dialogue whose last message is an answer, empty
        where none was generated. `answer_ended` says that the answer's tokens include its end token, which is
        then not written again.

        Raises:
            TemplateError: as for `render`.
        """
        new = [{"role": "user", "content": user_text}]
        return self.render_turn(history_messages, new, answer_ended=answer_ended).pieces

    def render_turn(
        self,
        history: Sequence[Mapping[str, str]],
        new_messages: Sequence[Mapping[str, str]],
        *,
        answer_ended: bool = True,
    ) -> TurnText:
        """`next_turn` for any new messages; tells also whether the template would rewrite the history."""
        settled = self._settle_system([*history, *new_messages])
        num_old = len(settled) - len(new_messages)
        if not any(message["role"] == "assistant" for message in settled[:num_old]):
            return TurnText(True, self._pieces(settled, 0)[1])
        found, pieces = self._pieces(settled, num_old)
        if not found:  # the template leaves earlier answers out: only the whole dialogue makes sense
            return TurnText(False, pieces)
        if answer_ended and pieces and pieces[0][1]:
            pieces[0] = (self._without_end(pieces[0][0]), True)
        pieces = [piece for piece in pieces if piece[0]]
        return TurnText(self._repeats(settled, num_old), pieces)

    def close(self) -> None:
        """End the sandbox process."""
        self._process.close()

    def _pieces(self, messages: list[Message], num_old: int) -> tuple[bool, list[Piece]]:
        """Pieces after the text of message `num_old - 1` (from the start for 0), and whether it was found."""
        markers = _markers(len(messages))
        marked = _with_texts(messages, markers)
        whole = self._render([marked], True)[0]
        start = whole.find(markers[num_old - 1]) if num_old else 0
        found = start >= 0
        if found and num_old:
            start += len(markers[num_old - 1])
        rest = whole[max(start, 0) :]
        inside = [i for i, marker in enumerate(markers) if marker in rest]
        for i, message in enumerate(messages):
            if i not in inside and (
                markers[i] in rest.casefold() or (i >= num_old and message["role"] == "user")
            ):
                raise TemplateError(
                    "the model's chat template loses messages; use another file of this model"
                )
        texts = self._texts_inside(messages, marked, markers, whole, inside)
        pattern = "|".join(markers)
        cut = re.split(f"({pattern})", rest)
        known = dict(zip(markers, texts, strict=True))
        pieces = [(known[part], False) if part in known else (part, True) for part in cut]
        return found, [piece for piece in pieces if piece[0]]

    def _texts_inside(
        self,
        messages: list[Message],
        marked: list[Message],
        markers: list[str],
        whole: str,
        inside: list[int],
    ) -> list[str]:
        """What the template makes of each message's text: the text itself, mostly, or trimmed, say.

        Rendered again with one real text among markers, whatever then differs came from that text. Should
        it change the markup around it too, that markup is taken for the text's, so it loses its meaning
        rather than lend it to words that somebody typed.
        """
        texts = [message["content"] for message in messages]
        everything = [messages[i] if i in inside else marked[i] for i in range(len(messages))]
        expected = whole
        for i in inside:
            expected = expected.replace(markers[i], texts[i])
        if self._render([everything], True)[0] == expected:
            return texts
        jobs = [[*marked[:i], messages[i], *marked[i + 1 :]] for i in inside]
        for i, real in zip(inside, self._render(jobs, True), strict=True):
            if real == whole.replace(markers[i], texts[i]):
                continue
            before, _, after = whole.partition(markers[i])
            start = _common(before, real)
            end = _common(after[::-1], real[start:][::-1])
            texts[i] = real[start : len(real) - end]
        return texts

    def _repeats(self, messages: list[Message], num_old: int) -> bool:
        """Whether the template still writes the last answer after the same words, and whole."""
        answer = num_old - 1
        marked = _with_texts(messages, _markers(len(messages)))
        text = messages[answer]["content"].strip()
        prompt = self._render([marked[:answer]], True)[0]
        with_answer = self._render([[*marked[:answer], messages[answer], *marked[num_old:]]], True)[0]
        return with_answer.startswith(prompt) and with_answer[len(prompt) :].lstrip().startswith(text)

    def _without_end(self, text: str) -> str:
        bare = text.lstrip()
        return next((bare.removeprefix(end) for end in self._end_texts if bare.startswith(end)), text)

    def _settle_system(self, messages: Sequence[Mapping[str, str]]) -> list[Message]:
        """The messages; where the template refuses a system message, its text opens the first user's one."""
        plain = [{"role": message["role"], "content": message["content"]} for message in messages]
        if not plain or plain[0]["role"] != "system":
            return plain
        if self._folds_system is None:
            try:
                self._render([_with_texts([plain[0], {"role": "user", "content": ""}], ["a", "b"])], True)
                self._folds_system = False
            except TemplateRefusedError:
                self._folds_system = True
        if not self._folds_system or len(plain) < 2:
            return plain
        first = {"role": plain[1]["role"], "content": f"{plain[0]['content']}\n\n{plain[1]['content']}"}
        return [first, *plain[2:]]

    def _render(self, dialogues: Sequence[Sequence[Message]], add_generation_prompt: bool) -> list[str]:
        now = time.time()
        jobs: list[dict[str, Any]] = [
            {
                "now": now,
                "variables": {
                    **self._variables,
                    "messages": list(messages),
                    "add_generation_prompt": add_generation_prompt,
                },
            }
            for messages in dialogues
        ]
        return self._process.render(jobs) if jobs else []


def _markers(count: int) -> list[str]:
    """Words nobody can have typed, of one length; digits mostly, which trimming and the like leave alone."""
    key = f"{secrets.randbelow(10**20):020}"
    return [f"q{key}z{index:06d}q" for index in range(count)]


def _common(one: str, other: str) -> int:
    """How many first characters two texts share."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _with_texts(messages: Sequence[Message], texts: Sequence[str]) -> list[Message]:
    return [{**message, "content": text} for message, text in zip(messages, texts, strict=True)]


def _text_of(tokenizer: Tokenizer, token_id: int | None) -> str:
    if token_id is None or not 0 <= token_id < tokenizer.num_tokens:
        return ""
    return tokenizer.piece(token_id, special=True).decode("utf-8", errors="replace")
