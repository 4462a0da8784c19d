/* All kernels of one instruction set. Included once per ISA, with ISA, ISA_NAME and W defined. */
#include "vec.h"
#include "elementwise.h"
#include "matmul.h"
#include "attend.h"

static const kernels FN(table) = {
    ISA_NAME, FN(norm), FN(rope), FN(swiglu), FN(merge), FN(matmul), FN(unpack), FN(append), FN(attend),
    FN(prepare), FN(attend_finish),
};
#undef ISA
#undef ISA_NAME
#undef W
