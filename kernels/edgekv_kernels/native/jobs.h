/* What each kernel is asked to do, and the table of one instruction set's kernels.
   All pointers are to contiguous memory unless a stride (in elements) says otherwise. */
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "threads.h"

#define LEAF 16 /* tokens of a leaf */
#define NODE 8  /* leaves of a node */
#define INLINE static inline __attribute__((always_inline, unused))

typedef struct { const float *x, *weight; void *out; long cols; float eps; int bf16; } norm_job;
typedef struct { float *x; const float *cos, *sin; long heads, stride, dim, half; int interleaved; } rope_job;
typedef struct { const void *in; void *out; long width; int in_bf16, out_bf16; } swiglu_job;
typedef struct { float *out_a, *lse_a; const float *out_b, *lse_b; long dim; } merge_job;

/* weights [N, K]: bits 4, 8 or 16 (bfloat16, no scales) */
typedef struct {
    const void *quants, *scale, *offset; /* offset may be NULL */
    long n, k, group;
    int bits, scale_f32;
} weights;
typedef struct { const float *x, *sums, *arranged; weights w; float *out; long m; int accumulate; } matmul_job;
typedef struct { weights w; void *out; int bf16; } unpack_job;

typedef struct {
    uint16_t *pool;
    const int32_t *slots;
    const float *k, *v;
    long offset, heads, dim, k_stride, v_stride;
} append_job;

typedef struct {
    const float *q;
    const uint16_t *pool;
    const int32_t *slots;
    long tokens, queries, heads, kv_heads, dim, q_stride;
    float scale;
    int causal;
    const float *turns;     /* rows, or NULL */
    const int32_t *turn_of; /* which row is which leaf's */
    long turn_width;
    int interleaved;
    float *turned; /* scratch where leaves are turned: per part [2][queries * heads][dim] */
    float *out, *lse;
    float *state; /* scratch: per part [queries * heads][dim + 2] */
} attend_job;

typedef struct { const uint16_t *pool; const int32_t *slots; uint8_t *out; long kv_heads, dim; } abstract_job;

/* rows of the index: leaves' low-bit keys or nodes */
typedef struct {
    const float *q;
    const uint8_t *rows;
    const int32_t *columns; /* which rows, or NULL: from `first` on */
    const int32_t *around;  /* the last `num_around` of the `count` rows: in the softmax, not to be chosen */
    long first, count, num_around, queries, heads, kv_heads, dim, q_stride, width;
    const float *turns;     /* rows, or NULL */
    const int32_t *turn_of; /* which row is which column's; row i of the index is turned as column i * turn_step */
    long turn_width, turn_step;
    int interleaved;
    float scale, alpha; /* alpha: nodes, from the mean (0) to the bound (1) */
    long padded;        /* blocks, rounded up */
    float *sums, *tops, *totals, *partners; /* scratch: [block][head][16], [head][padded] twice, [head][dim] */
    float *out;
} score_job;

typedef struct {
    const char *name;
    range_fn norm, rope, swiglu, merge, matmul, unpack, append, attend;
    void (*prepare)(const float *x, const weights *w, float *sums, float *arranged); /* for matmul of one x */
    void (*attend_finish)(const attend_job *job, int parts);
    range_fn pack_keys, pack_nodes, score_leaves, score_nodes;
    void (*score_prepare)(const score_job *job);
    void (*score_finish)(const score_job *job);
} kernels;

/* floats that `prepare` writes to `arranged` */
INLINE long arranged_size(long k) { return (k + 127) / 128 * 128 + 64; }

INLINE float half_to_float(uint16_t half) {
    uint32_t word = (uint32_t)half << 16, twice = word + word, bits;
    float normal, denormal;
    bits = (twice >> 4) + (0xE0u << 23);
    memcpy(&normal, &bits, 4);
    normal *= 0x1.0p-112f;
    bits = (twice >> 17) | (126u << 23);
    memcpy(&denormal, &bits, 4);
    denormal -= 0.5f;
    memcpy(&bits, twice < (1u << 27) ? &denormal : &normal, 4);
    bits |= word & 0x80000000u;
    memcpy(&normal, &bits, 4);
    return normal;
}

INLINE uint16_t bf16_of(float x) { /* to nearest even; NaN stays NaN */
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}
INLINE float of_bf16(uint16_t h) {
    uint32_t bits = (uint32_t)h << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
