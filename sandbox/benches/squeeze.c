// A payload for the `factors` bench: makes a text, compresses it with an LZ77 of its own, restores it, compares, and
// sorts its words. It prints a checksum that is the same wherever it runs.
//
//     squeeze ROUNDS

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    TEXT_BYTES = 4 << 20,
    WORDS = 4096,
    WORD_BYTES_MAX = 12,
    WINDOW_BYTES = 1 << 15,
    HASH_BITS = 15,
    MATCH_MIN = 4,
    MATCH_MAX = 255,
    CHAIN_MAX = 16,
    BATCH = 2048,
};

static uint64_t state = 88172645463325252u;

static uint32_t draw(uint32_t below) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 32) % below;
}

static char words[WORDS][WORD_BYTES_MAX + 1];

// Few words are frequent and many are rare, as in real texts.
static void make_text(uint8_t *text) {
    for (int word = 0; word < WORDS; word++) {
        uint32_t len = 2 + draw(WORD_BYTES_MAX - 1);
        for (uint32_t at = 0; at < len; at++) words[word][at] = (char)('a' + draw(26));
        words[word][len] = 0;
    }
    size_t at = 0;
    while (at < TEXT_BYTES) {
        const char *word = words[draw(1 + draw(1 + draw(WORDS)))];
        for (; *word && at < TEXT_BYTES; word++) text[at++] = (uint8_t)*word;
        if (at < TEXT_BYTES) text[at++] = ' ';
    }
}

static uint32_t hash(const uint8_t *at) {
    uint32_t four;
    memcpy(&four, at, sizeof four);
    return (four * 2654435761u) >> (32 - HASH_BITS);
}

static int32_t heads[1 << HASH_BITS];
static int32_t chain[WINDOW_BYTES];

// A literal is 0 and the byte; a match is its length and two bytes of distance.
static size_t compress(const uint8_t *in, size_t len, uint8_t *out) {
    memset(heads, -1, sizeof heads);
    size_t at = 0, end = 0;
    while (at < len) {
        size_t best_len = 0, best_distance = 0;
        if (at + MATCH_MAX < len) {
            int32_t candidate = heads[hash(in + at)];
            for (int tries = 0; tries < CHAIN_MAX && candidate >= 0 && at - candidate < WINDOW_BYTES; tries++) {
                size_t same = 0;
                while (same < MATCH_MAX && in[candidate + same] == in[at + same]) same++;
                if (same > best_len) {
                    best_len = same;
                    best_distance = at - (size_t)candidate;
                }
                int32_t next = chain[candidate % WINDOW_BYTES];
                if (next >= candidate) break;
                candidate = next;
            }
        }
        size_t step = best_len >= MATCH_MIN ? best_len : 1;
        if (best_len >= MATCH_MIN) {
            out[end++] = (uint8_t)best_len;
            out[end++] = (uint8_t)best_distance;
            out[end++] = (uint8_t)(best_distance >> 8);
        } else {
            out[end++] = 0;
            out[end++] = in[at];
        }
        for (size_t stop = at + step; at < stop; at++) {
            if (at + MATCH_MIN > len) continue;
            uint32_t slot = hash(in + at);
            chain[at % WINDOW_BYTES] = heads[slot];
            heads[slot] = (int32_t)at;
        }
    }
    return end;
}

static size_t restore(const uint8_t *in, size_t len, uint8_t *out) {
    size_t end = 0;
    for (size_t at = 0; at < len;) {
        size_t same = in[at];
        if (same == 0) {
            out[end++] = in[at + 1];
            at += 2;
            continue;
        }
        size_t distance = in[at + 1] | (size_t)in[at + 2] << 8;
        for (; same > 0; same--, end++) out[end] = out[end - distance];
        at += 3;
    }
    return end;
}

static uint64_t checksum(const uint8_t *bytes, size_t len) {
    uint64_t sum = 14695981039346656037u;
    for (size_t at = 0; at < len; at++) sum = (sum ^ bytes[at]) * 1099511628211u;
    return sum;
}

// Orders words by their letters, and not by a function of the C library: each target has one of its own.
static int is_before(const char *one, const char *other) {
    while (*one && *one == *other) one++, other++;
    return (uint8_t)*one < (uint8_t)*other;
}

static void sink(char **list, size_t at, size_t count) {
    for (size_t child; (child = 2 * at + 1) < count; at = child) {
        if (child + 1 < count && is_before(list[child], list[child + 1])) child++;
        if (!is_before(list[at], list[child])) return;
        char *word = list[at];
        list[at] = list[child];
        list[child] = word;
    }
}

static void sort(char **list, size_t count) {
    for (size_t at = count / 2; at-- > 0;) sink(list, at, count);
    for (size_t end = count; end-- > 1;) {
        char *word = list[0];
        list[0] = list[end];
        list[end] = word;
        sink(list, 0, end);
    }
}

// In batches, since sorting all at once would mostly wait for memory.
static uint64_t sort_words(const uint8_t *text, char *copy, char **list) {
    size_t count = 0;
    for (size_t at = 0; at < TEXT_BYTES; at++) {
        if (at == 0 || text[at - 1] == ' ') list[count++] = copy + at;
        copy[at] = text[at] == ' ' ? 0 : (char)text[at];
    }
    copy[TEXT_BYTES] = 0;
    for (size_t at = 0; at < count; at += BATCH) sort(list + at, count - at < BATCH ? count - at : BATCH);
    uint64_t sum = count;
    for (size_t at = 0; at < count; at += 1000) sum = sum * 31 + checksum((uint8_t *)list[at], strlen(list[at]));
    return sum;
}

int main(int argc, char **argv) {
    int rounds = argc > 1 ? atoi(argv[1]) : 1;
    uint8_t *text = malloc(TEXT_BYTES), *packed = malloc(2 * TEXT_BYTES), *restored = malloc(TEXT_BYTES + MATCH_MAX);
    char *copy = malloc(TEXT_BYTES + 1), **list = malloc(TEXT_BYTES * sizeof *list);
    if (!text || !packed || !restored || !copy || !list) return 2;
    uint64_t sum = 0;
    for (int round = 0; round < rounds; round++) {
        make_text(text);
        size_t len = compress(text, TEXT_BYTES, packed);
        if (restore(packed, len, restored) != TEXT_BYTES || memcmp(text, restored, TEXT_BYTES) != 0) return 1;
        sum = sum * 31 + checksum(packed, len) + sort_words(text, copy, list);
    }
    printf("%016llx\n", (unsigned long long)sum);
    return 0;
}
