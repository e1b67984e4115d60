/* The table of streams: added, found by their request, taken out with what has passed. */
#include "streams.h"

#include <stdlib.h>
#include <string.h>

enum { NUM_BUCKETS = 4096 }; /* 32 KiB; a router has some thousands of streams */

static int64_t *bucket(const Streams *streams, Bytes request) {
  uint64_t hash = 1469598103934665603u; /* FNV-1a: requests are named by ourselves */
  for (size_t i = 0; i < request.len; i++) hash = (hash ^ request.at[i]) * 1099511628211u;
  return &streams->buckets[(hash ^ hash >> 32) % NUM_BUCKETS];
}

static int is_of(const Stream *stream, Bytes request) {
  return stream->request_len == request.len && memcmp(stream->request, request.at, request.len) == 0;
}

Streams *baton_streams_make(const double *bounds, int64_t num_bounds, int64_t *counts, double *sum) {
  Streams *made = calloc(1, sizeof *made);
  if (made == NULL) return NULL;
  made->buckets = malloc(NUM_BUCKETS * sizeof *made->buckets);
  if (made->buckets == NULL) {
    free(made);
    return NULL;
  }
  for (int i = 0; i < NUM_BUCKETS; i++) made->buckets[i] = -1;
  made->free = -1;
  made->bounds = bounds, made->num_bounds = num_bounds, made->counts = counts, made->sum = sum;
  return made;
}

static void forget(Stream *stream) {
  free(stream->request), free(stream->around), free(stream->token_ids), free(stream->rest);
  memset(stream, 0, sizeof *stream);
}

void baton_streams_drop(Streams *streams) {
  for (int64_t i = 0; i < streams->num_streams; i++) forget(&streams->streams[i]);
  free(streams->streams), free(streams->buckets), free(streams->event), free(streams);
}

int64_t baton_find_stream(const Streams *streams, Bytes request) {
  int64_t slot = *bucket(streams, request);
  while (slot >= 0 && !is_of(&streams->streams[slot], request)) slot = streams->streams[slot].next;
  return slot;
}

/* A slot of nobody, or -1 for want of memory. */
static int64_t free_slot(Streams *streams) {
  int64_t slot = streams->free;
  if (slot >= 0) {
    streams->free = streams->streams[slot].next;
    return slot;
  }
  int64_t num = streams->num_streams;
  if ((num & (num - 1)) == 0) { /* full: as large as a power of two */
    Stream *more = realloc(streams->streams, (size_t)(num ? 2 * num : 1) * sizeof *more);
    if (more == NULL) return -1;
    streams->streams = more;
  }
  memset(&streams->streams[num], 0, sizeof *streams->streams);
  return streams->num_streams++;
}

/* The stream's slot, or -1 for want of memory. Its request must be in the table once at most. */
int64_t baton_streams_add(Streams *streams, const uint8_t *request, size_t request_len, int64_t worker,
                          int64_t attempt, int64_t due, int socket, int is_chunked, const uint8_t *around,
                          size_t num_before, size_t num_after, double last_at) {
  int64_t slot = free_slot(streams);
  if (slot < 0) return -1;
  Stream *made = &streams->streams[slot];
  memset(made, 0, sizeof *made);
  made->request = malloc(request_len + 1);
  made->around = malloc(num_before + num_after + 1);
  if (made->request == NULL || made->around == NULL) {
    forget(made);
    made->next = streams->free, streams->free = slot;
    return -1;
  }
  memcpy(made->request, request, request_len), made->request_len = request_len;
  memcpy(made->around, around, num_before + num_after);
  made->num_before = num_before, made->num_after = num_after;
  made->worker = worker, made->attempt = attempt, made->due = due;
  made->socket = socket, made->is_chunked = is_chunked, made->is_open = 1, made->last_at = last_at;
  int64_t *head = bucket(streams, (Bytes){request, request_len});
  made->next = *head, *head = slot;
  return slot;
}

int64_t baton_streams_num_ids(const Streams *streams, int64_t slot) {
  return (int64_t)streams->streams[slot].num_ids;
}

size_t baton_streams_num_rest(const Streams *streams, int64_t slot) {
  return streams->streams[slot].num_rest;
}

double baton_streams_last_at(const Streams *streams, int64_t slot) {
  return streams->streams[slot].last_at;
}

/* Takes it out; `token_ids` and `rest` have room for what there is of them. */
void baton_streams_take(Streams *streams, int64_t slot, int64_t *token_ids, uint8_t *rest) {
  Stream *gone = &streams->streams[slot];
  if (gone->num_ids) memcpy(token_ids, gone->token_ids, gone->num_ids * sizeof *token_ids);
  if (gone->num_rest) memcpy(rest, gone->rest, gone->num_rest);
  int64_t *link = bucket(streams, (Bytes){gone->request, gone->request_len});
  while (*link != slot) link = &streams->streams[*link].next;
  *link = gone->next;
  forget(gone);
  gone->next = streams->free, streams->free = slot;
}
