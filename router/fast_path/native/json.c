/* JSON strings as msgspec writes them: UTF-8 as it is, what must be escaped as short as it goes. */
#include <string.h>

#include "streams.h"

/* Bytes of the character that begins here, 0 if it is none of UTF-8 (Unicode 15, table 3-7). */
static size_t character(const uint8_t *at, size_t left) {
  uint8_t first = at[0], least = 0x80, most = 0xBF;
  size_t num = first < 0x80 ? 1 : first < 0xC2 ? 0 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : first < 0xF5 ? 4 : 0;
  if (num < 2) return num;
  if (num > left) return 0;
  if (first == 0xE0) least = 0xA0;
  if (first == 0xED) most = 0x9F;
  if (first == 0xF0) least = 0x90;
  if (first == 0xF4) most = 0x8F;
  if (at[1] < least || at[1] > most) return 0;
  for (size_t i = 2; i < num; i++)
    if (at[i] < 0x80 || at[i] > 0xBF) return 0;
  return num;
}

static uint8_t *append_escaped(uint8_t *to, uint8_t byte) {
  static const char digits[] = "0123456789abcdef";
  *to++ = '\\';
  switch (byte) {
    case '"': case '\\': *to++ = byte; return to;
    case '\b': *to++ = 'b'; return to;
    case '\f': *to++ = 'f'; return to;
    case '\n': *to++ = 'n'; return to;
    case '\r': *to++ = 'r'; return to;
    case '\t': *to++ = 't'; return to;
  }
  memcpy(to, "u00", 3);
  to[3] = digits[byte >> 4];
  to[4] = digits[byte & 15];
  return to + 5;
}

uint8_t *baton_append_json(uint8_t *to, Bytes text) {
  *to++ = '"';
  for (size_t i = 0; i < text.len;) {
    uint8_t byte = text.at[i];
    if (byte < 0x20 || byte == '"' || byte == '\\') {
      to = append_escaped(to, byte);
      i++;
      continue;
    }
    size_t num = character(text.at + i, text.len - i);
    if (num == 0) return NULL;
    memcpy(to, text.at + i, num);
    to += num;
    i += num;
  }
  *to++ = '"';
  return to;
}
