// VARATTN_HD marks the rules that host and device planners share.
#pragma once

#ifdef __CUDACC__
#define VARATTN_HD __host__ __device__ __forceinline__
#else
#define VARATTN_HD inline
#endif

namespace varattn {

template <class T>
VARATTN_HD constexpr T min_of(T a, T b) {
    return a < b ? a : b;
}
template <class T>
VARATTN_HD constexpr T max_of(T a, T b) {
    return a > b ? a : b;
}
template <class T>
VARATTN_HD constexpr T clamp(T x, T lo, T hi) {
    return x < lo ? lo : x > hi ? hi : x;
}
template <class T>
VARATTN_HD constexpr T ceil_div(T a, T b) {
    return (a + b - 1) / b;
}
template <class T>
VARATTN_HD constexpr T round_up(T a, T b) {
    return ceil_div(a, b) * b;
}

}  // namespace varattn
