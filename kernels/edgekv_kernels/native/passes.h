/* One token through layers without returning to Python between: halves, appending, selection, attention.
   Runs what the single kernels run, with the threads of one crew. Stops where a leaf to be read is not in memory. */
#pragma once

/* Bytes of work under which threads cost more than they bring. */
#define SERIAL_BYTES 65536
#define MAX_LAYERS 1024

/* Each half needs a scratch of its own for each thread, and `values` floats that they share. */
static int begin_half(half_job *job, long values) {
    int parts = parts_for(job->layer->hidden / 4, job->layer->hidden * job->layer->hidden / 2 > SERIAL_BYTES);
    job->table = best;
    job->scratch_size = half_scratch(job->layer);
    job->scratch = aligned_alloc(64, (size_t)(parts * job->scratch_size + (values + 15) / 16 * 16) * 4);
    if (!job->out && job->scratch) job->out = job->scratch + parts * job->scratch_size;
    return parts;
}

/* These three: 0 when scratch memory is missing. */
static int run_before(half_job *job, const float *cos, const float *sin, long half) {
    int parts = begin_half(job, 0);
    if (!job->scratch) return 0;
    before_attend(job, cos, sin, half, parts);
    free(job->scratch);
    return 1;
}

static int run_after(half_job *job) {
    int parts = begin_half(job, job->layer->ffn);
    if (!job->scratch) return 0;
    run_team(after_team, job, parts);
    free(job->scratch);
    return 1;
}

static int run_attend(attend_job *job) {
    float small[8192];
    long leaves = (job->tokens + LEAF - 1) / LEAF;
    int parallel = leaves * LEAF * job->kv_heads * job->dim * 4 * job->queries > SERIAL_BYTES;
    int parts = parts_for(leaves, parallel);
    size_t state = (size_t)parts * job->queries * job->heads * (job->dim + 2);
    size_t needed = (state + (job->turns ? (size_t)parts * 2 * job->queries * job->heads * job->dim : 0)) * 4;
    job->state = needed <= sizeof small ? small : malloc(needed);
    if (!job->state) return 0;
    job->turned = job->state + state;
    run_parts(best->attend, job, leaves, 1, parts);
    best->attend_finish(job, parts);
    if (job->state != small) free(job->state);
    return 1;
}

/* What selection reads of one layer is `layer` times the strides further on. */
typedef struct {
    score_job job;  /* q, rows and out are the layer's, set here */
    choice want;
    const uint8_t *keys, *nodes; /* nodes: NULL, or what a layer that knows nothing goes by */
    long keys_stride, nodes_stride;
    int32_t *scanned, *kept; /* [layers][...]: as `choice` has them; a count of 0: none yet */
    long scanned_stride, kept_stride;
    long scan_period, period, phase; /* the token's number; layers take turns to scan and to search */
} choosing;

typedef struct {
    const layer_weights *const *layers;
    long num_layers, first, last; /* of all layers, those to run */
    int attends;             /* whether to begin with `first`'s attention, its q, k, v being there already */
    float *hidden, *qkv, *attended, *lse;
    const float *cos, *sin;
    long half;
    uint16_t *pool, *written; /* what is attended; what new keys and values go to */
    const int32_t *where;     /* [layers][columns]: slots in pool, -1 where there is none */
    long where_stride;
    const int32_t *writes; /* [layers]: slots in written */
    long offset;           /* of the token in its leaf */
    const int32_t *fixed;  /* columns that are attended anyway */
    long num_fixed, missing; /* tokens that the last one lacks */
    int32_t *listed, *counts; /* out: [layers][listed_stride] what was attended; [layers] how many were chosen */
    long listed_stride;
    int32_t *slots, *turn_of; /* [listed_stride] each */
    float scale;
    const float *turns;  /* rows, or NULL */
    const int32_t *turns_of; /* [columns]: which is whose */
    long turn_width;
    int interleaved, chooses;
    choosing choice;
    long stopped; /* out: the layer that misses leaves, or `last`; -1: no scratch memory */
} token_pass;

/* Sets want->nodes where only the columns of promising ones are to be scanned. */
static int what_to_rank(const token_pass *p, long layer, choice *want) {
    const choosing *c = &p->choice;
    int in_turn = (layer + c->phase) % c->period == 0, searches = want->kept[0] == 0 || in_turn;
    if (c->job.count <= want->max_candidates) return searches ? SCAN : AGAIN; /* all are candidates */
    long turn = layer * 40503 % 65536 * c->scan_period / 65536; /* see choosing.py: scan_turn */
    if ((turn + c->phase) % c->scan_period == 0) return SCAN;
    if (want->scanned[0] == 0) {
        if (c->nodes && !in_turn) want->nodes = c->nodes + layer * c->nodes_stride;
        return SCAN;
    }
    return searches ? SEARCH : AGAIN;
}

/* Chosen columns, then the fixed ones, to the layer's row; how many, -1 without memory. */
static long list_columns(token_pass *p, long layer, const float *q) {
    int32_t *row = p->listed + layer * p->listed_stride;
    long count = 0;
    if (p->chooses) {
        choosing *c = &p->choice;
        score_job job = c->job;
        choice want = c->want;
        job.q = q;
        job.rows = c->keys + layer * c->keys_stride;
        want.out = row;
        want.kept = c->kept + layer * c->kept_stride;
        want.scanned = c->scanned + layer * c->scanned_stride;
        want.where = want.away < 1 ? p->where + layer * p->where_stride : NULL;
        want.what = what_to_rank(p, layer, &want);
        if (want.budget < job.count) {
            scorer by = scorer_now();
            count = select_best(&by, &job, &want);
            if (count < 0) return -1;
        } else {
            for (int32_t c = (int32_t)job.first; c < job.first + job.count; c++)
                if (candidate_of(p->fixed, p->num_fixed, 0, c) < 0) row[count++] = c;
        }
    }
    p->counts[layer] = (int32_t)count;
    memcpy(row + count, p->fixed, (size_t)p->num_fixed * sizeof *row);
    return count + p->num_fixed;
}

/* Whether all leaves of the layer's listed columns are in memory; their slots and turns to p->slots and p->turn_of. */
static int find_slots(token_pass *p, long layer, long num_listed) {
    const int32_t *row = p->listed + layer * p->listed_stride, *where = p->where + layer * p->where_stride;
    int missing = 0;
    for (long i = 0; i < num_listed; i++) missing |= p->slots[i] = where[row[i]];
    for (long i = 0; p->turns && i < num_listed; i++) p->turn_of[i] = p->turns_of[row[i]];
    return missing >= 0; /* absent ones are negative */
}

static int pass_attend(token_pass *p, const layer_weights *layer, long number, int is_again) {
    long d = layer->dim;
    const float *q = p->qkv, *k = q + layer->heads * d;
    long num_listed = is_again ? p->counts[number] + p->num_fixed : -1;
    if (!is_again) {
        append_job append = {.pool = p->written, .slots = p->writes + number, .offset = p->offset,
                             .k = k, .v = k + layer->kv_heads * d, .heads = layer->kv_heads, .dim = d};
        best->append(&append, 0, 1, 0);
        num_listed = list_columns(p, number, q);
        if (num_listed < 0) return -1;
    }
    if (!find_slots(p, number, num_listed)) return 0;
    attend_job job = {.q = q, .pool = p->pool, .slots = p->slots, .tokens = num_listed * LEAF - p->missing,
                      .queries = 1, .heads = layer->heads, .kv_heads = layer->kv_heads, .dim = d,
                      .q_stride = layer->heads * d, .scale = p->scale, .turns = p->turns, .turn_width = p->turn_width,
                      .turn_of = p->turn_of, .interleaved = p->interleaved,
                      .out = p->attended, .lse = p->lse};
    return run_attend(&job) ? 1 : -1;
}

static void pass_layers(void *job) {
    token_pass *p = job;
    for (long i = p->first; i < p->last; i++) {
        const layer_weights *layer = p->layers[i];
        half_job before = {.layer = layer, .hidden = p->hidden, .out = p->qkv};
        int is_again = p->attends && i == p->first, done;
        p->stopped = -1;
        if (!is_again && !run_before(&before, p->cos, p->sin, p->half)) return;
        done = pass_attend(p, layer, i, is_again);
        if (done <= 0) {
            p->stopped = done < 0 ? -1 : i;
            return;
        }
        half_job after = {.layer = layer, .hidden = p->hidden, .attended = p->attended};
        if (!run_after(&after)) return;
    }
    p->stopped = p->last;
}
