// Fast functions of float32, in base 2.
#pragma once

namespace varattn::device {

inline constexpr float kLn2 = 0.6931471805599453f, kLog2e = 1.4426950408889634f;

__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float log2_approx(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float reciprocal_approx(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Error below 2e-7; tanh.approx has 5e-4, which a softcap of 50 would make visible.
__device__ __forceinline__ float tanh_fast(float x) {
    return 1.f - __fdividef(2.f, exp2_approx(x * (2.f * kLog2e)) + 1.f);
}

}  // namespace varattn::device
