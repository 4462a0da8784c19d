"""edgekv: conversations with a local model that survive restarts and may outgrow memory.

Importing it loads neither torch nor a model; `Runtime` does.
"""

from edgekv.asyncio import AsyncConversation, AsyncRuntime
from edgekv.catalog import FoundModel, found_models
from edgekv.config import Config
from edgekv.conversation import Branch, CancelToken, Conversation, ConversationInfo, Stream, Turn
from edgekv.conversation.archive import Archive
from edgekv.conversation.foreign import ForeignChat, read_foreign
from edgekv.errors import (
    Busy,
    Cancelled,
    CapacityError,
    Closed,
    ConfigError,
    ContextOverflow,
    ConversationError,
    EdgeKVError,
    ModelLoadError,
    OutOfMemory,
    PolicyError,
    StoreError,
    TemplateError,
    Unsupported,
)
from edgekv.events import (
    AttentionUse,
    CacheUse,
    Done,
    Embeddings,
    Event,
    Notice,
    PrefillProgress,
    Result,
    TextDelta,
    Timings,
    Usage,
)
from edgekv.runtime import Runtime
from edgekv.stats import Move, Snapshot

__version__ = "0.1.0"

__all__ = [
    "Archive",
    "AsyncConversation",
    "AsyncRuntime",
    "AttentionUse",
    "Branch",
    "Busy",
    "CacheUse",
    "CancelToken",
    "Cancelled",
    "CapacityError",
    "Closed",
    "Config",
    "ConfigError",
    "ContextOverflow",
    "Conversation",
    "ConversationError",
    "ConversationInfo",
    "Done",
    "EdgeKVError",
    "Embeddings",
    "Event",
    "ForeignChat",
    "FoundModel",
    "ModelLoadError",
    "Move",
    "Notice",
    "OutOfMemory",
    "PolicyError",
    "PrefillProgress",
    "Result",
    "Runtime",
    "Snapshot",
    "StoreError",
    "Stream",
    "TemplateError",
    "TextDelta",
    "Timings",
    "Turn",
    "Unsupported",
    "Usage",
    "__version__",
    "found_models",
    "read_foreign",
]
