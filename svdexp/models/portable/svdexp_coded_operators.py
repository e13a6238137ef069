"""The part of svdexp_operator.py's C++ that multiplies by codes as they lie in the file."""

CODED = r"""
template <int BITS>
constexpr auto places() {
  struct { uint8_t at[32]; } found{};
  for (int i = 0; i < 16; ++i) {
    found.at[2 * i] = uint8_t(i * BITS / 8);
    found.at[2 * i + 1] = uint8_t((i * BITS + BITS - 1) / 8);
  }
  return found;
}

template <int BITS>
constexpr auto shifts_of() {
  struct { uint32_t at[16]; } found{};
  for (int i = 0; i < 16; ++i) found.at[i] = i * BITS % 8;
  return found;
}

// Sixteen codes of BITS bits, the first of which begins with a byte, lowest bits first, less `zero`.
template <int BITS>
inline Floats codes(const uint8_t* from, float zero) {
  constexpr uint32_t MOST = (1u << BITS) - 1;
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  __m512i words;
  if constexpr (BITS == 8) {
    words = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)from));
    return (Floats)_mm512_cvtepi32_ps(words) - zero;
  } else if constexpr (BITS == 4) {
    const __m512i halves = _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
    const __m512i shifts = _mm512_set_epi32(28, 24, 20, 16, 12, 8, 4, 0, 28, 24, 20, 16, 12, 8, 4, 0);
    const __m512i both = _mm512_castsi128_si512(_mm_loadl_epi64((const __m128i*)from));
    words = _mm512_srlv_epi32(_mm512_permutexvar_epi32(halves, both), shifts);
  } else if constexpr (BITS == 2) {
    const __m512i shifts = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    int32_t all;
    std::memcpy(&all, from, 4);
    words = _mm512_srlv_epi32(_mm512_set1_epi32(all), shifts);
  } else {
    // of the two bytes in which each code lies
    alignas(32) static constexpr auto PLACES = places<BITS>();
    alignas(64) static constexpr auto SHIFTS = shifts_of<BITS>();
    const __m256i twice = _mm256_broadcastsi128_si256(_mm_maskz_loadu_epi8((1 << 2 * BITS) - 1, from));
    const __m256i pairs = _mm256_shuffle_epi8(twice, _mm256_load_si256((const __m256i*)PLACES.at));
    words = _mm512_srlv_epi32(_mm512_cvtepu16_epi32(pairs), _mm512_load_si512(SHIFTS.at));
  }
  if constexpr (BITS <= 4) {  // the four lowest bits name one of sixteen numbers
    const Floats numbers = {0,        1,        2,         3,         4 & MOST,  5 & MOST,  6 & MOST,  7 & MOST,
                            8 & MOST, 9 & MOST, 10 & MOST, 11 & MOST, 12 & MOST, 13 & MOST, 14 & MOST, 15 & MOST};
    return (Floats)_mm512_permutexvar_ps(words, (__m512)(numbers - zero));
  } else {
    return (Floats)_mm512_cvtepi32_ps(_mm512_and_si512(words, _mm512_set1_epi32(MOST))) - zero;
  }
#else
  float found[STEP];
  for (int i = 0; i < STEP; i += 8) {
    uint64_t word = 0;
    std::memcpy(&word, from + i * BITS / 8, BITS);
    for (int j = 0; j < 8; ++j) found[i + j] = float(int32_t(word >> j * BITS & MOST));
  }
  return load(found) - zero;
#endif
}

// The first `count` of them; what lies behind is not read, and its numbers count for nothing.
template <int BITS>
inline Floats codes(const uint8_t* from, float zero, int64_t count) {
  uint8_t there[2 * BITS] = {};
  std::memcpy(there, from, (count * BITS + 7) / 8);
  return codes<BITS>(there, zero);
}

#if defined(__AVX512F__)
constexpr bool SPLITS = true;
#else
constexpr bool SPLITS = false;
#endif

// A matrix of codes: row by row, in groups of `group` along a row, each with a scale and a code of zero.
template <int BITS>
struct Coded {
  const uint8_t *at, *zeros;
  const at::Half* scales;
  int64_t width, group, groups;
  bool brief;  // whether scales are rounded to bfloat16, as the numbers that they make are
  bool split;  // whether each 32 channels of tokens stand in two halves, the even ones first

  const uint8_t* row(int64_t i) const { return at + i * width * BITS / 8; }
};

inline uint32_t code_at(const uint8_t* codes, int64_t index, int bits) {
  const int64_t bit = index * bits;
  const uint8_t* from = codes + bit / 8;
  const int shift = bit % 8;
  const uint32_t two = from[0] | (shift + bits > 8 ? uint32_t(from[1]) << 8 : 0);
  return (two >> shift) & ((1u << bits) - 1);
}

// Scales, as they are or rounded to bfloat16, and codes of zero of `count` rows from `row` on.
template <int BITS>
void levels(const Coded<BITS>& W, int64_t row, int64_t count, float* scale, float* zero) {
  const int64_t first = row * W.groups, all = count * W.groups;
  int64_t i = 0;
  for (; i + STEP <= all; i += STEP) {
    const Floats some = load(W.scales + first + i);
    std::memcpy(scale + i, &some, sizeof(some));
  }
  for (; i < all; ++i) scale[i] = float(W.scales[first + i]);
  if (W.brief)
    for (i = 0; i < all; ++i) scale[i] = float(at::BFloat16(scale[i]));
  for (i = 0; i < all; ++i) zero[i] = W.zeros ? float(code_at(W.zeros, first + i, BITS)) : float(1 << (BITS - 1));
}

// Rows of W times tokens of x, whose rows lie `width` apart: y (tokens, height).
template <int BITS, int ROWS, int TOKENS>
inline void coded_block(const Coded<BITS>& W, const float* scale, const float* zero, const float* x, int64_t row,
                        int64_t token, int64_t height, float* y) {
  const int64_t stride = W.width;
  Floats sums[ROWS][TOKENS] = {};
  for (int64_t g = 0; g < W.groups; ++g) {
    const int64_t first = g * W.group, last = std::min(W.width, first + W.group);
    Floats part[ROWS][TOKENS] = {};
    int64_t k = first;
#if defined(__AVX512F__)
    // two codes of a byte go with tokens whose even channels stand before the odd ones
    if (BITS == 4 && W.split)
      for (; k + 2 * STEP <= last; k += 2 * STEP)
        for (int i = 0; i < ROWS; ++i) {
          const __m512i both = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)(W.row(row + i) + k / 2)));
          const Floats numbers = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
          const __m512 level = (__m512)(numbers - zero[i * W.groups + g]);
          const Floats even = (Floats)_mm512_permutexvar_ps(both, level);
          const Floats odd = (Floats)_mm512_permutexvar_ps(_mm512_srli_epi32(both, 4), level);
          for (int t = 0; t < TOKENS; ++t) {
            const float* at = x + (token + t) * stride + k;
            part[i][t] += even * load(at);
            part[i][t] += odd * load(at + STEP);
          }
        }
#endif
    for (; k + STEP <= last; k += STEP)
      for (int i = 0; i < ROWS; ++i) {
        const uint8_t* from = W.row(row + i) + k * BITS / 8;
        const Floats weights = codes<BITS>(from, zero[i * W.groups + g]);
        for (int t = 0; t < TOKENS; ++t) part[i][t] += weights * load(x + (token + t) * stride + k);
      }
    if (k < last)
      for (int i = 0; i < ROWS; ++i) {
        const uint8_t* from = W.row(row + i) + k * BITS / 8;
        const Floats weights = codes<BITS>(from, zero[i * W.groups + g], last - k);
        for (int t = 0; t < TOKENS; ++t) part[i][t] += weights * load(x + (token + t) * stride + k, last - k);
      }
    for (int i = 0; i < ROWS; ++i)
      for (int t = 0; t < TOKENS; ++t) sums[i][t] += part[i][t] * scale[i * W.groups + g];
  }
  for (int i = 0; i < ROWS; ++i)
    for (int t = 0; t < TOKENS; ++t) y[(token + t) * height + row + i] = total(sums[i][t]);
}

template <int BITS, int ROWS>
inline void coded_rows(const Coded<BITS>& W, const float* scale, const float* zero, const float* x, int64_t row,
                       int64_t tokens, int64_t height, float* y) {
  int64_t token = 0;
  for (; token + 4 <= tokens; token += 4) coded_block<BITS, ROWS, 4>(W, scale, zero, x, row, token, height, y);
  for (; token + 2 <= tokens; token += 2) coded_block<BITS, ROWS, 2>(W, scale, zero, x, row, token, height, y);
  if (token < tokens) coded_block<BITS, ROWS, 1>(W, scale, zero, x, row, token, height, y);
}

template <int BITS>
void coded_product(const Coded<BITS>& W, int64_t height, const float* x, int64_t tokens, float* y) {
  const int64_t blocks = (height + ROWS - 1) / ROWS, each = ROWS * (W.width + 1) * (tokens + 1);
  at::parallel_for(0, blocks, std::max<int64_t>(1, GRAIN / each), [&](int64_t first, int64_t last) {
    const auto scales = buffer(ROWS * W.groups), zeros = buffer(ROWS * W.groups);
    for (int64_t i = first; i < last; ++i) {
      const int64_t row = i * ROWS, count = std::min<int64_t>(ROWS, height - row);
      const float *scale = scales.get(), *zero = zeros.get();
      levels(W, row, count, scales.get(), zeros.get());
      if (count == ROWS)
        coded_rows<BITS, ROWS>(W, scale, zero, x, row, tokens, height, y);
      else
        for (int64_t j = 0; j < count; ++j, scale += W.groups, zero += W.groups)
          coded_rows<BITS, 1>(W, scale, zero, x, row + j, tokens, height, y);
    }
  });
}

template <class Number>
inline void store(Number* to, Floats numbers) {
  float some[STEP];
  std::memcpy(some, &numbers, sizeof(some));
  for (int64_t i = 0; i < STEP; ++i) to[i] = Number(some[i]);
}

inline void store(float* to, Floats numbers) { std::memcpy(to, &numbers, sizeof(numbers)); }

#if defined(__AVX512BF16__) && defined(__AVX512VL__)
inline void store(at::BFloat16* to, Floats numbers) {
  const __m256bh rounded = _mm512_cvtneps_pbh((__m512)numbers);
  std::memcpy(to, &rounded, sizeof(rounded));
}
#endif

template <int BITS, class Number>
void coded_numbers(const Coded<BITS>& W, int64_t height, Number* to) {
  at::parallel_for(0, height, std::max<int64_t>(1, GRAIN / W.width), [&](int64_t first, int64_t last) {
    const auto scales = buffer(W.groups), zeros = buffer(W.groups);
    for (int64_t i = first; i < last; ++i) {
      levels(W, i, 1, scales.get(), zeros.get());
      for (int64_t g = 0; g < W.groups; ++g) {
        const int64_t end = std::min(W.width, (g + 1) * W.group);
        int64_t k = g * W.group;
        for (; k + STEP <= end; k += STEP)
          store(to + i * W.width + k, codes<BITS>(W.row(i) + k * BITS / 8, zeros[g]) * scales[g]);
        if (k < end) {
          float some[STEP];
          store(some, codes<BITS>(W.row(i) + k * BITS / 8, zeros[g], end - k) * scales[g]);
          for (int64_t j = k; j < end; ++j) to[i * W.width + j] = Number(some[j - k]);
        }
      }
    }
  });
}

template <class Work>
void by_bits(int64_t bits, const Work& work) {
  switch (bits) {
    case 2: return work(std::integral_constant<int, 2>());
    case 3: return work(std::integral_constant<int, 3>());
    case 4: return work(std::integral_constant<int, 4>());
    case 5: return work(std::integral_constant<int, 5>());
    case 6: return work(std::integral_constant<int, 6>());
    case 8: return work(std::integral_constant<int, 8>());
    default: TORCH_CHECK(false, "no codes have ", bits, " bits");
  }
}

using at::Tensor;

template <int BITS>
Coded<BITS> coded_matrix(const Tensor& codes, const Tensor& scale, const Bias& zero, int64_t width, int64_t group,
                         bool brief) {
  TORCH_CHECK(scale.dim() == 2 && scale.is_contiguous() && scale.scalar_type() == at::kShort && width > 0, "scales");
  const int64_t height = scale.size(0), groups = scale.size(1);
  if (group == 0) group = width;
  TORCH_CHECK(group > 0 && groups == (width + group - 1) / group && width * BITS % 8 == 0, "groups of ", group);
  TORCH_CHECK(groups == 1 || group * BITS % 8 == 0, "groups that begin within a byte");
  const auto packed = [](const Tensor& bytes, int64_t count) {
    const bool all = bytes.numel() * 8 >= count * BITS;
    TORCH_CHECK(bytes.is_contiguous() && bytes.scalar_type() == at::kByte && all, "codes of ", bytes.sizes());
    return bytes.const_data_ptr<uint8_t>();
  };
  const uint8_t* zeros = zero.has_value() ? packed(*zero, height * groups) : nullptr;
  const bool split = SPLITS && BITS == 4 && width % 32 == 0 && (groups == 1 || group % 32 == 0);
  const auto scales = (const at::Half*)scale.const_data_ptr<int16_t>();
  return {packed(codes, height * width), zeros, scales, width, group, groups, brief, split};
}

template <class Number>
void rounded(const float* sums, const Bias& bias, Tensor& y) {
  const int64_t m = y.size(-1), tokens = y.numel() / m;
  const Number* b = bias_of<Number>(bias, m);
  Number* out = y.template mutable_data_ptr<Number>();
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t i = 0; i < m; ++i) out[t * m + i] = Number(b ? sums[t * m + i] + float(b[i]) : sums[t * m + i]);
}

// W x + b with W in codes
Tensor coded(const Tensor& given, const Tensor& codes, const Tensor& scale, const Bias& zero, int64_t bits,
                 int64_t group, const Bias& bias) {
  return by_format(given, [&](auto number) {
    using Number = decltype(number);
    const auto x = given.contiguous();
    const int64_t n = x.size(-1), tokens = x.numel() / n, m = scale.size(0);
    const bool brief = x.scalar_type() == at::kBFloat16;
    auto wide = widened(x.template const_data_ptr<Number>(), x.numel());
    const auto sums = buffer(tokens * m);
    by_bits(bits, [&](auto bits) {
      const auto W = coded_matrix<bits>(codes, scale, zero, n, group, brief);
      if (W.split) {
        float some[32];
        for (float* at = wide.get(); at < wide.get() + tokens * n; at += 32) {
          for (int j = 0; j < 32; ++j) some[j % 2 * 16 + j / 2] = at[j];
          std::memcpy(at, some, sizeof(some));
        }
      }
      coded_product(W, m, wide.get(), tokens, sums.get());
    });
    auto y = result(x, m);
    rounded<Number>(sums.get(), bias, y);
    return y;
  });
}

// The numbers of W in codes, into `to` (m, n)
void decode(Tensor& to, const Tensor& codes, const Tensor& scale, const Bias& zero, int64_t bits, int64_t group) {
  TORCH_CHECK(to.is_contiguous() && to.dim() == 2 && to.size(0) == scale.size(0), "numbers of ", to.sizes());
  by_format(to, [&](auto number) {
    using Number = decltype(number);
    by_bits(bits, [&](auto bits) {
      const auto W = coded_matrix<bits>(codes, scale, zero, to.size(1), group, to.scalar_type() == at::kBFloat16);
      coded_numbers<bits, Number>(W, to.size(0), to.template mutable_data_ptr<Number>());
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
    TORCH_CHECK(codes.is_contiguous() && codes.scalar_type() == at::kChar && scale.is_contiguous(), "codes or scales");
    TORCH_CHECK(scale.scalar_type() == at::kShort && scale.numel() == (inputs ? rows : side) && beyond >= 0, "scales");
    TORCH_CHECK(inputs || side == n, "codes of ", codes.sizes());
    TORCH_CHECK(rest.has_value() == (beyond > 0), "a rest");
    if (beyond > 0)
      TORCH_CHECK(rest->is_contiguous() && rest->scalar_type() == at::kShort &&
                  rest->numel() == beyond * (inputs ? rows : n), "a rest of ", rest->sizes());
    const int8_t* C = codes.const_data_ptr<int8_t>();
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
