"""The part of svdexp_operator.py's C++ that multiplies by numbers, and what all operators have in common."""

PLAIN = r"""
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>

#if defined(__AVX512F__) || defined(__F16C__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

// Sixteen numbers: one register of AVX-512, two of AVX2, four of NEON.
constexpr int64_t STEP = 16;
using Floats = float __attribute__((vector_size(64)));
using Eight = float __attribute__((vector_size(32)));
using Four = float __attribute__((vector_size(16)));
using Words = uint32_t __attribute__((vector_size(64)));
using Halves = uint16_t __attribute__((vector_size(32)));

inline Floats load(const float* from) {
  Floats found;
  std::memcpy(&found, from, sizeof(found));
  return found;
}

inline Floats load(const at::BFloat16* from) {
#if defined(__AVX512F__)  // in one instruction, of which compilers make three
  return (Floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from)), 16);
#else
  Halves bits;
  std::memcpy(&bits, from, sizeof(bits));
  return (Floats)(__builtin_convertvector(bits, Words) << 16);
#endif
}

inline Floats load(const at::Half* from) {
  Floats found;
#if defined(__AVX512F__)
  found = (Floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
#elif defined(__F16C__)
  const __m256 halves[2] = {
      _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from)),
      _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from + 1))};
  std::memcpy(&found, halves, sizeof(found));
#else
  for (int64_t i = 0; i < STEP; ++i) found[i] = float(from[i]);
#endif
  return found;
}

// The first `count` numbers, zeros behind them: what lies there is not read.
template <class Number>
inline Floats load(const Number* from, int64_t count) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  if constexpr (sizeof(Number) == 4)
    return (Floats)_mm512_maskz_loadu_ps(__mmask16((1u << count) - 1), from);
  const __m256i bits = _mm256_maskz_loadu_epi16(__mmask16((1u << count) - 1), from);
  return std::is_same_v<Number, at::Half> ? (Floats)_mm512_cvtph_ps(bits)
                                          : (Floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16);
#else
  Number part[STEP] = {};
  for (int64_t i = 0; i < count; ++i) part[i] = from[i];
  return load(part);
#endif
}

// Sixteen numbers that lie behind each other as bytes.
inline Floats load(const int8_t* from) {
#if defined(__AVX512F__)
  return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)from)));
#else
  float found[STEP];
  for (int64_t i = 0; i < STEP; ++i) found[i] = float(from[i]);
  return load(found);
#endif
}

inline Floats load(const int8_t* from, int64_t count) {
  int8_t there[STEP] = {};
  std::memcpy(there, from, count);
  return load(there);
}

inline float total(Floats sums) {
  Eight eight[2];
  std::memcpy(eight, &sums, sizeof(sums));
  const Eight half = eight[0] + eight[1];
  Four four[2];
  std::memcpy(four, &half, sizeof(half));
  const Four rest = four[0] + four[1];
  return (rest[0] + rest[2]) + (rest[1] + rest[3]);
}

// Bytes ahead that are asked for, of so many rows at once: several lie so near to one another that the processor does
// not see that they are read in one stream. Of a model that is in no cache four rows of bfloat16 came at 9.2 GB/s, not
// at 6.8, where copies made 10.
constexpr int64_t ahead(int rows) { return rows == 1 ? 2048 : 8192; }

// Rows of W (…, width) times tokens of x (…, width), whose rows lie `stride` apart: y(token, row).
template <int ROWS, int TOKENS, class Number, class Write>
inline void block(const Number* W, int64_t width, const float* x, int64_t stride, int64_t row, int64_t token,
                  const Write& write) {
  Floats sums[ROWS][TOKENS] = {};
  int64_t k = 0;
  for (; k + STEP <= width; k += STEP)
    for (int i = 0; i < ROWS; ++i) {
      const Number* from = W + (row + i) * width + k;
      __builtin_prefetch((const char*)from + ahead(ROWS));
      const Floats weights = load(from);
      for (int t = 0; t < TOKENS; ++t) sums[i][t] += weights * load(x + (token + t) * stride + k);
    }
  if (k < width)
    for (int i = 0; i < ROWS; ++i) {
      const Floats weights = load(W + (row + i) * width + k, width - k);
      for (int t = 0; t < TOKENS; ++t) sums[i][t] += weights * load(x + (token + t) * stride + k, width - k);
    }
  for (int i = 0; i < ROWS; ++i)
    for (int t = 0; t < TOKENS; ++t) write(token + t, row + i, total(sums[i][t]));
}

template <int ROWS, class Number, class Write>
inline void rows_of(const Number* W, int64_t width, const float* x, int64_t stride, int64_t row, int64_t tokens,
                    const Write& write) {
  int64_t token = 0;
  for (; token + 4 <= tokens; token += 4) block<ROWS, 4>(W, width, x, stride, row, token, write);
  switch (tokens - token) {
    case 1: block<ROWS, 1>(W, width, x, stride, row, token, write); break;
    case 2: block<ROWS, 2>(W, width, x, stride, row, token, write); break;
    case 3: block<ROWS, 3>(W, width, x, stride, row, token, write); break;
  }
}

#ifdef __AVX512F__
constexpr int ROWS = 4;
#else
constexpr int ROWS = 2;
#endif
#if defined(__x86_64__)
const bool SEVERAL_STREAMS = __builtin_cpu_is("intel");
#else
constexpr bool SEVERAL_STREAMS = false;
#endif
constexpr int64_t GRAIN = 1 << 16;  // products below which another thread costs more than it takes off

// Whether rows go one after the other, so that memory is read from its beginning to its end: of (1536, 576) bfloat16
// then comes at 24 GB/s, four rows at once at 12. Tokens must be few, or stay in the nearest cache: else each number of
// theirs that is loaded should meet several rows. Intel's processors are faster by several rows at once, if they are
// asked for in time: of (1536, 576) from no cache in float32 13.8 GB/s come then, not 10.9, in bfloat16 10.4, not 9.3.
inline bool one_by_one(int64_t width, int64_t tokens) {
  return !SEVERAL_STREAMS && (tokens <= 2 || tokens * width <= 4096);
}

template <class Number, class Write>
void product(const Number* W, int64_t height, int64_t width, const float* x, int64_t stride, int64_t tokens,
             const Write& write) {
  const int64_t blocks = (height + ROWS - 1) / ROWS, each = ROWS * (width + 1) * (tokens + 1);
  const bool alone = one_by_one(width, tokens);
  at::parallel_for(0, blocks, std::max<int64_t>(1, GRAIN / each), [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      int64_t row = i * ROWS;
      if (row + ROWS <= height && !alone)
        rows_of<ROWS>(W, width, x, stride, row, tokens, write);
      else
        for (const int64_t end = std::min(row + ROWS, height); row < end; ++row)
          rows_of<1>(W, width, x, stride, row, tokens, write);
    }
  });
}

std::unique_ptr<float[]> buffer(int64_t size) { return std::unique_ptr<float[]>(new float[size]); }

template <class Number>
std::unique_ptr<float[]> widened(const Number* x, int64_t size) {
  auto found = buffer(size);
  for (int64_t i = 0; i < size; ++i) found[i] = float(x[i]);
  return found;
}

std::vector<int32_t> numbers(const at::Tensor& order, int64_t width) {
  TORCH_CHECK(order.dim() == 1 && order.size(0) == width, "an order of ", order.sizes(), " for ", width, " channels");
  const auto flat = order.contiguous();
  std::vector<int32_t> found;
  if (flat.scalar_type() == at::kShort)
    found.assign(flat.const_data_ptr<int16_t>(), flat.const_data_ptr<int16_t>() + width);
  else if (flat.scalar_type() == at::kInt)
    found.assign(flat.const_data_ptr<int32_t>(), flat.const_data_ptr<int32_t>() + width);
  else
    TORCH_CHECK(false, "an order is int16 or int32");
  uint32_t largest = 0;  // of numbers below zero, too
  for (const int32_t place : found) largest = std::max(largest, uint32_t(place));
  TORCH_CHECK(largest < width, "an order that is no permutation");
  return found;
}

template <class Number>
const Number* bias_of(const std::optional<at::Tensor>& bias, int64_t m) {
  if (!bias.has_value()) return nullptr;
  TORCH_CHECK(bias->is_contiguous() && bias->dim() == 1 && bias->size(0) == m, "a bias of ", bias->sizes());
  return bias->const_data_ptr<Number>();
}

at::Tensor result(const at::Tensor& x, int64_t m) {
  auto sizes = x.sizes().vec();
  sizes.back() = m;
  return at::empty(sizes, x.options());
}

int64_t matrix(const at::Tensor& W, const at::Tensor& x, int64_t width) {
  TORCH_CHECK(W.dim() == 2 && W.size(1) == width, "a matrix of ", W.sizes(), " for ", width, " channels");
  TORCH_CHECK(W.scalar_type() == x.scalar_type(), "tokens of ", x.scalar_type(), ", weights of ", W.scalar_type());
  return W.size(0);
}

template <class Work>
at::Tensor by_format(const at::Tensor& x, const Work& work) {
  TORCH_CHECK(x.dim() >= 1 && x.size(-1) > 0, "tokens of shape ", x.sizes());
  switch (x.scalar_type()) {
    case at::kFloat: return work(float());
    case at::kBFloat16: return work(at::BFloat16());
    case at::kHalf: return work(at::Half());
    default: TORCH_CHECK(false, "no operator for ", x.scalar_type());
  }
}

using Bias = std::optional<at::Tensor>;

// W x + b
at::Tensor linear(const at::Tensor& given, const at::Tensor& weight, const Bias& bias) {
  return by_format(given, [&](auto number) {
    using Number = decltype(number);
    const auto x = given.contiguous(), W = weight.contiguous();
    const int64_t n = x.size(-1), tokens = x.numel() / n, m = matrix(W, x, n);
    const Number* b = bias_of<Number>(bias, m);
    auto y = result(x, m);
    Number* out = y.template mutable_data_ptr<Number>();
    const auto wide = widened(x.template const_data_ptr<Number>(), x.numel());
    product(W.template const_data_ptr<Number>(), m, n, wide.get(), n, tokens,
            [=](int64_t t, int64_t i, float sum) { out[t * m + i] = Number(b ? sum + float(b[i]) : sum); });
    return y;
  });
}

// A (B x) + b
at::Tensor pair(const at::Tensor& given, const at::Tensor& inner, const at::Tensor& outer, const Bias& bias) {
  return by_format(given, [&](auto number) {
    using Number = decltype(number);
    const auto x = given.contiguous(), B = inner.contiguous(), A = outer.contiguous();
    const int64_t n = x.size(-1), tokens = x.numel() / n, r = matrix(B, x, n), m = matrix(A, x, r);
    const Number* b = bias_of<Number>(bias, m);
    auto y = result(x, m);
    Number* out = y.template mutable_data_ptr<Number>();
    const auto wide = widened(x.template const_data_ptr<Number>(), x.numel()), middle = buffer(tokens * r);
    float* h = middle.get();
    product(B.template const_data_ptr<Number>(), r, n, wide.get(), n, tokens,
            [=](int64_t t, int64_t i, float sum) { h[t * r + i] = sum; });
    product(A.template const_data_ptr<Number>(), m, r, h, r, tokens,
            [=](int64_t t, int64_t i, float sum) { out[t * m + i] = Number(b ? sum + float(b[i]) : sum); });
    return y;
  });
}

// P (x[pivots] + C x[others]) + b
at::Tensor columns(const at::Tensor& given, const at::Tensor& order, const at::Tensor& coefficients,
                   const at::Tensor& pivots, const Bias& bias) {
  return by_format(given, [&](auto number) {
    using Number = decltype(number);
    const auto x = given.contiguous(), C = coefficients.contiguous(), P = pivots.contiguous();
    const int64_t n = x.size(-1), tokens = x.numel() / n, r = C.size(0), m = matrix(P, x, r);
    matrix(C, x, n - r);
    const Number* b = bias_of<Number>(bias, m);
    const auto places = numbers(order, n);
    auto y = result(x, m);
    Number* out = y.template mutable_data_ptr<Number>();
    const Number* from = x.template const_data_ptr<Number>();
    const auto reordered = buffer(tokens * n), middle = buffer(tokens * r);
    float *wide = reordered.get(), *h = middle.get();
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t j = 0; j < n; ++j) wide[t * n + j] = float(from[t * n + places[j]]);
    product(C.template const_data_ptr<Number>(), r, n - r, wide + r, n, tokens,
            [=](int64_t t, int64_t i, float sum) { h[t * r + i] = wide[t * n + i] + sum; });
    product(P.template const_data_ptr<Number>(), m, r, h, r, tokens,
            [=](int64_t t, int64_t i, float sum) { out[t * m + i] = Number(b ? sum + float(b[i]) : sum); });
    return y;
  });
}

// [P x, C P x][order] + b
at::Tensor rows(const at::Tensor& given, const at::Tensor& pivots, const at::Tensor& coefficients,
                const at::Tensor& order, const Bias& bias) {
  return by_format(given, [&](auto number) {
    using Number = decltype(number);
    const auto x = given.contiguous(), P = pivots.contiguous(), C = coefficients.contiguous();
    const int64_t n = x.size(-1), tokens = x.numel() / n, r = matrix(P, x, n), m = r + matrix(C, x, r);
    const Number* b = bias_of<Number>(bias, m);
    const auto places = numbers(order, m);
    auto y = result(x, m);
    Number* out = y.template mutable_data_ptr<Number>();
    const auto wide = widened(x.template const_data_ptr<Number>(), x.numel()), sums = buffer(tokens * m);
    float* all = sums.get();
    product(P.template const_data_ptr<Number>(), r, n, wide.get(), n, tokens,
            [=](int64_t t, int64_t i, float sum) { all[t * m + i] = sum; });
    product(C.template const_data_ptr<Number>(), m - r, r, all, m, tokens,
            [=](int64_t t, int64_t i, float sum) { all[t * m + r + i] = sum; });
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t j = 0; j < m; ++j)
        out[t * m + j] = Number(b ? all[t * m + places[j]] + float(b[j]) : all[t * m + places[j]]);
    return y;
  });
}

template <int TOKENS, class Bits>
inline void reorder(const Bits* from, const int32_t* places, int64_t width, Bits* to) {
  for (int64_t j = 0; j < width; ++j)
    for (int t = 0; t < TOKENS; ++t) to[t * width + j] = from[t * width + places[j]];
}

// The channels of x by an order for each token, of any number of tokens: torch's gather reads an index of eight bytes
// for each number. Four tokens that have one order read it once, which takes a third off.
template <class Bits, class Orders>
void reorder_all(const Bits* from, const Orders& order, int64_t width, int64_t tokens, Bits* to) {
  at::parallel_for(0, tokens, std::max<int64_t>(1, GRAIN / (width + 1)), [&](int64_t first, int64_t last) {
    int64_t t = first;
    for (; t + 4 <= last; t += 4) {
      const int32_t* places = order(t);
      if (places == order(t + 1) && places == order(t + 2) && places == order(t + 3))
        reorder<4>(from + t * width, places, width, to + t * width);
      else
        for (int64_t i = t; i < t + 4; ++i) reorder<1>(from + i * width, order(i), width, to + i * width);
    }
    for (; t < last; ++t) reorder<1>(from + t * width, order(t), width, to + t * width);
  });
}

template <class Orders>
at::Tensor reordered_by(const at::Tensor& given, const Orders& order) {
  const auto x = given.contiguous();
  auto y = at::empty(x.sizes(), x.options());
  const int64_t width = x.size(-1), tokens = x.numel() / width;
  if (x.element_size() == 2)
    reorder_all((const int16_t*)x.const_data_ptr(), order, width, tokens, (int16_t*)y.mutable_data_ptr());
  else if (x.element_size() == 4)
    reorder_all((const int32_t*)x.const_data_ptr(), order, width, tokens, (int32_t*)y.mutable_data_ptr());
  else
    TORCH_CHECK(false, "no operator for ", x.scalar_type());
  return y;
}

at::Tensor reordered(const at::Tensor& x, const at::Tensor& order) {
  const auto places = numbers(order, x.size(-1));
  return reordered_by(x, [&](int64_t) { return places.data(); });
}

at::Tensor reordered_each(const at::Tensor& x, const at::Tensor& orders, const at::Tensor& which) {
  const int64_t width = x.size(-1), tokens = x.numel() / width;
  TORCH_CHECK(orders.dim() == 2 && which.dim() == 1 && which.size(0) == tokens, "no order for each row");
  TORCH_CHECK(which.scalar_type() == at::kLong && which.is_cpu(), "rows are told by int64");
  std::vector<std::vector<int32_t>> places(orders.size(0));
  const auto chosen = which.contiguous();
  const int64_t* of = chosen.const_data_ptr<int64_t>();
  for (int64_t t = 0; t < tokens; ++t) {
    TORCH_CHECK(of[t] >= 0 && of[t] < orders.size(0), "no such order");
    if (places[of[t]].empty()) places[of[t]] = numbers(orders[of[t]], width);
  }
  return reordered_by(x, [&](int64_t t) { return places[of[t]].data(); });
}

"""
