"""The lines the chats print about answers and turns. Knows formats only."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgekv import PrefillProgress, Result, Turn


def detail_line(result: Result) -> str:
    """One line about an answer: exactness, tokens, speed, wait, reuse."""
    usage = result.usage
    return f"[{made_line(result)}; {usage.reused_tokens:,} of {usage.prompt_tokens:,} reused]"


def made_line(result: Result) -> str:
    """Exactness, tokens, speed and wait, of those that there are: without a token there is none of them."""
    count, timings = result.usage.completion_tokens, result.timings
    if count == 0:
        return "stopped before the first token" if result.finish_reason == "cancelled" else "no token came"
    speed = f" at {timings.decode_tokens_per_s:.1f}/s" if count > 1 else ""
    tokens = f"{count:,} token{'s' if count > 1 else ''}{speed}"
    return f"{result.exactness}; {tokens}; first after {timings.ttft_s:.2f} s"


def restored_line(progress: PrefillProgress, reopened: int, seconds: float) -> str:
    """One line after reopening; `reopened` are the conversation's tokens before the new message.

    No reason for what is missing: it may have been given up, damaged, or never computed (imported, stopped,
    killed). Where the runtime knows, a notice says it. An answer that is made again is not needed, nor counted.
    """
    total = min(reopened, progress.total)
    return f"{min(progress.reused, total):,} of {total:,} tokens restored in {seconds:.1f} s"


def pending_line(turn: Turn) -> str:
    """About a message whose answer never came."""
    text = turn.user if len(turn.user) <= 60 else turn.user[:59] + "…"
    return f"the last message has no answer yet: {text!r}; /regen answers it"


def state_mark(turn: Turn) -> str:
    """What is unusual about a turn, in brackets; empty where nothing is."""
    marks = {"pending": "[no answer]", "stopped": "[stopped]", "damaged": "[damaged]"}
    found = [marks[turn.state]] if turn.state in marks else []
    return " ".join([*found, "[rebuilt]"] if turn.is_rebuilt else found)


def turn_lines(number: int, turn: Turn) -> str:
    """A turn for /history."""
    return f"{number} > {turn.user}\n{' '.join(filter(None, (turn.answer, state_mark(turn))))}\n"
