/* Scoring over threads, and the choice of the best: what is the same for every instruction set. */
#pragma once

#define SCORED 16 /* rows of one work item */

typedef struct { range_fn leaves, nodes; void (*prepare)(const score_job *); void (*finish)(const score_job *); } scorer;

/* job->out filled with the mass of every row; 0 when scratch memory is missing */
static int score(const scorer *by, range_fn fn, score_job *job) {
    long blocks = (job->count + SCORED - 1) / SCORED, heads = job->queries * job->heads;
    job->padded = (blocks + 15) / 16 * 16;
    size_t sums = (size_t)blocks * heads * SCORED, tops = (size_t)heads * job->padded;
    size_t partners = job->turns ? (size_t)heads * job->dim : 0;
    job->sums = malloc((sums + 2 * tops + partners) * sizeof(float));
    if (!job->sums) return 0;
    job->tops = job->sums + sums;
    job->totals = job->tops + tops;
    job->partners = job->totals + tops;
    if (job->turns) by->prepare(job);
    run_parts(fn, job, blocks, 1, parts_for(blocks, job->count * job->width * job->queries > 65536));
    by->finish(job);
    free(job->sums);
    return 1;
}

/* The k-th largest of n floats (1 <= k <= n); reorders them. None may be NaN. */
static float kth_largest(float *x, long n, long k) {
    long low = 0, high = n - 1;
    k--;
    while (low < high) {
        long middle = low + (high - low) / 2, i = low, j = high;
        float a = x[low], b = x[middle], c = x[high];
        float pivot = a < b ? (b < c ? b : a < c ? c : a) : (a < c ? a : b < c ? c : b);
        while (i <= j) {
            while (x[i] > pivot) i++;
            while (x[j] < pivot) j--;
            if (i <= j) {
                float swap = x[i];
                x[i++] = x[j];
                x[j--] = swap;
            }
        }
        if (k <= j) high = j;
        else if (k >= i) low = i;
        else break;
    }
    return x[k];
}

/* Indexes of the k largest of n masses, ascending; scratch holds n floats. */
static long best_of(const float *mass, long n, long k, float *scratch, int32_t *out) {
    if (k <= 0) return 0;
    if (k >= n) {
        for (long i = 0; i < n; i++) out[i] = (int32_t)i;
        return n;
    }
    memcpy(scratch, mass, (size_t)n * sizeof(float));
    float least = kth_largest(scratch, n, k);
    long above = 0, count = 0;
    for (long i = 0; i < n; i++) above += mass[i] > least;
    long equal = k - above; /* of those that are just as good, the first */
    for (long i = 0; i < n && count < k; i++)
        if (mass[i] > least || (mass[i] == least && equal-- > 0)) out[count++] = (int32_t)i;
    return count;
}

/* What is ranked: all of the range (or its most promising nodes), the last scan's best, or what the last search kept */
enum { SCAN, SEARCH, AGAIN };

typedef struct {
    int32_t *out;    /* [budget] */
    float *mass;     /* [budget] or NULL */
    const uint8_t *nodes;
    const int32_t *extra, *around;
    long budget, num_nodes, max_candidates, num_extra, num_around;
    long num_promising; /* nodes whose columns are ranked */
    int what;
    int32_t *scanned; /* NULL, or room for the best of a scan, `max_candidates`: how many, the range's end, they */
    int32_t *kept;    /* NULL, or the same for what is ranked until the next search */
    long keep;        /* so many of the best; those behind the sink and a chosen one come along */
    const int32_t *where; /* NULL, or a slot per column, negative where it is away: its mass counts `away` times */
    float away;
    const int32_t *fixed; /* columns that are attended anyway: those of the range are not chosen, and count as kept */
    long num_fixed;
    float *measured; /* NULL, or where a ranking of all adds the share of attention on what is attended, and 1 */
} choice;

/* Marks the columns worth scoring: those of the most promising nodes, of no whole node, and the extra ones. */
static int mark_candidates(const scorer *by, const score_job *job, const choice *want, uint8_t *marks, float *mass,
                           float *scratch, int32_t *found) {
    long first = job->first, last = job->first + job->count;
    long first_node = (first + NODE - 1) / NODE, last_node = last / NODE;
    if (last_node > want->num_nodes) last_node = want->num_nodes;
    if (last_node <= first_node) {
        memset(marks, 1, (size_t)job->count);
        return 1;
    }
    score_job nodes = *job;
    nodes.rows = want->nodes;
    nodes.width = job->kv_heads * (3 * job->dim + 8);
    nodes.first = first_node;
    nodes.count = last_node - first_node;
    nodes.turn_step = NODE;
    nodes.out = mass;
    if (!score(by, by->nodes, &nodes)) return 0;
    memset(marks, 0, (size_t)job->count);
    memset(marks, 1, (size_t)(first_node * NODE - first));
    memset(marks + last_node * NODE - first, 1, (size_t)(last - last_node * NODE));
    long kept = best_of(mass, nodes.count, want->num_promising, scratch, found);
    for (long i = 0; i < kept; i++) memset(marks + (first_node + found[i]) * NODE - first, 1, NODE);
    for (long i = 0; i < want->num_extra; i++)
        if (want->extra[i] >= first && want->extra[i] < last) marks[want->extra[i] - first] = 1;
    return 1;
}

/* The marked ones of n columns from `first` on; how many. */
static long marked(const uint8_t *marks, long n, long first, int32_t *columns) {
    long count = 0;
    for (long i = 0; i < n; i++) {
        uint64_t eight;
        if (i + 8 <= n && (memcpy(&eight, marks + i, 8), eight == 0)) i += 7; /* most are not */
        else if (marks[i]) columns[count++] = (int32_t)(first + i);
    }
    return count;
}

/* Marks what a list of `choice` names, within n columns from `first` on. */
static void mark_list(uint8_t *marks, long n, long first, const int32_t *list) {
    for (long i = 0; i < list[0]; i++)
        if (list[2 + i] >= first && list[2 + i] < first + n) marks[list[2 + i] - first] = 1;
}

/* Candidates of the range to `columns`, ascending; how many, -1 without memory. */
static long find_candidates(const scorer *by, const score_job *job, const choice *want, uint8_t *marks, float *mass,
                            float *scratch, int32_t *found, int32_t *columns) {
    long n = job->count, first = job->first, count = 0;
    if (want->what == AGAIN) {
        for (long i = 0; i < want->kept[0] && want->kept[2 + i] < first + n; i++)
            if (want->kept[2 + i] >= first) columns[count++] = want->kept[2 + i];
        for (long c = want->kept[1] > first ? want->kept[1] : first; c < first + n; c++) columns[count++] = (int32_t)c;
        return count;
    }
    if (want->what == SEARCH) { /* what was kept belongs to it: what follows a chosen column need not be in the scan */
        memset(marks, 0, (size_t)n);
        mark_list(marks, n, first, want->scanned);
        mark_list(marks, n, first, want->kept);
        for (long c = want->scanned[1] > first ? want->scanned[1] : first; c < first + n; c++) marks[c - first] = 1;
    } else if (!mark_candidates(by, job, want, marks, mass, scratch, found)) return -1;
    return marked(marks, n, first, columns);
}

/* Marks the `keep` best of the candidates. */
static void mark_best(const score_job *job, const float *mass, long candidates, long keep, uint8_t *marks, long n,
                      long first, float *scratch, int32_t *found) {
    long best = best_of(mass, candidates, keep, scratch, found);
    memset(marks, 0, (size_t)n);
    for (long i = 0; i < best; i++) marks[job->columns ? job->columns[found[i]] - first : found[i]] = 1;
}

/* Which candidate a column is, -1: none. `columns` are ascending; NULL: the whole range. */
static long candidate_of(const int32_t *columns, long candidates, long first, int32_t column) {
    if (!columns) return column >= first && column < first + candidates ? column - first : -1;
    long low = 0, high = candidates;
    while (low < high) {
        long middle = low + (high - low) / 2;
        if (columns[middle] < column) low = middle + 1;
        else high = middle;
    }
    return low < candidates && columns[low] == column ? low : -1;
}

/* How many columns were written; -1 when scratch memory is missing. job->out and job->columns are not used. */
static long select_best(const scorer *by, score_job *job, const choice *want) {
    long n = job->count, first = job->first;
    float *mass = malloc((size_t)n * (2 * sizeof(float) + 2 * sizeof(int32_t) + 1) + want->num_around * sizeof(float));
    if (!mass) return -1;
    float *scratch = mass + n + want->num_around;
    int32_t *columns = (int32_t *)(scratch + n), *found = columns + n;
    uint8_t *marks = (uint8_t *)(found + n);
    long count = -1;
    if (want->what != SCAN || (want->nodes && n > want->max_candidates)) {
        job->count = find_candidates(by, job, want, marks, mass, scratch, found, columns);
        if (job->count < 0) goto done;
        job->columns = columns;
    }
    long candidates = job->count;
    job->out = mass;
    job->around = want->around;
    job->num_around = want->num_around;
    job->count += want->num_around;
    if (candidates && !score(by, by->leaves, job)) goto done;
    if (want->scanned && want->what == SCAN && n > want->max_candidates) {
        mark_best(job, mass, candidates, want->max_candidates, marks, n, first, scratch, found);
        want->scanned[0] = (int32_t)marked(marks, n, first, want->scanned + 2);
        want->scanned[1] = (int32_t)(first + n);
    }
    if (want->kept && want->what != AGAIN)
        mark_best(job, mass, candidates, want->keep, marks, n, first, scratch, found);
    int measures = want->measured && want->what == SCAN && !job->columns;
    double lost = 0;
    for (long i = 0; measures && i < candidates; i++) lost += mass[i];
    for (long i = 0; i < want->num_fixed; i++) {
        long at = candidate_of(job->columns, candidates, first, want->fixed[i]);
        if (at < 0) continue;
        if (measures) lost -= mass[at];
        mass[at] = -1;
    }
    for (long i = 0; want->where && i < candidates; i++)
        if (mass[i] > 0 && want->where[job->columns ? columns[i] : first + i] < 0) mass[i] *= want->away;
    long best = best_of(mass, candidates, want->budget, scratch, found);
    count = 0;
    for (long i = 0; i < best; i++) {
        float one = mass[found[i]];
        if (one < 0) continue; /* one of the fixed, where there are few others */
        want->out[count] = job->columns ? columns[found[i]] : (int32_t)(first + found[i]);
        if (want->mass) want->mass[count] = one;
        int scaled = want->where && want->away > 0 && want->where[want->out[count]] < 0;
        lost -= scaled ? one / want->away : one;
        count++;
    }
    if (measures) {
        want->measured[0] += 1 - (float)(lost / (double)(job->queries * job->heads));
        want->measured[1] += 1;
    }
    if (want->kept && want->what != AGAIN) {
        marks[0] = 1; /* what was read is read on, the sink as well: a number may go on in the next leaf */
        for (long i = 0; i < count; i++)
            if (want->out[i] + 1 < first + n) marks[want->out[i] + 1 - first] = 1;
        want->kept[0] = (int32_t)marked(marks, n, first, want->kept + 2);
        want->kept[1] = (int32_t)(first + n);
    }
done:
    free(mass);
    return count;
}
