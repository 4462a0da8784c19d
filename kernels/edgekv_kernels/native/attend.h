/* Attention of few queries over leaves of a bfloat16 pool [slots][K, V][kv heads][16][dim], and appending to it.
   Each leaf is read once for all queries and all heads that share it; online softmax; the leaves are
   cut over the threads and the parts merged at the end. Needs dim to be a multiple of 16. */

static void FN(append)(const void *p, long begin, long end, int part) {
    const append_job *job = p;
    long d = job->dim, plane = job->heads * LEAF * d;
    (void)part;
    for (long t = begin; t < end; t++) {
        long at = job->offset + t;
        uint16_t *leaf = job->pool + (long)job->slots[at / LEAF] * 2 * plane + at % LEAF * d;
        for (long h = 0; h < job->heads; h++) {
            const float *k = job->k + t * job->k_stride + h * d, *v = job->v + t * job->v_stride + h * d;
            uint16_t *to = leaf + h * LEAF * d;
            long i = 0;
            for (; i + W <= d; i += W) {
                store_bf16(to + i, load(k + i));
                store_bf16(to + plane + i, load(v + i));
            }
            for (; i < d; i++) {
                to[i] = bf16_of(k[i]);
                to[plane + i] = bf16_of(v[i]);
            }
        }
    }
}

/* scores[g][token] of G query heads against one leaf's keys; `ahead` leads to the next leaf's */
INLINE void FN(leaf_scores)(const float *q, const uint16_t *k, long ahead, long tokens, int G, int D, float scale,
                            float (*s)[LEAF]) {
    vf partial[4][LEAF];
    for (long t = 0; t < tokens; t++) {
        vf sum[4] = {{0}};
        for (int i = 0; i < D; i += 32) __builtin_prefetch(k + ahead + t * D + i, 0, 2);
        for (int i = 0; i < D; i += W) {
            vf key = load_bf16(k + t * D + i);
            for (int g = 0; g < G; g++) sum[g] += key * load(q + g * D + i);
        }
        for (int g = 0; g < G; g++) partial[g][t] = sum[g];
    }
    for (long t = tokens; t < LEAF; t++)
        for (int g = 0; g < G; g++) partial[g][t] = (vf){0};
    for (int g = 0; g < G; g++)
        for (int t = 0; t < LEAF; t += W) store(s[g] + t, transpose_sum(partial[g] + t) * scale);
}

/* One leaf into the running state of G heads; state is [G][D + 2]: output, maximum, sum. */
INLINE void FN(leaf_step)(const float *q, const uint16_t *k, const uint16_t *v, long ahead, long tokens, int G, int D,
                          float scale, float *state) {
    float s[4][LEAF];
    FN(leaf_scores)(q, k, ahead, tokens, G, D, scale, s);
    for (int g = 0; g < G; g++) {
        float *o = state + g * (D + 2);
        for (long t = tokens; t < LEAF; t++) s[g][t] = -INFINITY;
        vf best = load(s[g]);
        for (int t = W; t < LEAF; t += W) best = vmax(best, load(s[g] + t));
        float top = highest(best), old = o[D];
        if (top > old) {
            float shrink = old == -INFINITY ? 0.0f : expf(old - top);
            for (int i = 0; i < D; i += W) store(o + i, load(o + i) * shrink);
            o[D + 1] *= shrink;
            o[D] = top;
        } else {
            top = old;
        }
        vf sum = {0};
        for (int t = 0; t < LEAF; t += W) {
            vf weight = vexp(load(s[g] + t) - top);
            store(s[g] + t, weight);
        }
        for (long t = tokens; t < LEAF; t++) s[g][t] = 0;
        for (int t = 0; t < LEAF; t += W) sum += load(s[g] + t);
        o[D + 1] += total(sum);
    }
    for (int d0 = 0; d0 < D; d0 += 4 * W) {
        int n = (D - d0) / W < 4 ? (D - d0) / W : 4;
        vf acc[4][4];
        for (int g = 0; g < G; g++)
            for (int i = 0; i < n; i++) acc[g][i] = load(state + g * (D + 2) + d0 + i * W);
        for (long t = 0; t < tokens; t++) {
            for (int i = 0; i < n * W; i += 32) __builtin_prefetch(v + ahead + t * D + d0 + i, 0, 2);
            for (int i = 0; i < n; i++) {
                vf value = load_bf16(v + t * D + d0 + i * W);
                for (int g = 0; g < G; g++) acc[g][i] += value * s[g][t];
            }
        }
        for (int g = 0; g < G; g++)
            for (int i = 0; i < n; i++) store(state + g * (D + 2) + d0 + i * W, acc[g][i]);
    }
}

INLINE void FN(leaf_heads)(const float *q, const uint16_t *k, const uint16_t *v, long ahead, long tokens, long group,
                           int D, float scale, float *state) {
    for (long g = 0; g < group; g += 4) {
        const float *qg = q + g * D;
        float *to = state + g * (D + 2);
        switch (group - g) {
        case 1: FN(leaf_step)(qg, k, v, ahead, tokens, 1, D, scale, to); break;
        case 2: FN(leaf_step)(qg, k, v, ahead, tokens, 2, D, scale, to); break;
        case 3: FN(leaf_step)(qg, k, v, ahead, tokens, 3, D, scale, to); break;
        default: FN(leaf_step)(qg, k, v, ahead, tokens, 4, D, scale, to);
        }
    }
}

INLINE void FN(attend_range)(const attend_job *job, long begin, long end, int part, int D) {
    long group = job->heads / job->kv_heads, plane = job->kv_heads * LEAF * D;
    float *state = job->state + (long)part * job->queries * job->heads * (D + 2);
    for (long i = 0; i < job->queries * job->heads; i++) {
        memset(state + i * (D + 2), 0, (size_t)(D + 2) * 4);
        state[i * (D + 2) + D] = -INFINITY;
    }
    const float *q = job->q;
    long q_stride = job->q_stride;
    int32_t turn = -1;
    float *partner = NULL, *here = NULL, cos[256], sin[256];
    if (job->turns) { /* queries as turned for the leaf at hand; again where the next is turned otherwise */
        long size = job->queries * job->heads * D;
        here = job->turned + (long)part * 2 * size;
        partner = here + size;
        q = here;
        q_stride = job->heads * D;
        for (long i = 0; i < job->queries * job->heads; i++)
            FN(partners)(job->q + i / job->heads * job->q_stride + i % job->heads * D, D, job->turn_width,
                         job->interleaved, partner + i * D);
    }
    for (long leaf = begin; leaf < end; leaf++) {
        if (here && job->turn_of[leaf] != turn) {
            turn = job->turn_of[leaf];
            FN(spread)(job->turns + turn * job->turn_width, D, job->turn_width, job->interleaved, cos, sin);
            for (long i = 0; i < job->queries * job->heads; i++)
                FN(turn)(job->q + i / job->heads * job->q_stride + i % job->heads * D, partner + i * D, cos, sin, D,
                         here + i * D);
        }
        const uint16_t *k = job->pool + (long)job->slots[leaf] * 2 * plane;
        long tokens = job->tokens - leaf * LEAF < LEAF ? job->tokens - leaf * LEAF : LEAF;
        /* slots lie anywhere and the hardware cannot guess the next leaf; asked for in pieces and into L2, since L1
           has buffers for few requests: into L1 took 1.4 times as long on leaves that are in no cache */
        const uint16_t *next = job->pool + (long)job->slots[leaf + 1 < end ? leaf + 1 : leaf] * 2 * plane;
        for (long h = 0; h < job->kv_heads; h++)
            for (long t = 0; t < job->queries; t++)
                FN(leaf_heads)(q + t * q_stride + h * group * D, k + h * LEAF * D, k + plane + h * LEAF * D,
                               t == 0 ? (next + h * LEAF * D) - (k + h * LEAF * D) : 0, tokens, group, D, job->scale,
                               state + (t * job->heads + h * group) * (D + 2));
    }
}

static void FN(attend)(const void *p, long begin, long end, int part) {
    const attend_job *job = p;
    switch (job->dim) {
    case 64: FN(attend_range)(job, begin, end, part, 64); break;
    case 128: FN(attend_range)(job, begin, end, part, 128); break;
    default: FN(attend_range)(job, begin, end, part, (int)job->dim);
    }
}

/* merge the parts' states into out and lse */
static void FN(attend_finish)(const attend_job *job, int parts) {
    long D = job->dim, rows = job->queries * job->heads;
    for (long row = 0; row < rows; row++) {
        const float *first = job->state + row * (D + 2);
        float top = -INFINITY, sum = 0, weight[MAX_PARTS];
        for (int p = 0; p < parts; p++) {
            float m = first[p * rows * (D + 2) + D];
            top = m > top ? m : top;
        }
        for (int p = 0; p < parts; p++) {
            const float *state = first + p * rows * (D + 2);
            weight[p] = state[D] == -INFINITY ? 0.0f : expf(state[D] - top);
            sum += state[D + 1] * weight[p];
        }
        float *out = job->out + row * D, scale = 1.0f / sum;
        for (long i = 0; i < D; i += W) {
            vf o = {0};
            for (int p = 0; p < parts; p++) o += load(first + p * rows * (D + 2) + i) * weight[p];
            store(out + i, o * scale);
        }
        job->lse[row] = top + logf(sum);
    }
}
