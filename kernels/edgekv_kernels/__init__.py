"""Arithmetic of the decoder and of the KV path: one signature per operation, several forms behind it.

Knows tensors, packed weights and pool slots. Knows no model, no cache, no tier and no policy.

Every operation has a plain torch fp32 form (`reference/`), a compiled CPU form (`native/`) and a Triton form
for CUDA (`triton/`). The form is chosen once per device kind and can be forced (`use`, `forced`).
"""

from edgekv_kernels.abstracts import (
    NODE_LEAVES,
    key_bytes,
    node_bytes,
    nodes_of_keys,
    nodes_of_nodes,
    pack_keys,
    pack_nodes,
)
from edgekv_kernels.attention import attend_block, attend_leaves
from edgekv_kernels.choosing import Choosing
from edgekv_kernels.dispatch import describe, forced, use
from edgekv_kernels.gating import swiglu
from edgekv_kernels.halves import LayerWeights, Matrix, after_attend_, before_attend
from edgekv_kernels.kv import LEAF_TOKENS, append_kv
from edgekv_kernels.matmul import matmul4, matmul8, matmul16
from edgekv_kernels.merging import merge, merge_
from edgekv_kernels.norm import rms_norm
from edgekv_kernels.packed import Packed4, Packed8, take_rows4, take_rows8
from edgekv_kernels.passes import TokenPass, pass_layers_
from edgekv_kernels.rope import rope_
from edgekv_kernels.scoring import leaf_logsumexp, leaf_scores
from edgekv_kernels.selection import (
    candidate_columns,
    leaf_bounds,
    node_bounds,
    score_among,
    score_leaves,
    score_nodes,
    select_leaves,
)
from edgekv_kernels.turns import Turns
from edgekv_kernels.unpack import take_row, unpack4, unpack8
from edgekv_kernels.wide import Wide, make_wide, matmul_wide

__all__ = [
    "LEAF_TOKENS",
    "NODE_LEAVES",
    "Choosing",
    "LayerWeights",
    "Matrix",
    "Packed4",
    "Packed8",
    "TokenPass",
    "Turns",
    "Wide",
    "after_attend_",
    "append_kv",
    "attend_block",
    "attend_leaves",
    "before_attend",
    "candidate_columns",
    "describe",
    "forced",
    "key_bytes",
    "leaf_bounds",
    "leaf_logsumexp",
    "leaf_scores",
    "make_wide",
    "matmul4",
    "matmul8",
    "matmul16",
    "matmul_wide",
    "merge",
    "merge_",
    "node_bounds",
    "node_bytes",
    "nodes_of_keys",
    "nodes_of_nodes",
    "pack_keys",
    "pack_nodes",
    "pass_layers_",
    "rms_norm",
    "rope_",
    "score_among",
    "score_leaves",
    "score_nodes",
    "select_leaves",
    "swiglu",
    "take_row",
    "take_rows4",
    "take_rows8",
    "unpack4",
    "unpack8",
    "use",
]
