"""The part of svdexp_operator.py's C++ that makes numbers of codes and scales as they lie in the file."""

READERS = r"""
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

// The numbers that four bits, or more, name: codes of BITS bits less the one in the middle.
template <int BITS, class Number>
constexpr auto named() {
  struct { Number at[64 / sizeof(Number)]; } found{};
  for (int i = 0; i < 64 / int(sizeof(Number)); ++i) {
    const float number = float((i & ((1 << BITS) - 1)) - (1 << (BITS - 1)));
    if constexpr (sizeof(Number) == 4) found.at[i] = number;
    else found.at[i] = Number(std::bit_cast<uint32_t>(number) >> 16);  // of bfloat16
  }
  return found;
}

template <int BITS, class Number>
alignas(64) constexpr auto NUMBERS = named<BITS, Number>();

// Which of `marks` each of sixteen lanes has.
template <int MARKS>
constexpr auto lanes() {
  struct { int32_t at[16]; } found{};
  for (int i = 0; i < 16; ++i) found.at[i] = i * MARKS / 16;
  return found;
}

template <int MARKS>
alignas(64) constexpr auto LANES = lanes<MARKS>();

// Sixteen codes of BITS bits, the first of which begins with a byte, lowest bits first, less the one in the middle.
template <int BITS>
inline Floats codes(const uint8_t* from) {
  constexpr uint32_t MOST = (1u << BITS) - 1;
  constexpr int MIDDLE = 1 << (BITS - 1);
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  __m512i words;
  if constexpr (BITS == 8) {
    const __m128i middle = _mm_set1_epi8(-128), bytes = _mm_loadu_si128((const __m128i*)from);
    return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_xor_si128(bytes, middle)));
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
  if constexpr (BITS <= 4)
    return (Floats)_mm512_permutexvar_ps(words, _mm512_load_ps(NUMBERS<BITS, float>.at));
  else
    return (Floats)_mm512_cvtepi32_ps(_mm512_and_si512(words, _mm512_set1_epi32(MOST))) - float(MIDDLE);
#else
  float found[STEP];
  for (int i = 0; i < STEP; i += 8) {
    uint64_t word = 0;
    std::memcpy(&word, from + i * BITS / 8, BITS);
    for (int j = 0; j < 8; ++j) found[i + j] = float(int32_t(word >> j * BITS & MOST) - MIDDLE);
  }
  return load(found);
#endif
}

// The first `count` of them; what lies behind is not read, and its numbers count for nothing.
template <int BITS>
inline Floats codes(const uint8_t* from, int64_t count) {
  uint8_t there[2 * BITS] = {};
  std::memcpy(there, from, (count * BITS + 7) / 8);
  return codes<BITS>(there);
}

using Bytes = uint8_t __attribute__((vector_size(16)));
using Integers = int32_t __attribute__((vector_size(64)));

// Of 32 codes of four bits the even ones, then the odd ones: their tokens stand so, too.
struct Split {
  Floats even, odd;
};

// Sixteen bytes as numbers: of this conversion compilers make one byte after the other.
inline Words widened(const uint8_t* from) {
#if defined(__AVX512F__)
  return (Words)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)from));
#elif defined(__AVX2__)
  const __m256i halves[2] = {_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)from)),
                             _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)(from + 8)))};
  Words found;
  std::memcpy(&found, halves, sizeof(found));
  return found;
#else
  Bytes bytes;
  std::memcpy(&bytes, from, sizeof(bytes));
  return __builtin_convertvector(bytes, Words);
#endif
}

inline Split split(const uint8_t* from) {
  const Words both = widened(from);
#if defined(__AVX512F__)
  const __m512 numbers = _mm512_load_ps(NUMBERS<4, float>.at);
  return {(Floats)_mm512_permutexvar_ps((__m512i)both, numbers),
          (Floats)_mm512_permutexvar_ps((__m512i)(both >> 4), numbers)};
#else
  return {__builtin_convertvector((Integers)(both & 15) - 8, Floats),
          __builtin_convertvector((Integers)(both >> 4) - 8, Floats)};
#endif
}

// How tokens stand beside codes.
enum class Order {
  PLAIN,
  SPLIT,  // of each 32 channels the even ones first
  WORDS,  // in bfloat16, of each 64 bytes of codes those first whose codes stand first in words of 16 bits
};

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__)
constexpr bool BY_WORDS = true;
#else
constexpr bool BY_WORDS = false;
#endif
constexpr int64_t RUN = 32;  // channels that have one scale where tokens stand by words
constexpr int64_t SMALL = 64;  // codes of a group of which sums of its own take longer than a scale for each code

// A matrix of codes: row by row, in groups of `group` along a row, each with a scale and a code of zero.
template <int BITS>
struct Coded {
  const uint8_t *at, *zeros;
  const at::Half* scales;
  int64_t width, group, groups;
  bool brief;  // whether scales are rounded to bfloat16, as the numbers that they make are
  Order order;

  const uint8_t* row(int64_t i) const { return at + i * width * BITS / 8; }
  int64_t marks() const { return order == Order::WORDS ? (width + RUN - 1) / RUN : groups; }  // scales of a row
};

inline uint32_t code_at(const uint8_t* codes, int64_t index, int bits) {
  const int64_t bit = index * bits;
  const uint8_t* from = codes + bit / 8;
  const int shift = bit % 8;
  const uint32_t two = from[0] | (shift + bits > 8 ? uint32_t(from[1]) << 8 : 0);
  return (two >> shift) & ((1u << bits) - 1);
}

// To the nearest number of bfloat16: scales are finite.
inline Floats shortened(Floats numbers) {
  const Words bits = (Words)numbers;
  return (Floats)((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000);
}

// Of groups of `count` rows from `row` on: scales, as they are or rounded to bfloat16, and, where W has them, how far
// codes of zero are from the one in the middle. Both have room for STEP numbers more.
template <int BITS>
void levels(const Coded<BITS>& W, int64_t row, int64_t count, float* scale, float* zero) {
  const int64_t first = row * W.groups, all = count * W.groups;
  const bool whole = first * BITS % 8 == 0;
  for (int64_t i = 0; i < all; i += STEP) {
    const int64_t some = std::min(STEP, all - i);
    Floats found = some == STEP ? load(W.scales + first + i) : load(W.scales + first + i, some);
    if (W.brief) found = shortened(found);
    std::memcpy(scale + i, &found, sizeof(found));
    if (W.zeros && whole) {
      const Floats codes_of = codes<BITS>(W.zeros + (first + i) * BITS / 8, some);
      std::memcpy(zero + i, &codes_of, sizeof(codes_of));
    }
  }
  if (W.zeros && !whole)
    for (int64_t i = 0; i < all; ++i) zero[i] = float(code_at(W.zeros, first + i, BITS)) - (1 << (BITS - 1));
}
"""
