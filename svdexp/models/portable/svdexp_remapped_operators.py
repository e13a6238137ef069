"""The part of svdexp_operator.py's C++ that multiplies by the factors of remapped storage."""

REMAPPED = r"""
// The codes (rows, side) of a factor of remapped storage, with a scale in float16 for each row or, by outputs, each
// column, and `beyond` numbers of float16 besides; anything else is refused.
const int8_t* checked(const Tensor& codes, const Tensor& scale, const Bias& rest, bool inputs, int64_t beyond) {
  TORCH_CHECK(codes.dim() == 2 && codes.is_contiguous() && codes.scalar_type() == at::kChar, "codes");
  TORCH_CHECK(scale.is_contiguous() && scale.scalar_type() == at::kShort, "scales");
  TORCH_CHECK(scale.numel() == codes.size(inputs ? 0 : 1), "scales of another size");
  TORCH_CHECK(beyond >= 0 && rest.has_value() == (beyond > 0), "a rest");
  if (beyond > 0)
    TORCH_CHECK(rest->is_contiguous() && rest->scalar_type() == at::kShort && rest->numel() == beyond, "a rest of ",
                rest->sizes());
  return codes.const_data_ptr<int8_t>();
}

// The numbers of a factor of remapped storage, in the words of `remapped`, into `to` (m, n)
void renumber(Tensor& to, const Tensor& codes, const Tensor& scale, const Bias& rest, bool inputs) {
  TORCH_CHECK(to.is_contiguous() && to.dim() == 2 && codes.dim() == 2, "numbers of ", to.sizes());
  by_format(to, [&](auto number) {
    using Number = decltype(number);
    const int64_t n = to.size(1), rows = codes.size(0), side = codes.size(1), beyond = to.numel() - rows * side;
    TORCH_CHECK(inputs ? to.size(0) == rows : side == n, "codes of ", codes.sizes());
    const int8_t* C = checked(codes, scale, rest, inputs, beyond);
    const at::Half* R = beyond > 0 ? (const at::Half*)rest->const_data_ptr<int16_t>() : nullptr;
    const auto scales = widened((const at::Half*)scale.const_data_ptr<int16_t>(), scale.numel());
    float* by = scales.get();
    if (std::is_same_v<Number, at::BFloat16>)
      for (int64_t i = 0; i < scale.numel(); ++i) by[i] = float(at::BFloat16(by[i]));
    Number* out = to.template mutable_data_ptr<Number>();
    const auto row_of = [=](int64_t i) {
      if (i >= rows) {
        for (int64_t k = 0; k < n; ++k) out[i * n + k] = Number(float(R[(i - rows) * n + k]));
        return;
      }
      int64_t k = 0;
      for (; k + STEP <= side; k += STEP)
        store(out + i * n + k, load(C + i * side + k) * (inputs ? Floats{} + by[i] : load(by + k)));
      for (; k < side; ++k) out[i * n + k] = Number(C[i * side + k] * by[inputs ? i : k]);
      for (; k < n; ++k) out[i * n + k] = Number(float(R[i * (n - side) + k - side]));
    };
    at::parallel_for(0, to.size(0), std::max<int64_t>(1, GRAIN / n), [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) row_of(i);
    });
    return to;
  });
}

// What a factor of remapped storage gives: by its inputs, codes (r, s), s (C x[:s]) + R x[s:], or by its outputs,
// codes (s, r), the rows C (s x), then R x; R is in float16 as scales s are.
Tensor remapped(const Tensor& given, const Tensor& codes, const Tensor& scale, const Bias& rest, bool inputs,
                const Bias& bias) {
  return by_format(given, [&](auto number) {
    using Number = decltype(number);
    const auto x = given.contiguous();
    const int64_t n = x.size(-1), tokens = x.numel() / n, rows = codes.size(0), side = codes.size(1);
    const int64_t beyond = inputs ? n - side : rest.has_value() ? rest->size(0) : 0, m = inputs ? rows : rows + beyond;
    TORCH_CHECK(inputs || side == n, "codes of ", codes.sizes());
    const int8_t* C = checked(codes, scale, rest, inputs, beyond * (inputs ? rows : n));
    const at::Half* s = (const at::Half*)scale.const_data_ptr<int16_t>();
    const at::Half* R = beyond > 0 ? (const at::Half*)rest->const_data_ptr<int16_t>() : nullptr;
    const auto wide = widened(x.template const_data_ptr<Number>(), x.numel()), scales = widened(s, scale.numel());
    const auto sums = buffer(tokens * m);
    float *all = sums.get(), *by = scales.get();
    if (inputs) {
      product(C, rows, side, wide.get(), n, tokens,
              [=](int64_t t, int64_t i, float sum) { all[t * m + i] = by[i] * sum; });
      if (R)
        product(R, rows, beyond, wide.get() + side, n, tokens,
                [=](int64_t t, int64_t i, float sum) { all[t * m + i] += sum; });
    } else {
      if (R)
        product(R, beyond, n, wide.get(), n, tokens,
                [=](int64_t t, int64_t i, float sum) { all[t * m + rows + i] = sum; });
      for (int64_t i = 0; i < tokens * n; ++i) wide[i] *= by[i % n];
      product(C, rows, n, wide.get(), n, tokens, [=](int64_t t, int64_t i, float sum) { all[t * m + i] = sum; });
    }
    auto y = result(x, m);
    rounded<Number>(all, bias, y);
    return y;
  });
}
"""
