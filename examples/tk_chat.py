"""A chat window with tkinter: events are delivered into Tk's own loop, and nothing ever blocks it.

    python examples/tk_chat.py [MODEL.gguf]

Other toolkits need one line instead of the queue: Qt a signal, GTK `GLib.idle_add`, asyncio
`loop.call_soon_threadsafe`, each given as `schedule` to `Stream.deliver`.
"""

from __future__ import annotations

import sys
import tkinter as tk
from queue import Empty, SimpleQueue
from tkinter import scrolledtext, ttk
from typing import TYPE_CHECKING

from edgekv import Busy, Done, EdgeKVError, Notice, PrefillProgress, Runtime, TextDelta

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgekv import Event

POLL_MS = 30


class Window:
    """One conversation. Everything here runs in Tk's thread."""

    def __init__(self, root: tk.Tk, runtime: Runtime) -> None:
        self._root = root
        self._chat = runtime.conversation("tk example")
        self._soon: SimpleQueue[Callable[[], None]] = SimpleQueue()  # Tk may not be called from other threads
        root.title("edgekv")
        self._text = scrolledtext.ScrolledText(root, wrap="word", state="disabled")
        self._text.pack(fill="both", expand=True)
        self._status = ttk.Label(root, text="Enter sends, Esc stops")
        self._status.pack(fill="x")
        self._entry = ttk.Entry(root)
        self._entry.pack(fill="x")
        self._entry.bind("<Return>", lambda _event: self.send())
        root.bind("<Escape>", lambda _event: self._chat.cancel())
        self._entry.focus()
        for turn in self._chat.history():
            self._show(f"> {turn.user}\n{turn.answer}\n")
        root.after(POLL_MS, self.run_soon)

    def run_soon(self) -> None:
        """Run what other threads asked for."""
        try:
            while True:
                self._soon.get_nowait()()
        except Empty:
            self._root.after(POLL_MS, self.run_soon)

    def send(self) -> None:
        """Say what was typed."""
        message = self._entry.get()
        try:
            stream = self._chat.stream(message)
        except Busy:
            return  # an answer is on its way: what was typed stays
        except EdgeKVError as error:
            self._status["text"] = str(error)
            return
        self._entry.delete(0, "end")
        self._show(f"> {message}\n")
        stream.deliver(self.handle, self._soon.put)

    def handle(self, event: Event | BaseException) -> None:
        """One event of the answer."""
        match event:
            case PrefillProgress(done, total, reused):
                self._status["text"] = f"reading: {done} of {total} tokens, {reused} reused"
            case TextDelta(text):
                self._show(text)
            case Notice(message):
                self._status["text"] = message
            case Done(result):
                self._show("\n" if result.finish_reason != "cancelled" else " [stopped]\n")
                self._status["text"] = (
                    f"{result.exactness}; {result.timings.decode_tokens_per_s:.0f} tokens/s"
                )
            case BaseException():
                self._status["text"] = str(event)

    def _show(self, text: str) -> None:
        self._text["state"] = "normal"
        self._text.insert("end", text)
        self._text["state"] = "disabled"
        self._text.see("end")


def main() -> None:
    """Open the window; the model is unloaded when nobody speaks for five minutes."""
    root = tk.Tk()  # before the model is loaded: without a display there is nothing to load it for
    with Runtime(model=sys.argv[1] if len(sys.argv) > 1 else None, keep_alive=300) as runtime:
        Window(root, runtime)
        root.mainloop()


if __name__ == "__main__":
    try:
        main()
    except tk.TclError as error:
        sys.exit(f"there is no display for a window ({error}): start it on a desktop, or with ssh -X")
    except EdgeKVError as error:
        sys.exit(str(error))
