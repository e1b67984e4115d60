/* Bytes between non-blocking sockets and scattered ranges of a pool, many flows at a time.
 *
 * A flow is the body of one frame on its way through one socket. Each call goes on with every
 * flow that can until one has ended, the budget is spent, or nothing came for a moment: so Python
 * is entered once a chunk and not once a socket buffer. Neighbouring ranges go as one buffer;
 * pieces are summed as they come, while the cache still has them. Called through
 * kvtransfer/native/flows.py, which checks every bound first.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "copy.h"
#include "lines.h"

enum { MAX_BUFFERS = 1024, MAX_FLOWS = 64, CALL_BYTES = 1 << 20 };
enum { MOVING = 0, MOVED = 1, PEER_CLOSED = 2 }; /* or a negated errno */

typedef struct {
    const uint8_t *head; /* sent before the ranges */
    uint8_t *base;
    const int64_t *offsets, *sizes, *starts;
    uint64_t *sums; /* null: pieces are not summed */
    Sum *sum;       /* of the piece that comes */
    int64_t kind, head_bytes, num_ranges, num_pieces;
    int64_t range, skip; /* the first range not wholly moved, and how much of it is */
    int64_t piece, summed, summed_skip; /* the same of what is summed */
    int64_t fd, state, moved_bytes; /* of the ranges */
} Flow;

/* The buffers to move next, at most CALL_BYTES of ranges; neighbours are merged. */
static int gather(const Flow *flow, struct iovec *buffers) {
    int num = 0;
    if (flow->head_bytes > 0)
        buffers[num++] = (struct iovec){(void *)flow->head, (size_t)flow->head_bytes};
    int64_t left = CALL_BYTES, skip = flow->skip;
    for (int64_t range = flow->range; range < flow->num_ranges && left > 0; range++, skip = 0) {
        uint8_t *const at = flow->base + flow->offsets[range] + skip;
        int64_t size = flow->sizes[range] - skip;
        if (size > left) size = left;
        if (!size) continue;
        left -= size;
        struct iovec *const last = num ? &buffers[num - 1] : 0;
        if (last && (uint8_t *)last->iov_base + last->iov_len == at)
            last->iov_len += (size_t)size;
        else if (num < MAX_BUFFERS)
            buffers[num++] = (struct iovec){at, (size_t)size};
        else
            break;
    }
    return num;
}

/* Sum what has come since the last time, in whole lines. */
static void sum_more(Flow *flow) {
    while (flow->piece < flow->num_pieces) {
        const int64_t at = flow->summed;
        if (at == flow->starts[flow->piece] && !flow->summed_skip)
            baton_kv_sum_begin(flow->sum, flow->kind);
        if (at == flow->starts[flow->piece + 1]) {
            flow->sums[flow->piece++] = baton_kv_sum_finish(flow->sum);
            continue;
        }
        const int64_t come = at < flow->range ? flow->sizes[at] : flow->skip / LINE * LINE;
        baton_kv_sum_take(flow->sum, 0, flow->base + flow->offsets[at] + flow->summed_skip,
                          come - flow->summed_skip, 0);
        flow->summed_skip = come;
        if (at == flow->range) return;
        flow->summed++;
        flow->summed_skip = 0;
    }
}

/* Count `num_bytes` as moved; how many of them were of the ranges. */
static int64_t advance(Flow *flow, int64_t num_bytes) {
    const int64_t of_head = num_bytes < flow->head_bytes ? num_bytes : flow->head_bytes;
    flow->head += of_head;
    flow->head_bytes -= of_head;
    int64_t left = num_bytes - of_head;
    while (flow->range < flow->num_ranges && left >= flow->sizes[flow->range] - flow->skip) {
        left -= flow->sizes[flow->range] - flow->skip;
        flow->range++;
        flow->skip = 0;
    }
    flow->skip += left;
    flow->moved_bytes += num_bytes - of_head;
    if (flow->sums) sum_more(flow);
    if (!flow->head_bytes && flow->range == flow->num_ranges) flow->state = MOVED;
    return num_bytes - of_head;
}

/* One call's worth of one flow; bytes of ranges moved, or -1 when the socket has no more now. */
static int64_t move(Flow *flow, int sending) {
    struct iovec buffers[MAX_BUFFERS];
    struct msghdr message = {.msg_iov = buffers};
    message.msg_iovlen = (size_t)gather(flow, buffers);
    const int flags = MSG_DONTWAIT | MSG_NOSIGNAL;
    const ssize_t num = sending ? sendmsg((int)flow->fd, &message, flags)
                                : recvmsg((int)flow->fd, &message, flags);
    if (num > 0) return advance(flow, num);
    if (num == 0 && !sending)
        flow->state = PEER_CLOSED;
    else if (num < 0 && errno != EAGAIN && errno != EINTR)
        flow->state = -errno;
    return -1;
}

/* Wait until one of the flows, or a socket nothing flows through, is ready. 1: a flow is. */
static int await(Flow *const *flows, int64_t num_flows, const int64_t *idle, int64_t num_idle,
                 int sending, int64_t wait_us) {
    struct pollfd polled[2 * MAX_FLOWS];
    for (int64_t i = 0; i < num_flows; i++)
        polled[i] = (struct pollfd){(int)flows[i]->fd, sending ? POLLOUT : POLLIN, 0};
    for (int64_t i = 0; i < num_idle; i++)
        polled[num_flows + i] = (struct pollfd){(int)idle[i], POLLIN, 0};
    const struct timespec most = {0, wait_us * 1000};
    if (ppoll(polled, (nfds_t)(num_flows + num_idle), &most, 0) <= 0) return 0;
    for (int64_t i = 0; i < num_idle; i++)
        if (polled[num_flows + i].revents) return 0;
    return 1;
}

/* Go on with all flows, none of which has ended, until one ends, `budget` bytes have moved,
 * `turn_us` are over, or none has moved for `wait_us`. A socket of `idle` that
 * becomes readable ends a wait. Bytes of ranges moved. */
int64_t baton_kv_flow(Flow *const *flows, int64_t num_flows, const int64_t *idle, int64_t num_idle,
                      int sending, int64_t budget, int64_t wait_us, int64_t turn_us) {
    const int64_t until_ns = now_ns() + turn_us * 1000;
    int64_t total = 0;
    if (num_flows > MAX_FLOWS || num_idle > MAX_FLOWS) return -1;
    for (;;) {
        int moved = 0, ended = 0;
        for (int64_t i = 0; i < num_flows; i++) {
            const int64_t num = move(flows[i], sending);
            if (num >= 0) {
                total += num;
                moved = 1;
            }
            ended |= flows[i]->state != MOVING;
        }
        if (ended || total >= budget || now_ns() >= until_ns) return total;
        if (!moved && !await(flows, num_flows, idle, num_idle, sending, wait_us)) return total;
    }
}

int64_t baton_kv_flow_bytes(void) { return sizeof(Flow); }

int64_t baton_kv_sum_bytes(void) { return sizeof(Sum); }
