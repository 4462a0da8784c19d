/* One parallel loop for all kernels. Knows OpenMP; the kernels below it are plain serial ranges.
   The few OpenMP symbols used come from torch's own library (see openmp.py). */
#pragma once
#include <omp.h>

typedef void (*range_fn)(const void *job, long begin, long end, int part);

#define MAX_PARTS 64

static int parts_for(long count, int parallel) {
    if (!parallel) return 1;
    long parts = omp_get_max_threads();
    if (parts > MAX_PARTS) parts = MAX_PARTS;
    return (int)(parts < count ? parts : count);
}

/* Call fn over [0, count) cut into `parts` contiguous ranges whose borders are multiples of `grain`. */
static void run_parts(range_fn fn, const void *job, long count, long grain, int parts) {
    if (parts <= 1) {
        fn(job, 0, count, 0);
        return;
    }
    long grains = (count + grain - 1) / grain;
#pragma omp parallel for num_threads(parts) schedule(static, 1)
    for (int part = 0; part < parts; part++) {
        long begin = grains * part / parts * grain, end = grains * (part + 1) / parts * grain;
        if (end > count) end = count;
        if (begin < end) fn(job, begin, end, part);
    }
}

/* Every thread of a team calls fn with its number; between phases they meet in team_barrier(). */
typedef void (*team_fn)(const void *job, int part, int parts);

static void run_team(team_fn fn, const void *job, int parts) {
    if (parts <= 1) {
        fn(job, 0, 1);
        return;
    }
#pragma omp parallel num_threads(parts)
    fn(job, omp_get_thread_num(), omp_get_num_threads());
}

static void team_barrier(void) {
#pragma omp barrier
}
