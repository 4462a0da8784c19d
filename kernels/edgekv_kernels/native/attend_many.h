/* Attention of many queries (prefill): bfloat16 products, float32 scores, sums and output; AVX-512 BF16.

   Rows are (query, head of the group) pairs of one kv head. Keys and values of up to SEGMENT leaves are first
   rearranged into the pairs that the dot-product instruction takes; then each panel of PANEL rows computes its
   scores against a tile of TILE keys, the weights and their product with the values while all of it lies in L1.
   exp2 throughout: log2(e) is folded into the query's scale. */

#define PANEL 6          /* rows whose 4 x 16 results fill the registers: 24 of 32 */
#define BLOCK (PANEL * 16) /* rows of one work item; their state stays in L2 */
#define TILE 256         /* keys: packed keys and values of a tile are 64 KiB at dim 64 */
#define SEGMENT 256      /* leaves packed at a time: bounds the scratch */
#define MASKED -1e30f

typedef struct {
    const attend_job *job;
    uint16_t *keys, *values; /* [kv head][leaf of the segment, a multiple of 4][16 * dim] */
    float *top, *sum;        /* [kv head][row] */
    long first, leaves, padded, rows, group;
    long next;               /* work item to take: items differ in length under the causal mask */
    int is_last;
} many_job;

INLINE __m512 exp2_fast(__m512 x) { /* error 3e-6; below 2^-126 becomes 0 */
    x = _mm512_max_ps(x, _mm512_set1_ps(-160.0f));
    __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 f = _mm512_sub_ps(x, n);
    __m512 y = _mm512_set1_ps(1.3333558e-3f);
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(9.6181291e-3f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(5.5504109e-2f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(2.4022651e-1f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(6.9314718e-1f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(y, n);
}

/* one leaf of one head: keys to [dim / 2][16 tokens][2], values to [8 token pairs][dim][2] */
static void pack_leaf(const uint16_t *k, const uint16_t *v, long tokens, long dim, uint16_t *keys, uint16_t *values) {
    uint32_t *pairs = (uint32_t *)keys;
    const uint32_t *from = (const uint32_t *)k;
    for (long d = 0; d < dim / 2; d++)
        for (long t = 0; t < LEAF; t++) pairs[d * LEAF + t] = t < tokens ? from[t * dim / 2 + d] : 0;
    for (long p = 0; p < LEAF / 2; p++)
        for (long d = 0; d < dim; d++) {
            values[(p * dim + d) * 2] = 2 * p < tokens ? v[2 * p * dim + d] : 0;
            values[(p * dim + d) * 2 + 1] = 2 * p + 1 < tokens ? v[(2 * p + 1) * dim + d] : 0;
        }
}

/* Where leaves are turned it is their keys that are, back: all queries share them. */
static void turn_back(const attend_job *job, long leaf, const uint16_t *k, uint16_t *out) {
    const float *cos = job->turns + job->turn_of[leaf] * job->turn_width, *sin = cos + job->turn_width / 2;
    long dim = job->dim, half = job->turn_width / 2, apart = job->interleaved ? 1 : half;
    memcpy(out, k, (size_t)(LEAF * dim) * 2);
    for (long t = 0; t < LEAF; t++)
        for (long i = 0; i < half; i++) {
            long at = t * dim + (job->interleaved ? 2 * i : i);
            float a = of_bf16(k[at]), b = of_bf16(k[at + apart]);
            out[at] = bf16_of(a * cos[i] + b * sin[i]);
            out[at + apart] = bf16_of(b * cos[i] - a * sin[i]);
        }
}

static void pack_range(const void *p, long begin, long end, int part) {
    const many_job *many = p;
    const attend_job *job = many->job;
    long size = LEAF * job->dim, plane = job->kv_heads * size;
    (void)part;
    for (long i = begin; i < end; i++) {
        long leaf = i / job->kv_heads, head = i % job->kv_heads, at = (head * many->padded + leaf) * size;
        long tokens = job->tokens - (many->first + leaf) * LEAF;
        if (leaf >= many->leaves) { /* filling up to four leaves */
            memset(many->keys + at, 0, (size_t)size * 2);
            memset(many->values + at, 0, (size_t)size * 2);
            continue;
        }
        const uint16_t *k = job->pool + (long)job->slots[many->first + leaf] * 2 * plane + head * size;
        uint16_t turned[LEAF * 256];
        const uint16_t *values = k + plane;
        if (job->turns) {
            turn_back(job, many->first + leaf, k, turned);
            k = turned;
        }
        pack_leaf(k, values, tokens < LEAF ? tokens : LEAF, job->dim, many->keys + at, many->values + at);
    }
}

/* scores[PANEL][TILE] of four leaves (64 keys) */
INLINE void score_leaves(const uint16_t *q, const uint16_t *keys, long dim, float *scores) {
    __m512 acc[PANEL][4];
    for (int r = 0; r < PANEL; r++)
        for (int j = 0; j < 4; j++) acc[r][j] = _mm512_setzero_ps();
    for (long d = 0; d < dim / 2; d++) {
        __m512bh key[4];
        for (int j = 0; j < 4; j++) key[j] = (__m512bh)_mm512_loadu_si512(keys + j * LEAF * dim + d * 32);
        for (int r = 0; r < PANEL; r++) {
            int32_t pair;
            memcpy(&pair, q + r * dim + 2 * d, 4);
            __m512bh query = (__m512bh)_mm512_set1_epi32(pair);
            for (int j = 0; j < 4; j++) acc[r][j] = _mm512_dpbf16_ps(acc[r][j], query, key[j]);
        }
    }
    for (int r = 0; r < PANEL; r++)
        for (int j = 0; j < 4; j++) _mm512_storeu_ps(scores + r * TILE + j * 16, acc[r][j]);
}

/* out[PANEL][dim] = out * shrink + weights[PANEL][keys] @ values, N vectors of columns from `column` */
INLINE void add_values(float *out, const float *shrink, const uint16_t *weight, const uint16_t *values, long keys,
                       long dim, long column, int N) {
    __m512 acc[PANEL][4];
    for (int r = 0; r < PANEL; r++)
        for (int j = 0; j < N; j++)
            acc[r][j] = _mm512_mul_ps(_mm512_loadu_ps(out + r * dim + column + j * 16), _mm512_set1_ps(shrink[r]));
    for (long p = 0; p < keys / 2; p++) {
        __m512bh value[4];
        for (int j = 0; j < N; j++)
            value[j] = (__m512bh)_mm512_loadu_si512(values + (p * dim + column + j * 16) * 2);
        for (int r = 0; r < PANEL; r++) {
            int32_t pair;
            memcpy(&pair, weight + r * TILE + 2 * p, 4);
            __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
            for (int j = 0; j < N; j++) acc[r][j] = _mm512_dpbf16_ps(acc[r][j], both, value[j]);
        }
    }
    for (int r = 0; r < PANEL; r++)
        for (int j = 0; j < N; j++) _mm512_storeu_ps(out + r * dim + column + j * 16, acc[r][j]);
}

/* One row's scores to bfloat16 weights; returns the factor by which what was summed before shrinks. */
INLINE float soften(const float *scores, long keys, uint16_t *weight, float *top, float *sum) {
    __m512 best = _mm512_set1_ps(*top), added = _mm512_setzero_ps();
    for (long i = 0; i < keys; i += 16) best = _mm512_max_ps(best, _mm512_loadu_ps(scores + i));
    float new_top = _mm512_reduce_max_ps(best);
    __m512 at = _mm512_set1_ps(new_top);
    for (long i = 0; i < keys; i += 32) {
        __m512 a = exp2_fast(_mm512_sub_ps(_mm512_loadu_ps(scores + i), at));
        __m512 b = exp2_fast(_mm512_sub_ps(_mm512_loadu_ps(scores + i + 16), at));
        added = _mm512_add_ps(added, _mm512_add_ps(a, b));
        _mm512_storeu_si512(weight + i, (__m512i)_mm512_cvtne2ps_pbh(b, a));
    }
    float shrink = *top == new_top ? 1.0f : exp2f(*top - new_top);
    *sum = *sum * shrink + _mm512_reduce_add_ps(added);
    *top = new_top;
    return shrink;
}

typedef struct { float out[PANEL * 256], top[PANEL], sum[PANEL]; uint16_t q[PANEL * 256]; } panel;

/* One panel of rows against one tile of packed keys */
static void panel_tile(const many_job *many, panel *rows, long row, const uint16_t *keys, const uint16_t *values,
                       long first_key, long count) {
    const attend_job *job = many->job;
    float scores[PANEL * TILE], shrink[PANEL];
    uint16_t weight[PANEL * TILE];
    long dim = job->dim;
    for (long i = 0; i < count; i += 64) score_leaves(rows->q, keys + i * dim, dim, scores + i);
    for (int r = 0; r < PANEL; r++) {
        long visible = job->tokens - first_key;
        if (job->causal && (row + r) / many->group + 1 - first_key < visible) visible = (row + r) / many->group + 1 - first_key;
        for (long i = visible < 0 ? 0 : visible; i < count; i++) scores[r * TILE + i] = MASKED;
        shrink[r] = soften(scores + r * TILE, count, weight + r * TILE, &rows->top[r], &rows->sum[r]);
    }
    long column = 0;
    for (; column + 64 <= dim; column += 64) add_values(rows->out, shrink, weight, values, count, dim, column, 4);
    switch ((dim - column) / 16) {
    case 3: add_values(rows->out, shrink, weight, values, count, dim, column, 3); break;
    case 2: add_values(rows->out, shrink, weight, values, count, dim, column, 2); break;
    case 1: add_values(rows->out, shrink, weight, values, count, dim, column, 1); break;
    default: break;
    }
}

/* queries and the state so far (kept unnormalised in `out`) of a panel; rows past the end repeat the last */
static void panel_begin(const many_job *many, panel *rows, long head, long row) {
    const attend_job *job = many->job;
    for (int r = 0; r < PANEL; r++) {
        long at = row + r < many->rows ? row + r : many->rows - 1;
        long t = at / many->group, h = head * many->group + at % many->group, dim = job->dim;
        const float *q = job->q + t * job->q_stride + h * dim;
        for (long d = 0; d < dim; d++) rows->q[r * dim + d] = bf16_of(q[d] * job->scale * 1.44269504088896341f);
        if (many->first == 0) memset(rows->out + r * dim, 0, (size_t)dim * 4);
        else memcpy(rows->out + r * dim, job->out + (t * job->heads + h) * dim, (size_t)dim * 4);
        rows->top[r] = many->first == 0 ? MASKED : many->top[head * many->rows + at];
        rows->sum[r] = many->first == 0 ? 0.0f : many->sum[head * many->rows + at];
    }
}

static void panel_end(const many_job *many, const panel *rows, long head, long row) {
    const attend_job *job = many->job;
    for (int r = 0; r < PANEL && row + r < many->rows; r++) {
        long t = (row + r) / many->group, h = head * many->group + (row + r) % many->group, dim = job->dim;
        float *out = job->out + (t * job->heads + h) * dim, scale = many->is_last ? 1.0f / rows->sum[r] : 1.0f;
        for (long d = 0; d < dim; d++) out[d] = rows->out[r * dim + d] * scale;
        many->top[head * many->rows + row + r] = rows->top[r];
        many->sum[head * many->rows + row + r] = rows->sum[r];
        if (many->is_last) job->lse[t * job->heads + h] = (rows->top[r] + log2f(rows->sum[r])) * 0.693147180559945309f;
    }
}

static void block_of_rows(const many_job *many, long head, long row0) {
    const attend_job *job = many->job;
    panel rows[BLOCK / PANEL];
    long size = LEAF * job->dim, end = row0 + BLOCK < many->rows ? row0 + BLOCK : many->rows;
    for (long row = row0; row < end; row += PANEL) panel_begin(many, &rows[(row - row0) / PANEL], head, row);
    for (long leaf = 0; leaf < many->padded; leaf += TILE / LEAF) {
        const uint16_t *keys = many->keys + (head * many->padded + leaf) * size;
        const uint16_t *values = many->values + (head * many->padded + leaf) * size;
        long first_key = (many->first + leaf) * LEAF;
        for (long row = row0; row < end; row += PANEL) {
            long count = (many->padded - leaf) * LEAF < TILE ? (many->padded - leaf) * LEAF : TILE;
            if (job->causal) {
                long last = row + PANEL < many->rows ? row + PANEL - 1 : many->rows - 1;
                long needed = last / many->group + 1 - first_key;
                if (needed <= 0) continue;
                needed = (needed + 63) / 64 * 64;
                if (needed < count) count = needed;
            }
            panel_tile(many, &rows[(row - row0) / PANEL], row, keys, values, first_key, count);
        }
    }
    for (long row = row0; row < end; row += PANEL) panel_end(many, &rows[(row - row0) / PANEL], head, row);
}

static void take_blocks(const void *p, long begin, long end, int part) {
    many_job *many = (many_job *)p; /* `next` is the one shared word */
    long blocks = (many->rows + BLOCK - 1) / BLOCK, items = blocks * many->job->kv_heads;
    (void)begin, (void)end, (void)part;
    for (;;) {
        long item = __atomic_fetch_add(&many->next, 1, __ATOMIC_RELAXED);
        if (item >= items) return;
        block_of_rows(many, item % many->job->kv_heads, (blocks - 1 - item / many->job->kv_heads) * BLOCK);
    }
}

/* dim a multiple of 16, at most 256. Returns 0 when scratch memory is missing. */
static int attend_many(const attend_job *job) {
    long leaves = (job->tokens + LEAF - 1) / LEAF, most = leaves < SEGMENT ? (leaves + 3) / 4 * 4 : SEGMENT;
    many_job many = {.job = job, .group = job->heads / job->kv_heads};
    size_t packed = (size_t)most * job->kv_heads * LEAF * job->dim;
    many.rows = job->queries * many.group;
    many.keys = malloc(packed * 4 + (size_t)many.rows * job->kv_heads * 8);
    if (!many.keys) return 0;
    many.values = many.keys + packed;
    many.top = (float *)(many.values + packed);
    many.sum = many.top + many.rows * job->kv_heads;
    for (many.first = 0; many.first < leaves; many.first += SEGMENT) {
        many.leaves = leaves - many.first < SEGMENT ? leaves - many.first : SEGMENT;
        many.padded = (many.leaves + 3) / 4 * 4;
        many.is_last = many.first + many.leaves == leaves;
        many.next = 0;
        long packs = many.padded * job->kv_heads;
        run_parts(pack_range, &many, packs, 1, parts_for(packs, 1));
        int parts = parts_for((many.rows + BLOCK - 1) / BLOCK * job->kv_heads, 1);
        run_parts(take_blocks, &many, parts, 1, parts);
    }
    free(many.keys);
    return 1;
}
