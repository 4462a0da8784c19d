/* One x times rows of 4- or 8-bit weights, AVX-512 with VNNI: 128 4-bit weights of a row for 13 instructions.
   Scales and offsets of 16 groups stay in a register: going through memory took as long as the products of 576 weights.

   Each group of x becomes whole numbers X = x / step of 16 bits with a step of its own: 2^-16 of the group's largest
   value, 30 times finer than the weights' own rounding of activations would need. X becomes two signed bytes,
   X = 256 h + l. The dot-product instruction multiplies 64 bytes of weights with one of the two at a time, and
   shifting the first sum puts them together. Signed weights become unsigned by turning their top bit over, which adds
   128 X; `correction` takes that off, and numbers that wrap in between do no harm.

   Order of the bytes: of a block of 128 4-bit weights (64 bytes), [h, l][low nibbles, high nibbles][64];
   of a block of 64 8-bit weights, [h, l][64], then the correction of each four as int32 [16]. The groups' steps
   stand behind all blocks, padded to whole vectors. */

#define LARGEST_X 32512.0f /* 127 * 256: a larger one could round to a third byte */
#define DIGITS4 256        /* bytes of a 4-bit block's digits */
#define DIGITS8 192

/* 16 numbers to the byte planes h and l, which lie `plane` bytes apart */
INLINE void split512(__m512i x, int8_t *to, long plane) {
    __m512i high = _mm512_srai_epi32(_mm512_add_epi32(x, _mm512_set1_epi32(128)), 8);
    _mm_storeu_si128((__m128i *)to, _mm512_cvtepi32_epi8(high));
    _mm_storeu_si128((__m128i *)(to + plane), _mm512_cvtepi32_epi8(x));
}

INLINE long digits_size(const weights *w) {
    return w->bits == 4 ? (w->k + 127) / 128 * DIGITS4 : (w->k + 63) / 64 * DIGITS8;
}

/* Group sums of x, its digits, its steps. Values that are not finite make a step NaN, hence every result. */
static void digits512(const float *x, const weights *w, float *sums, int8_t *digits) {
    float *steps = (float *)(digits + digits_size(w));
    long groups = w->k / w->group;
    memset(digits, 0, (size_t)digits_size(w));
    for (long g = 0; g < groups; g++) {
        const float *values = x + g * w->group;
        __m512 most = _mm512_setzero_ps(), nothing = most;
        for (long i = 0; i < w->group; i += 16) {
            __m512 v = _mm512_loadu_ps(values + i);
            most = _mm512_max_ps(most, _mm512_abs_ps(v));
            nothing = _mm512_fmadd_ps(v, _mm512_setzero_ps(), nothing);
        }
        float largest = highest((vf)most), inverse = largest > 0 ? LARGEST_X / largest : 0;
        if (!(inverse <= 1e38f)) inverse = 0; /* numbers so small count as 0 */
        __m512i sum = _mm512_setzero_si512();
        for (long j = 0; j < w->group; j += 16) {
            long i = g * w->group + j;
            __m512i v = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(values + j), _mm512_set1_ps(inverse)));
            sum = _mm512_add_epi32(sum, v);
            if (w->bits == 4) {
                split512(v, digits + i / 128 * DIGITS4 + i % 32 / 16 * 64 + i % 128 / 32 * 16, 128);
            } else {
                int8_t *block = digits + i / 64 * DIGITS8;
                split512(v, block + i % 64, 64);
                __m512i pairs = _mm512_add_epi32(v, _mm512_shuffle_epi32(v, _MM_PERM_CDAB));
                __m512i fours = _mm512_add_epi32(pairs, _mm512_shuffle_epi32(pairs, _MM_PERM_BADC));
                fours = _mm512_slli_epi32(_mm512_sub_epi32(_mm512_setzero_si512(), fours), 7);
                _mm512_mask_compressstoreu_epi32(block + 128 + i % 64, 0x1111, fours);
            }
        }
        steps[g] = (inverse > 0 ? 1.0f / inverse : 0.0f) + total((vf)nothing);
        sums[g] = (float)_mm512_reduce_add_epi32(sum) * steps[g];
    }
    for (long g = groups; g < (groups + 15) / 16 * 16; g++) steps[g] = 0;
}

/* 64 bytes of 4-bit weights times their digits: a whole number in each lane, of the group that the lane is in */
INLINE __m512i dot4_512(__m512i v, const int8_t *digits) {
    const __m512i nibble = _mm512_set1_epi8(15);
    __m512i low = _mm512_and_si512(v, nibble), high = _mm512_and_si512(_mm512_srli_epi16(v, 4), nibble);
    __m512i sum = _mm512_dpbusd_epi32(_mm512_setzero_si512(), low, _mm512_loadu_si512(digits));
    sum = _mm512_slli_epi32(_mm512_dpbusd_epi32(sum, high, _mm512_loadu_si512(digits + 64)), 8);
    sum = _mm512_dpbusd_epi32(sum, low, _mm512_loadu_si512(digits + 128));
    return _mm512_dpbusd_epi32(sum, high, _mm512_loadu_si512(digits + 192));
}

INLINE __m512i dot8_512(__m512i v, const int8_t *digits) {
    v = _mm512_xor_si512(v, _mm512_set1_epi8((char)0x80));
    __m512i sum = _mm512_dpbusd_epi32(_mm512_setzero_si512(), v, _mm512_loadu_si512(digits));
    sum = _mm512_dpbusd_epi32(_mm512_slli_epi32(sum, 8), v, _mm512_loadu_si512(digits + 64));
    return _mm512_add_epi32(sum, _mm512_loadu_si512(digits + 128));
}

/* Two rows, which lie side by side, share the loads of the digits. Four did so at more speed in cache, but on weights
   in memory they are four short sequences, which the hardware's prefetching does not follow: 1.4 times as long. */
#define TOGETHER 2
#define AHEAD 4096 /* bytes, asked into L2; 2048: a third slower on long rows, 8192: no faster */

/* 16 scales or offsets from `at` on, those of `some` lanes; the others 0 */
INLINE __m512 scales512(const void *from, long at, int is_f32, __mmask16 some) {
    if (is_f32) return _mm512_maskz_loadu_ps(some, (const float *)from + at);
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(some, (const uint16_t *)from + at));
}

/* Adds `count` groups (16 at most) of R rows, whose scales begin at at[r], to acc. */
INLINE void digit_groups512(const weights *w, const uint8_t *const *q, const long *at, const int8_t *digits,
                            const float *steps, const float *sums, long count, int R, int bits, int group, int is_f32,
                            int has_offset, __m512 *acc) {
    const int lanes_of_group = group * bits / 32, per_block = 16 / lanes_of_group;
    const __m512i spread = lanes_of_group == 4
        ? _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3)
        : _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    __mmask16 some = count >= 16 ? 0xffff : (__mmask16)((1u << count) - 1);
    __m512 scale[TOGETHER];
    for (int r = 0; r < R; r++) {
        scale[r] = _mm512_mul_ps(scales512(w->scale, at[r], is_f32, some), _mm512_loadu_ps(steps));
        if (has_offset)
            acc[r] = _mm512_fmadd_ps(scales512(w->offset, at[r], is_f32, some), _mm512_loadu_ps(sums), acc[r]);
    }
#pragma GCC unroll 8
    for (int b = 0; b < 16 / per_block; b++) {
        long there = (count - b * per_block) * lanes_of_group;
        if (there <= 0) break;
        __mmask16 in = there >= 16 ? 0xffff : (__mmask16)((1u << there) - 1);
        for (int r = 0; r < R; r++) {
            __builtin_prefetch(q[r] + b * 64 + AHEAD, 0, 2);
            __m512i v = count == 16 ? _mm512_loadu_si512(q[r] + b * 64) : _mm512_maskz_loadu_epi32(in, q[r] + b * 64);
            __m512i sum = bits == 4 ? dot4_512(v, digits + b * DIGITS4) : dot8_512(v, digits + b * DIGITS8);
            __m512i which = _mm512_add_epi32(spread, _mm512_set1_epi32(b * per_block));
            acc[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_permutexvar_ps(which, scale[r]), acc[r]);
        }
    }
}

/* Rows row .. row + R - 1 times the prepared x, each sum spread over the lanes of out[r] */
INLINE void digit_rows512(const matmul_job *job, long row, int R, int bits, int group, int is_f32, int has_offset,
                          vf *out) {
    const weights *w = &job->w;
    long groups = w->k / group, group_bytes = group * bits / 8, scale_size = is_f32 ? 4 : 2;
    long group_digits = group * (bits == 4 ? DIGITS4 / 128 : DIGITS8 / 64);
    const int8_t *digits = (const int8_t *)job->arranged;
    const float *steps = (const float *)(digits + digits_size(w));
    for (int r0 = 0; r0 < R; r0 += TOGETHER) {
        __m512 acc[TOGETHER];
        const uint8_t *q[TOGETHER];
        long at[TOGETHER];
        const int n = R < TOGETHER ? R : TOGETHER;
        for (int r = 0; r < n; r++) {
            acc[r] = _mm512_setzero_ps();
            at[r] = (row + r0 + r) * groups;
            q[r] = (const uint8_t *)w->quants + at[r] * group_bytes;
            __builtin_prefetch((const char *)w->scale + at[r] * scale_size + 1024, 0, 2);
            if (has_offset) __builtin_prefetch((const char *)w->offset + at[r] * scale_size + 1024, 0, 2);
        }
        for (long g = 0; g < groups; g += 16) {
            long count = groups - g < 16 ? groups - g : 16;
            const int8_t *here = digits + g * group_digits;
            const float *by = steps + g, *sums = job->sums + g;
            if (count == 16) /* a constant, which spares the masks */
                digit_groups512(w, q, at, here, by, sums, 16, n, bits, group, is_f32, has_offset, acc);
            else
                digit_groups512(w, q, at, here, by, sums, count, n, bits, group, is_f32, has_offset, acc);
            for (int r = 0; r < n; r++) {
                q[r] += 16 * group_bytes;
                at[r] += 16;
            }
        }
        for (int r = 0; r < n; r++) out[r0 + r] = (vf)acc[r];
    }
}
