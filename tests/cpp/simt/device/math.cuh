// csrc/device/math.cuh for a CPU.
#pragma once

#include <cmath>

namespace varattn::device {

inline constexpr float kLn2 = 0.6931471805599453f, kLog2e = 1.4426950408889634f;

inline float exp2_approx(float x) { return std::exp2(x); }
inline float log2_approx(float x) { return std::log2(x); }
inline float reciprocal_approx(float x) { return 1.f / x; }
inline float tanh_fast(float x) { return std::tanh(x); }

}  // namespace varattn::device
