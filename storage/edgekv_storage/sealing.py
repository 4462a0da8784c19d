"""Which seal opens a segment: the rule who is believed, in one place.

Knows segment headers and keys; not files. docs/format.md, "Who is believed", is this file in prose.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekv_storage.crypt import PlainSeal
from edgekv_storage.segments.format import Malformed

if TYPE_CHECKING:
    from edgekv_storage.crypt import Keys, Seal
    from edgekv_storage.segments.format import SegmentHeader

PLAIN = PlainSeal()


def seal_of(header: SegmentHeader, keys: Keys | None) -> Seal | None:
    """None: encrypted, and encryption is off: kept, not read. Raises Malformed: not to be believed.

    With encryption on a plain segment is refused however right its checksums are: whoever can write to the
    directory could have planted it. The header's own words are believed only because nothing opens if they
    are wrong.
    """
    if keys is None:
        return None if header.is_encrypted else PLAIN
    if not header.is_encrypted:
        raise Malformed("it is not encrypted, and encryption is on")
    key = keys.find(header.sequence_id)
    if key is None:
        raise Malformed("its key is gone: the conversation was forgotten, or keys.db is another one")
    if key.key_id != header.key_id:
        raise Malformed("it is encrypted with another key than its conversation's")
    return key.segment_seal(header.segment, header.random)
