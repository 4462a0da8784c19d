"""Dialogues: turns, branches, streams, and where they are kept."""

from edgekv.conversation.conversation import Conversation
from edgekv.conversation.library import ConversationInfo, Library
from edgekv.conversation.stream import CancelToken, Stream
from edgekv.conversation.turns import Branch, Turn

__all__ = ["Branch", "CancelToken", "Conversation", "ConversationInfo", "Library", "Stream", "Turn"]
