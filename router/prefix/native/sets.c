#include "sets.h"

#include <string.h>
#include <sys/mman.h>

void *pages_reserve(size_t size) {
    void *pages = mmap(NULL, size, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return pages == MAP_FAILED ? NULL : pages;
}

void pages_return(void *pages, size_t size) {
    if (pages) munmap(pages, size);
}

static size_t plane_bytes(const Sets *sets) {
    return ((size_t)sets->max_rows + 1) * PLANE_WORDS * sizeof(uint64_t);
}

static size_t rows_bytes(const Sets *sets) { return ((size_t)sets->max_rows + 1) * sizeof(Row); }

static size_t buckets_bytes(const Sets *sets) {
    return ((size_t)sets->bucket_mask + 1) * sizeof(uint32_t);
}

int sets_make(Sets *sets, uint32_t max_rows) {
    memset(sets, 0, sizeof *sets);
    sets->max_rows = max_rows;
    uint32_t num_buckets = 16;
    while (num_buckets < max_rows) num_buckets *= 2;
    sets->bucket_mask = num_buckets - 1;
    sets->rows = pages_reserve(rows_bytes(sets));
    sets->buckets = pages_reserve(buckets_bytes(sets));
    return sets->rows && sets->buckets;
}

void sets_drop(Sets *sets) {
    for (uint32_t plane = 0; plane < sets->num_planes; plane++)
        pages_return(sets->planes[plane], plane_bytes(sets));
    pages_return(sets->rows, rows_bytes(sets));
    pages_return(sets->buckets, buckets_bytes(sets));
}

int sets_reserve(Sets *sets, uint32_t num_slots) {
    while (sets->num_planes * PLANE_SLOTS < num_slots) {
        if (sets->num_planes == MAX_PLANES) return 0;
        uint64_t *plane = pages_reserve(plane_bytes(sets));
        if (!plane) return 0;
        sets->planes[sets->num_planes++] = plane;
    }
    return 1;
}

static uint64_t mixed(uint32_t slot) {
    uint64_t x = (slot + 1) * 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static uint64_t *words_of(const Sets *sets, uint32_t set, uint32_t plane) {
    return sets->planes[plane] + (size_t)set * PLANE_WORDS;
}

void sets_refer(Sets *sets, uint32_t set) {
    if (!(set & SINGLE)) sets->rows[set].num_refs++;
}

void sets_release(Sets *sets, uint32_t set) {
    if (set & SINGLE || --sets->rows[set].num_refs) return;
    uint32_t *link = &sets->buckets[sets->rows[set].sum & sets->bucket_mask];
    while (*link != set) link = &sets->rows[*link].next;
    *link = sets->rows[set].next;
    sets->rows[set].next = sets->free_row;
    sets->rows[set].made++; /* memos of the one that it was are void */
    sets->free_row = set;
    sets->num_live--;
}

/* The bits of a set that may have no row. */
typedef struct {
    uint64_t words[MAX_PLANES * PLANE_WORDS];
    uint64_t sum;
    uint32_t num_slots;
} Bits;

static void read_bits(const Sets *sets, uint32_t set, Bits *bits) {
    if (set & SINGLE) {
        memset(bits->words, 0, sets->num_planes * PLANE_WORDS * sizeof(uint64_t));
        uint32_t slot = set ^ SINGLE;
        bits->words[slot / 64] = 1ull << slot % 64;
        bits->sum = mixed(slot), bits->num_slots = 1;
        return;
    }
    for (uint32_t plane = 0; plane < sets->num_planes; plane++)
        memcpy(bits->words + plane * PLANE_WORDS, words_of(sets, set, plane),
               PLANE_WORDS * sizeof(uint64_t));
    bits->sum = sets->rows[set].sum, bits->num_slots = sets->rows[set].num_slots;
}

static int is_row(const Sets *sets, uint32_t set, const Bits *bits) {
    if (sets->rows[set].sum != bits->sum) return 0;
    for (uint32_t plane = 0; plane < sets->num_planes; plane++)
        if (memcmp(words_of(sets, set, plane), bits->words + plane * PLANE_WORDS,
                   PLANE_WORDS * sizeof(uint64_t)))
            return 0;
    return 1;
}

static uint32_t new_row(Sets *sets) {
    uint32_t set = sets->free_row;
    if (set) {
        sets->free_row = sets->rows[set].next;
        return set;
    }
    return sets->num_rows == sets->max_rows ? NO_ROOM : ++sets->num_rows;
}

static uint32_t make_row(Sets *sets, const Bits *bits) {
    uint32_t set = new_row(sets);
    if (set == NO_ROOM) return NO_ROOM;
    for (uint32_t plane = 0; plane < sets->num_planes; plane++)
        memcpy(words_of(sets, set, plane), bits->words + plane * PLANE_WORDS,
               PLANE_WORDS * sizeof(uint64_t));
    uint32_t *bucket = &sets->buckets[bits->sum & sets->bucket_mask];
    Row *row = &sets->rows[set];
    row->sum = bits->sum, row->num_slots = bits->num_slots, row->num_refs = 0;
    row->next = *bucket, *bucket = set;
    sets->num_live++;
    return set;
}

static uint32_t set_of(Sets *sets, const Bits *bits) {
    if (bits->num_slots == 0) return NO_SET;
    if (bits->num_slots == 1)
        for (uint32_t word = 0;; word++)
            if (bits->words[word])
                return SINGLE | (word * 64 + (uint32_t)__builtin_ctzll(bits->words[word]));
    for (uint32_t set = sets->buckets[bits->sum & sets->bucket_mask]; set;
         set = sets->rows[set].next)
        if (is_row(sets, set, bits)) return set;
    return make_row(sets, bits);
}

static uint32_t made(const Sets *sets, uint32_t set) {
    return set & SINGLE || set == NO_SET ? 0 : sets->rows[set].made;
}

/* The set with one slot turned over: blocks of one chain ask for the same again and again. */
static uint32_t turned(Sets *sets, uint32_t set, uint32_t slot) {
    uint32_t place = (set * 0x9e3779b1u ^ slot * 0x85ebca6bu) >> 20;
    Memo *memo = &sets->memos[place % NUM_MEMOS];
    if (memo->from == set && memo->change == slot && memo->from_made == made(sets, set) &&
        memo->to_made == made(sets, memo->to))
        return memo->to;
    Bits bits;
    read_bits(sets, set, &bits);
    uint64_t bit = 1ull << slot % 64;
    bits.num_slots += bits.words[slot / 64] & bit ? -1u : 1u;
    bits.words[slot / 64] ^= bit;
    bits.sum ^= mixed(slot);
    uint32_t to = set_of(sets, &bits);
    if (to != NO_ROOM) *memo = (Memo){set, slot, to, made(sets, set), made(sets, to)};
    return to;
}

uint32_t sets_with(Sets *sets, uint32_t set, uint32_t slot) {
    return sets_has(sets, set, slot) ? set : turned(sets, set, slot);
}

uint32_t sets_without(Sets *sets, uint32_t set, uint32_t slot) {
    return sets_has(sets, set, slot) ? turned(sets, set, slot) : set;
}

uint32_t sets_minus(Sets *sets, uint32_t set, const uint64_t *gone) {
    if (set & SINGLE) {
        uint32_t slot = set ^ SINGLE;
        return gone[slot / 64] >> slot % 64 & 1 ? NO_SET : set;
    }
    uint64_t any = 0;
    for (uint32_t plane = 0; plane < sets->num_planes; plane++)
        for (uint32_t word = 0; word < PLANE_WORDS; word++)
            any |= words_of(sets, set, plane)[word] & gone[plane * PLANE_WORDS + word];
    if (!any) return set;
    Bits bits;
    read_bits(sets, set, &bits);
    for (uint32_t word = 0; word < sets->num_planes * PLANE_WORDS; word++)
        for (uint64_t left = bits.words[word] & gone[word]; left; left &= left - 1) {
            bits.sum ^= mixed(word * 64 + (uint32_t)__builtin_ctzll(left));
            bits.words[word] ^= left & -left;
            bits.num_slots--;
        }
    return set_of(sets, &bits);
}
