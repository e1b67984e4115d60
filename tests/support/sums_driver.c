/* Plays cases of tests/support/sums_driver.py: one after another from stdin, what became of each to
 * stdout. Every array is as long as the case says and not a byte longer, so that a sanitizer sees
 * what reads or writes beyond. */
#include "flow.c"
#include "share.c"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { COPY = 0, FLOW = 1, JOB = 2 };

typedef struct {
    int64_t deed, target_bytes, source_bytes, num_ranges, num_pieces, kind, copies, cut, job_pieces;
    int64_t batch, stream_from;
} Head;

typedef struct {
    Head head;
    int64_t *into, *from, *sizes, *starts;
    uint8_t *source, *target;
    uint64_t *sums;
} Case;

/* So that lines can be stored past the cache. */
static void *aligned(int64_t num_bytes) {
    void *memory = 0;
    if (posix_memalign(&memory, 64, (size_t)num_bytes)) exit(5);
    return memory;
}

static void *filled(int64_t num_bytes) {
    void *const memory = aligned(num_bytes);
    if (num_bytes && fread(memory, 1, (size_t)num_bytes, stdin) != (size_t)num_bytes) exit(3);
    return memory;
}

static void put(const void *from, int64_t num_bytes) {
    if (num_bytes) fwrite(from, 1, (size_t)num_bytes, stdout);
}

static int64_t copied(const Case *one) {
    return baton_kv_copy(one->head.copies ? one->target : 0, (uint64_t)one->head.target_bytes,
                         one->head.copies ? one->into : 0, one->source,
                         (uint64_t)one->head.source_bytes, one->from, one->sizes,
                         one->head.num_ranges, one->starts, one->head.num_pieces, one->head.kind,
                         one->sums);
}

/* The source's bytes come through a socket, cut. */
static int64_t flowed(const Case *one) {
    int64_t num_bytes = 0;
    const int why_not =
        baton_kv_check(0, 0, (uint64_t)one->head.target_bytes, one->into, one->sizes,
                       one->head.num_ranges, one->starts, one->head.num_pieces, one->head.kind,
                       &num_bytes);
    if (why_not) return why_not;
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends)) exit(4);
    Sum sum;
    Flow flow = {.base = one->target, .offsets = one->into, .sizes = one->sizes,
                 .starts = one->starts, .sums = one->sums, .sum = &sum, .kind = one->head.kind,
                 .num_ranges = one->head.num_ranges, .num_pieces = one->head.num_pieces,
                 .fd = ends[0]};
    Flow *const flows[] = {&flow};
    for (int64_t at = 0; at < num_bytes && flow.state == MOVING;) {
        const int64_t left = num_bytes - at;
        at += write(ends[1], one->source + at, (size_t)(left < one->head.cut ? left : one->head.cut));
        while (flow.moved_bytes < at && flow.state == MOVING)
            baton_kv_flow(flows, 1, 0, 0, 0, 1 << 20, 0, 1000);
    }
    close(ends[0]);
    close(ends[1]);
    return flow.state == MOVED ? 0 : -10;
}

/* The case is what the other process wrote into the job. */
static int64_t helped(const Case *one) {
    CopyJob *const job = calloc(1, sizeof *job);
    for (int64_t i = 0; i < one->head.num_ranges; i++) {
        job->target_offsets[i] = one->into[i];
        job->source_offsets[i] = one->from[i];
        job->sizes[i] = one->sizes[i];
    }
    for (int64_t i = 0; i <= one->head.num_pieces; i++) job->starts[i] = one->starts[i];
    const uint64_t number =
        baton_kv_begin_job(job, (uint64_t)one->head.job_pieces, (uint64_t)one->head.batch, 1);
    const int64_t answer =
        baton_kv_copy_pieces(job, number, one->target, (uint64_t)one->head.target_bytes, one->source,
                             (uint64_t)one->head.source_bytes);
    memcpy(one->sums, job->sums, sizeof *job->sums * (size_t)one->head.num_pieces);
    free(job);
    return answer;
}

int main(void) {
    Case one;
    while (fread(&one.head, sizeof one.head, 1, stdin) == 1) {
        one.into = filled(8 * one.head.num_ranges);
        one.from = filled(8 * one.head.num_ranges);
        one.sizes = filled(8 * one.head.num_ranges);
        one.starts = filled(8 * (one.head.num_pieces + 1));
        one.source = filled(one.head.source_bytes);
        one.target = memset(aligned(one.head.target_bytes), 0, (size_t)one.head.target_bytes);
        one.sums = calloc((size_t)one.head.num_pieces, sizeof *one.sums);
        baton_kv_stream_from(one.head.stream_from);
        const int64_t answer = one.head.deed == COPY   ? copied(&one)
                               : one.head.deed == FLOW ? flowed(&one)
                                                       : helped(&one);
        put(&answer, sizeof answer);
        put(one.sums, 8 * one.head.num_pieces);
        put(one.target, one.head.target_bytes);
        void *const all[] = {one.into,   one.from,   one.sizes, one.starts,
                             one.source, one.target, one.sums};
        for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
    }
    return 0;
}
