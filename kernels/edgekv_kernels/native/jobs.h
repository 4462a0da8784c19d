/* What each kernel is asked to do, and the table of one instruction set's kernels.
   All pointers are to contiguous memory unless a stride (in elements) says otherwise. */
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "threads.h"

#define LEAF 16 /* tokens of a leaf */
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
    float *out, *lse;
    float *state; /* scratch: per part [queries * heads][dim + 2] */
} attend_job;

typedef struct {
    const char *name;
    range_fn norm, rope, swiglu, merge, matmul, unpack, append, attend;
    void (*prepare)(const float *x, const weights *w, float *sums, float *arranged); /* for matmul of one x */
    void (*attend_finish)(const attend_job *job, int parts);
} kernels;

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
