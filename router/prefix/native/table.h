/* Blocks and the sets of slots that hold them.
 *
 * 64 bits of a hash name a block. They are mixed into where it lies: the first bits choose a
 * segment, the next a line of it, as long as a cache line, which hardly ever is full: so to find a
 * block takes one access to memory. Where it is full, the next line has room. A segment that fills
 * up is split in two, so that growth never stops anyone for longer than one segment takes; all are
 * of one size, which at the last split leaves room for `max_blocks`. The last line of a segment is
 * always empty.
 */
#ifndef BATON_PREFIX_TABLE_H
#define BATON_PREFIX_TABLE_H

#include <string.h>

#include "sets.h"

enum { HASH_BYTES = 16, LINE_BLOCKS = 5, BATCH = 64 };

typedef struct {
    uint64_t keys[LINE_BLOCKS];
    uint32_t sets[LINE_BLOCKS], num;
} Line;

typedef struct {
    Line *lines;
    uint32_t num_used, depth; /* depth: bits of the directory that all its blocks share */
} Segment;

typedef struct {
    uint32_t depth; /* the first so many blocks of a chain */
    uint32_t set;   /* who holds the last of them */
} Probe;

typedef struct { /* somebody holds as many blocks as `low` and not as many as `high` */
    Probe low, high;
} Span;

typedef struct {
    Sets sets;
    Line *arena;
    size_t arena_bytes;
    Segment *segments;
    uint32_t *directory;
    uint32_t directory_bits, num_segments, num_homes, num_lines;
    uint64_t num_blocks, max_blocks;
    uint64_t num_lost;   /* blocks forgotten though somebody holds them */
    uint64_t *gone;      /* slots being swept */
    uint32_t swept;      /* place of the directory up to which they are */
    uint64_t *closed;    /* slots that hold what comes before whatever they hold */
    uint64_t *asked;     /* for a walk: those of them that it is asked of */
    Span *spans;         /* for a walk: where their depths lie */
    uint64_t *matching;  /* for a walk: other slots, that held all blocks so far */
    uint32_t *places;    /* for a walk: of each slot in what is asked */
    uint64_t *releases;  /* for a walk: (depth, slot) of slots hoped to hold a beginning */
    uint32_t num_scratch, num_spans;
} Table;

typedef struct {
    Line *line;
    uint32_t at; /* LINE_BLOCKS: it is not there */
} Found;

/* Both halves of a hash: those of tests may differ in one alone. */
static inline uint64_t key_of(const uint8_t *hashes, size_t block) {
    uint64_t one, other;
    memcpy(&one, hashes + block * HASH_BYTES, 8);
    memcpy(&other, hashes + block * HASH_BYTES + 8, 8);
    return one + other * 0xbf58476d1ce4e5b9u;
}

static inline uint64_t mixed_key(uint64_t key) {
    return (key ^ key >> 32) * 0x9e3779b97f4a7c15u;
}

static inline uint32_t place_of(const Table *table, uint64_t mixed) {
    return (uint32_t)(mixed >> 32 >> (32 - table->directory_bits));
}

static inline Segment *segment_of(const Table *table, uint64_t mixed) {
    return &table->segments[table->directory[place_of(table, mixed)]];
}

static inline Line *home_of(const Table *table, const Segment *segment, uint64_t mixed) {
    return segment->lines + ((mixed << table->directory_bits >> 32) * table->num_homes >> 32);
}

static inline Line *home_of_key(const Table *table, uint64_t key) {
    uint64_t mixed = mixed_key(key);
    return home_of(table, segment_of(table, mixed), mixed);
}

/* The lines of up to BATCH blocks are on their way from memory side by side. They are read, not
 * prefetched: of pages that the TLB does not know prefetches may be dropped, and were
 * (docs/lab.md). */
static inline void ask_for(const Table *table, const uint8_t *hashes, uint64_t start,
                           uint64_t num) {
    uint64_t stop = start + BATCH < num ? start + BATCH : num;
    uint32_t read = 0;
    for (uint64_t i = start; i < stop; i++) read += home_of_key(table, key_of(hashes, i))->num;
    __asm__ volatile("" ::"r"(read));
}

/* In this line or, as long as they are full, those after it. */
static inline Found find_from(Line *line, uint64_t key) {
    for (;; line++) {
        uint32_t same = 0;
        for (uint32_t i = 0; i < LINE_BLOCKS; i++) same |= (uint32_t)(line->keys[i] == key) << i;
        same &= (1u << line->num) - 1;
        if (same) return (Found){line, (uint32_t)__builtin_ctz(same)};
        if (line->num < LINE_BLOCKS) return (Found){line, LINE_BLOCKS};
    }
}

int closed_depths(Table *table, const uint8_t *hashes, uint32_t num, uint32_t *depths);

static inline Found find(const Table *table, uint64_t key) {
    return find_from(home_of_key(table, key), key);
}

#endif
