// Conversions between float and the 16-bit formats: plain integer code, so that loops over them vectorise anywhere.
#pragma once

#include <bit>
#include <cstdint>

namespace varattn {

struct Half {
    uint16_t bits;
};
struct BFloat16 {
    uint16_t bits;
};

inline float to_float(float x) { return x; }
inline float to_float(BFloat16 x) { return std::bit_cast<float>(uint32_t{x.bits} << 16); }
inline float to_float(Half x) {
    const uint32_t magnitude = uint32_t{x.bits} & 0x7fff, sign = (uint32_t{x.bits} & 0x8000) << 16;
    // Shifted into place, the exponent is 112 too small; the product corrects it, subnormals included.
    float value = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
    const uint32_t inf_or_nan = magnitude >= 0x7c00 ? 0x7f800000u : 0u;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(value) | inf_or_nan | sign);
}

// Round to nearest, ties to even.
template <class T>
T from_float(float x);
template <>
inline float from_float<float>(float x) {
    return x;
}
template <>
inline BFloat16 from_float<BFloat16>(float x) {
    const uint32_t bits = std::bit_cast<uint32_t>(x);
    const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return {static_cast<uint16_t>(x != x ? (bits >> 16 | 0x40) : rounded)};
}
template <>
inline Half from_float<Half>(float x) {
    const uint32_t bits = std::bit_cast<uint32_t>(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    uint32_t half;
    if (magnitude > 0x7f800000)
        half = 0x7e00;
    else if (magnitude >= 0x477ff000)  // 65520 and up round to infinity
        half = 0x7c00;
    else if (magnitude < 0x38800000)  // below 2^-14: subnormal. Adding 0.5 leaves its multiple of 2^-24 in the low bits
        half = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000;
    else
        half = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
    return {static_cast<uint16_t>(half | sign)};
}

}  // namespace varattn
