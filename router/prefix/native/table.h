/* Blocks and the sets of slots that hold them.
 *
 * 96 bits of a hash name a block: the first 64 are its key, the others are folded into its check.
 * Both are mixed into where it lies: the first bits choose a segment, the next a place in it. A
 * segment that fills up is split in two, so that growth never stops anyone for longer than one
 * segment takes; all are of one size, which at the last split leaves room for `max_blocks`. Within
 * a segment: linear probing without a wrap-around; its last entry is always empty.
 */
#ifndef BATON_PREFIX_TABLE_H
#define BATON_PREFIX_TABLE_H

#include <string.h>

#include "sets.h"

enum { HASH_BYTES = 16, AHEAD = 16 }; /* AHEAD: blocks whose memory is asked for beforehand */

typedef struct {
    uint64_t key;
    uint32_t check, set; /* NO_SET: empty */
} Entry;

typedef struct {
    Entry *entries;
    uint32_t num_used, depth; /* depth: bits of the directory that all its blocks share */
} Segment;

typedef struct {
    Sets sets;
    Entry *arena;
    size_t arena_bytes;
    Segment *segments;
    uint32_t *directory;
    uint32_t directory_bits, num_segments, num_homes, num_entries;
    uint64_t num_blocks, max_blocks;
    uint64_t num_lost;   /* blocks forgotten though somebody holds them */
    uint64_t *gone;      /* slots being swept */
    uint32_t swept;      /* place of the directory up to which they are */
    uint64_t *matching;  /* for a walk: slots that held all blocks so far */
    uint32_t *places;    /* for a walk: of each slot in what is asked */
    uint64_t *releases;  /* for a walk: (depth, slot) of slots hoped to hold a beginning */
    uint32_t num_scratch;
} Table;

typedef struct {
    uint64_t key;
    uint32_t check;
} Name;

static inline Name name_of(const uint8_t *hashes, size_t block) {
    Name name;
    uint64_t rest;
    memcpy(&name.key, hashes + block * HASH_BYTES, 8);
    memcpy(&rest, hashes + block * HASH_BYTES + 8, 8);
    name.check = (uint32_t)(rest ^ rest >> 32);
    return name;
}

static inline uint64_t mixed_name(uint64_t key, uint32_t check) {
    return (key ^ (uint64_t)check << 32) * 0x9e3779b97f4a7c15u;
}

static inline uint32_t place_of(const Table *table, uint64_t mixed) {
    return (uint32_t)(mixed >> 32 >> (32 - table->directory_bits));
}

static inline Segment *segment_of(const Table *table, uint64_t mixed) {
    return &table->segments[table->directory[place_of(table, mixed)]];
}

static inline Entry *home_of(const Table *table, const Segment *segment, uint64_t mixed) {
    return segment->entries + ((mixed << table->directory_bits >> 32) * table->num_homes >> 32);
}

static inline void ask_for(const Table *table, Name name) {
    uint64_t mixed = mixed_name(name.key, name.check);
    __builtin_prefetch(home_of(table, segment_of(table, mixed), mixed), 1);
}

/* The block's entry, or the empty one that ends the search. */
static inline Entry *find(const Table *table, Name name) {
    uint64_t mixed = mixed_name(name.key, name.check);
    Entry *entry = home_of(table, segment_of(table, mixed), mixed);
    while (entry->set != NO_SET && (entry->key != name.key || entry->check != name.check)) entry++;
    return entry;
}

#endif
