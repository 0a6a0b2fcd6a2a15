/* Choosing tokens from logits, included once by steps.c; docs/exact.md says how, efedllm/sampling/exact.py is the same in
 * numpy. Time is linear in the vocabulary, whatever the logits are. */

enum { DIGITS = 256 };

/* In the order of the numbers; -0 is 0. */
INLINE uint32_t key_of(float x) {
    uint32_t bits;
    x += 0.0f;
    memcpy(&bits, &x, 4);
    return bits ^ ((uint32_t)((int32_t)bits >> 31) | 0x80000000u);
}

/* The largest key such that the masses of it and all larger ones (NULL: 1 each) reach `limit`, 0 < limit <= their sum;
 * *left is what those of equal keys have to bring. room: n keys and n masses, which `keys` and `masses` may be. */
static uint32_t crossing(const uint32_t *keys, const int32_t *masses, int64_t n, int64_t limit, int64_t *left,
                         uint32_t *key_room, int32_t *mass_room) {
    uint32_t found = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        int64_t sums[DIGITS] = {0};
        for (int64_t i = 0; i < n; i++) sums[keys[i] >> shift & (DIGITS - 1)] += masses ? masses[i] : 1;
        int digit = DIGITS - 1;
        for (; sums[digit] < limit; digit--) limit -= sums[digit];
        found |= (uint32_t)digit << shift;
        int64_t kept = 0;
        for (int64_t i = 0; i < n; i++) {
            const uint32_t key = keys[i];
            if (masses) mass_room[kept] = masses[i];
            key_room[kept] = key;
            kept += (int)(key >> shift & (DIGITS - 1)) == digit;
        }
        keys = key_room, n = kept;
        if (masses) masses = mass_room;
    }
    *left = limit;
    return found;
}

typedef struct {
    float *x;
    uint32_t *keys, *key_room;
    int32_t *ids, *weights, *mass_room; /* [vocab] each */
} scratch;

static int64_t sample_room(int64_t vocab) { return 6 * room((vocab + LANES) * 4) + 64; }

static scratch scratch_of(char *work, int64_t vocab) {
    const int64_t size = room((vocab + LANES) * 4);
    work = (char *)room((int64_t)work);
    return (scratch){(float *)work, (uint32_t *)(work + size), (uint32_t *)(work + 2 * size), (int32_t *)(work + 3 * size),
                   (int32_t *)(work + 4 * size), (int32_t *)(work + 5 * size)};
}

/* The `top` highest of x [n], of equal ones the first: their places and keys, ascending by place. Returns `top`. */
static int64_t highest(const float *x, int64_t n, int64_t top, const scratch *b) {
    const int64_t step = n / (8 * top + 512);
    uint32_t least = 0;
    int64_t left, count = 0, kept = 0;
    if (step > 1) {
        /* No lower than the last of the highest of some is that of all. */
        for (int64_t i = 0; i < n; i += step) b->keys[count++] = key_of(x[i]);
        least = crossing(b->keys, NULL, count, top, &left, b->key_room, NULL);
        count = 0;
    }
    for (int64_t i = 0; i < n; i++) {
        const uint32_t key = key_of(x[i]);
        b->keys[count] = key;
        b->ids[count] = (int32_t)i;
        count += key >= least;
    }
    const uint32_t last = crossing(b->keys, NULL, count, top, &left, b->key_room, NULL);
    for (int64_t i = 0; i < count; i++) {
        const uint32_t key = b->keys[i];
        const int32_t id = b->ids[i];
        const int is = key == last && left > 0;
        left -= is;
        b->keys[kept] = key;
        b->ids[kept] = id;
        kept += key > last || is;
    }
    return kept;
}

static int64_t sample_row(const float *logits, int64_t vocab, int64_t temperature, int64_t top_k, int64_t top_p,
                          uint64_t draw, weights_function weigh, const scratch *b) {
    int64_t n = vocab, left = 0, sum = 0;
    const int some = top_k > 0 && top_k < vocab;
    const float *x = logits;
    uint32_t last = 0;
    if (some) {
        n = highest(logits, vocab, top_k, b);
        for (int64_t i = 0; i < n; i++) b->x[i] = logits[b->ids[i]];
        x = b->x;
    }
    int64_t total = weigh(x, n, (double)temperature, b->weights), all = total;
    if (top_p < 1000000) {
        const int64_t limit = (int64_t)(((unsigned __int128)total * (uint64_t)top_p + 999999) / 1000000);
        if (!some)
            for (int64_t i = 0; i < n; i++) b->keys[i] = key_of(x[i]);
        last = crossing(b->keys, b->weights, n, limit, &left, b->key_room, b->mass_room);
        all = 0;
        for (int64_t i = 0, room_left = left; i < n; i++) {
            const int is = b->keys[i] == last && room_left > 0;
            if (is) room_left -= b->weights[i];
            if (!is && b->keys[i] <= last) b->weights[i] = 0;
            all += b->weights[i];
        }
    }
    const int64_t target = (int64_t)((unsigned __int128)draw * (uint64_t)all >> 64);
    /* Tokens left out weigh nothing, and those are never the first to exceed it. */
    int64_t i = 0;
    for (sum = b->weights[0]; sum <= target; sum += b->weights[++i]) continue;
    return some ? b->ids[i] : i;
}
