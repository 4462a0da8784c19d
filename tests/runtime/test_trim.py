"""Which tokens of an answer are kept after a stop string."""

from edgekv.conversation.render import trim_to_text


class SentencePiece:
    """Three tokens; the first comes with the space that SentencePiece puts before the first word."""

    adds_space_prefix = True
    end_ids = frozenset()
    pieces = (b" a", b"b", b"STOP")

    def piece(self, token_id, *, special=False):
        return self.pieces[token_id]

    def decode(self, ids, *, special=False):
        return b"".join(map(self.piece, ids)).decode()


def test_a_leading_space_does_not_cost_the_last_token():
    """Guards against comparing the text as shown with a text that has one space more."""
    assert list(trim_to_text(SentencePiece(), [0, 1, 2], "ab")) == [0, 1]
    assert list(trim_to_text(SentencePiece(), [0, 1, 2], "")) == []
    assert list(trim_to_text(SentencePiece(), [0, 1], "ab")) == [0, 1]
