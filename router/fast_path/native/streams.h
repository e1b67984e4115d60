/* Plain streams: what is due of each, from whom, and how an event of it is written to which socket. */
#ifndef BATON_STREAMS_H
#define BATON_STREAMS_H
#include <stddef.h>
#include <stdint.h>

typedef struct {
  const uint8_t *at;
  size_t len;
} Bytes; /* not owned */

typedef struct {
  int64_t next; /* slot in the same bucket, or the next free one; -1: none */
  uint8_t *request;
  size_t request_len;
  int64_t worker, attempt, due; /* `due`: index of the next token */
  int socket;
  int is_chunked, is_open; /* not open: what it is sent is left to others */
  uint8_t *around;         /* what comes before a text, then what comes after it */
  size_t num_before, num_after;
  double last_at; /* seconds */
  int64_t *token_ids; /* passed since it was added */
  size_t num_ids, max_ids;
  uint8_t *rest; /* what its socket did not take; NULL: nothing */
  size_t num_rest;
} Stream;

typedef struct {
  Stream *streams;
  int64_t num_streams, free; /* slots made; the first free one */
  int64_t *buckets;
  uint8_t *event; /* scratch */
  size_t max_event;
  const double *bounds; /* of the histogram of gaps: seconds, ascending */
  int64_t *counts;
  double *sum;
  int64_t num_bounds;
} Streams;

int64_t baton_find_stream(const Streams *streams, Bytes request);
/* Appends `text` as a JSON string; what is not UTF-8: NULL. Room for 6 bytes a byte and 2 more. */
uint8_t *baton_append_json(uint8_t *to, Bytes text);
#endif
