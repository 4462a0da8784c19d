/* Vectors of W floats in GCC's vector language: one text for AVX-512 (W=16), AVX2 (8) and the rest (4).
   Included once per instruction set with ISA and W defined; every name carries the ISA's suffix. */
#ifndef FN
#define FN_(name, isa) name##_##isa
#define FN__(name, isa) FN_(name, isa)
#define FN(name) FN__(name, ISA)
#define vf FN(vf)
#define vi FN(vi)
#define vu FN(vu)
#define vb FN(vb)
#define vsb FN(vsb)
#define vh FN(vh)
#define load FN(load)
#define store FN(store)
#define splat FN(splat)
#define vmax FN(vmax)
#define total FN(total)
#define highest FN(highest)
#define vexp FN(vexp)
#define load_bf16 FN(load_bf16)
#define store_bf16 FN(store_bf16)
#define load_s8 FN(load_s8)
#define lanes FN(lanes)
#define fold FN(fold)
#define transpose_sum FN(transpose_sum)
#define widen FN(widen)
#endif

typedef float vf __attribute__((vector_size(4 * W)));
typedef int32_t vi __attribute__((vector_size(4 * W)));
typedef uint32_t vu __attribute__((vector_size(4 * W)));
typedef uint8_t vb __attribute__((vector_size(W)));
typedef int8_t vsb __attribute__((vector_size(W)));
typedef uint16_t vh __attribute__((vector_size(2 * W)));

INLINE vf load(const float *p) { vf x; memcpy(&x, p, sizeof x); return x; }
INLINE void store(float *p, vf x) { memcpy(p, &x, sizeof x); }
INLINE vf splat(float x) { return x - (vf){0}; }

INLINE vf vmax(vf a, vf b) {
#if W == 16
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif W == 8
    return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
    vi a_wins = a > b;
    return (vf)((a_wins & (vi)a) | (~a_wins & (vi)b));
#endif
}

INLINE vi lanes(void) {
#if W == 16
    return (vi) {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#elif W == 8
    return (vi) {0, 1, 2, 3, 4, 5, 6, 7};
#else
    return (vi) {0, 1, 2, 3};
#endif
}

/* Lanes whose bit `h` is 0 get a's sum over the pair, the others b's. */
INLINE vf fold(vf a, vf b, int h) {
    const vi lane = lanes();
    const vi other = (lane & h) * (W / h);
    return __builtin_shuffle(a, b, lane + other) + __builtin_shuffle(a, b, (lane ^ h) + other);
}
/* W vectors in, one out: lane i is the sum of vector i. Destroys `rows`. */
INLINE vf transpose_sum(vf *rows) {
    for (int i = 0; i < W; i += 2) rows[i] = fold(rows[i], rows[i + 1], 1);
    for (int i = 0; i < W; i += 4) rows[i] = fold(rows[i], rows[i + 2], 2);
#if W >= 8
    for (int i = 0; i < W; i += 8) rows[i] = fold(rows[i], rows[i + 4], 4);
#endif
#if W >= 16
    rows[0] = fold(rows[0], rows[8], 8);
#endif
    return rows[0];
}
INLINE float total(vf x) {
    x = fold(x, x, 1);
    x = fold(x, x, 2);
#if W >= 8
    x = fold(x, x, 4);
#endif
#if W >= 16
    x = fold(x, x, 8);
#endif
    return x[0];
}
INLINE float highest(vf x) {
    for (int h = 1; h < W; h *= 2) x = vmax(x, __builtin_shuffle(x, lanes() ^ h));
    return x[0];
}

/* e^x for x <= 88, error 2e-7; -inf and anything below -87 give about 1e-38 */
INLINE vf vexp(vf x) {
    x = vmax(x, splat(-87.0f));
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    vf shifted = x * 1.44269504088896341f + magic;
    vf n = shifted - magic;
    vf r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    vf y = r * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    return (vf)((vi)y + (((vi)shifted - 0x4b400000) << 23));
}

INLINE vf load_bf16(const uint16_t *p) {
#if W == 16 /* GCC 12 makes two halves of the generic conversion */
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16);
#elif W == 8
    return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16);
#else
    vh h;
    memcpy(&h, p, sizeof h);
    return (vf)(__builtin_convertvector(h, vu) << 16);
#endif
}
INLINE void store_bf16(uint16_t *p, vf x) { /* to nearest even; NaN stays NaN */
    vu bits = (vu)x;
    vu nan = (vu)((bits & 0x7fffffffu) > 0x7f800000u);
    vu rounded = (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16;
    rounded = (rounded & ~nan) | (nan & 0x7fc0u);
#if W == 16
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16((__m512i)rounded));
#else
    vh h = __builtin_convertvector(rounded, vh);
    memcpy(p, &h, sizeof h);
#endif
}
INLINE vf load_s8(const int8_t *p) {
#if W == 16
    return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
#elif W == 8
    return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
#else
    vsb b;
    memcpy(&b, p, sizeof b);
    return __builtin_convertvector(__builtin_convertvector(b, vi), vf);
#endif
}

/* n scales (float16 or float32) to floats, then zeros up to a multiple of 16 */
INLINE void widen(const void *src, int f32, long n, float *dst) {
    long padded = (n + 15) / 16 * 16, i = 0;
    if (f32) {
        memcpy(dst, src, (size_t)n * 4);
        i = n;
    } else {
        const uint16_t *h = src;
#if W == 16
        for (; i < n; i += 16) {
            __mmask16 some = n - i >= 16 ? 0xffff : (__mmask16)((1u << (n - i)) - 1);
            _mm512_storeu_ps(dst + i, _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(some, h + i)));
        }
#elif W == 8
        for (; i + 8 <= n; i += 8)
            _mm256_storeu_ps(dst + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(h + i))));
#elif defined(__aarch64__)
        for (; i + 4 <= n; i += 4) vst1q_f32(dst + i, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(h + i))));
#endif
        for (; i < n; i++) dst[i] = half_to_float(h[i]);
    }
    for (; i < padded; i++) dst[i] = 0;
}
