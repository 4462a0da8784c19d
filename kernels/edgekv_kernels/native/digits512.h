/* One x times rows of 4- or 8-bit weights, AVX-512 with VNNI: 128 4-bit weights of a row for 15 instructions.

   x becomes whole numbers X = x / step of 23 bits with one step for the vector, as exact as float32 sums are, and X
   becomes three signed bytes: X = 65536 h + 256 m + l. The dot-product instruction multiplies 64 bytes of
   weights with one of the three at a time, and shifting the running sum between them puts them together again
   (Horner). No sum overflows: four 8-bit weights times X stay below 2^31. Signed weights become unsigned by
   turning their top bit over, which adds 128 X; `correction` takes that off, and numbers that wrap in between do no harm.

   Order of the bytes: of a block of 128 4-bit weights (64 bytes), [h, m, l][low nibbles, high nibbles][64];
   of a block of 64 8-bit weights, [h, m, l][64], then the correction of each four as int32 [16]. */

#define LARGEST_X 4190000.0f /* 4 * 128 * this < 2^31 */
#define DIGITS4 384          /* bytes of a 4-bit block's digits */
#define DIGITS8 256

/* 16 numbers to the byte planes h, m, l, which lie `plane` bytes apart */
INLINE void split512(__m512i x, int8_t *to, long plane) {
    const __m512i half = _mm512_set1_epi32(128);
    __m512i middle = _mm512_srai_epi32(_mm512_add_epi32(x, half), 8);
    __m512i high = _mm512_srai_epi32(_mm512_add_epi32(middle, half), 8);
    _mm_storeu_si128((__m128i *)to, _mm512_cvtepi32_epi8(high));
    _mm_storeu_si128((__m128i *)(to + plane), _mm512_cvtepi32_epi8(middle));
    _mm_storeu_si128((__m128i *)(to + 2 * plane), _mm512_cvtepi32_epi8(x));
}

/* Step of x, its group sums in steps, its digits. Values that are not finite make the step NaN, hence every result. */
static float digits512(const float *x, const weights *w, float *sums, int8_t *digits) {
    __m512 most = _mm512_setzero_ps(), nothing = most;
    for (long i = 0; i < w->k; i += 16) {
        __m512 v = _mm512_loadu_ps(x + i);
        most = _mm512_max_ps(most, _mm512_abs_ps(v));
        nothing = _mm512_fmadd_ps(v, _mm512_setzero_ps(), nothing);
    }
    float largest = highest((vf)most), inverse = largest > 0 ? LARGEST_X / largest : 0;
    if (!(inverse <= 1e38f)) inverse = 0; /* numbers so small count as 0 */
    memset(digits, 0, (size_t)((w->k + 127) / 128 * DIGITS4 + DIGITS8));
    for (long i = 0; i < w->k; i += 16) {
        __m512i v = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i), _mm512_set1_ps(inverse)));
        float sum = (float)_mm512_reduce_add_epi32(v);
        if (w->group == 32 && i % 32) sums[i / 32] += sum;
        else sums[i / w->group] = sum;
        if (w->bits == 4) {
            split512(v, digits + i / 128 * DIGITS4 + i % 32 / 16 * 64 + i % 128 / 32 * 16, 128);
        } else {
            int8_t *block = digits + i / 64 * DIGITS8;
            split512(v, block + i % 64, 64);
            int32_t fours[16];
            _mm512_storeu_si512(fours, _mm512_slli_epi32(v, 7));
            for (int j = 0; j < 4; j++) {
                uint32_t sum4 = (uint32_t)fours[4 * j] + (uint32_t)fours[4 * j + 1] + (uint32_t)fours[4 * j + 2] +
                                (uint32_t)fours[4 * j + 3];
                ((uint32_t *)(block + 192))[i % 64 / 4 + j] = 0u - sum4;
            }
        }
    }
    return (inverse > 0 ? 1.0f / inverse : 0.0f) + total((vf)nothing);
}

/* `lanes` of the block's 64 bytes are there */
INLINE __m512i dot4_512(__m512i v, const int8_t *digits) {
    const __m512i nibble = _mm512_set1_epi8(15);
    __m512i low = _mm512_and_si512(v, nibble), high = _mm512_and_si512(_mm512_srli_epi16(v, 4), nibble);
    __m512i sum = _mm512_setzero_si512();
#pragma GCC unroll 3
    for (int d = 0; d < 3; d++) {
        if (d) sum = _mm512_slli_epi32(sum, 8);
        sum = _mm512_dpbusd_epi32(sum, low, _mm512_loadu_si512(digits + d * 128));
        sum = _mm512_dpbusd_epi32(sum, high, _mm512_loadu_si512(digits + d * 128 + 64));
    }
    return sum;
}

INLINE __m512i dot8_512(__m512i v, const int8_t *digits) {
    v = _mm512_xor_si512(v, _mm512_set1_epi8((char)0x80));
    __m512i sum = _mm512_setzero_si512();
#pragma GCC unroll 3
    for (int d = 0; d < 3; d++) {
        if (d) sum = _mm512_slli_epi32(sum, 8);
        sum = _mm512_dpbusd_epi32(sum, v, _mm512_loadu_si512(digits + d * 64));
    }
    return _mm512_add_epi32(sum, _mm512_loadu_si512(digits + 192));
}

/* R rows over `count` groups; d and m are the rows' widened scales and offsets, padded with zeros */
INLINE void digit_rows512(const uint8_t *const *q, const int8_t *digits, const float *sums, long count, long ahead,
                          int R, int bits, int group, int has_offset, float (*d)[MAX_GROUPS + 16],
                          float (*m)[MAX_GROUPS + 16], vf *acc) {
    const int lanes_of_group = group * bits / 32, per_block = 16 / lanes_of_group;
    const __m512i spread = lanes_of_group == 4
        ? _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3)
        : _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    for (long g = 0, b = 0; g < count; g += per_block, b++) {
        long there = (count - g) * lanes_of_group;
        __mmask16 some = there >= 16 ? 0xffff : (__mmask16)((1u << there) - 1);
        for (int r = 0; r < R; r++) {
            __builtin_prefetch(q[r] + b * 64 + ahead);
            __m512i v = _mm512_maskz_loadu_epi32(some, q[r] + b * 64);
            __m512i sum = bits == 4 ? dot4_512(v, digits + b * DIGITS4) : dot8_512(v, digits + b * DIGITS8);
            __m512 scale = _mm512_permutexvar_ps(spread, _mm512_castps128_ps512(_mm_loadu_ps(d[r] + g)));
            acc[r] = (vf)_mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, (__m512)acc[r]);
        }
    }
    if (has_offset)
        for (long g = 0; g < count; g += 16)
            for (int r = 0; r < R; r++) acc[r] += load(m[r] + g) * load(sums + g);
}
