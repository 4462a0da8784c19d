"""Counts of what the server did and a Runtime's snapshot, in Prometheus's text format.

Knows numbers and their names; no text of any conversation.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgekv import Result, Snapshot

TTFT_BOUNDS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Tally:
    """What was answered since the start. One thread: the event loop's."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, int]] = Counter()
        self._tokens: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._ttft: Counter[float] = Counter()
        self._ttft_sum_s = 0.0

    def request(self, endpoint: str, status: int, result: Result | None = None) -> None:
        """One request was answered with `status`."""
        self._requests[endpoint, status] += 1
        if result is None:
            return
        self._tokens["prompt"] += result.usage.prompt_tokens
        self._tokens["reused"] += result.usage.reused_tokens
        self._tokens["completion"] += result.usage.completion_tokens
        self._reasons[result.finish_reason] += 1
        if result.usage.completion_tokens:
            bound = next((b for b in TTFT_BOUNDS_S if result.timings.ttft_s <= b), float("inf"))
            self._ttft[bound] += 1
            self._ttft_sum_s += result.timings.ttft_s

    def text(self, now: Snapshot) -> str:
        """All of it, and the snapshot `now`."""
        lines = _header("edgekv_requests_total", "counter", "requests answered, by endpoint and status")
        lines += [
            f'edgekv_requests_total{{endpoint="{endpoint}",status="{status}"}} {count}'
            for (endpoint, status), count in sorted(self._requests.items())
        ]
        lines += _header(
            "edgekv_tokens_total", "counter", "tokens of contexts, reused of them, and of answers"
        )
        lines += [
            f'edgekv_tokens_total{{kind="{kind}"}} {self._tokens[kind]}'
            for kind in ("prompt", "reused", "completion")
        ]
        lines += _header("edgekv_answers_total", "counter", "answers by how they ended")
        lines += [
            f'edgekv_answers_total{{reason="{reason}"}} {count}'
            for reason, count in sorted(self._reasons.items())
        ]
        return "\n".join([*lines, *self._ttft_lines(), *_gauges(now), ""])

    def _ttft_lines(self) -> list[str]:
        name, total = "edgekv_time_to_first_token_seconds", 0
        lines = _header(name, "histogram", "seconds from the request to the first token")
        for bound in (*TTFT_BOUNDS_S, float("inf")):
            total += self._ttft[bound]
            lines.append(f'{name}_bucket{{le="{"+Inf" if bound == float("inf") else bound}"}} {total}')
        return [*lines, f"{name}_sum {self._ttft_sum_s}", f"{name}_count {total}"]


def _gauges(now: Snapshot) -> list[str]:
    cache = now.cache
    lines = _header("edgekv_kv_bytes", "gauge", "bytes of KV in each tier")
    used = {"device": cache.device_bytes, "host": cache.host_bytes, "disk": cache.disk_bytes}
    lines += [f'edgekv_kv_bytes{{tier="{tier}"}} {count}' for tier, count in used.items()]
    lines += _header("edgekv_kv_limit_bytes", "gauge", "limit of each tier, where one was set")
    limits = {"device": now.device_budget, "host": now.host_budget, "disk": now.disk_budget}
    lines += [
        f'edgekv_kv_limit_bytes{{tier="{t}"}} {count}' for t, count in limits.items() if count is not None
    ]
    for name, value, what in (
        ("edgekv_requests_waiting", now.num_waiting, "requests in the queue"),
        ("edgekv_generating", int(now.is_generating), "1 while an answer is computed"),
        ("edgekv_model_loaded", int(now.is_loaded), "0 while the weights are unloaded"),
        ("edgekv_conversations_open", now.num_open_conversations, "conversations that are open"),
    ):
        lines += [*_header(name, "gauge", what), f"{name} {value}"]
    return lines


def _header(name: str, kind: str, what: str) -> list[str]:
    return [f"# HELP {name} {what}", f"# TYPE {name} {kind}"]
