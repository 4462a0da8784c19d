/* edgekv_kernels._native: the compiled CPU kernels behind a thin door.

   Arguments are addresses and sizes already checked by the Python side; nothing is checked again here.
   One translation unit holds every instruction set; the best one that this machine has is chosen at import.
   Knows no tensors and allocates only scratch. Not linked with OpenMP: see openmp.py. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include "jobs.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define HAS_X86_ISAS 1
#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")
#define ISA avx512
#define ISA_NAME "AVX-512"
#define W 16
#include "isa.h"
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")
#define ISA avx512vnni
#define ISA_NAME "AVX-512 with VNNI"
#define W 16
#define HAS_VNNI 1
#include "isa.h"
#undef HAS_VNNI
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#define ISA avx2
#define ISA_NAME "AVX2"
#define W 8
#include "isa.h"
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")
#include "attend_many.h"
#include "product.h"
#pragma GCC pop_options
#endif

#define ISA base
#if defined(__aarch64__)
#include <arm_neon.h>
#define ISA_NAME "NEON"
#else
#define ISA_NAME "baseline"
#endif
#define W 4
#include "isa.h"
#include "halves.h"

static const kernels *best = &table_base;
static int has_bf16 = 0; /* attend_many, product and panels can run */

#include "select.h"

#define LAYER_NAME "edgekv_kernels.layer"

static scorer scorer_now(void) {
    return (scorer){best->score_leaves, best->score_nodes, best->score_prepare, best->score_finish};
}

#include "passes.h"

/* Bytes of work under which giving up the GIL costs more than it brings. */
#define GIL_BYTES 262144

#define RUN(bytes, ...) do { \
        if ((bytes) > GIL_BYTES) { Py_BEGIN_ALLOW_THREADS __VA_ARGS__; Py_END_ALLOW_THREADS } \
        else { __VA_ARGS__; } \
    } while (0)

#define ARGS(count) \
    (void)self; \
    if (given != (count)) { PyErr_Format(PyExc_TypeError, "%d arguments expected", count); return NULL; }
#define POINTER(i) PyLong_AsVoidPtr(args[i])
#define INTEGER(i) PyLong_AsLong(args[i])
#define REAL(i) ((float)PyFloat_AsDouble(args[i]))
#define NO_ERROR if (PyErr_Occurred()) return NULL
#define KERNEL(name) static PyObject *py_##name(PyObject *self, PyObject *const *args, Py_ssize_t given)

static void over_rows(range_fn fn, const void *job, long rows, long grain, long bytes) {
    RUN(bytes, run_parts(fn, job, rows, grain, parts_for((rows + grain - 1) / grain, bytes > SERIAL_BYTES)));
}

KERNEL(rms_norm) { /* x, weight, out, rows, cols, eps, bf16 */
    ARGS(7)
    norm_job job = {.x = POINTER(0), .weight = POINTER(1), .out = POINTER(2), .cols = INTEGER(4), .eps = REAL(5),
                    .bf16 = (int)INTEGER(6)};
    long rows = INTEGER(3);
    NO_ERROR;
    over_rows(best->norm, &job, rows, 1, rows * job.cols * 4);
    Py_RETURN_NONE;
}

KERNEL(rope) { /* x, cos, sin, tokens, heads, dim, stride, half, interleaved */
    ARGS(9)
    rope_job job = {.x = POINTER(0), .cos = POINTER(1), .sin = POINTER(2), .heads = INTEGER(4), .dim = INTEGER(5),
                    .stride = INTEGER(6), .half = INTEGER(7), .interleaved = (int)INTEGER(8)};
    long tokens = INTEGER(3);
    NO_ERROR;
    over_rows(best->rope, &job, tokens, 1, tokens * job.heads * job.dim * 4);
    Py_RETURN_NONE;
}

KERNEL(swiglu) { /* in, out, rows, width, in_bf16, out_bf16 */
    ARGS(6)
    swiglu_job job = {.in = POINTER(0), .out = POINTER(1), .width = INTEGER(3), .in_bf16 = (int)INTEGER(4),
                      .out_bf16 = (int)INTEGER(5)};
    long rows = INTEGER(2);
    NO_ERROR;
    over_rows(best->swiglu, &job, rows, 1, rows * job.width * 8);
    Py_RETURN_NONE;
}

KERNEL(merge) { /* out_a, lse_a, out_b, lse_b, rows, dim */
    ARGS(6)
    merge_job job = {.out_a = POINTER(0), .lse_a = POINTER(1), .out_b = POINTER(2), .lse_b = POINTER(3),
                     .dim = INTEGER(5)};
    long rows = INTEGER(4);
    NO_ERROR;
    over_rows(best->merge, &job, rows, 1, rows * job.dim * 4);
    Py_RETURN_NONE;
}

static weights weights_of(PyObject *const *args) { /* bits, quants, scale, offset, n, k, group, scale_f32 */
    return (weights){.bits = (int)INTEGER(0), .quants = POINTER(1), .scale = POINTER(2), .offset = POINTER(3),
                     .n = INTEGER(4), .k = INTEGER(5), .group = INTEGER(6), .scale_f32 = (int)INTEGER(7)};
}

KERNEL(matmul) { /* weights (8), x, out, m, accumulate */
    ARGS(12)
    matmul_job job = {.w = weights_of(args), .x = POINTER(8), .out = POINTER(9), .m = INTEGER(10),
                      .accumulate = (int)INTEGER(11)};
    float small[4096], *sums = small;
    NO_ERROR;
    if (job.m == 1 && job.w.bits != 16) { /* many rows use unpacked weights and need none of this */
        long groups = job.w.k / job.w.group, needed = groups + 16 + arranged_size(job.w.k);
        if (needed > 4096) sums = malloc((size_t)needed * 4);
        if (!sums) return PyErr_NoMemory();
        best->prepare(job.x, &job.w, sums, sums + groups + 16);
        job.sums = sums;
        job.arranged = sums + groups + 16;
    }
    over_rows(best->matmul, &job, job.w.n, 4, job.w.n * job.w.k / 8 * job.w.bits * job.m);
    if (sums != small) free(sums);
    Py_RETURN_NONE;
}

static void free_layer(PyObject *capsule) { free(PyCapsule_GetPointer(capsule, LAYER_NAME)); }

/* norms (attn, ffn, q, k: addresses or 0), hidden, ffn, heads, kv_heads, dim, eps, interleaved, then 7 matrices of
   9 each: weights (8), bias; in the struct's order. The addresses must stay good as long as the capsule. */
KERNEL(layer) {
    ARGS(11 + 7 * 9)
    layer_weights layer = {.attn_norm = POINTER(0), .ffn_norm = POINTER(1), .q_norm = POINTER(2), .k_norm = POINTER(3),
                           .hidden = INTEGER(4), .ffn = INTEGER(5), .heads = INTEGER(6), .kv_heads = INTEGER(7),
                           .dim = INTEGER(8), .eps = REAL(9), .interleaved = (int)INTEGER(10)};
    matrix *const parts[] = {layer.qkv, layer.qkv + 1, layer.qkv + 2, &layer.attn_out,
                             layer.gate_up, layer.gate_up + 1, &layer.down};
    for (int i = 0; i < 7; i++) {
        parts[i]->w = weights_of(args + 11 + 9 * i);
        parts[i]->bias = POINTER(11 + 9 * i + 8);
    }
    NO_ERROR;
    layer_weights *kept = malloc(sizeof layer);
    if (!kept) return PyErr_NoMemory();
    *kept = layer;
    return PyCapsule_New(kept, LAYER_NAME, free_layer);
}

KERNEL(before_attend) { /* layer, hidden, cos, sin, half, out */
    ARGS(6)
    half_job job = {.layer = PyCapsule_GetPointer(args[0], LAYER_NAME), .hidden = POINTER(1), .out = POINTER(5)};
    const float *cos = POINTER(2), *sin = POINTER(3);
    long half = INTEGER(4);
    NO_ERROR;
    int done;
    Py_BEGIN_ALLOW_THREADS
    done = run_before(&job, cos, sin, half);
    Py_END_ALLOW_THREADS
    if (!done) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

KERNEL(after_attend) { /* layer, hidden, attended */
    ARGS(3)
    half_job job = {.layer = PyCapsule_GetPointer(args[0], LAYER_NAME), .hidden = POINTER(1), .attended = POINTER(2)};
    NO_ERROR;
    int done;
    Py_BEGIN_ALLOW_THREADS
    done = run_after(&job);
    Py_END_ALLOW_THREADS
    if (!done) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

KERNEL(unpack) { /* weights (8), out, bf16 */
    ARGS(10)
    unpack_job job = {.w = weights_of(args), .out = POINTER(8), .bf16 = (int)INTEGER(9)};
    NO_ERROR;
    over_rows(best->unpack, &job, job.w.n, 1, job.w.n * job.w.k * 2);
    Py_RETURN_NONE;
}

KERNEL(append_kv) { /* pool, slots, offset, k, v, tokens, heads, dim, k_stride, v_stride */
    ARGS(10)
    append_job job = {.pool = POINTER(0), .slots = POINTER(1), .offset = INTEGER(2), .k = POINTER(3), .v = POINTER(4),
                      .heads = INTEGER(6), .dim = INTEGER(7), .k_stride = INTEGER(8), .v_stride = INTEGER(9)};
    long tokens = INTEGER(5);
    NO_ERROR;
    over_rows(best->append, &job, tokens, 1, tokens * job.heads * job.dim * 8);
    Py_RETURN_NONE;
}

/* q, pool, slots, tokens, scale, out, lse, queries, heads, kv_heads, dim, q_stride, turns, turn_width, turn_of, interleaved */
static attend_job attend_job_of(PyObject *const *args) {
    return (attend_job){.q = POINTER(0), .pool = POINTER(1), .slots = POINTER(2), .tokens = INTEGER(3),
                        .scale = REAL(4), .out = POINTER(5), .lse = POINTER(6), .queries = INTEGER(7),
                        .heads = INTEGER(8), .kv_heads = INTEGER(9), .dim = INTEGER(10), .q_stride = INTEGER(11),
                        .turns = POINTER(12), .turn_width = INTEGER(13), .turn_of = POINTER(14),
                        .interleaved = (int)INTEGER(15)};
}

KERNEL(attend) { /* attend job (16); float32 products, made for few queries */
    ARGS(16)
    attend_job job = attend_job_of(args);
    NO_ERROR;
    int done;
    RUN(job.tokens * job.kv_heads * job.dim * 4 * job.queries, done = run_attend(&job));
    if (!done) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

KERNEL(attend_many) { /* attend job (16), causal; bfloat16 products. Callable only where has_bf16() */
    ARGS(17)
    attend_job job = attend_job_of(args);
    job.causal = (int)INTEGER(16);
    NO_ERROR;
    int done = 0;
#ifdef HAS_X86_ISAS
    Py_BEGIN_ALLOW_THREADS
    done = has_bf16 && attend_many(&job);
    Py_END_ALLOW_THREADS
#endif
    if (!done) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

KERNEL(pack_keys) { /* pool, slots, out, leaves, kv_heads, dim */
    ARGS(6)
    abstract_job job = {.pool = POINTER(0), .slots = POINTER(1), .out = POINTER(2), .kv_heads = INTEGER(4),
                        .dim = INTEGER(5)};
    long leaves = INTEGER(3);
    NO_ERROR;
    over_rows(best->pack_keys, &job, leaves, 1, leaves * LEAF * job.kv_heads * job.dim * 2);
    Py_RETURN_NONE;
}

KERNEL(pack_nodes) { /* pool, slots, out, nodes, kv_heads, dim */
    ARGS(6)
    abstract_job job = {.pool = POINTER(0), .slots = POINTER(1), .out = POINTER(2), .kv_heads = INTEGER(4),
                        .dim = INTEGER(5)};
    long nodes = INTEGER(3);
    NO_ERROR;
    over_rows(best->pack_nodes, &job, nodes, 1, nodes * NODE * LEAF * job.kv_heads * job.dim * 2);
    Py_RETURN_NONE;
}

/* q, rows, columns, first, count, scale, queries, heads, dim, q_stride, width, turns, turn_width, turn_of,
   interleaved */
static score_job score_job_of(PyObject *const *args, long per_dim) {
    score_job job = {.q = POINTER(0), .rows = POINTER(1), .columns = POINTER(2), .first = INTEGER(3),
                     .count = INTEGER(4), .scale = REAL(5), .queries = INTEGER(6), .heads = INTEGER(7),
                     .dim = INTEGER(8), .q_stride = INTEGER(9), .width = INTEGER(10), .turns = POINTER(11),
                     .turn_width = INTEGER(12), .turn_of = POINTER(13), .interleaved = (int)INTEGER(14), .turn_step = 1};
    job.kv_heads = job.width / (per_dim * job.dim + 8);
    return job;
}
/* Selection runs in every layer of every token. Beside a busy Python thread, getting the interpreter lock back
   takes milliseconds and a call tens of microseconds, so the lock is given up for long calls only. */
#define SCORE_BYTES(job) ((job).count * (job).width * (job).queries / 16)

KERNEL(score_leaves) { /* score job (15), out */
    ARGS(16)
    score_job job = score_job_of(args, 6);
    job.out = POINTER(15);
    NO_ERROR;
    scorer by = scorer_now();
    int done;
    RUN(SCORE_BYTES(job), done = score(&by, by.leaves, &job));
    if (!done) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

KERNEL(score_nodes) { /* score job (15), out, alpha */
    ARGS(17)
    score_job job = score_job_of(args, 3);
    job.out = POINTER(15);
    job.alpha = REAL(16);
    job.turn_step = NODE;
    NO_ERROR;
    scorer by = scorer_now();
    int done;
    RUN(SCORE_BYTES(job), done = score(&by, by.nodes, &job));
    if (!done) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

/* score job (15), out, mass, budget, nodes, num_nodes, max_candidates, extra, num_extra, alpha, around, num_around
   -> how many */
KERNEL(select_leaves) {
    ARGS(26)
    score_job job = score_job_of(args, 6);
    choice want = {.out = POINTER(15), .mass = POINTER(16), .budget = INTEGER(17), .nodes = POINTER(18),
                   .num_nodes = INTEGER(19), .max_candidates = INTEGER(20),
                   .num_promising = INTEGER(20) / NODE, .extra = POINTER(21),
                   .num_extra = INTEGER(22), .around = POINTER(24), .num_around = INTEGER(25)};
    job.alpha = REAL(23);
    NO_ERROR;
    scorer by = scorer_now();
    long count;
    RUN(SCORE_BYTES(job), count = select_best(&by, &job, &want));
    if (count < 0) return PyErr_NoMemory();
    return PyLong_FromLong(count);
}

/* Layers (a tuple of capsules), first, attends, hidden, cos, sin, half, offset, missing, phase; a tuple of
   turns, turn_width, turn_of, interleaved; a tuple of what is the same for the next token: qkv, attended, lse, pool, where, where_stride, written, writes,
   fixed, num_fixed, listed, counts, listed_stride, slots (and as many rows of turns), scale, measured; then None or one of the choice: first,
   count, heads, kv_heads, dim, keys' width, keys, keys_stride, budget, max_candidates, around, num_around, scanned,
   scanned_stride, kept, kept_stride, keep, scan_period, period, away, nodes, nodes_stride, num_nodes, num_promising,
   alpha
   -> the layer that misses leaves, or the number of layers */
KERNEL(pass_layers) {
    ARGS(13)
    PyObject *layers = args[0], *turned = args[10], *place = args[11], *chooses = args[12];
    const layer_weights *found[MAX_LAYERS];
    long num_layers = PyTuple_GET_SIZE(layers);
    if (num_layers > MAX_LAYERS) return PyErr_Format(PyExc_ValueError, "more than %d layers", MAX_LAYERS);
    for (long i = 0; i < num_layers; i++) found[i] = PyCapsule_GetPointer(PyTuple_GET_ITEM(layers, i), LAYER_NAME);
    token_pass p = {.layers = found, .num_layers = num_layers, .first = INTEGER(1), .last = num_layers, .attends = (int)INTEGER(2),
                    .hidden = POINTER(3), .cos = POINTER(4), .sin = POINTER(5), .half = INTEGER(6),
                    .offset = INTEGER(7), .missing = INTEGER(8), .choice = {.phase = INTEGER(9)}};
    args = &PyTuple_GET_ITEM(turned, 0);
    p.turns = POINTER(0), p.turn_width = INTEGER(1), p.turns_of = POINTER(2), p.interleaved = (int)INTEGER(3);
    args = &PyTuple_GET_ITEM(place, 0);
    p.qkv = POINTER(0), p.attended = POINTER(1), p.lse = POINTER(2);
    p.pool = POINTER(3), p.where = POINTER(4), p.where_stride = INTEGER(5);
    p.written = POINTER(6), p.writes = POINTER(7), p.fixed = POINTER(8), p.num_fixed = INTEGER(9);
    p.listed = POINTER(10), p.counts = POINTER(11), p.listed_stride = INTEGER(12), p.slots = POINTER(13);
    p.turn_of = p.slots + p.listed_stride, p.scale = REAL(14);
    float *measured = POINTER(15);
    if (chooses != Py_None) {
        args = &PyTuple_GET_ITEM(chooses, 0);
        p.chooses = 1;
        choosing *c = &p.choice;
        c->job = (score_job){.first = INTEGER(0), .count = INTEGER(1), .scale = p.scale, .queries = 1,
                             .heads = INTEGER(2), .kv_heads = INTEGER(3), .dim = INTEGER(4),
                             .q_stride = INTEGER(2) * INTEGER(4), .width = INTEGER(5), .turns = p.turns,
                             .turn_width = p.turn_width, .turn_of = p.turns_of, .turn_step = 1,
                             .interleaved = p.interleaved};
        c->keys = POINTER(6), c->keys_stride = INTEGER(7);
        c->want = (choice){.budget = INTEGER(8), .max_candidates = INTEGER(9), .around = POINTER(10),
                           .num_around = INTEGER(11), .keep = INTEGER(16), .away = REAL(19), .fixed = p.fixed,
                           .num_fixed = p.num_fixed, .measured = measured};
        c->scanned = POINTER(12), c->scanned_stride = INTEGER(13), c->kept = POINTER(14), c->kept_stride = INTEGER(15);
        c->scan_period = INTEGER(17), c->period = INTEGER(18);
        c->nodes = POINTER(20), c->nodes_stride = INTEGER(21);
        c->want.num_nodes = INTEGER(22), c->want.num_promising = INTEGER(23), c->job.alpha = REAL(24);
    }
    NO_ERROR;
    Py_BEGIN_ALLOW_THREADS
    with_crew(pass_layers, &p);
    Py_END_ALLOW_THREADS
    if (p.stopped < 0) return PyErr_NoMemory();
    return PyLong_FromLong(p.stopped);
}

KERNEL(panels) { /* w, out, n, k. Callable only where has_bf16() */
    ARGS(4)
    const void *w = POINTER(0);
    void *out = POINTER(1);
    long n = INTEGER(2), k = INTEGER(3);
    NO_ERROR;
#ifdef HAS_X86_ISAS
    panel_job job = {.w = w, .out = out, .k = k};
    over_rows(panels_range, &job, n / 16, 1, n * k * 4);
#else
    (void)w, (void)out, (void)n, (void)k;
#endif
    Py_RETURN_NONE;
}

KERNEL(product) { /* x, panels, out, m, n, k, accumulate. Callable only where has_bf16() */
    ARGS(7)
    const void *x = POINTER(0), *w = POINTER(1);
    float *out = POINTER(2);
    long m = INTEGER(3), n = INTEGER(4), k = INTEGER(5);
    int accumulate = (int)INTEGER(6);
    NO_ERROR;
#ifdef HAS_X86_ISAS
    product_job job = {.x = x, .w = w, .out = out, .m = m, .n = n, .k = k, .accumulate = accumulate};
    over_rows(product_range, &job, n / 16, 1, n * k * 2 + m * k * 2);
#else
    (void)x, (void)w, (void)out, (void)m, (void)n, (void)k, (void)accumulate;
#endif
    Py_RETURN_NONE;
}

static PyObject *py_isa(PyObject *self, PyObject *nothing) {
    (void)self, (void)nothing;
    return PyUnicode_FromFormat("%s%s", best->name, has_bf16 ? " with BF16" : "");
}

static PyObject *py_has_bf16(PyObject *self, PyObject *nothing) {
    (void)self, (void)nothing;
    return PyBool_FromLong(has_bf16);
}

/* isa name -> whether it could be chosen; for tests, so that every form of the text is run */
static PyObject *py_choose(PyObject *self, PyObject *name) {
    const char *wanted = PyUnicode_AsUTF8(name);
    (void)self;
    if (!wanted) return NULL;
    const kernels *chosen = NULL;
    int bf16 = 0;
#ifdef HAS_X86_ISAS
    __builtin_cpu_init();
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    int avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    int vnni = __builtin_cpu_supports("avx512vnni");
    if (avx512 && (strcmp(wanted, "avx512") == 0 || (vnni && strcmp(wanted, "avx512vnni") == 0))) {
        chosen = strcmp(wanted, "avx512") == 0 ? &table_avx512 : &table_avx512vnni;
        bf16 = __builtin_cpu_supports("avx512bf16") != 0;
    }
    if (avx2 && strcmp(wanted, "avx2") == 0) chosen = &table_avx2;
#endif
    if (strcmp(wanted, "base") == 0) chosen = &table_base;
    if (chosen) {
        best = chosen;
        has_bf16 = bf16;
    }
    return PyBool_FromLong(chosen != NULL);
}

#define ENTRY(name) {#name, (PyCFunction)(void (*)(void))py_##name, METH_FASTCALL, NULL}
static PyMethodDef methods[] = {
    ENTRY(rms_norm), ENTRY(rope), ENTRY(swiglu), ENTRY(merge), ENTRY(matmul), ENTRY(unpack), ENTRY(append_kv),
    ENTRY(attend), ENTRY(attend_many), ENTRY(panels), ENTRY(product),
    ENTRY(pack_keys), ENTRY(pack_nodes), ENTRY(score_leaves), ENTRY(score_nodes), ENTRY(select_leaves),
    ENTRY(layer), ENTRY(before_attend), ENTRY(after_attend), ENTRY(pass_layers),
    {"isa", py_isa, METH_NOARGS, NULL},
    {"has_bf16", py_has_bf16, METH_NOARGS, NULL},
    {"choose", py_choose, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_native", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__native(void) {
    static const char *const order[] = {"avx512vnni", "avx512", "avx2", "base"};
    for (int i = 0; i < 4; i++) {
        PyObject *name = PyUnicode_FromString(order[i]), *chosen = name ? py_choose(NULL, name) : NULL;
        Py_XDECREF(name);
        if (!chosen) return NULL;
        int done = chosen == Py_True;
        Py_DECREF(chosen);
        if (done) break;
    }
    return PyModule_Create(&definition);
}
