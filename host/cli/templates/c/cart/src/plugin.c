// At most so many of one product in a cart.
#include "bindings.h"
#include <stdlib.h>

static const uint32_t MOST = 12;

// True: *ret is the answer. False: *err is a refusal. What is returned is freed by the bindings.
bool exports_souk_plugin_cart_review(exports_souk_plugin_cart_context_t *ctx,
                                     exports_souk_plugin_cart_list_line_t *before,
                                     exports_souk_plugin_cart_change_t *change,
                                     exports_souk_plugin_cart_list_cart_op_t *ret,
                                     exports_souk_plugin_cart_refusal_t *err) {
  (void)err;
  ret->ptr = calloc(1, sizeof *ret->ptr);
  ret->len = 0;
  if (ret->ptr == NULL) abort();
  if (change->tag != EXPORTS_SOUK_PLUGIN_CART_CHANGE_REMOVE) {
    ret->ptr[0].tag = EXPORTS_SOUK_PLUGIN_CART_CART_OP_CAP;
    ret->ptr[0].val.cap = MOST;
    ret->len = 1;
  }
  exports_souk_plugin_cart_context_free(ctx);
  exports_souk_plugin_cart_list_line_free(before);
  exports_souk_plugin_cart_change_free(change);
  return true;
}
