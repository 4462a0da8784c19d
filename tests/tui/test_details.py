"""What is told of an answer."""

from array import array

from edgekv import Result, Timings, Turn, Usage
from edgekv.events import AttentionUse
from edgekv_tui.details import detail_rows, turn_spans


def turn(number, prompt, answer, *, whole=False):
    ids = {"prompt_ids": array("i", range(prompt)), "answer_ids": array("i", range(answer))}
    return Turn(number, number - 1 if number else None, user=f"question {number}", is_whole=whole, **ids)


def test_positions_lead_back_to_turns():
    """Guards the list of turns that were read: positions are those of the tokens that the model saw."""
    path = [turn(0, 20, 30), turn(1, 10, 40), turn(2, 5, 5)]
    assert turn_spans(path) == [(0, 0, 50), (1, 50, 100), (2, 100, 110)]
    assert turn_spans([*path, turn(3, 200, 8, whole=True)]) == [(3, 0, 208)]
    attention = AttentionUse(mean_tokens=64, most_read=((64, 0.5), (16, 0.25), (80, 0.125), (512, 0.1)))
    result = Result(
        "a", (), "stop", Usage(110, 5, 0), Timings(0.1, 1, 1), exactness="selected", attention=attention
    )
    rows = dict(detail_rows(path, result))
    assert rows["turn 2"] == "in 50% of the steps: question 1"
    assert rows["turn 1"] == "in 25% of the steps: question 0"
    assert "turn 3" not in rows


def test_of_an_answer_that_was_not_made_here_nothing_is_told_but_that():
    """Guards against figures of another program's answer: it was "exact" and "the model ended it"."""
    ids = array("i", range(4))
    imported = Turn(0, None, "one", "elsewhere", "complete", prompt_ids=ids, answer_ids=ids)
    rows = dict(detail_rows([imported], None))
    assert rows == {
        "made": "elsewhere, and imported: how is not known",
        "message": "4 tokens",
        "answer": "4 tokens",
    }
    rebuilt = Turn(0, None, "one", "again", "complete", prompt_ids=ids, answer_ids=ids, replaces=7)
    assert set(dict(detail_rows([rebuilt], None))) == {"rebuilt", "message", "answer"}
