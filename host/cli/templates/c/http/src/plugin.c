// Answers GET with the path it was asked for. Standard wasi:http: nothing here is Souk's own.
#include "bindings.h"
#include <stdlib.h>
#include <string.h>

static void append(wasi_http_types_own_fields_t headers, const char *name, const char *value) {
  bindings_string_t key;
  bindings_string_set(&key, name);
  wasi_http_types_field_value_t bytes = {(uint8_t *)value, strlen(value)};
  wasi_http_types_header_error_t refused;
  if (!wasi_http_types_method_fields_append(wasi_http_types_borrow_fields(headers), &key, &bytes, &refused)) abort();
}

// Takes the headers and what it is given; a failure to write means that the client has gone away, and needs no answer.
static void respond(exports_wasi_http_incoming_handler_own_response_outparam_t out, uint16_t status,
                    wasi_http_types_own_fields_t headers, const char *text, size_t bytes) {
  wasi_http_types_own_outgoing_response_t response = wasi_http_types_constructor_outgoing_response(headers);
  wasi_http_types_borrow_outgoing_response_t borrowed = wasi_http_types_borrow_outgoing_response(response);
  if (!wasi_http_types_method_outgoing_response_set_status_code(borrowed, status)) abort();
  wasi_http_types_own_outgoing_body_t body;
  if (!wasi_http_types_method_outgoing_response_body(borrowed, &body)) abort();
  wasi_http_types_result_own_outgoing_response_error_code_t answer = {.is_err = false, .val.ok = response};
  wasi_http_types_static_response_outparam_set(out, &answer);
  wasi_http_types_own_output_stream_t stream;
  if (!wasi_http_types_method_outgoing_body_write(wasi_http_types_borrow_outgoing_body(body), &stream)) abort();
  bool written = true;
  while (bytes > 0 && written) {
    // One write takes 4096 bytes at most.
    bindings_list_u8_t chunk = {(uint8_t *)text, bytes < 4096 ? bytes : 4096};
    wasi_io_streams_stream_error_t failed;
    written = wasi_io_streams_method_output_stream_blocking_write_and_flush(
        wasi_io_streams_borrow_output_stream(stream), &chunk, &failed);
    text += chunk.len;
    bytes -= chunk.len;
  }
  wasi_io_streams_output_stream_drop_own(stream);
  wasi_http_types_error_code_t unfinished;
  if (written) wasi_http_types_static_outgoing_body_finish(body, NULL, &unfinished);
}

void exports_wasi_http_incoming_handler_handle(
    exports_wasi_http_incoming_handler_own_incoming_request_t request,
    exports_wasi_http_incoming_handler_own_response_outparam_t response_out) {
  wasi_http_types_borrow_incoming_request_t asked = wasi_http_types_borrow_incoming_request(request);
  wasi_http_types_method_t method;
  wasi_http_types_method_incoming_request_method(asked, &method);
  if (method.tag != WASI_HTTP_TYPES_METHOD_GET) {
    const char text[] = "only GET is answered here\n";
    wasi_http_types_own_fields_t headers = wasi_http_types_constructor_fields();
    append(headers, "content-type", "text/plain");
    append(headers, "allow", "GET");
    respond(response_out, 405, headers, text, sizeof text - 1);
    return;
  }
  bindings_string_t path;
  if (!wasi_http_types_method_incoming_request_path_with_query(asked, &path)) bindings_string_dup(&path, "/");
  const char before[] = "{\"plugin\": \"{{name}}\", \"path\": \"", after[] = "\"}";
  char *text = malloc(sizeof before + path.len * 2 + sizeof after);
  if (text == NULL) abort();
  size_t bytes = sizeof before - 1;
  memcpy(text, before, bytes);
  for (size_t i = 0; i < path.len && path.ptr[i] != '?'; i++) {
    if (path.ptr[i] == '"' || path.ptr[i] == '\\') text[bytes++] = '\\';
    text[bytes++] = (char)path.ptr[i];
  }
  memcpy(text + bytes, after, sizeof after - 1);
  wasi_http_types_own_fields_t headers = wasi_http_types_constructor_fields();
  append(headers, "content-type", "application/json");
  respond(response_out, 200, headers, text, bytes + sizeof after - 1);
}
