"""What processes were told and asked of their conversations, and whether what is found fits to it.

Knows messages ("may": about to be done, "did": acknowledged); neither processes nor files.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

Told = dict[str, object]


@dataclass
class Story:
    """One sequence."""

    name: str
    is_certain: bool = False  # its creation was acknowledged
    turns: dict[int, set[str]] = field(default_factory=dict)  # texts that a known turn may have
    asked: set[str] = field(default_factory=set)  # texts of turns that may have been added
    forget: str = "no"  # no, asked, done, never made (ended before it was)


class Stories:
    """All sequences of a directory, by their ids in hex."""

    def __init__(self) -> None:
        self.by_sequence: dict[str, Story] = {}
        self.num_acknowledged = 0
        self.num_forgotten = 0

    def copy(self) -> Stories:
        """Independent of this one."""
        return copy.deepcopy(self)

    def note(self, told: Told) -> None:
        """One message, in order."""
        step, sequence, is_done = told["step"], str(told["sequence"]), told["kind"] == "did"
        if step == "create":
            self.by_sequence.setdefault(sequence, Story(str(told["name"]))).is_certain |= is_done
            return
        story = self.by_sequence[sequence]
        if step == "forget":
            story.forget = "done" if is_done else "asked"
            self.num_forgotten += is_done
        elif step == "turn" and not is_done:
            story.asked.add(str(told["text"]))
        else:
            turn, text = int(str(told["turn"])), str(told["text"])
            story.turns[turn] = {text} if is_done else story.turns.get(turn, set()) | {text}
            self.num_acknowledged += is_done

    def judge(self, found: dict[str, dict[str, str]]) -> list[str]:
        """`found`: the texts of all turns by sequence. What breaks a promise; from now on it is the truth."""
        broken = [f"sequence {s} was never made" for s in found.keys() - self.by_sequence.keys()]
        for sequence, story in self.by_sequence.items():
            if sequence in found:
                turns = {int(number): text for number, text in found[sequence].items()}
                broken += [f"sequence {sequence}: {line}" for line in _judge_turns(story, turns)]
            elif story.is_certain and story.forget == "no":
                broken.append(f"conversation {sequence} is lost")
            elif story.forget != "done":
                story.forget = "done" if story.forget == "asked" else "never made"
        return broken

    def forgotten(self) -> list[str]:
        """Sequences of which nothing may be left."""
        return [s for s, story in self.by_sequence.items() if story.forget == "done"]


def _judge_turns(story: Story, found: dict[int, str]) -> list[str]:
    if story.forget in ("done", "never made"):
        return ["it came back"]
    broken = []
    if story.forget == "no":
        broken += [f"acknowledged turn {turn} is lost" for turn in story.turns.keys() - found.keys()]
    for turn, text in found.items():
        if text not in story.turns.get(turn, story.asked):
            broken.append(f"turn {turn} says {text[:80]!r}, which nobody wrote there")
    story.turns = {turn: {text} for turn, text in found.items()}
    story.is_certain = True
    story.asked.clear()
    return broken
