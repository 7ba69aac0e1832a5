// The registry row of an instruction set S (internal linkage, as in vector.h).
#pragma once

#include "fake_quant.h"
#include "normalize.h"
#include "product.h"
#include "vector.h"

namespace edgeqat {
namespace {

constexpr int64_t kNever = INT64_MAX;

template <class S>
constexpr Isa row_of(const char* name, bool (*available)()) {
  return {name,      available,  S::kTokens,        kNever,             &product<S>,
          &quantize, &quantize_searched,            &rms_norm,          &softmax,  &rotate,
          &swiglu,   &geglu,     &sum,              &interleave,        &split<S>, &lsq,
          &mse_scale,            &lsq_backward,     &fake_dynamic,      &fake_searched,
          &moments,  &normalize, &normalize_slopes, &normalize_backward};
}

}  // namespace
}  // namespace edgeqat
