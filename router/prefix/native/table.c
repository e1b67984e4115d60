#include "table.h"

#include <stdlib.h>
#include <sys/mman.h>

enum { MIN_HOMES = 16, TAIL = 384, MAX_BITS = 20 };
#define FILLED 0.75 /* of the homes, when a segment is split and when the whole table is full */
#define CROWDED 0.9 /* of the homes of one segment that can be split no more */

Table *baton_prefix_make(uint64_t max_blocks, uint32_t max_sets, uint64_t segment_blocks);
void baton_prefix_drop(Table *table);

static void make_segment(Table *table, uint32_t depth) {
    Segment *segment = &table->segments[table->num_segments];
    segment->entries = table->arena + (size_t)table->num_segments * table->num_entries;
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
    double homes = (double)max_blocks / (double)num_places / FILLED;
    table->num_homes = homes < MIN_HOMES ? MIN_HOMES : (uint32_t)homes + 1;
    table->num_entries = table->num_homes + TAIL;
    table->arena_bytes = num_places * table->num_entries * sizeof(Entry);
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
    return grown(&table->gone, old_words, words) && grown(&table->matching, old_words, words);
}

/* Into the first empty entry from its home on; 0 when the segment's end is reached. */
static int put(const Table *table, Segment *segment, Entry entry) {
    Entry *free_entry = home_of(table, segment, mixed_name(entry.key, entry.check));
    while (free_entry->set != NO_SET) free_entry++;
    if (free_entry == segment->entries + table->num_entries - 1) return 0;
    *free_entry = entry;
    segment->num_used++;
    return 1;
}

/* Takes each entry out and puts it where it belongs, in order: what was put never lies beyond
 * the place that it was taken from. */
static void split(Table *table, uint32_t number, uint64_t mixed) {
    Segment *old = &table->segments[number];
    uint32_t depth = ++old->depth, fresh = table->num_segments;
    make_segment(table, depth);
    uint32_t span = 1u << (table->directory_bits - depth);
    uint32_t first = place_of(table, mixed) & ~(2 * span - 1);
    for (uint32_t i = first + span; i < first + 2 * span; i++) table->directory[i] = fresh;
    old->num_used = 0;
    for (uint32_t i = 0; i < table->num_entries; i++) {
        Entry entry = old->entries[i];
        if (entry.set == NO_SET) continue;
        old->entries[i].set = NO_SET;
        Segment *goal = segment_of(table, mixed_name(entry.key, entry.check));
        if (put(table, goal, entry)) continue;
        sets_release(&table->sets, entry.set);
        table->num_blocks--, table->num_lost++;
    }
}

static int insert(Table *table, Name name, uint32_t slot) {
    if (table->num_blocks >= table->max_blocks) return 0;
    Entry entry = {name.key, name.check, SINGLE | slot};
    uint64_t mixed = mixed_name(name.key, name.check);
    for (;;) {
        Segment *segment = segment_of(table, mixed);
        int can_split = segment->depth < table->directory_bits;
        double limit = (can_split ? FILLED : CROWDED) * table->num_homes;
        if (segment->num_used < limit && put(table, segment, entry)) {
            table->num_blocks++;
            return 1;
        }
        if (!can_split) return 0;
        split(table, (uint32_t)(segment - table->segments), mixed);
    }
}

static void take_out(Table *table, Entry *hole) {
    Segment *segment = segment_of(table, mixed_name(hole->key, hole->check));
    for (Entry *next = hole + 1; next->set != NO_SET; next++)
        if (home_of(table, segment, mixed_name(next->key, next->check)) <= hole)
            *hole = *next, hole = next;
    hole->set = NO_SET;
    segment->num_used--, table->num_blocks--;
}

/* How many of the blocks there was no room for. */
uint64_t baton_prefix_store(Table *table, uint32_t slot, const uint8_t *hashes, uint64_t num) {
    uint64_t num_refused = 0;
    for (uint64_t i = 0; i < num; i++) {
        if (i + AHEAD < num) ask_for(table, name_of(hashes, i + AHEAD));
        Name name = name_of(hashes, i);
        Entry *entry = find(table, name);
        if (entry->set == NO_SET) {
            num_refused += !insert(table, name, slot);
            continue;
        }
        uint32_t set = sets_with(&table->sets, entry->set, slot);
        if (set == entry->set) continue;
        if (set == NO_ROOM) {
            num_refused++;
            continue;
        }
        sets_refer(&table->sets, set);
        sets_release(&table->sets, entry->set);
        entry->set = set;
    }
    return num_refused;
}

void baton_prefix_evict(Table *table, uint32_t slot, const uint8_t *hashes, uint64_t num) {
    for (uint64_t i = 0; i < num; i++) {
        if (i + AHEAD < num) ask_for(table, name_of(hashes, i + AHEAD));
        Name name = name_of(hashes, i);
        Entry *entry = find(table, name);
        if (entry->set == NO_SET || !sets_has(&table->sets, entry->set, slot)) continue;
        uint32_t before = entry->set, set = sets_without(&table->sets, before, slot);
        table->num_lost += set == NO_ROOM;
        if (set == NO_SET || set == NO_ROOM) {
            take_out(table, entry);
        } else {
            sets_refer(&table->sets, set);
            entry->set = set;
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

static void sweep_segment(Table *table, Segment *segment) {
    segment->num_used = 0;
    uint32_t from = NO_SET, to = NO_SET;
    for (uint32_t i = 0; i < table->num_entries; i++) {
        Entry entry = segment->entries[i];
        if (entry.set == NO_SET) continue;
        segment->entries[i].set = NO_SET;
        uint32_t before = entry.set;
        if (before != from) from = before, to = sets_minus(&table->sets, before, table->gone);
        table->num_lost += to == NO_ROOM;
        if (to == NO_SET || to == NO_ROOM) {
            table->num_blocks--;
        } else {
            entry.set = to;
            sets_refer(&table->sets, to);
            put(table, segment, entry); /* there is room: it comes no later than where it was */
        }
        sets_release(&table->sets, before);
        if (!sets_is_live(&table->sets, before)) from = NO_SET; /* its number may be another's */
    }
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
