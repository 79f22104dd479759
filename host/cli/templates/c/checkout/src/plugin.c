// No order below a least amount; a note on large ones.
#include "bindings.h"
#include <stdlib.h>
#include <string.h>

static const int64_t LEAST = 500;
static const int64_t LARGE = 10000;

// True: *ret is the answer. False: *err is a refusal. What is returned is freed by the bindings.
bool exports_souk_plugin_checkout_review(exports_souk_plugin_checkout_context_t *ctx,
                                         exports_souk_plugin_checkout_order_draft_t *draft,
                                         exports_souk_plugin_checkout_list_note_t *ret,
                                         exports_souk_plugin_checkout_refusal_t *err) {
  const int64_t total = draft->total;
  char message[] = "Orders begin at 5.00 ???.";
  if (ctx->currency.len == 3) memcpy(strchr(message, '?'), ctx->currency.ptr, 3);
  exports_souk_plugin_checkout_context_free(ctx);
  exports_souk_plugin_checkout_order_draft_free(draft);
  if (total < LEAST) {
    bindings_string_dup(&err->code, "order_too_small");
    bindings_string_dup(&err->message, message);
    return false;
  }
  ret->ptr = calloc(1, sizeof *ret->ptr);
  ret->len = 0;
  if (ret->ptr == NULL) abort();
  if (total >= LARGE) {
    bindings_string_dup(&ret->ptr[0].code, "signature");
    bindings_string_dup(&ret->ptr[0].text, "Deliver against signature");
    ret->len = 1;
  }
  return true;
}
