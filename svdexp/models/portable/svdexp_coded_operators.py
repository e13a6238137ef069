"""The part of svdexp_operator.py's C++ that multiplies by matrices of codes, as svdexp_code_readers.py reads them."""

CODED = r"""
// What sums of products begin with, sixteen numbers for each row and token, whose total counts.
struct Begun {
  virtual ~Begun() = default;
  // `count` rows from `row` on, at most ROWS: to (count, tokens)
  virtual void operator()(int64_t row, int64_t count, int64_t tokens, Floats* to) const = 0;
};

template <int ROWS, int TOKENS>
inline void begin(const Floats* begun, int64_t tokens, Floats (&sums)[ROWS][TOKENS]) {
  for (int i = 0; i < ROWS; ++i)
    for (int t = 0; t < TOKENS; ++t) sums[i][t] = begun ? begun[i * tokens + t] : Floats{};
}

// The first ROWS rows at `codes_of`, codes less the one in the middle, times the first TOKENS of x, whose rows lie
// `stride` apart, to y (TOKENS, …), whose rows lie `height` apart; `begun`, if there is any, is (ROWS, tokens).
template <int BITS, int ROWS, int TOKENS>
inline void coded_block(const Coded<BITS>& W, const uint8_t* codes_of, const float* scale, const float* x,
                        int64_t stride, int64_t tokens, const Floats* begun, int64_t height, float* y) {
  Floats sums[ROWS][TOKENS];
  begin(begun, tokens, sums);
  const int64_t bytes = W.width * BITS / 8;
  for (int64_t g = 0; g < W.groups; ++g) {
    const int64_t first = g * W.group, last = std::min(W.width, first + W.group);
    Floats part[ROWS][TOKENS] = {};
    int64_t k = first;
    if constexpr (BITS == 4)
      if (W.order == Order::SPLIT)
        for (; k + 2 * STEP <= last; k += 2 * STEP)
          for (int i = 0; i < ROWS; ++i) {
            const uint8_t* from = codes_of + i * bytes + k / 2;
            __builtin_prefetch(from + ahead(ROWS));
            const Split weights = split(from);
            for (int t = 0; t < TOKENS; ++t) {
              const float* at = x + t * stride + k;
              part[i][t] += weights.even * load(at);
              part[i][t] += weights.odd * load(at + STEP);
            }
          }
    if constexpr (ROWS == 1) {  // two sums that do not wait for one another
      Floats other[TOKENS] = {};
      for (; k + 2 * STEP <= last; k += 2 * STEP) {
        const uint8_t* from = codes_of + k * BITS / 8;
        __builtin_prefetch(from + ahead(ROWS));
        const Floats first_of = codes<BITS>(from), second = codes<BITS>(from + STEP * BITS / 8);
        for (int t = 0; t < TOKENS; ++t) {
          const float* at = x + t * stride + k;
          part[0][t] += first_of * load(at);
          other[t] += second * load(at + STEP);
        }
      }
      for (int t = 0; t < TOKENS; ++t) part[0][t] += other[t];
    }
    for (; k + STEP <= last; k += STEP)
      for (int i = 0; i < ROWS; ++i) {
        const uint8_t* from = codes_of + i * bytes + k * BITS / 8;
        __builtin_prefetch(from + ahead(ROWS));
        const Floats weights = codes<BITS>(from);
        for (int t = 0; t < TOKENS; ++t) part[i][t] += weights * load(x + t * stride + k);
      }
    if (k < last)
      for (int i = 0; i < ROWS; ++i) {
        const Floats weights = codes<BITS>(codes_of + i * bytes + k * BITS / 8, last - k);
        for (int t = 0; t < TOKENS; ++t) part[i][t] += weights * load(x + t * stride + k, last - k);
      }
    for (int i = 0; i < ROWS; ++i)
      for (int t = 0; t < TOKENS; ++t) sums[i][t] += part[i][t] * scale[i * W.groups + g];
  }
  for (int i = 0; i < ROWS; ++i)
    for (int t = 0; t < TOKENS; ++t) y[t * height + i] = total(sums[i][t]);
}

// The same of small groups and several tokens: each code times its scale, which float32 holds as it is, meets them all.
template <int BITS, int ROWS, int TOKENS>
inline void grouped_block(const Coded<BITS>& W, const uint8_t* codes_of, const float* scale, const float* x,
                          int64_t stride, int64_t tokens, const Floats* begun, int64_t height, float* y) {
  Floats sums[ROWS][TOKENS];
  begin(begun, tokens, sums);
  const int64_t bytes = W.width * BITS / 8;
  for (int64_t g = 0; g < W.groups; ++g) {
    const int64_t last = std::min(W.width, (g + 1) * W.group);
    int64_t k = g * W.group;
    if constexpr (BITS == 4)
      if (W.order == Order::SPLIT)
        for (; k + 2 * STEP <= last; k += 2 * STEP)
          for (int i = 0; i < ROWS; ++i) {
            const uint8_t* from = codes_of + i * bytes + k / 2;
            __builtin_prefetch(from + ahead(ROWS));
            const Split weights = split(from);
            const Floats even = weights.even * scale[i * W.groups + g], odd = weights.odd * scale[i * W.groups + g];
            for (int t = 0; t < TOKENS; ++t) sums[i][t] += even * load(x + t * stride + k);
            for (int t = 0; t < TOKENS; ++t) sums[i][t] += odd * load(x + t * stride + k + STEP);
          }
    for (; k < last; k += STEP)
      for (int i = 0; i < ROWS; ++i) {
        const int64_t some = std::min(STEP, last - k);
        const uint8_t* from = codes_of + i * bytes + k * BITS / 8;
        const Floats weights = (some == STEP ? codes<BITS>(from) : codes<BITS>(from, some)) * scale[i * W.groups + g];
        for (int t = 0; t < TOKENS; ++t)
          sums[i][t] += weights * (some == STEP ? load(x + t * stride + k) : load(x + t * stride + k, some));
      }
  }
  for (int i = 0; i < ROWS; ++i)
    for (int t = 0; t < TOKENS; ++t) y[t * height + i] = total(sums[i][t]);
}

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__)
// The same of tokens in bfloat16, which stand by words: 64 bytes of codes at once, whose numbers are looked up.
template <int BITS, int ROWS, int TOKENS>
inline void coded_block(const Coded<BITS>& W, const uint8_t* codes_of, const float* scale, const at::BFloat16* x,
                        int64_t stride, int64_t tokens, const Floats* begun, int64_t height, float* y) {
  constexpr int EACH = 16 / BITS;         // codes in a word
  constexpr int MARKS = 32 * EACH / RUN;  // scales that 64 bytes of codes have
  const __m512i numbers = _mm512_load_si512(NUMBERS<BITS, uint16_t>.at), of = _mm512_load_si512(LANES<MARKS>.at);
  const int64_t bytes = W.width * BITS / 8;
  Floats sums[ROWS][TOKENS];
  begin(begun, tokens, sums);
  for (int64_t at = 0; at < bytes; at += 64)
    for (int i = 0; i < ROWS; ++i) {
      const uint8_t* from = codes_of + i * bytes + at;
      __builtin_prefetch(from + ahead(ROWS));
      const __m512i words = bytes - at >= 64 ? _mm512_loadu_si512(from)
                                             : _mm512_maskz_loadu_epi8((1ull << (bytes - at)) - 1, from);
      __m512bh weights[EACH];
      for (int j = 0; j < EACH; ++j)
        weights[j] = (__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi16(words, j * BITS), numbers);
      const __m512 some = _mm512_castps256_ps512(_mm256_loadu_ps(scale + i * W.marks() + at / 64 * MARKS));
      const Floats by = (Floats)_mm512_permutexvar_ps(of, some);
      for (int t = 0; t < TOKENS; ++t) {
        const at::BFloat16* with = x + t * stride + at * 8 / BITS;
        __m512 part = _mm512_setzero_ps();
        for (int j = 0; j < EACH; ++j)
          part = _mm512_dpbf16_ps(part, weights[j], (__m512bh)_mm512_loadu_si512(with + 32 * j));
        sums[i][t] += by * (Floats)part;
      }
    }
  for (int i = 0; i < ROWS; ++i)
    for (int t = 0; t < TOKENS; ++t) y[t * height + i] = total(sums[i][t]);
}
#endif

template <int BITS, int ROWS, class Number>
inline void coded_rows(const Coded<BITS>& W, const float* scale, const Number* x, int64_t stride, int64_t row,
                       int64_t tokens, const Floats* begun, int64_t height, float* y) {
  const uint8_t* codes_of = W.row(row);
  const auto some = [&](auto count, int64_t token) {
    const Floats* from = begun ? begun + token : nullptr;
    const Number* first = x + token * stride;
    float* to = y + token * height + row;
    if constexpr (count == 4 && std::is_same_v<Number, float>)
      if (W.group <= SMALL) {
        grouped_block<BITS, ROWS, count>(W, codes_of, scale, first, stride, tokens, from, height, to);
        return;
      }
    coded_block<BITS, ROWS, count>(W, codes_of, scale, first, stride, tokens, from, height, to);
  };
  int64_t token = 0;
  for (; token + 4 <= tokens; token += 4) some(std::integral_constant<int, 4>(), token);
  for (; token + 2 <= tokens; token += 2) some(std::integral_constant<int, 2>(), token);
  if (token < tokens) some(std::integral_constant<int, 1>(), token);
}

inline float dot(const float* a, const float* b, int64_t count) {
  Floats sums = {};
  for (int64_t k = 0; k < count; k += STEP) {
    const int64_t some = std::min(STEP, count - k);
    sums += load(a + k, some) * load(b + k, some);
  }
  return total(sums);
}

constexpr int64_t NARROW = 64;  // codes of a row that begins and ends before its place in memory counts

// `totals` (tokens, groups), the sums of tokens by groups, are given where codes of zero are; `more`, if there is any,
// is added.
template <int BITS, class Number>
void coded_product(const Coded<BITS>& W, int64_t height, const Number* x, int64_t stride, const float* totals,
                   int64_t tokens, const Begun* more, float* y) {
  const int64_t blocks = (height + ROWS - 1) / ROWS, each = ROWS * (W.width + 1) * (tokens + 1), marks = W.marks();
  // of small groups several rows share what begins and ends one
  const bool alone = tokens <= 2 && (W.order == Order::WORDS || W.group >= 256);
  std::vector<int64_t> of(marks);  // groups
  for (int64_t p = 0; p < marks; ++p) of[p] = p * RUN / W.group;
  at::parallel_for(0, blocks, std::max<int64_t>(1, GRAIN / each), [&](int64_t first, int64_t last) {
    const auto scales = buffer(ROWS * marks + STEP), zeros = buffer(ROWS * W.groups + STEP);
    float *scale = scales.get(), *zero = zeros.get();
    std::vector<Floats> begun(more ? ROWS * tokens : 0);
    std::fill_n(scale, ROWS * marks + STEP, 0.0f);  // what is read beyond a row meets tokens of zero
    for (int64_t i = first; i < last; ++i) {
      const int64_t row = i * ROWS, count = std::min<int64_t>(ROWS, height - row), all = count * W.groups;
      levels(W, row, count, scale, zero);
      for (int64_t j = 0; totals && j < all; ++j) zero[j] *= scale[j];
      if (marks > W.groups)
        for (int64_t j = count - 1; j >= 0; --j)
          for (int64_t p = marks - 1; p >= 0; --p) scale[j * marks + p] = scale[j * W.groups + of[p]];
      if (more) (*more)(row, count, tokens, begun.data());
      if (count == ROWS && (!alone || W.width <= NARROW))
        coded_rows<BITS, ROWS>(W, scale, x, stride, row, tokens, more ? begun.data() : nullptr, height, y);
      else
        for (int64_t j = 0; j < count; ++j) {
          const Floats* from = more ? begun.data() + j * tokens : nullptr;
          coded_rows<BITS, 1>(W, scale + j * marks, x, stride, row + j, tokens, from, height, y);
        }
      for (int64_t j = 0; totals && j < count; ++j)
        for (int64_t t = 0; t < tokens; ++t)
          y[t * height + row + j] -= dot(zero + j * W.groups, totals + t * W.groups, W.groups);
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
    const auto scales = buffer(W.groups + STEP), zeros = buffer(W.groups + STEP);
    for (int64_t i = first; i < last; ++i) {
      levels(W, i, 1, scales.get(), zeros.get());
      for (int64_t g = 0; g < W.groups; ++g) {
        const int64_t end = std::min(W.width, (g + 1) * W.group);
        const float zero = W.zeros ? zeros[g] : 0.0f, scale = scales[g];
        int64_t k = g * W.group;
        for (; k + STEP <= end; k += STEP)
          store(to + i * W.width + k, (codes<BITS>(W.row(i) + k * BITS / 8) - zero) * scale);
        if (k < end) {
          float some[STEP];
          store(some, (codes<BITS>(W.row(i) + k * BITS / 8, end - k) - zero) * scale);
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

// `words`: whether tokens are bfloat16, and may stand by words.
template <int BITS>
Coded<BITS> coded_matrix(const Tensor& codes, const Tensor& scale, const Bias& zero, int64_t width, int64_t group,
                         bool brief, bool words) {
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
  const bool runs = groups == 1 || group % RUN == 0;
  const Order order = BY_WORDS && words && runs && (BITS == 2 || BITS == 4) ? Order::WORDS
                      : BITS == 4 && runs && width % RUN == 0              ? Order::SPLIT
                                                                           : Order::PLAIN;
  const auto scales = (const at::Half*)scale.const_data_ptr<int16_t>();
  return {packed(codes, height * width), zeros, scales, width, group, groups, brief, order};
}

template <class Number>
void rounded(const float* sums, const Bias& bias, Tensor& y) {
  const int64_t m = y.size(-1), tokens = y.numel() / m;
  const Number* b = bias_of<Number>(bias, m);
  Number* out = y.template mutable_data_ptr<Number>();
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t i = 0; i < m; ++i) out[t * m + i] = Number(b ? sums[t * m + i] + float(b[i]) : sums[t * m + i]);
}

// The sums of tokens (tokens, width) by groups of W.
template <int BITS>
std::unique_ptr<float[]> totals_of(const Coded<BITS>& W, const float* x, int64_t tokens) {
  auto found = buffer(tokens * W.groups);
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t g = 0; g < W.groups; ++g) {
      float sum = 0;
      for (int64_t k = g * W.group; k < std::min(W.width, (g + 1) * W.group); ++k) sum += x[t * W.width + k];
      found[t * W.groups + g] = sum;
    }
  return found;
}

// Tokens (tokens, width), numbers of bfloat16, in Order::WORDS, zeros behind them up to `padded`.
template <int BITS>
std::unique_ptr<at::BFloat16[]> by_words(const float* x, int64_t width, int64_t padded, int64_t tokens) {
  constexpr int64_t EACH = 16 / BITS, ALL = 32 * EACH;
  std::unique_ptr<at::BFloat16[]> found(new at::BFloat16[tokens * padded]());
  const auto moved = [&](int64_t t, int64_t first, int64_t words) {
    const float* from = x + t * width + first;
    auto* to = (uint16_t*)found.get() + t * padded + first;
    for (int64_t i = 0; i < words; ++i)
      for (int64_t j = 0; j < EACH; ++j) to[j * 32 + i] = std::bit_cast<uint32_t>(from[i * EACH + j]) >> 16;
  };
  for (int64_t t = 0; t < tokens; ++t) {
    int64_t k = 0;
    for (; k + ALL <= width; k += ALL) moved(t, k, 32);
    moved(t, k, (width - k) / EACH);
    for (k += (width - k) / EACH * EACH; k < width; ++k)  // of a word that is not full
      found[t * padded + k / ALL * ALL + k % EACH * 32 + k / EACH % 32] = at::BFloat16(x[t * width + k]);
  }
  return found;
}

// Tokens (tokens, width) in Order::SPLIT; width is a multiple of RUN.
inline std::unique_ptr<float[]> by_halves(const float* x, int64_t size) {
  auto found = buffer(size);
  for (int64_t k = 0; k < size; k += RUN)
    for (int64_t j = 0; j < RUN; ++j) found[k + j % 2 * STEP + j / 2] = x[k + j];
  return found;
}

// W x with W in codes, and `more`: (tokens, width) → (tokens, height); its scales are rounded as numbers of Number are.
template <class Number>
void coded_sums(const float* x, int64_t width, int64_t tokens, bool words, const Tensor& codes, const Tensor& scale,
                const Bias& zero, int64_t bits, int64_t group, const Begun* more, float* y) {
  by_bits(bits, [&](auto bits) {
    const auto W = coded_matrix<bits>(codes, scale, zero, width, group, std::is_same_v<Number, at::BFloat16>, words);
    const int64_t m = scale.size(0);
    const auto totals = W.zeros ? totals_of(W, x, tokens) : nullptr;
    if constexpr (BY_WORDS && (bits == 2 || bits == 4))
      if (W.order == Order::WORDS) {
        const int64_t padded = (width * bits + 511) / 512 * 512 / bits;
        const auto moved = by_words<bits>(x, width, padded, tokens);
        return coded_product(W, m, moved.get(), padded, totals.get(), tokens, more, y);
      }
    if (W.order != Order::SPLIT) return coded_product(W, m, x, width, totals.get(), tokens, more, y);
    coded_product(W, m, (const float*)by_halves(x, tokens * width).get(), width, totals.get(), tokens, more, y);
  });
}

// W x + b with W in codes
Tensor coded(const Tensor& given, const Tensor& codes, const Tensor& scale, const Bias& zero, int64_t bits,
             int64_t group, const Bias& bias) {
  return by_format(given, [&](auto number) {
    using Number = decltype(number);
    const auto x = given.contiguous();
    const int64_t n = x.size(-1), tokens = x.numel() / n, m = scale.size(0);
    const auto wide = widened(x.template const_data_ptr<Number>(), x.numel()), sums = buffer(tokens * m);
    const bool words = std::is_same_v<Number, at::BFloat16>;
    coded_sums<Number>(wide.get(), n, tokens, words, codes, scale, zero, bits, group, nullptr, sums.get());
    auto y = result(x, m);
    rounded<Number>(sums.get(), bias, y);
    return y;
  });
}

// A h with A in codes, of few columns: its rows have no sums of their own, which would take longer than their products.
template <int BITS>
struct Outer : Begun {
  const Coded<BITS> A;
  const float* h;  // (tokens, width)
  std::unique_ptr<float[]> scales;

  Outer(const Coded<BITS>& A, int64_t height, const float* h) : A(A), h(h), scales(buffer(height * A.groups + STEP)) {
    levels(A, 0, height, scales.get(), nullptr);
  }

  void operator()(int64_t row, int64_t count, int64_t tokens, Floats* to) const override {
    const bool plain = A.groups == 1 && A.width % STEP == 0;
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t i = 0; i < count; ++i)
        to[i * tokens + t] = plain ? whole(A.row(row + i), h + t * A.width) * scales[row + i] : parts(row + i, t);
  }

  // Of a row of one scale, and of no part of sixteen codes.
  Floats whole(const uint8_t* from, const float* with) const {
    Floats sums = {};
    for (int64_t k = 0; k < A.width; k += STEP) sums += codes<BITS>(from + k * BITS / 8) * load(with + k);
    return sums;
  }

  __attribute__((noinline)) Floats parts(int64_t row, int64_t token) const {
    Floats sums = {};
    for (int64_t g = 0; g < A.groups; ++g)
      for (int64_t k = g * A.group, last = std::min(A.width, k + A.group); k < last; k += STEP) {
        const int64_t some = std::min(STEP, last - k);
        const Floats weights = codes<BITS>(A.row(row) + k * BITS / 8, some) * scales[row * A.groups + g];
        sums += weights * load(h + token * A.width + k, some);
      }
    return sums;
  }
};

// W x + A (B x) + b with all three in codes, those of the factors without zeros of their own
Tensor corrected(const Tensor& given, const Tensor& codes, const Tensor& scale, const Bias& zero, int64_t bits,
                 int64_t group, const Tensor& inner, const Tensor& inner_scale, const Tensor& outer,
                 const Tensor& outer_scale, int64_t rank_bits, int64_t rank_group, const Bias& bias) {
  return by_format(given, [&](auto number) {
    using Number = decltype(number);
    const auto x = given.contiguous();
    const int64_t n = x.size(-1), tokens = x.numel() / n, m = scale.size(0), r = inner_scale.size(0);
    TORCH_CHECK(outer_scale.size(0) == m, "a correction of ", outer_scale.size(0), " rows for ", m);
    const auto wide = widened(x.template const_data_ptr<Number>(), x.numel());
    const auto middle = buffer(tokens * r), sums = buffer(tokens * m);
    constexpr bool brief = std::is_same_v<Number, at::BFloat16>;
    const float* h = middle.get();
    coded_sums<Number>(wide.get(), n, tokens, brief, inner, inner_scale, {}, rank_bits, rank_group, nullptr,
                       middle.get());
    by_bits(rank_bits, [&](auto bits_of) {
      const Outer<bits_of> more(coded_matrix<bits_of>(outer, outer_scale, {}, r, rank_group, brief, false), m, h);
      coded_sums<Number>(wide.get(), n, tokens, brief, codes, scale, zero, bits, group, &more, sums.get());
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
      const bool brief = to.scalar_type() == at::kBFloat16;
      const auto W = coded_matrix<bits>(codes, scale, zero, to.size(1), group, brief, false);
      coded_numbers<bits, Number>(W, to.size(0), to.template mutable_data_ptr<Number>());
    });
    return to;
  });
}
"""
