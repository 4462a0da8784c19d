/* All kernels of one instruction set. Included once per ISA, with ISA, ISA_NAME and W defined. */
#include "vec.h"
#include "elementwise.h"
#include "matmul.h"
#include "turning.h"
#include "attend.h"
#include "abstracts.h"
#include "scoring.h"

static const kernels FN(table) = {
    ISA_NAME, FN(norm), FN(rope), FN(swiglu), FN(merge), FN(matmul), FN(unpack), FN(append), FN(attend),
    FN(prepare), FN(attend_finish), FN(pack_keys), FN(pack_nodes), FN(score_leaves), FN(score_nodes),
    FN(score_prepare), FN(score_finish),
};
#undef ISA
#undef ISA_NAME
#undef W
