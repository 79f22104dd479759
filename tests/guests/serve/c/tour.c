// The tour of `souk serve` (`../README.md`), in C with the bindings that wit-bindgen makes of wasi:http 0.2.
#include "bindings.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// The most that one blocking write takes.
#define CHUNK 4096
#define CHUNKS 256

static bindings_string_t string(const char *text) {
  bindings_string_t borrowed;
  bindings_string_set(&borrowed, text);
  return borrowed;
}

static wasi_http_types_own_fields_t fields(const char *name, const uint8_t *value, size_t bytes) {
  wasi_http_types_own_fields_t made = wasi_http_types_constructor_fields();
  if (name == NULL) return made;
  bindings_string_t key = string(name);
  wasi_http_types_field_value_t said = {(uint8_t *)value, bytes};
  wasi_http_types_header_error_t refused;
  if (!wasi_http_types_method_fields_append(wasi_http_types_borrow_fields(made), &key, &said, &refused)) abort();
  return made;
}

// Sends the head; the body is to be written and finished.
static wasi_http_types_own_outgoing_body_t head(wasi_http_types_own_response_outparam_t out, uint16_t status,
                                                wasi_http_types_own_fields_t headers) {
  wasi_http_types_own_outgoing_response_t response = wasi_http_types_constructor_outgoing_response(headers);
  wasi_http_types_borrow_outgoing_response_t borrowed = wasi_http_types_borrow_outgoing_response(response);
  if (!wasi_http_types_method_outgoing_response_set_status_code(borrowed, status)) abort();
  wasi_http_types_own_outgoing_body_t body;
  if (!wasi_http_types_method_outgoing_response_body(borrowed, &body)) abort();
  wasi_http_types_result_own_outgoing_response_error_code_t answer = {.is_err = false, .val.ok = response};
  wasi_http_types_static_response_outparam_set(out, &answer);
  return body;
}

static wasi_io_streams_own_output_stream_t writer(wasi_http_types_own_outgoing_body_t body) {
  wasi_http_types_own_output_stream_t stream;
  if (!wasi_http_types_method_outgoing_body_write(wasi_http_types_borrow_outgoing_body(body), &stream)) abort();
  return stream;
}

static void put(wasi_io_streams_own_output_stream_t stream, const uint8_t *bytes, size_t left) {
  while (left > 0) {
    bindings_list_u8_t chunk = {(uint8_t *)bytes, left < CHUNK ? left : CHUNK};
    wasi_io_streams_stream_error_t failed;
    wasi_io_streams_borrow_output_stream_t borrowed = wasi_io_streams_borrow_output_stream(stream);
    if (!wasi_io_streams_method_output_stream_blocking_write_and_flush(borrowed, &chunk, &failed)) abort();
    bytes += chunk.len;
    left -= chunk.len;
  }
}

static void finish(wasi_io_streams_own_output_stream_t stream, wasi_http_types_own_outgoing_body_t body,
                   wasi_http_types_own_trailers_t *trailers) {
  wasi_io_streams_output_stream_drop_own(stream);
  wasi_http_types_error_code_t unfinished;
  if (!wasi_http_types_static_outgoing_body_finish(body, trailers, &unfinished)) abort();
}

static void say(wasi_http_types_own_response_outparam_t out, uint16_t status, const char *text) {
  wasi_http_types_own_outgoing_body_t body = head(out, status, fields(NULL, NULL, 0));
  wasi_io_streams_own_output_stream_t stream = writer(body);
  put(stream, (const uint8_t *)text, strlen(text));
  finish(stream, body, NULL);
}

// Hands each chunk of a body to the stream, or appends it to the text; answers the body's trailers.
static wasi_http_types_own_future_trailers_t pump(wasi_http_types_own_incoming_body_t from,
                                                  wasi_io_streams_own_output_stream_t *to, char *text, size_t room) {
  wasi_http_types_own_input_stream_t in;
  if (!wasi_http_types_method_incoming_body_stream(wasi_http_types_borrow_incoming_body(from), &in)) abort();
  bindings_list_u8_t chunk;
  wasi_io_streams_stream_error_t ended;
  while (wasi_io_streams_method_input_stream_blocking_read(wasi_io_streams_borrow_input_stream(in), CHUNK, &chunk, &ended)) {
    if (to != NULL) put(*to, chunk.ptr, chunk.len);
    if (text != NULL) strncat(text, (char *)chunk.ptr, chunk.len < room - strlen(text) ? chunk.len : room - strlen(text));
    bindings_list_u8_free(&chunk);
  }
  if (ended.tag != WASI_IO_STREAMS_STREAM_ERROR_CLOSED) abort();
  wasi_io_streams_input_stream_drop_own(in);
  return wasi_http_types_static_incoming_body_finish(from);
}

static void wait(wasi_io_poll_own_pollable_t pollable) {
  wasi_io_poll_method_pollable_block(wasi_io_poll_borrow_pollable(pollable));
  wasi_io_poll_pollable_drop_own(pollable);
}

// The trailer `x-sent` comes back as `x-seen`.
static wasi_http_types_own_trailers_t seen(wasi_http_types_own_future_trailers_t future) {
  wasi_http_types_borrow_future_trailers_t borrowed = wasi_http_types_borrow_future_trailers(future);
  wait(wasi_http_types_method_future_trailers_subscribe(borrowed));
  wasi_http_types_result_result_option_own_trailers_error_code_void_t got;
  if (!wasi_http_types_method_future_trailers_get(borrowed, &got) || got.is_err || got.val.ok.is_err) abort();
  if (!got.val.ok.val.ok.is_some) return fields(NULL, NULL, 0);
  wasi_http_types_own_trailers_t sent = got.val.ok.val.ok.val;
  bindings_string_t name = string("x-sent");
  wasi_http_types_list_field_value_t values;
  wasi_http_types_method_fields_get(wasi_http_types_borrow_fields(sent), &name, &values);
  if (values.len == 0) return fields(NULL, NULL, 0);
  return fields("x-seen", values.ptr[0].ptr, values.ptr[0].len);
}

static void echo(wasi_http_types_own_incoming_request_t request, wasi_http_types_own_response_outparam_t out,
                 bool with_trailers) {
  wasi_http_types_own_incoming_body_t from;
  if (!wasi_http_types_method_incoming_request_consume(wasi_http_types_borrow_incoming_request(request), &from)) abort();
  wasi_http_types_own_outgoing_body_t body =
      head(out, 200, with_trailers ? fields("trailer", (const uint8_t *)"x-seen", 6) : fields(NULL, NULL, 0));
  wasi_io_streams_own_output_stream_t stream = writer(body);
  wasi_http_types_own_future_trailers_t future = pump(from, &stream, NULL, 0);
  if (!with_trailers) {
    finish(stream, body, NULL);
    return;
  }
  wasi_http_types_own_trailers_t trailers = seen(future);
  finish(stream, body, &trailers);
}

// Only what the tour needs: http://AUTHORITY/PATH
static void fetch(wasi_http_types_own_response_outparam_t out, const char *url) {
  if (strncmp(url, "http://", 7) != 0) abort();
  const char *authority = url + 7, *path = strchr(authority, '/');
  if (path == NULL) abort();
  wasi_http_types_own_outgoing_request_t request = wasi_http_types_constructor_outgoing_request(fields(NULL, NULL, 0));
  wasi_http_types_borrow_outgoing_request_t borrowed = wasi_http_types_borrow_outgoing_request(request);
  wasi_http_types_scheme_t scheme = {.tag = WASI_HTTP_TYPES_SCHEME_HTTP};
  bindings_string_t host = {(uint8_t *)authority, (size_t)(path - authority)}, target = string(path);
  if (!wasi_http_types_method_outgoing_request_set_scheme(borrowed, &scheme)) abort();
  if (!wasi_http_types_method_outgoing_request_set_authority(borrowed, &host)) abort();
  if (!wasi_http_types_method_outgoing_request_set_path_with_query(borrowed, &target)) abort();
  wasi_http_types_own_outgoing_body_t nothing;
  wasi_http_types_error_code_t unfinished;
  if (!wasi_http_types_method_outgoing_request_body(borrowed, &nothing)) abort();
  wasi_http_outgoing_handler_own_future_incoming_response_t future;
  wasi_http_outgoing_handler_error_code_t refused;
  if (!wasi_http_outgoing_handler_handle(request, NULL, &future, &refused)) {
    say(out, 502, "refused");
    return;
  }
  if (!wasi_http_types_static_outgoing_body_finish(nothing, NULL, &unfinished)) abort();
  wasi_http_types_borrow_future_incoming_response_t later = wasi_http_types_borrow_future_incoming_response(future);
  wait(wasi_http_types_method_future_incoming_response_subscribe(later));
  wasi_http_types_result_result_own_incoming_response_error_code_void_t got;
  if (!wasi_http_types_method_future_incoming_response_get(later, &got) || got.is_err) abort();
  if (got.val.ok.is_err) {
    say(out, 502, "refused");
    return;
  }
  wasi_http_types_borrow_incoming_response_t answer = wasi_http_types_borrow_incoming_response(got.val.ok.val.ok);
  char text[1024];
  snprintf(text, sizeof text, "fetched %u ", wasi_http_types_method_incoming_response_status(answer));
  wasi_http_types_own_incoming_body_t body;
  if (!wasi_http_types_method_incoming_response_consume(answer, &body)) abort();
  wasi_http_types_future_trailers_drop_own(pump(body, NULL, text, sizeof text - 1));
  say(out, 200, text);
}

static void stream(wasi_http_types_own_response_outparam_t out, int chunks, bool breaks) {
  static uint8_t chunk[CHUNK];
  memset(chunk, 'x', sizeof chunk);
  wasi_http_types_own_outgoing_body_t body = head(out, 200, fields(NULL, NULL, 0));
  wasi_io_streams_own_output_stream_t stream = writer(body);
  for (int i = 0; i < chunks; i++) put(stream, chunk, sizeof chunk);
  if (breaks) abort();
  finish(stream, body, NULL);
}

void exports_wasi_http_incoming_handler_handle(
    exports_wasi_http_incoming_handler_own_incoming_request_t request,
    exports_wasi_http_incoming_handler_own_response_outparam_t out) {
  bindings_string_t asked;
  char path[1024] = "/";
  if (wasi_http_types_method_incoming_request_path_with_query(wasi_http_types_borrow_incoming_request(request), &asked)) {
    size_t bytes = asked.len < sizeof path - 1 ? asked.len : sizeof path - 1;
    memcpy(path, asked.ptr, bytes);
    path[bytes] = 0;
  }
  if (strcmp(path, "/stream") == 0) stream(out, CHUNKS, false);
  else if (strcmp(path, "/partial") == 0) stream(out, 1, true);
  else if (strcmp(path, "/echo") == 0) echo(request, out, false);
  else if (strcmp(path, "/trailers") == 0) echo(request, out, true);
  else if (strncmp(path, "/fetch?url=", 11) == 0) fetch(out, path + 11);
  else say(out, 200, "Hello from C\n");
}
