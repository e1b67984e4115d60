/* How many leading blocks of a chain each slot holds. */
#include <stdlib.h>

#include "table.h"

static int by_depth(const void *one, const void *other) {
    uint64_t a = *(const uint64_t *)one, b = *(const uint64_t *)other;
    return (a > b) - (a < b);
}

typedef struct {
    Table *table;
    const uint32_t *slots;
    uint32_t *depths;
    uint32_t num_words, num_asked, num_matching, num_releases, next_release;
} Walk;

static void match(Walk *walk, uint32_t slot) {
    walk->table->matching[slot / 64] |= 1ull << slot % 64;
    walk->num_matching++;
}

static void ask(Walk *walk, uint32_t slot) {
    walk->table->asked[slot / 64] |= 1ull << slot % 64;
    walk->num_asked++;
}

static int is_closed(const Table *table, uint32_t slot) {
    return table->closed[slot / 64] >> slot % 64 & 1;
}

/* Slots hoped to hold a beginning are not asked for what lies in it. */
static void begin(Walk *walk, const uint32_t *hoped, uint32_t num_slots, uint32_t num) {
    Table *table = walk->table;
    memset(table->matching, 0, walk->num_words * sizeof(uint64_t));
    memset(table->asked, 0, walk->num_words * sizeof(uint64_t));
    for (uint32_t i = 0; i < num_slots; i++) {
        walk->depths[i] = 0;
        if (walk->slots[i] == UINT32_MAX) continue;
        table->places[walk->slots[i]] = i;
        uint32_t hope = hoped ? hoped[i] : 0;
        if (hope >= num)
            walk->depths[i] = num;
        else if (is_closed(table, walk->slots[i]))
            ask(walk, walk->slots[i]);
        else if (hope)
            table->releases[walk->num_releases++] = (uint64_t)hope << 32 | walk->slots[i];
        else
            match(walk, walk->slots[i]);
    }
    qsort(table->releases, walk->num_releases, sizeof(uint64_t), by_depth);
}

/* 1 if somebody begins to match at this block. */
static int release(Walk *walk, uint32_t block) {
    int any = 0;
    const uint64_t *releases = walk->table->releases;
    while (walk->next_release < walk->num_releases &&
           releases[walk->next_release] >> 32 == block) {
        match(walk, (uint32_t)releases[walk->next_release++]);
        any = 1;
    }
    return any;
}

static void lose(Walk *walk, uint32_t word, uint64_t lost, uint32_t depth) {
    walk->table->matching[word] &= ~lost;
    for (; lost; lost &= lost - 1) {
        uint32_t slot = word * 64 + (uint32_t)__builtin_ctzll(lost);
        walk->depths[walk->table->places[slot]] = depth;
        walk->num_matching--;
    }
}

static void keep_only(Walk *walk, uint32_t set, uint32_t depth) {
    const Sets *sets = &walk->table->sets;
    uint32_t slot = set ^ SINGLE;
    for (uint32_t word = 0; word < walk->num_words; word++) {
        uint64_t held = 0;
        if (set & SINGLE)
            held = word == slot / 64 ? 1ull << slot % 64 : 0;
        else if (set != NO_SET)
            held = sets->planes[word / PLANE_WORDS][(size_t)set * PLANE_WORDS + word % PLANE_WORDS];
        uint64_t lost = walk->table->matching[word] & ~held;
        if (lost) lose(walk, word, lost, depth);
    }
}

/* As of `ask_for`. */
static void find_lines(const Table *table, const uint8_t *hashes, uint32_t start, uint32_t stop,
                       Line **lines) {
    uint32_t read = 0;
    for (uint32_t i = start; i < stop; i++) {
        lines[i - start] = home_of_key(table, key_of(hashes, i));
        read += lines[i - start]->num;
    }
    __asm__ volatile("" ::"r"(read));
}

/* Block by block. */
static void follow_chain(Walk *walk, const uint8_t *hashes, uint32_t num) {
    const Table *table = walk->table;
    uint32_t last = NO_ROOM, start = 0, stop = 0;
    Line *lines[BATCH];
    for (uint32_t block = 0; block < num; block++) {
        if (!walk->num_matching) {
            if (walk->next_release == walk->num_releases) return;
            block = (uint32_t)(table->releases[walk->next_release] >> 32);
        }
        if (block >= stop) {
            start = block, stop = block + BATCH < num ? block + BATCH : num;
            find_lines(table, hashes, start, stop, lines);
        }
        int is_joined = walk->num_releases && release(walk, block);
        Found found = find_from(lines[block - start], key_of(hashes, block));
        uint32_t set = found.at == LINE_BLOCKS ? NO_SET : found.line->sets[found.at];
        if (set == last && !is_joined) continue;
        keep_only(walk, set, block);
        last = set;
    }
    for (uint32_t word = 0; word < walk->num_words; word++)
        if (table->matching[word]) lose(walk, word, table->matching[word], num);
}

/* `slots`: whom it is asked of, UINT32_MAX for nobody, below those reserved, each once. `hoped`:
 * how many leading blocks each is taken to hold anyway, or NULL. 0 when memory is lacking. */
int baton_prefix_walk(Table *table, const uint8_t *hashes, uint32_t num, const uint32_t *slots,
                      const uint32_t *hoped, uint32_t num_slots, uint32_t *depths) {
    if (table->num_scratch < num_slots) {
        uint64_t *releases = realloc(table->releases, num_slots * sizeof(uint64_t));
        if (!releases) return 0;
        table->releases = releases, table->num_scratch = num_slots;
    }
    Walk walk = {.table = table, .slots = slots, .depths = depths,
                 .num_words = table->sets.num_planes * PLANE_WORDS};
    begin(&walk, hoped, num_slots, num);
    follow_chain(&walk, hashes, num);
    if (!walk.num_asked) return 1;
    if (!closed_depths(table, hashes, num, depths)) return 0;
    for (uint32_t i = 0; hoped && i < num_slots; i++)
        if (slots[i] != UINT32_MAX && hoped[i] < num && depths[i] < hoped[i]) depths[i] = hoped[i];
    return 1;
}
