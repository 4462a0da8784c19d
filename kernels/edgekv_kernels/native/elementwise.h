/* RMSNorm, rotary embedding, SwiGLU and the merge of attention segments, over ranges of rows. */

static void FN(norm)(const void *p, long begin, long end, int part) {
    const norm_job *job = p;
    long c = job->cols, whole = c / W * W;
    (void)part;
    for (long row = begin; row < end; row++) {
        const float *x = job->x + row * c, *w = job->weight;
        vf sum = {0}, sum2 = {0};
        long i = 0;
        for (; i + 2 * W <= whole; i += 2 * W) {
            vf a = load(x + i), b = load(x + i + W);
            sum += a * a;
            sum2 += b * b;
        }
        for (; i < whole; i += W) { vf a = load(x + i); sum += a * a; }
        float squares = total(sum + sum2);
        for (; i < c; i++) squares += x[i] * x[i];
        float scale = 1.0f / sqrtf(squares / (float)c + job->eps);
        if (job->bf16) {
            uint16_t *out = (uint16_t *)job->out + row * c;
            for (i = 0; i < whole; i += W) store_bf16(out + i, load(x + i) * scale * load(w + i));
            for (; i < c; i++) out[i] = bf16_of(x[i] * scale * w[i]);
        } else {
            float *out = (float *)job->out + row * c;
            for (i = 0; i < whole; i += W) store(out + i, load(x + i) * scale * load(w + i));
            for (; i < c; i++) out[i] = x[i] * scale * w[i];
        }
    }
}

static void FN(rope)(const void *p, long begin, long end, int part) {
    const rope_job *job = p;
    (void)part;
    for (long t = begin; t < end; t++) {
        const float *cos = job->cos + t * job->half, *sin = job->sin + t * job->half;
        for (long h = 0; h < job->heads; h++) {
            float *x = job->x + t * job->stride + h * job->dim;
            if (job->interleaved) {
                for (long i = 0; i < job->half; i++) {
                    float a = x[2 * i], b = x[2 * i + 1];
                    x[2 * i] = a * cos[i] - b * sin[i];
                    x[2 * i + 1] = a * sin[i] + b * cos[i];
                }
            } else {
                float *y = x + job->half;
                for (long i = 0; i < job->half; i++) {
                    float a = x[i], b = y[i];
                    x[i] = a * cos[i] - b * sin[i];
                    y[i] = a * sin[i] + b * cos[i];
                }
            }
        }
    }
}

static void FN(swiglu)(const void *p, long begin, long end, int part) {
    const swiglu_job *job = p;
    long f = job->width;
    (void)part;
    for (long row = begin; row < end; row++) {
        const float *x32 = (const float *)job->in + row * 2 * f;
        const uint16_t *x16 = (const uint16_t *)job->in + row * 2 * f;
        float *y32 = (float *)job->out + row * f;
        uint16_t *y16 = (uint16_t *)job->out + row * f;
        long i = 0;
        for (; i + W <= f; i += W) {
            vf gate = job->in_bf16 ? load_bf16(x16 + i) : load(x32 + i);
            vf up = job->in_bf16 ? load_bf16(x16 + f + i) : load(x32 + f + i);
            vf y = gate / (1.0f + vexp(-vmax(gate, splat(-87.0f)))) * up;
            if (job->out_bf16) store_bf16(y16 + i, y); else store(y32 + i, y);
        }
        for (; i < f; i++) {
            float gate = job->in_bf16 ? of_bf16(x16[i]) : x32[i];
            float up = job->in_bf16 ? of_bf16(x16[f + i]) : x32[f + i];
            float y = gate / (1.0f + expf(-gate)) * up;
            if (job->out_bf16) y16[i] = bf16_of(y); else y32[i] = y;
        }
    }
}

static void FN(merge)(const void *p, long begin, long end, int part) {
    const merge_job *job = p;
    (void)part;
    for (long row = begin; row < end; row++) {
        float la = job->lse_a[row], lb = job->lse_b[row];
        float *a = job->out_a + row * job->dim;
        const float *b = job->out_b + row * job->dim;
        if (lb == -INFINITY) continue; /* an empty segment changes nothing */
        float m = la > lb ? la : lb, wa = expf(la - m), wb = expf(lb - m), sum = wa + wb;
        wa /= sum;
        wb /= sum;
        if (la == -INFINITY) memcpy(a, b, (size_t)job->dim * 4);
        else
            for (long i = 0; i < job->dim; i++) a[i] = a[i] * wa + b[i] * wb;
        job->lse_a[row] = m + logf(sum);
    }
}
