/* Extra rotations per leaf: turned = q * cos + partner * sin, with each dimension's cosine and sine spread over
   its pair and the partner's sign set once. A row of turns is width / 2 cosines, then width / 2 sines. */

INLINE long FN(partner)(long d, long half, int interleaved) {
    return interleaved ? d ^ 1 : d < half ? d + half : d - half;
}

/* what each of q's dimensions is mixed with: minus the second of a pair for the first, the first for the second */
INLINE void FN(partners)(const float *q, long dim, long width, int interleaved, float *out) {
    long half = width / 2;
    for (long d = 0; d < dim; d++) {
        int first = interleaved ? !(d & 1) : d < half;
        out[d] = d >= width ? 0.0f : first ? -q[FN(partner)(d, half, interleaved)] : q[FN(partner)(d, half, interleaved)];
    }
}

INLINE void FN(spread)(const float *turn, long dim, long width, int interleaved, float *cos, float *sin) {
    long half = width / 2;
    if (interleaved) {
        for (long i = 0; i < half; i++) {
            cos[2 * i] = cos[2 * i + 1] = turn[i];
            sin[2 * i] = sin[2 * i + 1] = turn[half + i];
        }
    } else {
        memcpy(cos, turn, (size_t)half * 4);
        memcpy(cos + half, turn, (size_t)half * 4);
        memcpy(sin, turn + half, (size_t)half * 4);
        memcpy(sin + half, turn + half, (size_t)half * 4);
    }
    for (long d = width; d < dim; d++) {
        cos[d] = 1.0f;
        sin[d] = 0.0f;
    }
}

INLINE void FN(turn)(const float *q, const float *partner, const float *cos, const float *sin, int D, float *out) {
    for (int i = 0; i < D; i += W) store(out + i, load(q + i) * load(cos + i) + load(partner + i) * load(sin + i));
}
