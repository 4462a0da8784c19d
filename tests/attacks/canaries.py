"""Something secret to look for: a conversation over a tiny real model, and every form its content can take."""

import dataclasses
import struct
from contextlib import contextmanager

from fakes import FakeFront

from edgekv import Runtime
from edgekv.engine.build import assemble
from edgekv.tiers.memory import MemoryTier

NAME = "xyzzy-canary-name"
TEXT = "xyzzy-canary-passage: " + "the safe opens with nine one three seven, behind the blue door. " * 8
MIDDLE = 256  # of a leaf: behind the template's own first tokens, which every conversation shares
PIECE = 48


class Front(FakeFront):
    """The fake tokenizer, one token a character, for an engine that closes what it is given."""

    def warm_up(self):
        pass

    def close(self):
        pass


@contextmanager
def runtime_on(model, data_dir, **options):
    """A Runtime whose KV is real; `runtime.pools` are its memory tiers."""
    pools = []

    def build(config, _path, *, data_dir, keys):
        front = Front(context_length=2048)
        engine = assemble(config, dataclasses.replace(model, front=front), data_dir=data_dir, keys=keys)
        return engine, front

    made = MemoryTier.__init__

    def remember(self, *args, **kwargs):
        made(self, *args, **kwargs)
        pools.append(self)

    MemoryTier.__init__ = remember
    try:
        limits = {"device_budget": 8 << 20, "host_budget": 8 << 20, "disk_budget": 1 << 30}
        with Runtime(engine_factory=build, data_dir=data_dir, temperature=0, **limits, **options) as runtime:
            runtime.pools = pools
            yield runtime
    finally:
        MemoryTier.__init__ = made


def leaf_pieces(runtime, num_slots=64):
    """The beginnings of the leaves in memory: as they would stand in a file of plain KV."""
    pieces = set()
    for pool in runtime.pools:
        for slot in range(num_slots):
            piece = bytes(pool.leaf_view(slot)[MIDDLE : MIDDLE + PIECE])
            if len(set(piece)) > PIECE // 4:
                pieces.add(piece)
    assert len(pieces) > 8, "there is KV to look for"
    return pieces


def forms(words):
    """Every way a text may be written: characters of one or two bytes, token ids of four or eight."""
    middle = words[8:32]
    ids = FakeFront().tokenizer.encode(middle, special=False)
    yield middle.encode()
    yield middle.encode("utf-16-le")
    yield middle.encode("utf-16-be")
    yield struct.pack(f"<{len(ids)}i", *ids)
    yield struct.pack(f">{len(ids)}i", *ids)
    yield struct.pack(f"<{len(ids)}q", *ids)


def hits(folder, pieces):
    """(file, piece) for every piece found in any byte of any file."""
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []
    found = []
    for path in files:
        data = path.read_bytes()
        found += [(path.name, piece[:24]) for piece in pieces if piece in data]
    return found
