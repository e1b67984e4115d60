/* A worker's step: read whole, then each token that is due to a plain stream is written to its socket.
   What is not as a worker packs it is not understood, and nothing has happened. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "streams.h"

enum { FRAMING = 20, MAX_EVENT_TEXT = 1 << 20 };

typedef struct {
  const uint8_t *at, *end;
  int is_broken;
} Reader;

typedef struct {
  int64_t index, token_id, attempt;
  Bytes text, request;
} Token;

typedef struct { /* both of `room` */
  int64_t num_left, num_stuck;
  uint64_t *left; /* bytes of the frame: first and behind the last, of each token not passed */
  int64_t *stuck; /* slots whose socket did not take all */
  int64_t room;
} Passed;

static uint64_t big_endian(Reader *reader, size_t num) {
  uint64_t value = 0;
  if ((size_t)(reader->end - reader->at) < num) {
    reader->is_broken = 1;
    return 0;
  }
  while (num--) value = value << 8 | *reader->at++;
  return value;
}

static int64_t natural(Reader *reader) { /* of at most 63 bits */
  uint64_t byte = big_endian(reader, 1);
  if (byte < 0x80) return (int64_t)byte;
  if (byte < 0xCC || byte > 0xCF) reader->is_broken = 1;
  uint64_t value = reader->is_broken ? 0 : big_endian(reader, (size_t)1 << (byte - 0xCC));
  if (value >> 63) reader->is_broken = 1;
  return (int64_t)value;
}

static Bytes string(Reader *reader) {
  uint64_t byte = big_endian(reader, 1), len = byte & 31;
  if (byte >= 0xD9 && byte <= 0xDB)
    len = big_endian(reader, (size_t)1 << (byte - 0xD9));
  else if (byte >> 5 != 5)
    reader->is_broken = 1;
  if (reader->is_broken || (uint64_t)(reader->end - reader->at) < len) {
    reader->is_broken = 1;
    return (Bytes){reader->at, 0};
  }
  Bytes found = {reader->at, len};
  reader->at += len;
  return found;
}

static uint64_t array_len(Reader *reader) {
  uint64_t byte = big_endian(reader, 1);
  if (byte >> 4 == 9) return byte & 15;
  if (byte == 0xDC || byte == 0xDD) return big_endian(reader, byte == 0xDC ? 2 : 4);
  reader->is_broken = 1;
  return 0;
}

static void floating(Reader *reader) {
  uint64_t byte = big_endian(reader, 1);
  if (byte == 0xCA || byte == 0xCB)
    (void)big_endian(reader, byte == 0xCA ? 4 : 8);
  else
    reader->is_broken = 1;
}

/* Log probabilities, which no plain stream tells: of the token, and of alternatives. */
static void pass_over_logprobs(Reader *reader) {
  if (reader->at < reader->end && *reader->at == 0xC0)
    reader->at++;
  else
    floating(reader);
  for (uint64_t num = array_len(reader); num > 0 && !reader->is_broken; num--) {
    if (big_endian(reader, 1) != 0x92) reader->is_broken = 1;
    (void)natural(reader);
    floating(reader);
  }
}

/* {"type": 8, "emits": [ */
static uint64_t step_len(Reader *reader) {
  static const uint8_t head[] = "\x82\xA4type\x08\xA5"
                                "emits";
  size_t num = sizeof head - 1;
  if ((size_t)(reader->end - reader->at) < num || memcmp(reader->at, head, num) != 0) {
    reader->is_broken = 1;
    return 0;
  }
  reader->at += num;
  return array_len(reader);
}

/* Of `protocol.messages.Emit`. */
static Token token(Reader *reader) {
  Token found = {0};
  if (big_endian(reader, 1) != 0x97) reader->is_broken = 1;
  found.index = natural(reader);
  found.token_id = natural(reader);
  found.text = string(reader);
  pass_over_logprobs(reader);
  found.request = string(reader);
  found.attempt = natural(reader);
  return found;
}

static int has_room(Streams *streams, Stream *stream, size_t num_text) {
  if (stream->num_ids == stream->max_ids) {
    size_t max = stream->max_ids ? 2 * stream->max_ids : 64;
    int64_t *more = realloc(stream->token_ids, max * sizeof *more);
    if (more == NULL) return 0;
    stream->token_ids = more, stream->max_ids = max;
  }
  size_t num = 2 * FRAMING + stream->num_before + 6 * num_text + 2 + stream->num_after;
  if (num > streams->max_event) {
    uint8_t *more = realloc(streams->event, 2 * num);
    if (more == NULL) return 0;
    streams->event = more, streams->max_event = 2 * num;
  }
  return 1;
}

/* The event as it goes to the socket; nothing of it if the text is not UTF-8. */
static Bytes event(Streams *streams, const Stream *stream, Bytes text) {
  uint8_t *first = streams->event + FRAMING, *end = first;
  memcpy(end, stream->around, stream->num_before);
  end = baton_append_json(end + stream->num_before, text);
  if (end == NULL) return (Bytes){first, 0};
  memcpy(end, stream->around + stream->num_before, stream->num_after);
  end += stream->num_after;
  if (stream->is_chunked) {
    size_t len = (size_t)(end - first);
    memcpy(end, "\r\n", 2), end += 2;
    *--first = '\n', *--first = '\r';
    do *--first = (uint8_t)"0123456789abcdef"[len & 15];
    while (len >>= 4);
  }
  return (Bytes){first, (size_t)(end - first)};
}

/* What the socket does not take, for any reason, is kept, and the stream closed: its transport goes on
   from there, and finds the reason. Without memory for that the connection is cut. */
static int send_event(Stream *stream, Bytes event) {
  ssize_t sent;
  do sent = send(stream->socket, event.at, event.len, MSG_DONTWAIT | MSG_NOSIGNAL);
  while (sent < 0 && errno == EINTR);
  size_t done = sent < 0 ? 0 : (size_t)sent;
  if (done == event.len) return 1;
  stream->is_open = 0;
  stream->rest = malloc(event.len - done);
  if (stream->rest == NULL) {
    shutdown(stream->socket, SHUT_RDWR);
    return 0;
  }
  memcpy(stream->rest, event.at + done, event.len - done);
  stream->num_rest = event.len - done;
  return 0;
}

static void note_gap(Streams *streams, Stream *stream, double now) {
  double gap = now - stream->last_at;
  int64_t i = 0;
  while (i < streams->num_bounds && streams->bounds[i] < gap) i++;
  streams->counts[i]++;
  *streams->sum += gap;
  stream->last_at = now;
}

static int is_due(const Stream *stream, const Token *token, int64_t worker) {
  return stream->is_open && stream->worker == worker && stream->attempt == token->attempt &&
         stream->due == token->index;
}

/* 1: the stream has it, or will; 0: it is left, and nothing has happened. */
static int pass_token(Streams *streams, const Token *token, int64_t worker, double now, Passed *passed) {
  int64_t slot = baton_find_stream(streams, token->request);
  if (slot < 0) return 0;
  Stream *stream = &streams->streams[slot];
  if (!is_due(stream, token, worker) || token->text.len > MAX_EVENT_TEXT) return 0;
  if (!has_room(streams, stream, token->text.len)) return 0;
  if (token->text.len) {
    Bytes made = event(streams, stream, token->text);
    if (made.len == 0) return 0;
    if (!send_event(stream, made)) passed->stuck[passed->num_stuck++] = slot;
  }
  stream->token_ids[stream->num_ids++] = token->token_id;
  stream->due++;
  note_gap(streams, stream, now);
  return 1;
}

static int is_understood(Reader reader, int64_t room) {
  uint64_t num = step_len(&reader);
  if (num > (uint64_t)room) return 0;
  for (uint64_t i = 0; i < num && !reader.is_broken; i++) (void)token(&reader);
  return !reader.is_broken && reader.at == reader.end;
}

/* 0: it is no step that is understood here, and nothing has happened. */
int baton_streams_pass_step(Streams *streams, const uint8_t *frame, size_t len, int64_t worker, double now,
                            Passed *passed) {
  Reader reader = {frame, frame + len, 0};
  if (!is_understood(reader, passed->room)) return 0;
  passed->num_left = passed->num_stuck = 0;
  for (uint64_t num = step_len(&reader); num > 0; num--) {
    const uint8_t *from = reader.at;
    Token found = token(&reader);
    if (pass_token(streams, &found, worker, now, passed)) continue;
    passed->left[2 * passed->num_left] = (uint64_t)(from - frame);
    passed->left[2 * passed->num_left++ + 1] = (uint64_t)(reader.at - frame);
  }
  return 1;
}
