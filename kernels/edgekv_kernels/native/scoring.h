/* Scores of leaves by their low-bit keys and of nodes by their bounds and means, and the softmax over all of them.

   A work item is a block of 16 rows of the index (leaves or nodes), for every query and head: each row is read once
   and its codes once per four heads. The rows of a block share one running maximum per query head, so a
   block yields 16 sums and one maximum, which `score_finish` brings together: log2 throughout. */

#define ROWS 16                 /* of a block */
#define VBYTES (4 * W)          /* of a vector */
#define LANES4 (LEAF / W)       /* vectors that hold one value for each of a leaf's tokens */
#define LOG2E 1.44269504088896341f

INLINE vf FN(vexp2)(vf x) { /* error 4e-6 for x <= 0; below 2^-126 becomes 0 or about that */
#if W == 16 /* 2^floor(x) by one instruction, 2^(x - floor(x)) by a polynomial */
    __m512 f = _mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    vf z = (vf)f * 0.01353416f + 0.05201146f;
    z = z * (vf)f + 0.24144275f;
    z = z * (vf)f + 0.69300383f;
    z = z * (vf)f + 1.0000026f;
    return (vf)_mm512_scalef_ps((__m512)z, (__m512)x);
#else
    x = vmax(x, splat(-126.0f));
    const float magic = 12582912.0f;
    vf shifted = x + magic;
    vf r = x - (shifted - magic);
    vf y = r * 9.6181291e-3f + 5.5504109e-2f;
    y = y * r + 2.4022651e-1f;
    y = y * r + 6.9314718e-1f;
    y = y * r + 1.0f;
    return (vf)((vi)y + (((vi)shifted - 0x4b400000) << 23));
#endif
}

/* the sum of 16 vectors each, as 16 floats; destroys `rows` */
INLINE void FN(sum16)(vf *rows, float *out) {
    for (int i = 0; i < ROWS; i += W) store(out + i, transpose_sum(rows + i));
}

/* acc + codes (4 unsigned bytes a lane) . weights (the same 4 signed bytes for every lane) */
INLINE vi FN(dot4)(vi acc, vi codes, const int8_t *w) {
#if W == 16 && defined(HAS_VNNI)
    int32_t four;
    memcpy(&four, w, 4);
    return (vi)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)codes, _mm512_set1_epi32(four));
#elif W == 16 /* pairs in 16 bits; dots_done adds the pairs */
    int32_t four;
    memcpy(&four, w, 4);
    return (vi)_mm512_add_epi16((__m512i)acc, _mm512_maddubs_epi16((__m512i)codes, _mm512_set1_epi32(four)));
#elif W == 8
    int32_t four;
    memcpy(&four, w, 4);
    return (vi)_mm256_add_epi16((__m256i)acc, _mm256_maddubs_epi16((__m256i)codes, _mm256_set1_epi32(four)));
#else
    for (int j = 0; j < 4; j++) acc += ((codes >> (8 * j)) & 3) * (int32_t)w[j];
    return acc;
#endif
}
INLINE vi FN(dots_done)(vi acc) {
#if W == 16 && !defined(HAS_VNNI)
    return (vi)_mm512_madd_epi16((__m512i)acc, _mm512_set1_epi16(1));
#elif W == 8
    return (vi)_mm256_madd_epi16((__m256i)acc, _mm256_set1_epi16(1));
#else
    return acc;
#endif
}
#define DOT_BLOCKS 8 /* of 16 dimensions: 24,384 at most in 16 bits */

/* One head's query as the dots want it: 256 * q * quantum in 16 bits, in the order in which bytes are unpacked */
INLINE void FN(quantize)(const float *q, float quantum, int D, int16_t *out) {
    for (int i = 0; i < D; i += W) {
        vi whole = (vi)(load(q + i) * (256.0f * quantum) + 12582912.0f) - 0x4b400000;
        vh half = __builtin_convertvector((vu)whole, vh);
#if W == 4
        memcpy(out + i, &half, sizeof half);
#else
        for (int j = 0; j < W; j += 8) { /* eight dimensions at a time to the low or the high half */
            int at = i + j, vector = at / VBYTES, lane = at % VBYTES / 16, high = at % 16 / 8;
            memcpy(out + vector * VBYTES + high * VBYTES / 2 + lane * 8, (const char *)&half + j * 2, 16);
        }
#endif
    }
}

/* out[d] = q[d] * step[d] / 256, rounded, in 8 bits; may read and write up to the next multiple of VBYTES */
INLINE void FN(weigh)(const int16_t *q, const uint8_t *step, int D, int G, long q_size, int8_t *out) {
#if W == 4
    for (int g = 0; g < G; g++)
        for (int d = 0; d < D; d++) {
            int w = (q[g * q_size + d] * step[d] + 128) >> 8;
            out[g * q_size + d] = (int8_t)(w > 127 ? 127 : w < -127 ? -127 : w);
        }
#else
    for (int d = 0; d < D; d += VBYTES) {
#if W == 16
        __m512i bytes = _mm512_loadu_si512(step + d), zero = _mm512_setzero_si512();
        __m512i low = _mm512_slli_epi16(_mm512_unpacklo_epi8(bytes, zero), 7);
        __m512i high = _mm512_slli_epi16(_mm512_unpackhi_epi8(bytes, zero), 7);
        for (int g = 0; g < G; g++) {
            const int16_t *by = q + g * q_size + d;
            __m512i a = _mm512_mulhrs_epi16(low, _mm512_load_si512(by));
            __m512i b = _mm512_mulhrs_epi16(high, _mm512_load_si512(by + VBYTES / 2));
            _mm512_store_si512(out + g * q_size + d, _mm512_packs_epi16(a, b));
        }
#else
        __m256i bytes = _mm256_loadu_si256((const __m256i *)(step + d)), zero = _mm256_setzero_si256();
        __m256i low = _mm256_slli_epi16(_mm256_unpacklo_epi8(bytes, zero), 7);
        __m256i high = _mm256_slli_epi16(_mm256_unpackhi_epi8(bytes, zero), 7);
        for (int g = 0; g < G; g++) {
            const int16_t *by = q + g * q_size + d;
            __m256i a = _mm256_mulhrs_epi16(low, _mm256_load_si256((const __m256i *)by));
            __m256i b = _mm256_mulhrs_epi16(high, _mm256_load_si256((const __m256i *)(by + VBYTES / 2)));
            _mm256_store_si256((__m256i *)(out + g * q_size + d), _mm256_packs_epi16(a, b));
        }
#endif
    }
#endif
}

/* What a block's work on one kv head shares */
typedef struct {
    const uint8_t *rows[ROWS]; /* this kv head's part */
    const uint8_t *next[ROWS]; /* what is read after it, asked for meanwhile: no hardware guesses it */
    long ahead;                /* bytes of each to ask for */
    int count, is_new[ROWS];   /* whether a row is turned otherwise than the one before */
    float most[256];           /* the block's largest step in each dimension */
    const float *cos, *sin;    /* [ROWS][dim], valid where is_new */
} FN(block);

/* b->most of a block of leaves */
INLINE void FN(largest_steps)(FN(block) *b, int D) {
    for (int d = 0; d < D; d += 16) {
#if W >= 8
        __m128i all = _mm_setzero_si128();
        for (int c = 0; c < b->count; c++)
            all = _mm_max_epu8(all, _mm_loadu_si128((const __m128i *)(b->rows[c] + 8 + D + d)));
#if W == 16
        _mm512_storeu_ps(b->most + d, _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(all)));
#else
        _mm256_storeu_ps(b->most + d, _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(all)));
        _mm256_storeu_ps(b->most + d + 8, _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(all, 8))));
#endif
#else
        typedef uint8_t v16 __attribute__((vector_size(16)));
        v16 all = {0};
        for (int c = 0; c < b->count; c++) {
            v16 step;
            memcpy(&step, b->rows[c] + 8 + D + d, 16);
            v16 larger = (v16)(all > step);
            all = (all & larger) | (step & ~larger);
        }
        for (int i = 0; i < 16; i++) b->most[d + i] = all[i];
#endif
    }
}

/* Sums and maximum of G heads over a block of leaves. q, partner: [G][D]; sums [G][ROWS]; top [G], total [G] apart */
INLINE void FN(leaf_block)(const score_job *job, const FN(block) *b, const float *q, const float *partner, int G, int D,
                           float *sums, float *top, float *sum, long apart) {
    enum { SIZE = 256 };
    float here[4][SIZE], quantum[4];
    int16_t __attribute__((aligned(64))) quantized[4 * SIZE];
    int8_t __attribute__((aligned(64))) weights[4 * SIZE];
    float __attribute__((aligned(64))) scores[4][ROWS][LEAF];
    float low[4][ROWS];
    vf partial[4][ROWS];
    if (D % VBYTES) memset(quantized, 0, sizeof quantized);
    for (int g = 0; g < G; g++) {
        vf most = {0};
        for (int i = 0; i < D; i += W) {
            vf x = load(q + g * D + i), square = x * x, step = load(b->most + i);
            if (partner) { /* however a pair is turned, neither of it is longer than both */
                vf y = load(partner + g * D + i);
                square += y * y;
            }
            most = vmax(most, square * step * step);
        }
        float largest = sqrtf(highest(most));
        quantum[g] = largest > 0 ? 127.0f / largest : 0.0f;
    }
    for (int c = 0; c < b->count; c++) {
        const uint8_t *row = b->rows[c];
        for (long i = 0; i < b->ahead; i += 64) __builtin_prefetch(b->next[c] + i, 0, 2);
        if (b->is_new[c])
            for (int g = 0; g < G; g++) {
                const float *query = q + g * D;
                if (partner) {
                    FN(turn)(query, partner + g * D, b->cos + c * D, b->sin + c * D, D, here[g]);
                    query = here[g];
                } else {
                    memcpy(here[g], query, (size_t)D * 4);
                }
                FN(quantize)(query, quantum[g], D, quantized + g * SIZE);
            }
        FN(weigh)(quantized, row + 8 + D, D, G, SIZE, weights);
        __asm__ volatile("" : "+m"(weights)); /* four at a time from memory: from registers takes two shuffles each */
        vf dot[4] = {{0}};
        for (int i = 0; i < D; i += W) {
            vf x = load_s8((const int8_t *)row + 8 + i);
            for (int g = 0; g < G; g++) dot[g] += x * load(here[g] + i);
        }
        for (int g = 0; g < G; g++) partial[g][c] = dot[g];
        const uint8_t *codes = row + 8 + 2 * D;
        vi acc[4][LANES4] = {{{0}}};
        for (int i0 = 0; i0 < D / 16; i0 += DOT_BLOCKS) {
            vi some[4][LANES4] = {{{0}}};
            int end = i0 + DOT_BLOCKS < D / 16 ? i0 + DOT_BLOCKS : D / 16;
            for (int i = i0; i < end; i++)
                for (int p = 0; p < LANES4; p++) {
                    vi bytes;
                    memcpy(&bytes, codes + i * 64 + p * VBYTES, sizeof bytes);
                    for (int k = 0; k < 4; k++) {
                        vi four = (vi)((vu)bytes >> (2 * k)) & 0x03030303;
                        for (int g = 0; g < G; g++)
                            some[g][p] = FN(dot4)(some[g][p], four, weights + g * SIZE + i * 16 + k * 4);
                    }
                }
            for (int g = 0; g < G; g++)
                for (int p = 0; p < LANES4; p++) acc[g][p] += FN(dots_done)(some[g][p]);
        }
        for (int g = 0; g < G; g++)
            for (int p = 0; p < LANES4; p++) store(scores[g][c] + p * W, __builtin_convertvector(acc[g][p], vf));
    }
    for (int g = 0; g < G; g++) {
        for (int c = b->count; c < ROWS; c++) partial[g][c] = (vf){0};
        FN(sum16)(partial[g], low[g]);
        float unit = quantum[g] > 0 ? job->scale * LOG2E / quantum[g] : 0.0f;
        vf best = splat(-INFINITY);
        for (int c = 0; c < b->count; c++) {
            float scale[2];
            memcpy(scale, b->rows[c], 8);
            float base = low[g][c] * scale[0] * job->scale * LOG2E, step = scale[1] * unit;
            for (int p = 0; p < LEAF; p += W) {
                vf s = load(scores[g][c] + p) * step + base;
                store(scores[g][c] + p, s);
                best = vmax(best, s);
            }
        }
        float at = highest(best);
        for (int c = 0; c < b->count; c++) {
            vf added = {0};
            for (int p = 0; p < LEAF; p += W) added += FN(vexp2)(load(scores[g][c] + p) - at);
            partial[g][c] = added;
        }
        for (int c = b->count; c < ROWS; c++) partial[g][c] = (vf){0};
        FN(sum16)(partial[g], sums + g * ROWS);
        vf all = {0};
        for (int c = 0; c < ROWS; c += W) all += load(sums + g * ROWS + c);
        top[g * apart] = at;
        sum[g * apart] = total(all);
    }
}

/* The same for nodes: mean + alpha * (bound - mean) = q . a + |q| . b with two vectors a node that all heads share */
INLINE void FN(node_block)(const score_job *job, const FN(block) *b, const float *q, const float *partner, int G, int D,
                           float *sums, float *top, float *sum, long apart) {
    float here[4][256];
    vf partial[4][ROWS];
    for (int c = 0; c < ROWS; c++) {
        vf dot[4] = {{0}};
        if (c < b->count) {
            const uint8_t *row = b->rows[c];
            for (long i = 0; i < b->ahead; i += 64) __builtin_prefetch(b->next[c] + i, 0, 2);
            const int8_t *least = (const int8_t *)row + 8;
            float scale[2];
            memcpy(scale, row, 8);
            float wide = 0.5f * job->alpha * scale[0], middle = (1.0f - job->alpha) * scale[1];
            if (b->is_new[c])
                for (int g = 0; g < G; g++) {
                    if (partner) FN(turn)(q + g * D, partner + g * D, b->cos + c * D, b->sin + c * D, D, here[g]);
                    else memcpy(here[g], q + g * D, (size_t)D * 4);
                }
            for (int i = 0; i < D; i += W) {
                vf low = load_s8(least + i), high = load_s8(least + D + i);
                vf x = (low + high) * wide + load_s8(least + 2 * D + i) * middle, y = (high - low) * wide;
                for (int g = 0; g < G; g++) {
                    vf query = load(here[g] + i);
                    dot[g] += query * x;
                    dot[g] += vmax(query, -query) * y;
                }
            }
        }
        for (int g = 0; g < G; g++) partial[g][c] = dot[g];
    }
    for (int g = 0; g < G; g++) {
        float scores[ROWS];
        FN(sum16)(partial[g], scores);
        vf best = splat(-INFINITY), all = {0};
        for (int c = 0; c < ROWS; c++) scores[c] = c < b->count ? scores[c] * job->scale * LOG2E : -INFINITY;
        for (int c = 0; c < ROWS; c += W) best = vmax(best, load(scores + c));
        float at = highest(best);
        for (int c = 0; c < ROWS; c += W) store(sums + g * ROWS + c, FN(vexp2)(load(scores + c) - at));
        for (int c = b->count; c < ROWS; c++) sums[g * ROWS + c] = 0;
        for (int c = 0; c < ROWS; c += W) all += load(sums + g * ROWS + c);
        top[g * apart] = at;
        sum[g * apart] = total(all);
    }
}

INLINE long FN(column_at)(const score_job *job, long i) {
    long listed = job->count - job->num_around;
    return i >= listed ? job->around[i - listed] : job->columns ? job->columns[i] : job->first + i;
}
INLINE const uint8_t *FN(row_at)(const score_job *job, long i) { return job->rows + FN(column_at)(job, i) * job->width; }

/* blocks begin to end - 1, for every query and head */
INLINE void FN(score_range)(const score_job *job, long begin, long end, int D, int is_node) {
    long group = job->heads / job->kv_heads, heads = job->queries * job->heads, size = job->width / job->kv_heads;
    float cos[ROWS * 256], sin[ROWS * 256]; /* [ROWS][D] */
    FN(block) b = {.cos = cos, .sin = sin};
    for (long block = begin; block < end; block++) {
        const uint8_t *rows[ROWS];
        int32_t before = -1;
        b.count = (int)(job->count - block * ROWS < ROWS ? job->count - block * ROWS : ROWS);
        for (int c = 0; c < b.count; c++) {
            long at = FN(column_at)(job, block * ROWS + c);
            int32_t turn = job->turns ? job->turn_of[at * job->turn_step] : 0;
            rows[c] = job->rows + at * job->width;
            b.is_new[c] = turn != before;
            if (job->turns && b.is_new[c])
                FN(spread)(job->turns + turn * job->turn_width, D, job->turn_width, job->interleaved, cos + c * D,
                           sin + c * D);
            before = turn;
        }
        for (long h = 0; h < job->kv_heads; h++) {
            for (int c = 0; c < b.count; c++) {
                long after = (block + 1) * ROWS + c;
                b.rows[c] = rows[c] + h * size;
                b.next[c] = h + 1 < job->kv_heads ? b.rows[c] + size
                            : block + 1 < end && after < job->count ? FN(row_at)(job, after) : b.rows[c];
            }
            if (!is_node) FN(largest_steps)(&b, D);
            for (long t = 0; t < job->queries; t++)
                for (long g = 0; g < group; g += 4) {
                    long head = t * job->heads + h * group + g;
                    b.ahead = t == 0 && g == 0 ? size : 0;
                    const float *q = job->q + t * job->q_stride + (h * group + g) * D;
                    const float *partner = job->turns ? job->partners + head * D : NULL;
                    float *sums = job->sums + (block * heads + head) * ROWS;
                    float *top = job->tops + head * job->padded + block, *sum = job->totals + head * job->padded + block;
#define SCORE(G) \
    if (is_node) FN(node_block)(job, &b, q, partner, G, D, sums, top, sum, job->padded); \
    else FN(leaf_block)(job, &b, q, partner, G, D, sums, top, sum, job->padded)
                    switch (group - g) {
                    case 1: SCORE(1); break;
                    case 2: SCORE(2); break;
                    case 3: SCORE(3); break;
                    default: SCORE(4);
                    }
                }
        }
    }
}

static void FN(score_leaves)(const void *p, long begin, long end, int part) {
    const score_job *job = p;
    (void)part;
    switch (job->dim) {
    case 64: FN(score_range)(job, begin, end, 64, 0); break;
    case 128: FN(score_range)(job, begin, end, 128, 0); break;
    default: FN(score_range)(job, begin, end, (int)job->dim, 0);
    }
}

static void FN(score_nodes)(const void *p, long begin, long end, int part) {
    const score_job *job = p;
    (void)part;
    switch (job->dim) {
    case 64: FN(score_range)(job, begin, end, 64, 1); break;
    case 128: FN(score_range)(job, begin, end, 128, 1); break;
    default: FN(score_range)(job, begin, end, (int)job->dim, 1);
    }
}

static void FN(score_prepare)(const score_job *job) { /* the partners, where anything is turned */
    for (long t = 0; t < job->queries; t++)
        for (long h = 0; h < job->heads; h++)
            FN(partners)(job->q + t * job->q_stride + h * job->dim, job->dim, job->turn_width, job->interleaved,
                         job->partners + (t * job->heads + h) * job->dim);
}

/* every head's softmax over all blocks, summed over the heads, to out */
static void FN(score_finish)(const score_job *job) {
    long blocks = (job->count + ROWS - 1) / ROWS, heads = job->queries * job->heads;
    for (long h = 0; h < heads; h++) {
        float *top = job->tops + h * job->padded, *sum = job->totals + h * job->padded;
        for (long b = blocks; b < job->padded; b++) {
            top[b] = -INFINITY;
            sum[b] = 0;
        }
        vf best = splat(-INFINITY), all = {0};
        for (long b = 0; b < job->padded; b += W) best = vmax(best, load(top + b));
        float at = highest(best);
        for (long b = 0; b < job->padded; b += W) {
            vf weight = FN(vexp2)(load(top + b) - at);
            store(top + b, weight);
            all += weight * load(sum + b);
        }
        float share = 1.0f / total(all);
        for (long b = 0; b < job->padded; b += W) store(top + b, load(top + b) * share);
    }
    for (long b = 0; b < blocks; b++) {
        float out[ROWS];
        vf mass[ROWS / W] = {{0}};
        for (long h = 0; h < heads; h++)
            for (int i = 0; i < ROWS / W; i++)
                mass[i] += load(job->sums + (b * heads + h) * ROWS + i * W) * job->tops[h * job->padded + b];
        for (int i = 0; i < ROWS / W; i++) store(out + i * W, mass[i]);
        long n = job->count - b * ROWS < ROWS ? job->count - b * ROWS : ROWS;
        for (long i = 0; i < n; i++) job->out[b * ROWS + i] = out[i] > 0 ? out[i] : 0; /* not a number: 0 */
    }
}

#undef ROWS
#undef VBYTES
#undef LANES4
#undef LOG2E
#undef DOT_BLOCKS
#undef SCORE
