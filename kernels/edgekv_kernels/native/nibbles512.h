/* One x times rows of 4-bit weights, AVX-512: 128 weights of a row for 26 instructions.

   A load of 64 bytes holds four groups: lane i has bytes 4i .. 4i+3, all of group i / 4, and its nibble s is
   element 4 (i % 4) + s / 2 of the group's first (s even) or second (s odd) half. So x is rearranged once, to
   [block][s][lane], and each nibble becomes a float by a shift and one logic operation: its four bits under the
   exponent of 1 make 1 + q / 16. With x times 16 the sum is  sum x q + 16 sum x,  and the group sums, needed
   for the offsets anyway, take the second part off. Table look-ups group by group (`nibbles`, still used for
   what is left of a load) were tried first and are 10 to 15 % slower. */

#define BLOCK4 128 /* weights of a load */

static void arrange512(const float *x, long k, float *arranged) {
    for (long block = 0; block < k / BLOCK4; block++, x += BLOCK4)
        for (int s = 0; s < 8; s++)
            for (int i = 0; i < 16; i++) *arranged++ = 16.0f * x[32 * (i / 4) + 16 * (s & 1) + 4 * (i % 4) + s / 2];
}

/* nibble s of every lane as 1 + q / 16; s is a constant once unrolled */
INLINE __m512 nibble512(__m512i v, int s) {
    const __m512i one = _mm512_set1_epi32(0x3f800000), bits = _mm512_set1_epi32(0x780000);
    int left = 19 - 4 * s;
    __m512i moved = left >= 0 ? _mm512_slli_epi32(v, left > 0 ? left : 0) : _mm512_srli_epi32(v, left < 0 ? -left : 0);
    return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(moved, bits, one, 0xea)); /* (moved & bits) | one */
}

/* R rows (1 or 4); d and m are the rows' widened scales and offsets of `count` groups, padded with zeros */
INLINE void blocks512(const uint8_t *const *q, const float *x, const float *arranged, const float *sums, long count,
                      long ahead, int R, float (*d)[MAX_GROUPS + 16], float (*m)[MAX_GROUPS + 16], vf *acc) {
    const __m512i spread = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    long blocks = count / 4;
    for (long b = 0; b < blocks; b++, arranged += BLOCK4) {
        __m512 sum[4];
        __m512i v[4];
        for (int r = 0; r < R; r++) {
            v[r] = _mm512_loadu_si512(q[r] + b * 64);
            __asm__("" : "+v"(v[r])); /* keep it in a register: GCC would load it again for each nibble */
            __builtin_prefetch(q[r] + b * 64 + ahead);
            sum[r] = _mm512_setzero_ps();
        }
#pragma GCC unroll 8
        for (int s = 0; s < 8; s++) {
            __m512 value = _mm512_loadu_ps(arranged + s * 16);
            for (int r = 0; r < R; r++) sum[r] = _mm512_fmadd_ps(nibble512(v[r], s), value, sum[r]);
        }
        for (int r = 0; r < R; r++) {
            __m512 scale = _mm512_permutexvar_ps(spread, _mm512_castps128_ps512(_mm_loadu_ps(d[r] + 4 * b)));
            acc[r] = (vf)_mm512_fmadd_ps(sum[r], scale, (__m512)acc[r]);
        }
    }
    for (long g = 4 * blocks; g < count; g++) /* what is left of a load */
        for (int r = 0; r < R; r++) {
            vf lo[1], hi[1];
            FN(nibbles)(q[r] + g * 16, lo, hi);
            acc[r] += (lo[0] * load(x + g * 32) + hi[0] * load(x + g * 32 + 16)) * d[r][g];
        }
    for (long g = 0; g < count; g += 16) /* offsets, less the 16 of each block's weight */
        for (int r = 0; r < R; r++) {
            long inside = 4 * blocks - g; /* groups that went through blocks */
            __mmask16 some = inside >= 16 ? 0xffff : inside > 0 ? (__mmask16)((1u << inside) - 1) : 0;
            vf sixteen = (vf)_mm512_maskz_mov_ps(some, _mm512_set1_ps(16.0f));
            acc[r] += (load(m[r] + g) - sixteen * load(d[r] + g)) * load(sums + g);
        }
}
