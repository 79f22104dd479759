// A badge for what is reduced, and what is sold out goes to the end of the page.
#include "bindings.h"
#include <stdlib.h>

static void present(const souk_plugin_types_product_t *product,
                    exports_souk_plugin_catalog_presentation_t *said) {
  bindings_string_dup_n(&said->sku, (const char *)product->sku.ptr, product->sku.len);
  said->rank = product->stock.tag == SOUK_PLUGIN_TYPES_STOCK_HINT_OUT ? -1 : 0;
  const int64_t was = product->compare_at.is_some ? product->compare_at.val : 0;
  const int off = was > product->price ? (int)((was - product->price) * 100 / was) : 0;
  if (off > 0) {
    // snprintf would bring in the whole of stdio: two digits are written by hand.
    char text[] = "-00 %";
    text[1] = (char)('0' + off / 10 % 10);
    text[2] = (char)('0' + off % 10);
    said->badges.ptr = calloc(1, sizeof *said->badges.ptr);
    if (said->badges.ptr == NULL) abort();
    said->badges.len = 1;
    bindings_string_dup(said->badges.ptr, text);
  }
}

// True: *ret is the answer. False: *err is a refusal. What is returned is freed by the bindings.
bool exports_souk_plugin_catalog_present(exports_souk_plugin_catalog_context_t *ctx,
                                         exports_souk_plugin_catalog_list_product_t *products,
                                         exports_souk_plugin_catalog_list_presentation_t *ret,
                                         exports_souk_plugin_catalog_refusal_t *err) {
  (void)err;
  ret->ptr = calloc(products->len ? products->len : 1, sizeof *ret->ptr);
  ret->len = products->len;
  if (ret->ptr == NULL) abort();
  for (size_t i = 0; i < products->len; i++) present(&products->ptr[i], &ret->ptr[i]);
  exports_souk_plugin_catalog_context_free(ctx);
  exports_souk_plugin_catalog_list_product_free(products);
  return true;
}
