"""Asks several questions about one text with asyncio, showing what was reused; Ctrl+C stops the computation.

python examples/async_script.py README.md "What is it for?" "What does it not do yet?"
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from edgekv import AsyncRuntime, Cancelled, ContextOverflow, Done, EdgeKVError, PrefillProgress, TextDelta


async def answer(runtime: AsyncRuntime, name: str, message: str) -> None:
    """One message and its answer, printed as it comes."""
    chat = await runtime.conversation(name)
    async for event in chat.stream(message, max_tokens=200, timeout=300):
        match event:
            case PrefillProgress(done, total, reused):
                print(f"\rread {done} of {total} tokens, {reused} of them reused", end="", file=sys.stderr)
            case TextDelta(text):
                print(text, end="", flush=True)
            case Done(result):
                print(f"\n[{result.exactness}, first token after {result.timings.ttft_s:.1f} s]")


async def main(text: str, questions: list[str]) -> None:
    """The text is read by the model once; every question after the first costs only its own tokens."""
    async with AsyncRuntime(host_budget="1GiB") as runtime:
        for number, question in enumerate(questions):
            message = f"{text}\n\n{question}" if number == 0 else question
            try:
                await answer(runtime, "about a text", message)
            except (Cancelled, ContextOverflow) as error:
                print(f"\n{error}", file=sys.stderr)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    try:
        asyncio.run(main(Path(sys.argv[1]).read_text("utf-8"), sys.argv[2:]))
    except (EdgeKVError, OSError, UnicodeDecodeError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
