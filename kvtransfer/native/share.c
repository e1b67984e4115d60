/* One copy job that two processes work on: each claims pieces until none are left.
 *
 * The job lies in memory both have mapped; the fetcher fills it in, either side calls
 * `baton_kv_copy_pieces`. A side that is slow claims less, one that never comes claims nothing, so
 * nobody waits for more than the pieces of one claim. Whoever is inside is counted, so that the
 * fetcher can tell when nobody writes into its slots any more. Nothing in it is trusted: every
 * range is read once and checked against the mapping it is used on.
 */
#include <stdatomic.h>
#include <stddef.h>

#include "copy.h"

enum { MAX_PIECES = 4096, MAX_RANGES = 16384, MAX_PIECE_RANGES = 4096 };

typedef struct {
    _Atomic uint64_t number; /* of the job; 0: none */
    _Atomic uint64_t stop;   /* leave at once */
    _Atomic uint64_t inside; /* sides working now */
    _Atomic uint64_t cursor; /* first piece nobody claimed */
    _Atomic uint64_t num_done;
    /* volatile: the other side may change them at any time, so each is read once, into a local */
    volatile uint64_t num_pieces, batch, streaming;
    uint8_t pad[64];
    volatile int64_t target_offsets[MAX_RANGES], source_offsets[MAX_RANGES], sizes[MAX_RANGES];
    volatile int64_t starts[MAX_PIECES + 1];
    uint64_t sums[MAX_PIECES];
} CopyJob;

typedef struct {
    uint8_t *target;
    uint64_t target_bytes;
    const uint8_t *source;
    uint64_t source_bytes;
} Spans;

int64_t baton_kv_job_bytes(void) { return (int64_t)sizeof(CopyJob); }

/* Copy one piece of at most so many bytes; its bytes, or -1 when the job describes nonsense. */
static int64_t copy_piece(CopyJob *job, const Spans *spans, uint64_t piece, uint64_t most,
                          int streaming) {
    static _Thread_local int64_t into[MAX_PIECE_RANGES], from[MAX_PIECE_RANGES];
    static _Thread_local int64_t sizes[MAX_PIECE_RANGES];
    const int64_t first = job->starts[piece], last = job->starts[piece + 1];
    if (first < 0 || last < first || last > MAX_RANGES) return -1;
    if (last - first > MAX_PIECE_RANGES) return -1;
    const int64_t num_ranges = last - first;
    int64_t num_bytes = 0;
    for (int64_t range = 0; range < num_ranges; range++) {
        into[range] = job->target_offsets[first + range];
        from[range] = job->source_offsets[first + range];
        sizes[range] = job->sizes[first + range];
        if (!lies_in(into[range], sizes[range], spans->target_bytes) ||
            !lies_in(from[range], sizes[range], spans->source_bytes))
            return -1;
        num_bytes += sizes[range];
        if ((uint64_t)num_bytes > most) return -1;
    }
    job->sums[piece] = baton_kv_piece(spans->target, into, spans->source, from, sizes, num_ranges,
                                      HASHED, streaming);
    return num_bytes;
}

/* Claim and copy pieces of job `number` until none are left. Pieces copied; -1: nonsense. */
static int64_t claim(CopyJob *job, const Spans *spans) {
    const uint64_t num_pieces = job->num_pieces, batch = job->batch;
    const int streaming = (int)job->streaming;
    int64_t num_copied = 0;
    uint64_t left_bytes = spans->target_bytes; /* an honest job writes no byte twice */
    if (num_pieces > MAX_PIECES || batch < 1 || batch > MAX_PIECES) return -1;
    while (num_copied < (int64_t)num_pieces) { /* also if somebody sets the cursor back */
        const uint64_t first = atomic_fetch_add(&job->cursor, batch);
        if (first >= num_pieces) return num_copied;
        const uint64_t last = first + batch < num_pieces ? first + batch : num_pieces;
        for (uint64_t piece = first; piece < last; piece++) {
            if (atomic_load(&job->stop)) return num_copied;
            const int64_t copied_bytes = copy_piece(job, spans, piece, left_bytes, streaming);
            if (copied_bytes < 0) return -1;
            left_bytes -= (uint64_t)copied_bytes;
            num_copied++;
        }
        baton_kv_settle();
        atomic_fetch_add(&job->num_done, last - first);
    }
    return num_copied;
}

int64_t baton_kv_copy_pieces(CopyJob *job, uint64_t number, uint8_t *target,
                             uint64_t target_bytes, const uint8_t *source, uint64_t source_bytes) {
    const Spans spans = {target, target_bytes, source, source_bytes};
    int64_t num_copied = 0;
    atomic_fetch_add(&job->inside, 1);
    if (atomic_load(&job->number) == number && !atomic_load(&job->stop))
        num_copied = claim(job, &spans);
    baton_kv_settle();
    atomic_fetch_sub(&job->inside, 1);
    return num_copied;
}

/* Let nobody in any more; 1 when nobody is inside. Whoever comes after this turns round: it counts
 * itself before it looks at `stop`, and we set `stop` before we look at the count. */
int baton_kv_shut_job(CopyJob *job) {
    atomic_store(&job->stop, 1);
    return atomic_load(&job->inside) == 0;
}

/* Open what is shut and filled in, as a new job; its number. */
uint64_t baton_kv_begin_job(CopyJob *job, uint64_t num_pieces, uint64_t batch,
                            uint64_t streaming) {
    job->num_pieces = num_pieces;
    job->batch = batch;
    job->streaming = streaming;
    atomic_store(&job->cursor, 0);
    atomic_store(&job->num_done, 0);
    const uint64_t number = atomic_fetch_add(&job->number, 1) + 1;
    atomic_store(&job->stop, 0);
    return number;
}

static void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

/* Wait, at most `most_ns`, until all pieces are done; 1 when they are. */
int baton_kv_await_job(CopyJob *job, int64_t most_ns) {
    const int64_t end = now_ns() + most_ns;
    while (atomic_load(&job->num_done) < job->num_pieces) {
        if (now_ns() >= end) return 0;
        relax();
    }
    return 1;
}
