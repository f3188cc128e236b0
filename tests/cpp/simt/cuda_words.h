// What nvcc knows without a header, for a CPU's compiler.
#pragma once

#include <bit>
#include <cmath>
#include <utility>

#include "simt/simt.h"

#undef __device__
#undef __global__
#undef __shared__
#undef __forceinline__
#undef __noinline__
#undef __launch_bounds__
#undef __grid_constant__
#define __device__
#define __global__
#define __shared__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __grid_constant__

template <class T>
T __ldcg(const T* from) {
    return *from;
}
template <class T>
T __ldg(const T* from) {
    return *from;
}
inline uint32_t atomicExch(uint32_t* p, uint32_t value) { return std::exchange(*p, value); }
inline void __threadfence() {}
inline uint32_t __float_as_uint(float x) { return std::bit_cast<uint32_t>(x); }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
