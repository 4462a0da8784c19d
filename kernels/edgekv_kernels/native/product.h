/* Product of many rows (prefill): bfloat16 factors, float32 sums and output; AVX-512 BF16.

   Weights lie in panels of 16 outputs, pairs of inputs side by side as the dot-product instruction takes them:
   [N / 16][K / 2][16][2]. Each tile of 6 rows and 4 panels keeps its 24 results in registers; a tile's panels
   stay in L2 while all rows pass by. */

#define TILE_ROWS 6
#define TILE_PANELS 4

typedef struct { const uint16_t *x, *w; float *out; long m, n, k; int accumulate; } product_job;
typedef struct { const uint16_t *w; uint16_t *out; long k; } panel_job;

static void panels_range(const void *p, long begin, long end, int part) {
    const panel_job *job = p;
    long pairs = job->k / 2;
    (void)part;
    for (long i = begin; i < end; i++) {
        const uint32_t *from = (const uint32_t *)job->w + i * 16 * pairs;
        uint32_t *to = (uint32_t *)job->out + i * 16 * pairs;
        for (long d = 0; d < pairs; d++)
            for (long n = 0; n < 16; n++) to[d * 16 + n] = from[n * pairs + d];
    }
}

INLINE void product_tile(const product_job *job, long row, long panel, int N) {
    __m512 acc[TILE_ROWS][TILE_PANELS];
    const uint16_t *x[TILE_ROWS];
    long size = job->k * 16;
    for (int r = 0; r < TILE_ROWS; r++) { /* rows past the end repeat the last and are not stored */
        x[r] = job->x + (row + r < job->m ? row + r : job->m - 1) * job->k;
        for (int j = 0; j < N; j++) acc[r][j] = _mm512_setzero_ps();
    }
    const uint16_t *w = job->w + panel * size;
    for (long d = 0; d < job->k / 2; d++) {
        __m512bh weight[TILE_PANELS];
        for (int j = 0; j < N; j++) weight[j] = (__m512bh)_mm512_loadu_si512(w + j * size + d * 32);
        for (int r = 0; r < TILE_ROWS; r++) {
            int32_t pair;
            memcpy(&pair, x[r] + 2 * d, 4);
            __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
            for (int j = 0; j < N; j++) acc[r][j] = _mm512_dpbf16_ps(acc[r][j], both, weight[j]);
        }
    }
    for (int r = 0; r < TILE_ROWS && row + r < job->m; r++)
        for (int j = 0; j < N; j++) {
            float *out = job->out + (row + r) * job->n + (panel + j) * 16;
            if (job->accumulate) acc[r][j] = _mm512_add_ps(acc[r][j], _mm512_loadu_ps(out));
            _mm512_storeu_ps(out, acc[r][j]);
        }
}

static void product_range(const void *p, long begin, long end, int part) {
    const product_job *job = p;
    (void)part;
    for (long panel = begin; panel < end; panel += TILE_PANELS)
        for (long row = 0; row < job->m; row += TILE_ROWS) switch (end - panel) {
            case 1: product_tile(job, row, panel, 1); break;
            case 2: product_tile(job, row, panel, 2); break;
            case 3: product_tile(job, row, panel, 3); break;
            default: product_tile(job, row, panel, 4); break;
            }
}
