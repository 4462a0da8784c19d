/* Abstracts of keys: low-bit keys of leaves, minimum, maximum and mean of nodes. Rows are laid out as
   edgekv_kernels/abstracts.py tells; loops are plain, since a leaf is packed once and read thousands of times. */

#define SLACK 1e-4f     /* of a quantum: bounds hold in any order of float32 arithmetic */
#define SMALLEST 1e-30f /* scale of nothing but zeros */

INLINE float FN(clipped)(float x, float least, float most) { return x > least ? (x < most ? x : most) : least; }
INLINE float FN(or_smallest)(float x) { return x > SMALLEST ? x : SMALLEST; }

/* element-wise minimum, maximum and sum of the keys of one head of `count` leaves */
INLINE void FN(extremes)(const uint16_t *const *keys, long count, long D, float *least, float *most, float *sum) {
    for (long i = 0; i < D; i += W) {
        vf low = load_bf16(keys[0] + i), high = low, all = {0};
        for (long leaf = 0; leaf < count; leaf++)
            for (long t = 0; t < LEAF; t++) {
                vf x = load_bf16(keys[leaf] + t * D + i);
                low = -vmax(-low, -x);
                high = vmax(high, x);
                all += x;
            }
        store(least + i, low);
        store(most + i, high);
        store(sum + i, all);
    }
}

static void FN(pack_key_head)(const uint16_t *key, long D, uint8_t *row) {
    float least[256], most[256], sum[256], by[256], largest = 0;
    uint8_t codes[256];
    FN(extremes)(&key, 1, D, least, most, sum);
    for (long d = 0; d < D; d++) largest = fabsf(least[d]) > largest ? fabsf(least[d]) : largest;
    float scale[2] = {FN(or_smallest)(largest / 127.0f), 0};
    largest = 0;
    for (long d = 0; d < D; d++) {
        float low = FN(clipped)(floorf(least[d] / scale[0] - SLACK), -128, 127);
        row[8 + d] = (uint8_t)(int8_t)low;
        least[d] = low * scale[0];
        float span = most[d] - least[d];
        most[d] = span;
        largest = span > largest ? span : largest;
    }
    scale[1] = FN(or_smallest)(largest / (3 * 254.9f));
    for (long d = 0; d < D; d++) {
        float step = FN(clipped)(ceilf(most[d] / (3 * scale[1]) + SLACK), 1, 255);
        row[8 + D + d] = (uint8_t)step;
        by[d] = 1.0f / (step * scale[1]);
    }
    memcpy(row, scale, 8);
    for (long t = 0; t < LEAF; t++) {
        for (long d = 0; d < D; d += W) { /* the clip first: what is left fits any integer */
            vf code = (load_bf16(key + t * D + d) - load(least + d)) * load(by + d) + 0.5f;
            code = -vmax(-vmax(code, splat(0)), splat(-3.5f));
            vi whole = __builtin_convertvector(code, vi);
            vb bytes = __builtin_convertvector((vu)whole, vb);
            memcpy(codes + d, &bytes, sizeof bytes);
        }
        for (long b = 0; b < D / 16; b++) {
            uint32_t four[4];
            memcpy(four, codes + b * 16, 16);
            uint32_t packed = four[0] | four[1] << 2 | four[2] << 4 | four[3] << 6;
            memcpy(row + 8 + 2 * D + b * 64 + t * 4, &packed, 4);
        }
    }
}

static void FN(pack_node_head)(const uint16_t *const *keys, long D, uint8_t *row) {
    float least[256], most[256], mean[256], largest = 0, largest_mean = 0;
    FN(extremes)(keys, NODE, D, least, most, mean);
    for (long d = 0; d < D; d++) {
        mean[d] *= 1.0f / (NODE * LEAF);
        largest = fabsf(least[d]) > largest ? fabsf(least[d]) : largest;
        largest = fabsf(most[d]) > largest ? fabsf(most[d]) : largest;
        largest_mean = fabsf(mean[d]) > largest_mean ? fabsf(mean[d]) : largest_mean;
    }
    float scale[2] = {FN(or_smallest)(largest / 126.9f), FN(or_smallest)(largest_mean / 127.0f)};
    memcpy(row, scale, 8);
    for (long d = 0; d < D; d++) {
        row[8 + d] = (uint8_t)(int8_t)FN(clipped)(floorf(least[d] / scale[0] - SLACK), -128, 127);
        row[8 + D + d] = (uint8_t)(int8_t)FN(clipped)(ceilf(most[d] / scale[0] + SLACK), -128, 127);
        row[8 + 2 * D + d] = (uint8_t)(int8_t)FN(clipped)(floorf(mean[d] / scale[1] + 0.5f), -127, 127);
    }
}

static void FN(pack_keys)(const void *p, long begin, long end, int part) {
    const abstract_job *job = p;
    long D = job->dim, plane = job->kv_heads * LEAF * D;
    (void)part;
    for (long i = begin; i < end; i++)
        for (long h = 0; h < job->kv_heads; h++)
            FN(pack_key_head)(job->pool + (long)job->slots[i] * 2 * plane + h * LEAF * D, D,
                              job->out + (i * job->kv_heads + h) * (6 * D + 8));
}

static void FN(pack_nodes)(const void *p, long begin, long end, int part) {
    const abstract_job *job = p;
    long D = job->dim, plane = job->kv_heads * LEAF * D;
    (void)part;
    for (long i = begin; i < end; i++)
        for (long h = 0; h < job->kv_heads; h++) {
            const uint16_t *keys[NODE];
            for (long j = 0; j < NODE; j++)
                keys[j] = job->pool + (long)job->slots[i * NODE + j] * 2 * plane + h * LEAF * D;
            FN(pack_node_head)(keys, D, job->out + (i * job->kv_heads + h) * (3 * D + 8));
        }
}

#undef SLACK
#undef SMALLEST
