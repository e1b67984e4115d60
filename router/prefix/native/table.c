#include "table.h"

#include <stdlib.h>
#include <sys/mman.h>

enum { MIN_HOMES = 4, TAIL = 32, MAX_BITS = 20 };
#define FILLED 0.62 /* of a segment when it is split, and of the whole table when it is full */
#define CROWDED 0.9 /* of one segment that can be split no more */

Table *baton_prefix_make(uint64_t max_blocks, uint32_t max_sets, uint64_t segment_blocks);
void baton_prefix_drop(Table *table);

static void make_segment(Table *table, uint32_t depth) {
    Segment *segment = &table->segments[table->num_segments];
    segment->lines = table->arena + (size_t)table->num_segments * table->num_lines;
    segment->num_used = 0, segment->depth = depth;
    table->num_segments++;
}

Table *baton_prefix_make(uint64_t max_blocks, uint32_t max_sets, uint64_t segment_blocks) {
    Table *table = calloc(1, sizeof *table);
    if (!table) return NULL;
    table->max_blocks = max_blocks;
    while (max_blocks >> table->directory_bits > segment_blocks && table->directory_bits < MAX_BITS)
        table->directory_bits++;
    size_t num_places = (size_t)1 << table->directory_bits;
    double homes = (double)max_blocks / (double)num_places / LINE_BLOCKS / FILLED;
    table->num_homes = homes < MIN_HOMES ? MIN_HOMES : (uint32_t)homes + 1;
    table->num_lines = table->num_homes + TAIL;
    table->arena_bytes = num_places * table->num_lines * sizeof(Line);
    table->arena = pages_reserve(table->arena_bytes);
    table->segments = calloc(num_places, sizeof(Segment));
    table->directory = calloc(num_places, sizeof(uint32_t));
    if (!sets_make(&table->sets, max_sets) || !table->arena || !table->segments ||
        !table->directory) {
        baton_prefix_drop(table);
        return NULL;
    }
    madvise(table->arena, table->arena_bytes, MADV_HUGEPAGE); /* else each block misses a TLB */
    make_segment(table, 0);
    return table;
}

void baton_prefix_drop(Table *table) {
    sets_drop(&table->sets);
    pages_return(table->arena, table->arena_bytes);
    free(table->segments), free(table->directory), free(table->gone);
    free(table->closed), free(table->asked), free(table->spans);
    free(table->matching), free(table->places), free(table->releases), free(table);
}

static int grown(uint64_t **words, size_t before, size_t after) {
    uint64_t *more = realloc(*words, after * sizeof(uint64_t));
    if (!more) return 0;
    memset(more + before, 0, (after - before) * sizeof(uint64_t));
    *words = more;
    return 1;
}

/* Room for slots below `num_slots`; 0 when there is none. */
int baton_prefix_reserve_slots(Table *table, uint32_t num_slots) {
    uint32_t before = table->sets.num_planes;
    if (!sets_reserve(&table->sets, num_slots)) return 0;
    uint32_t after = table->sets.num_planes;
    if (after == before) return 1;
    uint32_t *places = realloc(table->places, after * PLANE_SLOTS * sizeof(uint32_t));
    if (!places) return 0;
    table->places = places;
    size_t old_words = (size_t)before * PLANE_WORDS, words = (size_t)after * PLANE_WORDS;
    uint64_t **all[] = {&table->gone, &table->closed, &table->asked, &table->matching};
    for (int i = 0; i < 4; i++)
        if (!grown(all[i], old_words, words)) return 0;
    return 1;
}

/* Whether the slot holds, of every chain, what comes before whatever it holds. */
void baton_prefix_set_closed(Table *table, uint32_t slot, int is_closed) {
    uint64_t bit = 1ull << slot % 64;
    table->closed[slot / 64] = (table->closed[slot / 64] & ~bit) | (is_closed ? bit : 0);
}

/* Into the first line with room from its home on; 0 when the segment's end is reached. */
static int put(const Table *table, Segment *segment, uint64_t key, uint32_t set) {
    Line *line = home_of(table, segment, mixed_key(key));
    while (line->num == LINE_BLOCKS) line++;
    if (line == segment->lines + table->num_lines - 1) return 0;
    line->keys[line->num] = key, line->sets[line->num++] = set;
    segment->num_used++;
    return 1;
}

/* Takes each line out and puts its blocks where they belong, in order: what was put never lies
 * beyond the line that it was taken from. */
static void split(Table *table, uint32_t number, uint64_t mixed) {
    Segment *old = &table->segments[number];
    uint32_t depth = ++old->depth, fresh = table->num_segments;
    make_segment(table, depth);
    uint32_t span = 1u << (table->directory_bits - depth);
    uint32_t first = place_of(table, mixed) & ~(2 * span - 1);
    for (uint32_t i = first + span; i < first + 2 * span; i++) table->directory[i] = fresh;
    old->num_used = 0;
    for (uint32_t i = 0; i < table->num_lines; i++) {
        Line line = old->lines[i];
        old->lines[i].num = 0;
        for (uint32_t at = 0; at < line.num; at++) {
            Segment *goal = segment_of(table, mixed_key(line.keys[at]));
            if (put(table, goal, line.keys[at], line.sets[at])) continue;
            sets_release(&table->sets, line.sets[at]);
            table->num_blocks--, table->num_lost++;
        }
    }
}

static int insert(Table *table, uint64_t key, uint32_t slot) {
    if (table->num_blocks >= table->max_blocks) return 0;
    uint64_t mixed = mixed_key(key);
    for (;;) {
        Segment *segment = segment_of(table, mixed);
        int can_split = segment->depth < table->directory_bits;
        double limit = (can_split ? FILLED : CROWDED) * LINE_BLOCKS * table->num_homes;
        if (segment->num_used < limit && put(table, segment, key, SINGLE | slot)) {
            table->num_blocks++;
            return 1;
        }
        if (!can_split) return 0;
        split(table, (uint32_t)(segment - table->segments), mixed);
    }
}

static void close_gap(Line *line, uint32_t at) {
    uint32_t last = --line->num;
    line->keys[at] = line->keys[last], line->sets[at] = line->sets[last];
}

/* A block of a later line that belongs here or before, if there is one. */
static Found overflowed(const Table *table, const Segment *segment, const Line *hole) {
    Line *line = (Line *)hole;
    do {
        line++;
        for (uint32_t at = 0; at < line->num; at++)
            if (home_of(table, segment, mixed_key(line->keys[at])) <= hole)
                return (Found){line, at};
    } while (line->num == LINE_BLOCKS);
    return (Found){line, LINE_BLOCKS};
}

/* A line that was full may have sent blocks on: one comes back, and leaves a gap where it was. */
static void take_out(Table *table, Found found) {
    Segment *segment = segment_of(table, mixed_key(found.line->keys[found.at]));
    segment->num_used--, table->num_blocks--;
    for (;;) {
        int was_full = found.line->num == LINE_BLOCKS;
        close_gap(found.line, found.at);
        if (!was_full) return;
        Found next = overflowed(table, segment, found.line);
        if (next.at == LINE_BLOCKS) return;
        Line *line = found.line;
        line->keys[line->num] = next.line->keys[next.at];
        line->sets[line->num++] = next.line->sets[next.at];
        found = next;
    }
}

/* How many of the blocks there was no room for. */
uint64_t baton_prefix_store(Table *table, uint32_t slot, const uint8_t *hashes, uint64_t num) {
    uint64_t num_refused = 0;
    for (uint64_t i = 0; i < num; i++) {
        if (i % BATCH == 0) ask_for(table, hashes, i, num);
        uint64_t key = key_of(hashes, i);
        Found found = find(table, key);
        if (found.at == LINE_BLOCKS) {
            num_refused += !insert(table, key, slot);
            continue;
        }
        uint32_t *held = &found.line->sets[found.at];
        uint32_t set = sets_with(&table->sets, *held, slot);
        if (set == *held) continue;
        if (set == NO_ROOM) {
            num_refused++;
            continue;
        }
        sets_refer(&table->sets, set);
        sets_release(&table->sets, *held);
        *held = set;
    }
    return num_refused;
}

void baton_prefix_evict(Table *table, uint32_t slot, const uint8_t *hashes, uint64_t num) {
    for (uint64_t i = 0; i < num; i++) {
        if (i % BATCH == 0) ask_for(table, hashes, i, num);
        Found found = find(table, key_of(hashes, i));
        if (found.at == LINE_BLOCKS) continue;
        uint32_t *held = &found.line->sets[found.at], before = *held;
        if (!sets_has(&table->sets, before, slot)) continue;
        uint32_t set = sets_without(&table->sets, before, slot);
        table->num_lost += set == NO_ROOM;
        if (set == NO_SET || set == NO_ROOM) {
            take_out(table, found);
        } else {
            sets_refer(&table->sets, set);
            *held = set;
        }
        sets_release(&table->sets, before);
    }
}

/* Begins to take these slots out of every set. */
void baton_prefix_begin_sweep(Table *table, const uint32_t *slots, uint64_t num) {
    memset(table->gone, 0, table->sets.num_planes * PLANE_WORDS * sizeof(uint64_t));
    for (uint64_t i = 0; i < num; i++) table->gone[slots[i] / 64] |= 1ull << slots[i] % 64;
    table->swept = 0;
}

/* The line's blocks are put again, with the sets that are left of theirs: there is room, for they
 * come no later than they were. */
static void sweep_line(Table *table, Segment *segment, Line *swept) {
    Line line = *swept;
    swept->num = 0;
    for (uint32_t at = 0; at < line.num; at++) {
        uint32_t before = line.sets[at];
        uint32_t set = sets_minus(&table->sets, before, table->gone);
        table->num_lost += set == NO_ROOM;
        if (set == NO_SET || set == NO_ROOM) {
            table->num_blocks--;
        } else {
            sets_refer(&table->sets, set);
            put(table, segment, line.keys[at], set);
        }
        sets_release(&table->sets, before);
    }
}

static void sweep_segment(Table *table, Segment *segment) {
    segment->num_used = 0;
    for (uint32_t i = 0; i < table->num_lines; i++)
        if (segment->lines[i].num) sweep_line(table, segment, &segment->lines[i]);
}

/* Sweeps up to that many segments; 1 once no set has any of the slots. */
int baton_prefix_sweep(Table *table, uint32_t num_segments) {
    uint32_t num_places = 1u << table->directory_bits;
    for (; num_segments && table->swept < num_places; num_segments--) {
        Segment *segment = &table->segments[table->directory[table->swept]];
        sweep_segment(table, segment);
        table->swept += 1u << (table->directory_bits - segment->depth);
    }
    return table->swept == num_places;
}

uint64_t baton_prefix_num_blocks(const Table *table) { return table->num_blocks; }
uint64_t baton_prefix_num_lost(const Table *table) { return table->num_lost; }
uint64_t baton_prefix_num_sets(const Table *table) { return table->sets.num_live; }
