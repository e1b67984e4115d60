/* All ways to serve one request, and the cheapest of each kind: the arithmetic of cost.py, in the
 * same order, over all pairs of a fleet. No clock, no state. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#define NUM_PEERS 32
#define NUM_TERMS 9

/* As `ROW` in row.py. */
typedef struct {
    double busy_until_s, reported_at_s, fixed_s, token_s, attended_s, sequence_s;
    double latency_s, bytes_per_s, token_bytes, block_tokens, max_step_tokens;
    double longest_tokens, pool_tokens, free_tokens, running, context_tokens, waiting_tokens;
    uint64_t transports;
    double peer_latency_s[NUM_PEERS], peer_bytes_per_s[NUM_PEERS];
    int32_t is_decode, compat, rank, index_slot, lends, num_peers;
    int32_t peers[NUM_PEERS];
} Row;

/* As `QueryFields` in kernel.py. */
typedef struct {
    const Row *rows;
    const uint8_t *open;
    const uint32_t *depths, *held;
    int64_t num_slots, num_depths, num_compats;
    double num_tokens, total_tokens, first_tokens, expected_output, num_reusable;
    double now, max_age_s, coming_streams, stream_part, inter_token_target_s, worker_queue_s;
    int64_t kept_prefill, kept_decode;
} Query;

/* As `OptionFields` in kernel.py; `terms` as the fields of `Breakdown`. */
typedef struct {
    int64_t decode, prefill, source;
    double cost_s, num_uncached, num_pulled, terms[NUM_TERMS];
} Option;

/* How a worker comes by the prompt's KV: `Start` in cost.py, and what of it all pairs need. */
typedef struct {
    int64_t slot, source;
    uint64_t transports;
    int32_t compat;
    double queue_s, pull_s, compute_s, num_uncached, num_pulled, hidden_s, chunk_tokens;
    int is_free;
} Start;

/* What decoding there adds: `_Stream` in cost.py. */
typedef struct {
    double room_s, beside_s, inter_token_s, own_s, others_s;
    int has_room;
} Stream;

enum { PAIR, ALONE, CALM, KEPT_PAIR, KEPT_ALONE, KEPT_CALM, NUM_KINDS };
enum { HAS_DECODE = 1, HAS_ABLE = 2, HAS_FREE_PAIR = 4, HAS_FREE_ALONE = 8, HAS_FREE_CALM = 16 };

static double least(double a, double b) { return a < b ? a : b; }
static double most(double a, double b) { return a > b ? a : b; }

static double cached_tokens(const Query *q, const Row *w) {
    if (w->index_slot < 0 || w->index_slot >= q->num_depths) return 0.0;
    return least(q->depths[w->index_slot] * w->block_tokens, q->num_reusable);
}

/* What its events say it has, and nothing hoped for. */
static double held_tokens(const Query *q, const Row *w) {
    if (w->index_slot < 0 || w->index_slot >= q->num_depths) return 0.0;
    return least(q->held[w->index_slot] * w->block_tokens, q->num_reusable);
}

static double compute_s(const Query *q, const Row *w, double uncached) {
    double n = q->num_tokens, first = n - uncached;
    double attended = (n * n - first * first) * 0.5;
    return ceil(uncached / w->max_step_tokens) * w->fixed_s + uncached * w->token_s +
           attended * w->attended_s;
}

static double step_s(const Row *w) {
    return w->fixed_s + w->context_tokens * w->attended_s + w->running * w->sequence_s;
}

static double missing_tokens(const Row *w, double needed, double cached) {
    double held = w->pool_tokens - w->free_tokens;
    return most(0.0, needed - w->free_tokens - least(cached, held));
}

static double room_wait_s(const Row *w, double missing) {
    return missing * step_s(w) / most(1.0, w->running);
}

static double queue_s(const Query *q, const Row *w) {
    double aged = least(q->now, w->reported_at_s + q->max_age_s);
    return most(0.0, w->busy_until_s - aged);
}

static void link_speed(const Row *w, int64_t peer, double *latency_s, double *rate) {
    *latency_s = w->latency_s;
    *rate = w->bytes_per_s;
    for (int i = 0; i < w->num_peers; i++)
        if (w->peers[i] == peer) {
            *latency_s = w->peer_latency_s[i];
            *rate = w->peer_bytes_per_s[i];
        }
}

static Start start(const Query *q, int64_t slot, const int64_t *sources) {
    const Row *w = &q->rows[slot];
    double cached = cached_tokens(q, w);
    double missing = missing_tokens(w, q->num_tokens, cached);
    double own = most(1.0, q->num_tokens - cached);
    Start s = {.slot = slot, .source = -1, .num_uncached = own};
    s.compat = w->compat;
    s.transports = w->transports;
    double waited_s = queue_s(q, w);
    s.is_free = waited_s <= q->worker_queue_s && missing <= 0.0;
    s.queue_s = most(waited_s, room_wait_s(w, missing));
    s.compute_s = compute_s(q, w, own);
    int64_t source = sources[w->compat];
    if (source >= 0 && source != slot && (q->rows[source].transports & w->transports)) {
        const Row *l = &q->rows[source];
        /* Whole blocks, without that of the last token, which is computed whatever is there. */
        double there = least(held_tokens(q, l), q->num_tokens - 1);
        double lent = floor(there / l->block_tokens) * l->block_tokens;
        if (lent > cached) {
            double latency_s, rate, rest = most(1.0, q->num_tokens - lent);
            link_speed(w, source, &latency_s, &rate);
            double pull_s = latency_s + (lent - cached) * w->token_bytes / rate;
            double shown_s = most(0.0, pull_s - s.queue_s), rest_s = compute_s(q, w, rest);
            if (shown_s + rest_s < s.compute_s) {
                s.source = source;
                s.pull_s = shown_s;
                s.compute_s = rest_s;
                s.num_uncached = rest;
                s.num_pulled = lent - cached;
            }
        }
    }
    s.chunk_tokens = least(s.num_uncached, w->max_step_tokens);
    s.hidden_s = s.compute_s * (1.0 - least(1.0, w->max_step_tokens / s.num_uncached));
    return s;
}

static Stream stream(const Query *q, const Row *w, double cached) {
    double context = q->num_tokens + 0.5 * q->expected_output;
    double longer_s = context * w->attended_s + w->sequence_s;
    double missing = missing_tokens(w, q->num_tokens + q->expected_output, cached);
    Stream s;
    s.has_room = missing <= 0.0;
    s.room_s = room_wait_s(w, missing);
    s.beside_s = least(w->waiting_tokens, w->max_step_tokens) * w->token_s;
    s.inter_token_s = step_s(w) + longer_s;
    s.own_s = q->expected_output * s.inter_token_s;
    s.others_s = q->expected_output * longer_s * w->running;
    return s;
}

static double cost_s(const Query *q, const double *t) {
    return t[0] + t[1] + t[2] + t[3] + t[4] + q->stream_part * (t[5] + t[6]);
}

static int is_before(const Query *q, const Option *a, const Option *b) {
    if (b->decode < 0) return 1;
    if (a->cost_s != b->cost_s) return a->cost_s < b->cost_s;
    if (a->decode != b->decode) return q->rows[a->decode].rank < q->rows[b->decode].rank;
    return a->prefill >= 0 && q->rows[a->prefill].rank < q->rows[b->prefill].rank;
}

static void keep_least(const Query *q, const Option *option, Option *best) {
    if (is_before(q, option, best)) *best = *option;
}

static Option option_of(const Start *s, int64_t prefill, int64_t decode) {
    Option o = {.decode = decode, .prefill = prefill, .source = s->source};
    o.num_uncached = s->num_uncached;
    o.num_pulled = s->num_pulled;
    o.terms[0] = s->queue_s;
    o.terms[1] = s->pull_s;
    return o;
}

static Option alone(const Query *q, const Start *s, const Stream *b) {
    const Row *w = &q->rows[s->slot];
    Option o = option_of(s, -1, s->slot);
    double chunks = ceil(s->num_uncached / w->max_step_tokens);
    double stalled_s = (s->compute_s - chunks * w->fixed_s) * (w->running + q->coming_streams);
    o.terms[2] = s->compute_s + chunks * (step_s(w) - w->fixed_s);
    o.terms[4] = b->inter_token_s;
    o.terms[5] = b->own_s;
    o.terms[6] = b->others_s + stalled_s;
    o.terms[7] = b->inter_token_s;
    double chunk = s->chunk_tokens;
    o.terms[8] = step_s(w) + (chunk * w->token_s + chunk * q->num_tokens * w->attended_s);
    o.cost_s = cost_s(q, o.terms);
    return o;
}

static Option pair(
    const Query *q, const Start *s, int64_t decode, const Stream *b, double transfer_s) {
    Option o = option_of(s, s->slot, decode);
    o.terms[2] = s->compute_s;
    o.terms[3] = transfer_s;
    o.terms[4] = b->room_s + b->beside_s + b->inter_token_s;
    o.terms[5] = b->own_s;
    o.terms[6] = b->others_s;
    o.terms[7] = b->inter_token_s;
    o.cost_s = cost_s(q, o.terms);
    return o;
}

/* By compat hash, the ready worker that has most of the prompt and lends it; -1: none. */
static void find_sources(const Query *q, int64_t *sources) {
    for (int64_t i = 0; i < q->num_compats; i++) sources[i] = -1;
    for (int64_t slot = 0; slot < q->num_slots; slot++) {
        const Row *w = &q->rows[slot];
        if (!q->open[slot] || !w->lends) continue;
        int64_t best = sources[w->compat];
        const Row *b = best < 0 ? NULL : &q->rows[best];
        double mine = held_tokens(q, w), its = b ? held_tokens(q, b) : 0.0;
        int wins = mine > its;
        if (b && mine == its)
            wins = w->waiting_tokens != b->waiting_tokens ? w->waiting_tokens < b->waiting_tokens
                                                          : w->rank < b->rank;
        if (wins) sources[w->compat] = slot;
    }
}

/* All pairs with this decode worker. */
static int32_t find_pairs(
    const Query *q, int64_t decode, const Start *starts, int64_t num_starts,
    int32_t *own_speed, Option *best) {
    const Row *w = &q->rows[decode];
    double cached = cached_tokens(q, w), moved = most(0.0, q->num_tokens - cached);
    Stream b = stream(q, w, cached);
    double wait_s = b.room_s + b.beside_s + b.inter_token_s;
    double fixed_s = wait_s + q->stream_part * (b.own_s + b.others_s);
    int32_t found = 0;
    for (int i = 0; i < w->num_peers; i++)
        if (w->peers[i] >= 0) own_speed[w->peers[i]] = i + 1;
    for (int64_t i = 0; i < num_starts; i++) {
        const Start *s = &starts[i];
        if (s->compat != w->compat || !(s->transports & w->transports)) continue;
        if (b.has_room && s->is_free) found |= HAS_FREE_PAIR;
        int kept = decode == q->kept_decode && (q->kept_prefill < 0 || s->slot == q->kept_prefill);
        /* Cannot win, however fast the transfer. */
        double bound_s = (s->queue_s + s->pull_s + s->compute_s + fixed_s) * (1.0 - 1e-9);
        if (!kept && best[PAIR].decode >= 0 && bound_s > best[PAIR].cost_s) continue;
        int32_t own = own_speed[s->slot];
        double latency_s = own ? w->peer_latency_s[own - 1] : w->latency_s;
        double rate = own ? w->peer_bytes_per_s[own - 1] : w->bytes_per_s;
        double last_s = least(moved, s->chunk_tokens) * w->token_bytes / rate;
        double rest_s = moved * w->token_bytes / rate - s->hidden_s;
        Option o = pair(q, s, decode, &b, latency_s + most(last_s, rest_s));
        keep_least(q, &o, &best[PAIR]);
        if (kept) keep_least(q, &o, &best[KEPT_PAIR]);
    }
    for (int i = 0; i < w->num_peers; i++)
        if (w->peers[i] >= 0) own_speed[w->peers[i]] = 0;
    return found;
}

static int32_t find_alone(const Query *q, int64_t slot, const int64_t *sources, Option *best) {
    const Row *w = &q->rows[slot];
    Start s = start(q, slot, sources);
    Stream b = stream(q, w, 0.0);
    Option o = alone(q, &s, &b);
    int calm = w->running <= 0.0 || o.terms[8] <= q->inter_token_target_s;
    int kept = slot == q->kept_decode;
    double cached = cached_tokens(q, w);
    int room = missing_tokens(w, q->num_tokens + q->expected_output, cached) <= 0.0;
    keep_least(q, &o, &best[ALONE]);
    if (kept) keep_least(q, &o, &best[KEPT_ALONE]);
    if (calm) keep_least(q, &o, &best[CALM]);
    if (calm && kept) keep_least(q, &o, &best[KEPT_CALM]);
    if (!room || !s.is_free) return 0;
    return HAS_FREE_ALONE | (calm ? HAS_FREE_CALM : 0);
}

/* Fills `best`, one a kind, `decode` -1 where there is none; says what there is, or -1 without
 * memory. */
int32_t baton_find_options(const Query *q, Option *best) {
    int32_t found = 0;
    int64_t num_starts = 0;
    size_t slots = (size_t)q->num_slots;
    char *memory = calloc(1, slots * (sizeof(Start) + sizeof(int32_t)) +
                                 (size_t)q->num_compats * sizeof(int64_t));
    if (!memory) return -1;
    Start *starts = (Start *)memory;
    int64_t *sources = (int64_t *)(starts + slots);
    int32_t *own_speed = (int32_t *)(sources + q->num_compats);
    for (int kind = 0; kind < NUM_KINDS; kind++) best[kind].decode = -1;
    find_sources(q, sources);
    for (int64_t slot = 0; slot < q->num_slots; slot++) {
        const Row *w = &q->rows[slot];
        if (q->open[slot] && !w->is_decode && q->first_tokens <= w->longest_tokens)
            starts[num_starts++] = start(q, slot, sources);
    }
    for (int64_t slot = 0; slot < q->num_slots; slot++) {
        const Row *w = &q->rows[slot];
        if (!q->open[slot] || !w->is_decode) continue;
        found |= HAS_DECODE;
        if (q->total_tokens > w->longest_tokens) continue;
        found |= HAS_ABLE | find_alone(q, slot, sources, best);
        found |= find_pairs(q, slot, starts, num_starts, own_speed, best);
    }
    free(memory);
    return found;
}

int64_t baton_row_bytes(void) { return sizeof(Row); }
