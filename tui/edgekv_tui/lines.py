"""The lines the chats print about answers and turns. Knows formats only."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgekv import Result, Turn


def detail_line(result: Result) -> str:
    """One line about an answer: exactness, tokens, speed, wait, reuse."""
    usage, timings = result.usage, result.timings
    return (
        f"[{result.exactness}; {usage.completion_tokens:,} tokens at {timings.decode_tokens_per_s:.1f}/s; "
        f"first after {timings.ttft_s:.2f} s; {usage.reused_tokens:,} of {usage.prompt_tokens:,} reused]"
    )


def restored_line(reused: int, total: int, seconds: float) -> str:
    """One line after reopening. `total` are the conversation's tokens before the new message."""
    restored = min(reused, total)
    line = f"{restored:,} of {total:,} tokens restored in {seconds:.1f} s"
    # Fewer than 16 tokens are an unfinished leaf, computed again by design; more were lost.
    return line if total - restored < 16 else line + "; the rest is computed again (evicted or damaged)"


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
