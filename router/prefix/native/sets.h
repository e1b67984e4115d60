/* Sets of slots, each kept once however many blocks it is the set of.
 *
 * A set of one slot is a number that says so; others are numbered rows of bits, counted by those
 * who refer to them. Nothing here is moved once made: a row is a place in memory that was reserved
 * at the start and is taken from the system when it is first written.
 */
#ifndef BATON_PREFIX_SETS_H
#define BATON_PREFIX_SETS_H

#include <stddef.h>
#include <stdint.h>

enum { PLANE_WORDS = 8, PLANE_SLOTS = 512, MAX_PLANES = 128, NUM_MEMOS = 4096 };

#define SINGLE 0x80000000u  /* with a slot: the set of that slot alone */
#define NO_SET 0u           /* the empty set */
#define NO_ROOM 0x7fffffffu /* in place of a set that there is no room for */

typedef struct {
    uint64_t sum; /* of mixed(slot), over its slots, by xor */
    uint32_t num_refs, num_slots;
    uint32_t next; /* with the same bucket, or free */
    uint32_t made; /* times that this number was given to a set */
} Row;

typedef struct {
    uint32_t from, change, to, from_made, to_made;
} Memo;

typedef struct {
    Row *rows;
    uint32_t *buckets;
    uint64_t *planes[MAX_PLANES]; /* of PLANE_SLOTS slots, PLANE_WORDS words a row */
    uint32_t num_planes, num_rows, max_rows, free_row, bucket_mask;
    uint32_t num_live;
    Memo memos[NUM_MEMOS];
} Sets;

int sets_make(Sets *sets, uint32_t max_rows);
void sets_drop(Sets *sets);
int sets_reserve(Sets *sets, uint32_t num_slots);
void sets_refer(Sets *sets, uint32_t set);
void sets_release(Sets *sets, uint32_t set);

/* The set with, without, or without any of these slots: itself, another, or NO_ROOM. */
uint32_t sets_with(Sets *sets, uint32_t set, uint32_t slot);
uint32_t sets_without(Sets *sets, uint32_t set, uint32_t slot);
uint32_t sets_minus(Sets *sets, uint32_t set, const uint64_t *gone);

void *pages_reserve(size_t size);
void pages_return(void *pages, size_t size);

static inline int sets_has(const Sets *sets, uint32_t set, uint32_t slot) {
    if (set & SINGLE) return (set ^ SINGLE) == slot;
    const uint64_t *words = sets->planes[slot / PLANE_SLOTS] + (size_t)set * PLANE_WORDS;
    return words[slot % PLANE_SLOTS / 64] >> (slot % 64) & 1;
}

#endif
