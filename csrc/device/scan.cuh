// Scans over a warp and over a block.
#pragma once

#include <cstdint>

namespace varattn::device {

struct Sum {
    static constexpr int32_t kIdentity = 0;
    __device__ static int32_t apply(int32_t a, int32_t b) { return a + b; }
};

struct Max {  // of non-negative values
    static constexpr int32_t kIdentity = 0;
    __device__ static int32_t apply(int32_t a, int32_t b) { return a > b ? a : b; }
};

template <int K>
struct Scanned {
    int32_t before[K];  // of all threads before this one
    int32_t total[K];   // of the block
};

inline constexpr int kMaxScanValues = 2;

template <class Op>
__device__ __forceinline__ int32_t warp_inclusive(int32_t x, int lane) {
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        int32_t other = __shfl_up_sync(~0u, x, step);
        if (lane >= step) x = Op::apply(other, x);
    }
    return x;
}

// K scans at once with one barrier: every warp scans the warps' totals for itself, and calls alternate between two
// buffers, so that no barrier is needed before the next call.
template <int kWarps>
class BlockScan {
public:
    static_assert(kWarps <= 32);
    using Buffer = int32_t[2][kMaxScanValues][kWarps];

    __device__ explicit BlockScan(Buffer& buffer) : buffer_(buffer) {}

    template <class Op, int K>
    __device__ Scanned<K> exclusive(const int32_t (&value)[K]) {
        static_assert(K <= kMaxScanValues);
        int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        Scanned<K> result;
#pragma unroll
        for (int i = 0; i < K; ++i) {
            int32_t inclusive = warp_inclusive<Op>(value[i], lane);
            if (lane == 31) buffer_[turn_][i][warp] = inclusive;
            result.before[i] = shift<Op>(inclusive, lane);
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < K; ++i) {
            int32_t of_warp = lane < kWarps ? buffer_[turn_][i][lane] : Op::kIdentity;
            int32_t warps = warp_inclusive<Op>(of_warp, lane);
            int32_t warps_before = __shfl_sync(~0u, shift<Op>(warps, lane), warp);
            result.before[i] = Op::apply(warps_before, result.before[i]);
            result.total[i] = __shfl_sync(~0u, warps, 31);
        }
        turn_ ^= 1;
        return result;
    }

private:
    template <class Op>
    __device__ static int32_t shift(int32_t inclusive, int lane) {
        int32_t before = __shfl_up_sync(~0u, inclusive, 1);
        return lane == 0 ? Op::kIdentity : before;
    }

    Buffer& buffer_;
    int turn_ = 0;
};

}  // namespace varattn::device
