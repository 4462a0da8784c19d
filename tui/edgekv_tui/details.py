"""What is known of an answer, and of KV that had to give way, as rows to read.

Knows results, turns and moves; measures nothing itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekv_tui.moves import times, when
from edgekv_tui.text import one_line, seconds, size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edgekv import ConversationInfo, Move, Result, Turn
    from edgekv_tui.answering import Answering

Row = tuple[str, str]
MOST_TURNS = 8
_ENDED = {
    "stop": "the model ended it",
    "length": "the longest answer (--max-tokens) was reached",
    "cancelled": "you stopped it",
    "context": "the model's window is full",
}
_EXACTNESS = {
    "exact": "exact: every token read the whole conversation before it",
    "selected": "selected: each token read what mattered, not everything",
    "compressed": "compressed: some of what was read had been stored with less precision",
}


def detail_rows(path: Sequence[Turn], result: Result | None) -> Iterator[Row]:
    """All about the answer of the last turn of `path`; `result` is there for answers of this run."""
    turn = path[-1]
    if turn.state == "damaged":
        yield "answer", "cannot be read: the record of this turn is damaged, and nothing else of it is known"
        return
    if turn.state == "pending" and result is None:  # its other fields are defaults, not facts
        yield "answer", "there is none; if this is the last message, Ctrl+R answers it"
        return
    if turn.is_imported:
        yield "made", "elsewhere, and imported: how is not known"
    elif turn.is_rebuilt:
        yield "rebuilt", "from stored tokens, since its record was damaged: how it was made is not known"
    else:
        if turn.answer_ids and turn.exactness is not None:
            yield "exactness", _EXACTNESS[turn.exactness]
        yield "ended", _ENDED.get(turn.finish_reason or "", "not known")
    yield "message", f"{len(turn.prompt_ids):,} tokens"
    yield "answer", f"{len(turn.answer_ids):,} tokens"
    if result is not None:
        yield from _of_this_run(result)
        yield from _turns_read(path, result)
    elif turn.sampling:
        yield "speed", "not kept: it was answered in an earlier run"
    if turn.sampling:
        yield "Drawn with", ""
    for name, value in turn.sampling.items():
        yield name.replace("_", " "), "new each time" if value is None else f"{value:g}"


def making_rows(answering: Answering) -> Iterator[Row]:
    """What is known of an answer that is being made, at this moment."""
    yield "answer", "is being stopped" if answering.is_stopping else "is being made"
    progress = answering.progress
    if progress is not None:
        yield "read", f"{progress.done:,} of {progress.total:,} tokens"
        yield "reused", f"{progress.reused:,} of them did not have to be computed again"
    yield "written", f"{answering.num_tokens:,} tokens so far"
    if answering.num_tokens > answering.first_tokens:
        yield "speed", f"{answering.tokens_per_s:,.1f} tokens/s so far"
    yield "exactness", "known when it has ended"


def _of_this_run(result: Result) -> Iterator[Row]:
    usage, timings, attention, cache = result.usage, result.timings, result.attention, result.cache
    yield "Reading", ""
    yield "context", f"{usage.prompt_tokens:,} tokens"
    yield "reused", f"{usage.reused_tokens:,} of them did not have to be computed again"
    if usage.completion_tokens:
        yield "first token", f"after {seconds(timings.ttft_s)}"
    yield "reading", f"{timings.prefill_tokens_per_s:,.0f} tokens/s"
    if usage.completion_tokens > 1:  # there is no speed of a single token
        yield "writing", f"{timings.decode_tokens_per_s:,.1f} tokens/s"
    yield "Attention", ""
    if attention.mean_tokens:
        yield "attended", f"{attention.mean_tokens:,.0f} tokens per layer and step, on average"
    kept = "everything" if result.exactness == "exact" else "not sampled"
    yield (
        "mass kept",
        kept if attention.mass_kept is None else f"{attention.mass_kept:.2%} of full attention's",
    )
    if attention.promoted_bytes:
        yield "fetched", f"{size(attention.promoted_bytes)} of leaves that were not in memory"
    yield "Memory when it ended", ""
    yield "device", f"{size(cache.device_bytes)} (peak {size(cache.device_peak_bytes)})"
    yield "host", f"{size(cache.host_bytes)} (peak {size(cache.host_peak_bytes)})"
    yield "disk", f"{size(cache.disk_bytes)} (peak {size(cache.disk_peak_bytes)})"
    if cache.damaged_leaves:
        yield "damaged", f"{cache.damaged_leaves:,} leaves could not be read and were computed again"
    if result.notices:
        yield "Notices", ""
        yield from (("", notice) for notice in result.notices)


def _turns_read(path: Sequence[Turn], result: Result) -> Iterator[Row]:
    """Which earlier turns the answer read most, where it did not read all."""
    shares: dict[int, float] = {}
    spans = turn_spans(path)
    for position, share in result.attention.most_read:
        found = next((number for number, start, end in spans if start <= position < end), None)
        if found is not None:
            shares[found] = max(shares.get(found, 0.0), share)
    most = sorted(shares.items(), key=lambda item: -item[1])[:MOST_TURNS]
    if most:
        yield "Read most, of all that came before", ""
        for number, share in most:
            yield f"turn {number + 1}", f"in {share:.0%} of the steps: {one_line(path[number].user, 44)}"


def turn_spans(path: Sequence[Turn]) -> list[tuple[int, int, int]]:
    """(number, first position, position behind its answer) of each turn, as far as positions are known.

    A turn that brings the whole context with it says nothing of where the ones before it lie in it.
    """
    spans: list[tuple[int, int, int]] = []
    at = 0
    for number, turn in enumerate(path):
        if turn.is_whole:
            spans, at = [], 0
        end = at + len(turn.prompt_ids) + len(turn.answer_ids)
        spans.append((number, at, end))
        at = end
    return spans


def given_up_rows(moves: Sequence[Move], infos: Sequence[ConversationInfo]) -> Iterator[Row]:
    """What moved in this run, newest first, and what conversations lost on disk since they were used."""
    yield "On disk: computed again when asked for; the text is kept", ""
    lost = [info for info in infos if info.forgotten_tokens]
    for info in lost:
        yield one_line(info.name, 30), f"{info.forgotten_tokens:,} tokens: {info.forgotten_why}"
    if not lost:
        yield "nothing", "every conversation's KV is there, as far as it was written"
    yield "In this run", ""
    for move in reversed(moves):
        whose = move.name or "another conversation"
        yield when(move), f"{move.kind} {move.num_tokens:,} tokens{times(move)} of {whose}: {move.why}"
    if not moves:
        yield "nothing", "no limit was reached"
