// Ten per cent off every product with a tag.
#include "bindings.h"
#include <stdlib.h>
#include <string.h>

static const char TAG[] = "bestseller";
static const int32_t OFF_BP = 1000;

static bool has_tag(const souk_plugin_types_product_t *product) {
  for (size_t i = 0; i < product->tags.len; i++) {
    const bindings_string_t *tag = &product->tags.ptr[i];
    if (tag->len == sizeof TAG - 1 && memcmp(tag->ptr, TAG, tag->len) == 0) return true;
  }
  return false;
}

// True: *ret is the answer. False: *err is a refusal. What is returned is freed by the bindings.
bool exports_souk_plugin_pricing_adjust(exports_souk_plugin_pricing_context_t *ctx,
                                        exports_souk_plugin_pricing_list_line_t *lines,
                                        exports_souk_plugin_pricing_list_adjustment_t *ret,
                                        exports_souk_plugin_pricing_refusal_t *err) {
  (void)err;
  ret->ptr = calloc(lines->len ? lines->len : 1, sizeof *ret->ptr);
  ret->len = 0;
  if (ret->ptr == NULL) abort();
  for (size_t i = 0; i < lines->len; i++) {
    if (!has_tag(&lines->ptr[i].product)) continue;
    exports_souk_plugin_pricing_adjustment_t *said = &ret->ptr[ret->len++];
    said->target.tag = EXPORTS_SOUK_PLUGIN_PRICING_TARGET_LINE;
    said->target.val.line = lines->ptr[i].id;
    said->effect.tag = EXPORTS_SOUK_PLUGIN_PRICING_EFFECT_PERCENT;
    said->effect.val.percent = -OFF_BP;
    bindings_string_dup(&said->code, "{{code}}");
    bindings_string_dup(&said->label, "{{title}}");
  }
  exports_souk_plugin_pricing_context_free(ctx);
  exports_souk_plugin_pricing_list_line_free(lines);
  return true;
}
