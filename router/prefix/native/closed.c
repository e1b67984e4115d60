/* Depths of slots that hold a block of a chain only if they hold all before it. Along the chain
 * their sets only shrink, so between two blocks of one set nobody's depth lies: what is read are
 * blocks at equal distances, then such between those of different sets, and so on. Those of a round
 * are on their way from memory side by side.
 */
#include <stdlib.h>

#include "table.h"

enum { PROBES = 64, SPREAD = 16 }; /* of a round at most, and of one span alone */
enum { SHORT = 8 };                /* a span of so many blocks at most */
#define EVERYBODY NO_ROOM          /* the set of those who hold no block or more */

/* Of PLANE_SLOTS slots; NO_SET has a row too, that before the first, of zeros. */
static const uint64_t *words_of(const Sets *sets, uint32_t set, uint32_t plane, uint64_t *room) {
    if (set != EVERYBODY && !(set & SINGLE)) return sets->planes[plane] + (size_t)set * PLANE_WORDS;
    memset(room, set == EVERYBODY ? 0xff : 0, PLANE_WORDS * sizeof(uint64_t));
    uint32_t slot = set ^ SINGLE;
    if (set & SINGLE && slot / PLANE_SLOTS == plane)
        room[slot % PLANE_SLOTS / 64] = 1ull << slot % 64;
    return room;
}

/* Who is asked for and in `low`, but not in `high`; 0 if that is nobody. */
static uint64_t find_lost(const Table *table, uint32_t low, uint32_t high, uint32_t plane,
                          uint64_t *lost) {
    uint64_t rooms[2][PLANE_WORDS], any = 0;
    const uint64_t *one = words_of(&table->sets, low, plane, rooms[0]);
    const uint64_t *other = words_of(&table->sets, high, plane, rooms[1]);
    const uint64_t *asked = table->asked + plane * PLANE_WORDS;
    for (uint32_t i = 0; i < PLANE_WORDS; i++) any |= lost[i] = one[i] & ~other[i] & asked[i];
    return any;
}

static int is_parted(const Table *table, uint32_t low, uint32_t high) {
    uint64_t lost[PLANE_WORDS];
    for (uint32_t plane = 0; plane < table->sets.num_planes; plane++)
        if (find_lost(table, low, high, plane, lost)) return 1;
    return 0;
}

static void tell_depths(const Table *table, Probe low, uint32_t high, uint32_t *depths) {
    uint64_t lost[PLANE_WORDS];
    for (uint32_t plane = 0; plane < table->sets.num_planes; plane++) {
        if (!find_lost(table, low.set, high, plane, lost)) continue;
        for (uint32_t word = plane * PLANE_WORDS, i = 0; i < PLANE_WORDS; i++, word++)
            for (; lost[i]; lost[i] &= lost[i] - 1)
                depths[table->places[word * 64 + (uint32_t)__builtin_ctzll(lost[i])]] = low.depth;
    }
}

/* A span that nobody's depth lies in is left out; of one without a block within, depths are told.
 * In a short one, to look is as long as to ask. */
static uint32_t add_span(Table *table, Span span, uint32_t num_spans, uint32_t *depths) {
    uint32_t length = span.high.depth - span.low.depth;
    if (span.low.set == span.high.set) return num_spans;
    if (length == 1) {
        tell_depths(table, span.low, span.high.set, depths);
        return num_spans;
    }
    if (length > SHORT && !is_parted(table, span.low.set, span.high.set)) return num_spans;
    table->spans[num_spans] = span;
    return num_spans + 1;
}

/* How many blocks to read within a span, if there is room for so many. */
static uint32_t num_within(const Span *span, uint32_t num_spans) {
    uint32_t most = span->high.depth - span->low.depth - 1;
    uint32_t fair = num_spans < SPREAD ? SPREAD / num_spans : 1;
    return most < fair ? most : fair;
}

/* The sets' rows are on their way then, too. */
static void find_sets(const Table *table, const uint8_t *hashes, Probe *probes, uint32_t num) {
    Line *lines[PROBES];
    uint64_t read = 0; /* as of `ask_for` */
    for (uint32_t i = 0; i < num; i++) {
        lines[i] = home_of_key(table, key_of(hashes, probes[i].depth - 1));
        read += lines[i]->num;
    }
    __asm__ volatile("" ::"r"(read));
    for (uint32_t i = 0; i < num; i++) {
        Found found = find_from(lines[i], key_of(hashes, probes[i].depth - 1));
        uint32_t set = found.at == LINE_BLOCKS ? NO_SET : found.line->sets[found.at];
        for (uint32_t plane = 0; !(set & SINGLE) && plane < table->sets.num_planes; plane++)
            read += table->sets.planes[plane][(size_t)set * PLANE_WORDS];
        probes[i].set = set;
    }
    __asm__ volatile("" ::"r"(read));
}

/* Of the spans from `first` on: spans that are left take their places. Returns how many there are
 * in all. */
static uint32_t narrow(Table *table, const uint8_t *hashes, uint32_t first, uint32_t num_spans,
                       uint32_t *depths) {
    Span spans[PROBES];
    Probe probes[PROBES];
    uint32_t num = num_spans - first, num_probes = 0, next = 0;
    memcpy(spans, table->spans + first, num * sizeof(Span));
    for (uint32_t i = 0; i < num; i++) {
        uint32_t low = spans[i].low.depth, length = spans[i].high.depth - low;
        uint32_t within = num_within(&spans[i], num);
        for (uint32_t k = 1; k <= within; k++)
            probes[num_probes++].depth = low + (uint32_t)((uint64_t)length * k / (within + 1));
    }
    find_sets(table, hashes, probes, num_probes);
    for (uint32_t i = 0; i < num; i++) {
        Probe low = spans[i].low;
        for (uint32_t left = num_within(&spans[i], num) + 1; left; left--) {
            Probe high = left == 1 ? spans[i].high : probes[next++];
            first = add_span(table, (Span){low, high}, first, depths);
            low = high;
        }
    }
    return first;
}

/* Of `table->asked`, into the places where they were asked for; 0 when memory is lacking. */
int closed_depths(Table *table, const uint8_t *hashes, uint32_t num, uint32_t *depths) {
    if (table->num_spans < num + PROBES) { /* spans never overlap */
        Span *spans = realloc(table->spans, (num + PROBES) * sizeof(Span));
        if (!spans) return 0;
        table->spans = spans, table->num_spans = num + PROBES;
    }
    table->spans[0] = (Span){{0, EVERYBODY}, {num + 1, NO_SET}};
    uint32_t num_spans = 1;
    while (num_spans)
        num_spans = narrow(table, hashes, num_spans > PROBES ? num_spans - PROBES : 0, num_spans,
                           depths);
    return 1;
}
