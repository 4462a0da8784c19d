"""Stop strings found in text that arrives in arbitrary pieces."""

from hypothesis import given, settings
from hypothesis import strategies as st

from edgekv.engine.stopper import Stopper


def feed(stop, pieces):
    stopper = Stopper(stop)
    shown = [stopper.push(piece) for piece in pieces]
    return "".join(shown) + ("" if stopper.stopped else stopper.flush()), stopper.stopped


def test_stop_string_split_over_pieces_is_never_shown():
    """Guards the classic leak: the first half of a stop string printed before the second arrives."""
    stopper = Stopper(["END"])
    assert [stopper.push(piece) for piece in ["one E", "N", "D two"]] == ["one ", "", ""]
    assert stopper.stopped
    assert stopper.matched == "END"
    assert stopper.push("more") == ""


def test_a_false_start_is_released():
    """Guards against swallowing text that only looked like the start of a stop string."""
    stopper = Stopper(["END"])
    assert [stopper.push(piece) for piece in ["a E", "N", "E", "EN"]] == ["a ", "", "EN", "E"]
    assert stopper.flush() == "EN"


def test_the_stop_string_completed_first_wins():
    """Guards overlap: `b` is complete before `abc`, so text must end before `b` however it is cut."""
    assert feed(["abc", "b"], ["abc"]) == ("a", True)
    assert feed(["abc", "b"], ["a", "b", "c"]) == ("a", True)


def test_without_stop_strings_text_passes_untouched():
    """Guards the common case against any delay; an empty stop string must not stop everything."""
    assert feed([], ["x", "y"]) == ("xy", False)
    assert feed([""], ["x", "y"]) == ("xy", False)


@settings(max_examples=200, deadline=None)
@given(
    stop=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    pieces=st.lists(st.text("abc", max_size=4), max_size=10),
)
def test_the_cut_into_pieces_does_not_matter(stop, pieces):
    """Guards against results that depend on token boundaries, and against shown stop strings."""
    text = "".join(pieces)
    shown, stopped = feed(stop, pieces)
    assert (shown, stopped) == feed(stop, list(text))
    assert text.startswith(shown)
    assert stopped == any(word in text for word in stop)
    assert not any(word in shown for word in stop)
