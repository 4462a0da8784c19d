"""edgekv_storage: bytes on disk. Segments of KV that verify themselves, transcripts that survive.

Knows neither torch nor the runtime; see docs/format.md for the bytes.
"""

from edgekv_storage import backup
from edgekv_storage.check import Checked, Problem, check_directory, check_segment, fix_directory
from edgekv_storage.crypt import ConversationKey, Keys, MemoryKeys
from edgekv_storage.datadir import DataDir
from edgekv_storage.errors import (
    DiskFull,
    IoUnusable,
    KeysDamaged,
    KeyUnavailable,
    Locked,
    NameTaken,
    NoSuchConversation,
    QuotaExceeded,
    StorageError,
    StoreClosed,
    StoreOff,
    TranscriptDamaged,
    UnknownFormat,
    Unwritable,
    WriteFailed,
    WrongCode,
    WrongPassphrase,
)
from edgekv_storage.eviction import PrefillCost
from edgekv_storage.figures import StoreStats
from edgekv_storage.format import KEY_BYTES, LEAF_TOKENS, PAGE, Layout
from edgekv_storage.index import known_losses
from edgekv_storage.io.choice import IO_CHOICES, reader_name
from edgekv_storage.io.choice import Choice as ReaderChoice
from edgekv_storage.io.choice import choose as choose_reader
from edgekv_storage.io.choice import judge as judge_trial
from edgekv_storage.io.pread import reads_directly
from edgekv_storage.io.trial import try_file as try_readers
from edgekv_storage.keychain import KeyChain, ProtectionInfo
from edgekv_storage.keychain import look as look_at_protection
from edgekv_storage.keys import leaf_keys
from edgekv_storage.losses import Loss
from edgekv_storage.protectors import choose_kind
from edgekv_storage.rows import ConversationRow, TurnRow
from edgekv_storage.store import Store
from edgekv_storage.transcripts import DamagedConversation, DamagedTurn, Transcripts
from edgekv_storage.transfer import LeafFault, LeafPlace, LeafRead, Transfer
from edgekv_storage.unlocking import Protection, Unlocking

__all__ = [
    "IO_CHOICES",
    "KEY_BYTES",
    "LEAF_TOKENS",
    "PAGE",
    "Checked",
    "ConversationKey",
    "ConversationRow",
    "DamagedConversation",
    "DamagedTurn",
    "DataDir",
    "DiskFull",
    "IoUnusable",
    "KeyChain",
    "KeyUnavailable",
    "Keys",
    "KeysDamaged",
    "Layout",
    "LeafFault",
    "LeafPlace",
    "LeafRead",
    "Locked",
    "Loss",
    "MemoryKeys",
    "NameTaken",
    "NoSuchConversation",
    "PrefillCost",
    "Problem",
    "Protection",
    "ProtectionInfo",
    "QuotaExceeded",
    "ReaderChoice",
    "StorageError",
    "Store",
    "StoreClosed",
    "StoreOff",
    "StoreStats",
    "TranscriptDamaged",
    "Transcripts",
    "Transfer",
    "TurnRow",
    "UnknownFormat",
    "Unlocking",
    "Unwritable",
    "WriteFailed",
    "WrongCode",
    "WrongPassphrase",
    "backup",
    "check_directory",
    "check_segment",
    "choose_kind",
    "choose_reader",
    "fix_directory",
    "judge_trial",
    "known_losses",
    "leaf_keys",
    "look_at_protection",
    "reader_name",
    "reads_directly",
    "try_readers",
]
