/* The two halves of a layer for one token, before and after attention, each one piece of work for all threads.

   A thread normalizes the whole hidden state and prepares it for itself: a few hundred values cost less than
   waiting for each other would. It then computes its share of the rows, gate and up rows that belong together,
   so that only two barriers are left. Knows weights and one token's vectors; not where keys and values go. */

typedef struct { weights w; const float *bias; } matrix; /* bias may be NULL */

typedef struct {
    matrix qkv[3], attn_out, gate_up[2], down; /* outputs side by side; unused ones have no rows */
    const float *attn_norm, *ffn_norm, *q_norm, *k_norm; /* the last two may be NULL */
    long hidden, ffn, heads, kv_heads, dim;
    float eps;
    int interleaved;
} layer_weights;

typedef struct {
    const kernels *table;
    const layer_weights *layer;
    float *hidden;         /* after: added to */
    const float *attended; /* after only */
    float *out;            /* before: q, k, v side by side; after: the gated values [ffn] */
    float *scratch;        /* `scratch_size` floats for each thread */
    long scratch_size;
} half_job;

/* floats in which one input of k values is normalized and prepared, two shares of gated rows beside it */
static long half_scratch(const layer_weights *layer) {
    long k = layer->hidden > layer->ffn ? layer->hidden : layer->ffn;
    if (layer->heads * layer->dim > k) k = layer->heads * layer->dim;
    return (layer->hidden + k / 16 + 32 + arranged_size(k) + 2 * layer->ffn + 63) / 16 * 16;
}

/* out[0 .. end - begin) = or += rows [begin, end) of the matrices' joined rows times x. `work`, as sized above, holds
   x prepared for weights like `known` (NULL: none); returns those for which it does afterwards. */
static const weights *some_rows(const kernels *table, const matrix *parts, const float *x, long begin, long end,
                                float *out, int accumulate, float *work, const weights *known) {
    for (const matrix *part = parts; begin < end; part++) {
        const weights *w = &part->w;
        if (begin < w->n) {
            long stop = end < w->n ? end : w->n, groups = w->k / w->group;
            matmul_job job = {.w = *w, .x = x, .out = out - begin, .m = 1, .accumulate = accumulate};
            if (w->bits != 16) {
                job.sums = work;
                job.arranged = work + groups + 16;
                if (!known || known->bits != w->bits || known->group != w->group || known->k != w->k)
                    table->prepare(x, w, work, work + groups + 16);
                known = w;
            }
            table->matmul(&job, begin, stop, 0);
            if (part->bias)
                for (long row = begin; row < stop; row++) job.out[row] += part->bias[row];
            out += stop - begin;
            begin = stop;
        }
        begin -= w->n;
        end -= w->n;
    }
    return known;
}

/* Ask for the beginning of what will be read from row `begin` on; while waiting for the others it comes for free. */
static void ask_for_rows(const matrix *parts, long begin) {
    while (begin >= parts->w.n) begin -= (parts++)->w.n;
    const weights *w = &parts->w;
    const char *quants = (const char *)w->quants + begin * w->k * w->bits / 8;
    for (long i = 0; i < 4096; i += 64) __builtin_prefetch(quants + i, 0, 2);
    if (w->bits == 16) return;
    long at = begin * (w->k / w->group) * (w->scale_f32 ? 4 : 2);
    for (long i = 0; i < 512; i += 64) {
        __builtin_prefetch((const char *)w->scale + at + i, 0, 2);
        if (w->offset) __builtin_prefetch((const char *)w->offset + at + i, 0, 2);
    }
}

static void shares(long count, int part, int parts, long *begin, long *end) {
    long fours = (count + 3) / 4;
    *begin = fours * part / parts * 4;
    *end = fours * (part + 1) / parts * 4;
    if (*end > count) *end = count;
}

static const float *normalized(const half_job *job, const float *weight, float *to) {
    norm_job norm = {.x = job->hidden, .weight = weight, .out = to, .cols = job->layer->hidden, .eps = job->layer->eps};
    job->table->norm(&norm, 0, 1, 0);
    return to;
}

static void before_team(const void *p, int part, int parts) {
    const half_job *job = p;
    const layer_weights *layer = job->layer;
    float *x = job->scratch + part * job->scratch_size;
    long begin, end;
    shares((layer->heads + 2 * layer->kv_heads) * layer->dim, part, parts, &begin, &end);
    normalized(job, layer->attn_norm, x);
    some_rows(job->table, layer->qkv, x, begin, end, job->out + begin, 0, x + layer->hidden, NULL);
}

/* The whole first half; q and k normalized per head where the model does, and rotated. */
static void before_attend(const half_job *job, const float *cos, const float *sin, long half, int parts) {
    const layer_weights *layer = job->layer;
    long heads = layer->heads + layer->kv_heads; /* q and k lie side by side */
    run_team(before_team, job, parts);
    norm_job q = {.x = job->out, .weight = layer->q_norm, .out = job->out, .cols = layer->dim, .eps = layer->eps}, k = q;
    k.x = k.out = job->out + layer->heads * layer->dim;
    k.weight = layer->k_norm;
    if (q.weight) job->table->norm(&q, 0, layer->heads, 0);
    if (k.weight) job->table->norm(&k, 0, layer->kv_heads, 0);
    rope_job rope = {.x = job->out, .cos = cos, .sin = sin, .heads = heads, .stride = heads * layer->dim,
                     .dim = layer->dim, .half = half, .interleaved = layer->interleaved};
    job->table->rope(&rope, 0, 1, 0);
}

static void after_team(const void *p, int part, int parts) {
    const half_job *job = p;
    const layer_weights *layer = job->layer;
    float *x = job->scratch + part * job->scratch_size, *gated = x + layer->hidden, *work = gated + 2 * layer->ffn;
    long begin, end, first, last, f = layer->ffn;
    shares(layer->hidden, part, parts, &begin, &end);
    shares(f, part, parts, &first, &last);
    some_rows(job->table, &layer->attn_out, job->attended, begin, end, job->hidden + begin, 1, work, NULL);
    if (first < last) ask_for_rows(layer->gate_up, first);
    team_barrier();
    normalized(job, layer->ffn_norm, x);
    const weights *known = some_rows(job->table, layer->gate_up, x, first, last, gated, 0, work, NULL);
    if (first < last) ask_for_rows(layer->gate_up, f + first);
    some_rows(job->table, layer->gate_up, x, f + first, f + last, gated + (last - first), 0, work, known);
    swiglu_job swiglu = {.in = gated, .out = job->out + first, .width = last - first};
    if (begin < end) ask_for_rows(&layer->down, begin);
    job->table->swiglu(&swiglu, 0, 1, 0);
    team_barrier();
    some_rows(job->table, &layer->down, job->out, begin, end, job->hidden + begin, 1, work, NULL);
}
