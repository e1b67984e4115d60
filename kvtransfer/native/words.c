/* The sums of kvtransfer/kernels/copy.py, on hosts.
 *
 * A piece of words w_0, w_1, ... sums to the sum over i of mix(w_i + (i + 1) * GAMMA), where mix
 * is the finaliser of splitmix64 (Steele, Lea, Flood, OOPSLA 2014): what a GPU's threads can take
 * in any order.
 */
#include "words.h"

#include "lines.h"

enum { WORD = 8, AHEAD = 1024 };

static const uint64_t GAMMA = 0x9E3779B97F4A7C15ULL;
static const uint64_t FIRST = 0xBF58476D1CE4E5B9ULL, SECOND = 0x94D049BB133111EBULL;

static inline uint64_t mixed(uint64_t z) {
    z = (z ^ (z >> 30)) * FIRST;
    z = (z ^ (z >> 27)) * SECOND;
    return z ^ (z >> 31);
}

static inline Line mixed_line(Line z) {
    z = times(xored(z, shifted_right(z, 30)), FIRST);
    z = times(xored(z, shifted_right(z, 27)), SECOND);
    return xored(z, shifted_right(z, 31));
}

/* Whole lines; the sum of their words, of which the first has this number. */
static inline __attribute__((always_inline)) uint64_t take_lines(
    uint64_t number, uint8_t *into, const uint8_t *from, int64_t num_lines, int streaming) {
    uint64_t salts[LINE_WORDS], sums[LINE_WORDS], sum = 0;
    for (int i = 0; i < LINE_WORDS; i++) salts[i] = (number + 1 + (uint64_t)i) * GAMMA;
    const Line step = line_of(LINE_WORDS * GAMMA);
    Line salt = line_at(salts), total = line_of(0);
    for (int64_t line = 0; line < num_lines; line++, from += LINE) {
        __builtin_prefetch(from + AHEAD);
        const Line words = line_at(from);
        pass_line(into, words, streaming);
        if (into) into += LINE;
        total = plus(total, mixed_line(plus(words, salt)));
        salt = plus(salt, step);
    }
    put_line(sums, total);
    for (int i = 0; i < LINE_WORDS; i++) sum += sums[i];
    return sum;
}

void baton_kv_take_words(WordSum *sum, uint8_t *into, const uint8_t *from, int64_t size,
                         int streaming) {
    const int64_t num_lines = size / LINE;
    if (!into)
        sum->sum += take_lines(sum->number, 0, from, num_lines, 0);
    else if (streaming && can_stream(into))
        sum->sum += take_lines(sum->number, into, from, num_lines, 1);
    else
        sum->sum += take_lines(sum->number, into, from, num_lines, 0);
    sum->number += (uint64_t)(num_lines * LINE_WORDS);
    for (int64_t at = num_lines * LINE; at < size; at += WORD) {
        uint64_t word;
        memcpy(&word, from + at, WORD);
        if (into) memcpy(into + at, &word, WORD);
        sum->sum += mixed(word + ++sum->number * GAMMA);
    }
}
