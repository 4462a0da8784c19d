/* One parallel loop for all kernels. Knows OpenMP; the kernels below it are plain serial ranges.
   The few OpenMP symbols used come from torch's own library (see openmp.py).

   Inside `with_crew` the other threads wait, spinning, for the next piece of work: handing it over and collecting
   it takes under a microsecond, a parallel region of its own several. Code that is parallel by `run_parts`,
   `run_team` and `team_barrier` need not know. */
#pragma once
#include <omp.h>
#include <sched.h>
#include <stdatomic.h>

typedef void (*range_fn)(const void *job, long begin, long end, int part);
typedef void (*team_fn)(const void *job, int part, int parts);

#define MAX_PARTS 64
#define SPINS 20000 /* 0.2 to 1 ms by processor: longer than any serial piece, unless the one waited for was put aside */

typedef struct {
    atomic_long round; /* counts pieces of work; -1: none will follow */
    atomic_int busy;   /* members that have not finished the current piece */
    atomic_int waiting, phase; /* of the barrier */
    int size, parts;   /* members; those that take part */
    range_fn range;    /* either this, over [0, count) */
    team_fn team;      /* or this */
    const void *job;
    long count, grain;
} crew;

static _Thread_local crew *our_crew; /* NULL outside of `with_crew` */

static inline void relax(int *spins) {
    if (++*spins < SPINS) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    } else {
        sched_yield();
    }
}

static int parts_for(long count, int parallel) {
    if (!parallel) return 1;
    long parts = our_crew ? our_crew->size : omp_get_max_threads();
    if (parts > MAX_PARTS) parts = MAX_PARTS;
    return (int)(parts < count ? parts : count);
}

/* This part's range of [0, count), borders multiples of `grain` */
static void run_part(range_fn fn, const void *job, long count, long grain, int part, int parts) {
    long grains = (count + grain - 1) / grain;
    long begin = grains * part / parts * grain, end = grains * (part + 1) / parts * grain;
    if (end > count) end = count;
    if (begin < end) fn(job, begin, end, part);
}

static void crew_part(const crew *c, int part) {
    if (part >= c->parts) return;
    if (c->team) c->team(c->job, part, c->parts);
    else run_part(c->range, c->job, c->count, c->grain, part, c->parts);
}

/* the first member: hand out what was written to the crew, do its own part, wait for the others */
static void crew_run(crew *c) {
    int spins = 0;
    atomic_store_explicit(&c->busy, c->size - 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&c->round, 1, memory_order_release);
    crew_part(c, 0);
    while (atomic_load_explicit(&c->busy, memory_order_acquire)) relax(&spins);
}

/* the other members, until nothing follows */
static void crew_serve(crew *c, int part) {
    for (long seen = 0;; ) {
        int spins = 0;
        long round;
        while ((round = atomic_load_explicit(&c->round, memory_order_acquire)) == seen) relax(&spins);
        if (round < 0) return;
        seen = round;
        crew_part(c, part);
        atomic_fetch_sub_explicit(&c->busy, 1, memory_order_release);
    }
}

/* Call fn over [0, count) cut into `parts` contiguous ranges whose borders are multiples of `grain`. */
static void run_parts(range_fn fn, const void *job, long count, long grain, int parts) {
    if (parts <= 1) {
        fn(job, 0, count, 0);
    } else if (our_crew) {
        crew *c = our_crew;
        c->range = fn, c->team = NULL, c->job = job, c->count = count, c->grain = grain, c->parts = parts;
        crew_run(c);
    } else {
#pragma omp parallel for num_threads(parts) schedule(static, 1)
        for (int part = 0; part < parts; part++) run_part(fn, job, count, grain, part, parts);
    }
}

/* Every thread of a team calls fn with its number; between phases they meet in team_barrier(). */
static void run_team(team_fn fn, const void *job, int parts) {
    if (parts <= 1) {
        if (our_crew) our_crew->parts = 1; /* those that meet in team_barrier() */
        fn(job, 0, 1);
    } else if (our_crew) {
        crew *c = our_crew;
        c->team = fn, c->job = job, c->parts = parts;
        crew_run(c);
    } else {
#pragma omp parallel num_threads(parts)
        fn(job, omp_get_thread_num(), omp_get_num_threads());
    }
}

static void team_barrier(void) {
    crew *c = our_crew;
    if (!c) {
#pragma omp barrier
        return;
    }
    int spins = 0, phase = atomic_load_explicit(&c->phase, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&c->waiting, 1, memory_order_acq_rel) + 1 == c->parts) {
        atomic_store_explicit(&c->waiting, 0, memory_order_relaxed);
        atomic_store_explicit(&c->phase, phase + 1, memory_order_release);
    } else {
        while (atomic_load_explicit(&c->phase, memory_order_acquire) == phase) relax(&spins);
    }
}

/* Call fn(job) once, with all threads standing by for what it does in parallel. */
static void with_crew(void (*fn)(void *), void *job) {
    crew c = {.size = 1};
    int threads = omp_get_max_threads();
    if (threads > MAX_PARTS) threads = MAX_PARTS;
    if (threads == 1) {
        fn(job);
        return;
    }
#pragma omp parallel num_threads(threads)
    {
        int part = omp_get_thread_num();
        our_crew = &c;
        if (part == 0) {
            c.size = omp_get_num_threads();
            fn(job);
            atomic_store_explicit(&c.round, -1, memory_order_release);
        } else {
            crew_serve(&c, part);
        }
        our_crew = NULL;
    }
}
