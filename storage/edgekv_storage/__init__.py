"""edgekv_storage: bytes on disk. Segments of KV that verify themselves, transcripts that survive.

Knows neither torch nor the runtime; see docs/format.md for the bytes.
"""

import logging

from edgekv_storage import backup
from edgekv_storage.check.check import Checked, Problem, check_directory, check_segment, fix_directory
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
from edgekv_storage.io.choice import IO_CHOICES, reader_name
from edgekv_storage.io.choice import Choice as ReaderChoice
from edgekv_storage.io.choice import choose as choose_reader
from edgekv_storage.io.choice import judge as judge_trial
from edgekv_storage.io.pread import reads_directly
from edgekv_storage.io.trial import try_file as try_readers
from edgekv_storage.keychain.keychain import KeyChain, ProtectionInfo
from edgekv_storage.keychain.keychain import look as look_at_protection
from edgekv_storage.keychain.protectors import choose_kind
from edgekv_storage.keychain.unlocking import Protection, Unlocking
from edgekv_storage.segments.format import KEY_BYTES, LEAF_TOKENS, PAGE, Layout
from edgekv_storage.segments.keys import leaf_keys
from edgekv_storage.segments.sections import Cut, Pieces
from edgekv_storage.space.eviction import PrefillCost
from edgekv_storage.space.losses import Loss
from edgekv_storage.store.figures import StoreStats
from edgekv_storage.store.index import known_losses
from edgekv_storage.store.sections import SectionData
from edgekv_storage.store.store import Store
from edgekv_storage.store.transfer import LeafFault, LeafPlace, LeafRead, PieceRead, Transfer
from edgekv_storage.transcripts.rows import ConversationRow, DamagedConversation, DamagedTurn, TurnRow
from edgekv_storage.transcripts.transcripts import Transcripts

logging.getLogger(__name__).addHandler(logging.NullHandler())  # who wants our log asks for it

__all__ = [
    "IO_CHOICES",
    "KEY_BYTES",
    "LEAF_TOKENS",
    "PAGE",
    "Checked",
    "ConversationKey",
    "ConversationRow",
    "Cut",
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
    "PieceRead",
    "Pieces",
    "PrefillCost",
    "Problem",
    "Protection",
    "ProtectionInfo",
    "QuotaExceeded",
    "ReaderChoice",
    "SectionData",
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
