/* x [M, K] @ w [N, K]^T for few rows, and whole matrices unpacked. Exact dequantized arithmetic:
   sum_k x_k (d q_k + m) = d sum_k x_k q_k + m sum_k x_k, with the group sums of x computed once.
   Four rows of w at a time, so that x is read once for the four. */

#define KBLOCK 1024 /* columns whose four unpacked rows (16 KiB) stay in L1 */
#define MAX_M 16

/* elements [0, 16) in lo and [16, 32) in hi of a 4-bit group, as 16 / W vectors each */
INLINE void FN(nibbles)(const uint8_t *p, vf *lo, vf *hi) {
#if W == 16
    const __m512 digits = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    /* a table look-up by the low four bits replaces mask, shift and conversion */
    __m512i index = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
    lo[0] = (vf)_mm512_permutexvar_ps(index, digits);
    hi[0] = (vf)_mm512_permutexvar_ps(_mm512_srli_epi32(index, 4), digits);
#else
    for (int i = 0; i < 16 / W; i++) {
#if W == 8
        vi x = (vi)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(p + i * 8)));
#else
        vb b;
        memcpy(&b, p + i * W, sizeof b);
        vi x = __builtin_convertvector(b, vi);
#endif
        lo[i] = __builtin_convertvector(x & 15, vf);
        hi[i] = __builtin_convertvector(x >> 4, vf);
    }
#endif
}

/* sum over one group of q * x, not yet scaled */
INLINE vf FN(group_dot)(const weights *w, const uint8_t *q, const float *x, int bits, int group) {
    vf sum = {0};
    if (bits == 4) {
        vf lo[16 / W], hi[16 / W];
        FN(nibbles)(q, lo, hi);
        for (int i = 0; i < 16 / W; i++) sum += lo[i] * load(x + i * W);
        for (int i = 0; i < 16 / W; i++) sum += hi[i] * load(x + 16 + i * W);
    } else {
        for (int i = 0; i < group; i += W) sum += load_s8((const int8_t *)q + i) * load(x + i);
    }
    (void)w;
    return sum;
}

#define MAX_GROUPS 64 /* groups whose scales are widened at a time */

#if W == 16
#ifdef HAS_VNNI
#include "digits512.h"
#else
#include "nibbles512.h"
#endif
#endif

/* The R row sums to out; four rows are reduced together. */
INLINE void FN(put_rows)(const matmul_job *job, long row, int R, const vf *acc) {
    vf sums = acc[0];
    if (R == 4) sums = fold(fold(acc[0], acc[1], 1), fold(acc[2], acc[3], 1), 2);
    else sums = fold(fold(sums, sums, 1), fold(sums, sums, 1), 2);
    for (int h = 4; h < W; h *= 2) sums = fold(sums, sums, h);
    for (int r = 0; r < R; r++) job->out[row + r] = job->accumulate ? job->out[row + r] + sums[r] : sums[r];
}

/* R rows of packed weights times one x; group and bits are constants once inlined */
INLINE void FN(rows_times_one)(const matmul_job *job, long row, int R, int bits, int group) {
#ifdef HAS_VNNI
    vf acc[4];
    const weights *w = &job->w;
    if (w->scale_f32) digit_rows512(job, row, R, bits, group, 1, w->offset != NULL, acc);
    else if (w->offset) digit_rows512(job, row, R, bits, group, 0, 1, acc);
    else digit_rows512(job, row, R, bits, group, 0, 0, acc);
#else
    const weights *w = &job->w;
    long groups = w->k / group, scale_size = w->scale_f32 ? 4 : 2;
    long row_bytes = w->k * bits / 8, group_bytes = group * bits / 8;
    vf acc[4] = {{0}};
    for (long g0 = 0; g0 < groups; g0 += MAX_GROUPS) {
        float d[4][MAX_GROUPS + 16], m[4][MAX_GROUPS + 16];
        long count = groups - g0 < MAX_GROUPS ? groups - g0 : MAX_GROUPS;
        const uint8_t *q[4];
        for (int r = 0; r < R; r++) {
            long at = (row + r) * groups + g0;
            widen((const char *)w->scale + at * scale_size, w->scale_f32, count, d[r]);
            __builtin_prefetch((const char *)w->scale + at * scale_size + 1024, 0, 2);
            if (w->offset) {
                widen((const char *)w->offset + at * scale_size, w->scale_f32, count, m[r]);
                __builtin_prefetch((const char *)w->offset + at * scale_size + 1024, 0, 2);
            }
            q[r] = (const uint8_t *)w->quants + (row + r) * row_bytes + g0 * group_bytes;
        }
        const float *x = job->x + g0 * group;
#if W == 16
        if (bits == 4) {
            blocks512(q, x, job->arranged + g0 * group, job->sums + g0, count, 2 * R * row_bytes, R, d, m, acc);
            continue;
        }
#endif
        for (long g = 0; g < count; g++) {
            for (int r = 0; r < R; r++) {
                if (g * group_bytes % 64 == 0) __builtin_prefetch(q[r] + g * group_bytes + 2 * R * row_bytes);
                acc[r] += FN(group_dot)(w, q[r] + g * group_bytes, x + g * group, bits, group) * d[r][g];
            }
        }
        if (w->offset) /* both are padded with zeros to whole vectors */
            for (long g = 0; g < count; g += W)
                for (int r = 0; r < R; r++) acc[r] += load(m[r] + g) * load(job->sums + g0 + g);
    }
#endif
    FN(put_rows)(job, row, R, acc);
}

INLINE void FN(rows16_times_one)(const matmul_job *job, long row, int R) {
    const weights *w = &job->w;
    vf acc[4] = {{0}};
    const uint16_t *q = (const uint16_t *)w->quants + row * w->k;
    long i = 0;
    for (; i + W <= w->k; i += W) {
        vf x = load(job->x + i);
        for (int r = 0; r < R; r++) acc[r] += load_bf16(q + r * w->k + i) * x;
    }
    for (int r = 0; r < R; r++) {
        float sum = total(acc[r]);
        for (long j = i; j < w->k; j++) sum += of_bf16(q[r * w->k + j]) * job->x[j];
        job->out[row + r] = job->accumulate ? job->out[row + r] + sum : sum;
    }
}

/* columns [k0, k0 + count) of one row, dequantized */
static void FN(unpack_row)(const weights *w, long row, long k0, long count, float *out) {
    if (w->bits == 16) {
        const uint16_t *q = (const uint16_t *)w->quants + row * w->k + k0;
        long i = 0;
        for (; i + W <= count; i += W) store(out + i, load_bf16(q + i));
        for (; i < count; i++) out[i] = of_bf16(q[i]);
        return;
    }
    long group = w->group, groups = w->k / group, at = row * groups + k0 / group, scale_size = w->scale_f32 ? 4 : 2;
    float d[KBLOCK / 16 + 16], m[KBLOCK / 16 + 16];
    long n = count / group;
    widen((const char *)w->scale + at * scale_size, w->scale_f32, n, d);
    if (w->offset) widen((const char *)w->offset + at * scale_size, w->scale_f32, n, m);
    else memset(m, 0, (size_t)n * 4);
    const uint8_t *q = (const uint8_t *)w->quants + (row * w->k + k0) * w->bits / 8;
    for (long g = 0; g < n; g++, out += group) {
        if (w->bits == 4) {
            vf lo[16 / W], hi[16 / W];
            FN(nibbles)(q + g * 16, lo, hi);
            for (int i = 0; i < 16 / W; i++) {
                store(out + i * W, lo[i] * d[g] + m[g]);
                store(out + 16 + i * W, hi[i] * d[g] + m[g]);
            }
        } else {
            for (long i = 0; i < group; i += W)
                store(out + i, load_s8((const int8_t *)q + g * group + i) * d[g] + m[g]);
        }
    }
}

/* M x R products of unpacked rows: sums[m][r] += x[m] . rows[r] over count columns */
INLINE void FN(tile)(const float *x, long k, const float *rows, long count, int M, float (*sums)[4]) {
    vf acc[4][4] = {{{0}}};
    long i = 0;
    for (; i + W <= count; i += W) {
        vf w[4];
        for (int r = 0; r < 4; r++) w[r] = load(rows + r * KBLOCK + i);
        for (int m = 0; m < M; m++) {
            vf a = load(x + m * k + i);
            for (int r = 0; r < 4; r++) acc[m][r] += a * w[r];
        }
    }
    for (int m = 0; m < M; m++)
        for (int r = 0; r < 4; r++) {
            float sum = total(acc[m][r]);
            for (long j = i; j < count; j++) sum += x[m * k + j] * rows[r * KBLOCK + j];
            sums[m][r] += sum;
        }
}

static void FN(rows_times_many)(const matmul_job *job, long row, int R) {
    const weights *w = &job->w;
    float rows[4 * KBLOCK], sums[MAX_M][4];
    for (int r = R; r < 4; r++) memset(rows + r * KBLOCK, 0, KBLOCK * 4);
    for (long m0 = 0; m0 < job->m; m0 += MAX_M) {
        long count_m = job->m - m0 < MAX_M ? job->m - m0 : MAX_M;
        memset(sums, 0, sizeof sums);
        for (long k0 = 0; k0 < w->k; k0 += KBLOCK) {
            long count = w->k - k0 < KBLOCK ? w->k - k0 : KBLOCK;
            for (int r = 0; r < R; r++) FN(unpack_row)(w, row + r, k0, count, rows + r * KBLOCK);
            for (long m = 0; m < count_m; m += 4) {
                const float *x = job->x + (m0 + m) * w->k + k0;
                switch (count_m - m) {
                case 1: FN(tile)(x, w->k, rows, count, 1, sums + m); break;
                case 2: FN(tile)(x, w->k, rows, count, 2, sums + m); break;
                case 3: FN(tile)(x, w->k, rows, count, 3, sums + m); break;
                default: FN(tile)(x, w->k, rows, count, 4, sums + m);
                }
            }
        }
        for (long m = 0; m < count_m; m++)
            for (int r = 0; r < R; r++) {
                float *out = job->out + (m0 + m) * w->n + row + r;
                *out = job->accumulate ? *out + sums[m][r] : sums[m][r];
            }
    }
}

INLINE void FN(four_times_one)(const matmul_job *job, long row, int R) {
    const weights *w = &job->w;
    if (w->bits == 4) FN(rows_times_one)(job, row, R, 4, 32);
    else if (w->bits == 16) FN(rows16_times_one)(job, row, R);
    else if (w->group == 32) FN(rows_times_one)(job, row, R, 8, 32);
    else FN(rows_times_one)(job, row, R, 8, 16);
}

/* What all rows of w need of a single x: its group sums, padded with zeros, and its rearranged form. */
static void FN(prepare)(const float *x, const weights *w, float *sums, float *arranged) {
    long groups = w->k / w->group;
#ifdef HAS_VNNI
    for (long i = 0; i < 16; i++) sums[groups + i] = 0;
    digits512(x, w, sums, (int8_t *)arranged);
#else
    for (long i = 0; i < groups; i++) {
        vf sum = {0};
        for (long j = 0; j < w->group; j += W) sum += load(x + i * w->group + j);
        sums[i] = total(sum);
    }
    for (long i = 0; i < 16; i++) sums[groups + i] = 0;
#if W == 16
    if (w->bits == 4) arrange512(x, w->k, arranged);
#endif
    (void)arranged;
#endif
}

static void FN(matmul)(const void *p, long begin, long end, int part) {
    const matmul_job *job = p;
    (void)part;
    long row = begin;
    if (job->m == 1) {
        for (; row + 4 <= end; row += 4) FN(four_times_one)(job, row, 4);
        for (; row < end; row++) FN(four_times_one)(job, row, 1);
    } else {
        for (; row < end; row += 4) FN(rows_times_many)(job, row, end - row < 4 ? (int)(end - row) : 4);
    }
}

static void FN(unpack)(const void *p, long begin, long end, int part) {
    const unpack_job *job = p;
    const weights *w = &job->w;
    float buffer[KBLOCK];
    (void)part;
    for (long row = begin; row < end; row++)
        for (long k0 = 0; k0 < w->k; k0 += KBLOCK) {
            long count = w->k - k0 < KBLOCK ? w->k - k0 : KBLOCK, i = 0;
            if (!job->bf16) {
                FN(unpack_row)(w, row, k0, count, (float *)job->out + row * w->k + k0);
                continue;
            }
            uint16_t *out = (uint16_t *)job->out + row * w->k + k0;
            FN(unpack_row)(w, row, k0, count, buffer);
            for (; i + W <= count; i += W) store_bf16(out + i, load(buffer + i));
            for (; i < count; i++) out[i] = bf16_of(buffer[i]);
        }
}
