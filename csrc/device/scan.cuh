// Scans over a warp and over a block.
#pragma once

#include <cstdint>

namespace varattn::device {

struct Sum {
    static constexpr int32_t kIdentity = 0;
    __device__ static int32_t apply(int32_t a, int32_t b) { return a + b; }
    __device__ static int32_t reduce(int32_t x) { return __reduce_add_sync(~0u, x); }
};

struct Max {  // of non-negative values
    static constexpr int32_t kIdentity = 0;
    __device__ static int32_t apply(int32_t a, int32_t b) { return a > b ? a : b; }
    __device__ static int32_t reduce(int32_t x) { return __reduce_max_sync(~0u, static_cast<uint32_t>(x)); }
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

// K scans at once with one barrier: every warp reduces the warps' totals for itself, and calls alternate between two
// buffers, so that no barrier is needed before the next call.
template <int kWarps>
class BlockScan {
public:
    static_assert(kWarps <= 32);
    using Buffer = int32_t[2][kMaxScanValues][kWarps];

    __device__ explicit BlockScan(Buffer& buffer) : buffer_(buffer) {}

    template <class Op, int K>
    __device__ Scanned<K> exclusive(const int32_t (&value)[K]) {
        Scanned<K> result = begin<Op>(value);
        __syncthreads();
        end<Op>(result);
        return result;
    }

    // And whether `flag` holds for all threads.
    template <class Op, int K>
    __device__ Scanned<K> exclusive(const int32_t (&value)[K], bool flag, bool& all) {
        Scanned<K> result = begin<Op>(value);
        all = __syncthreads_and(flag);
        end<Op>(result);
        return result;
    }

private:
    // Within warps.
    template <class Op, int K>
    __device__ Scanned<K> begin(const int32_t (&value)[K]) {
        static_assert(K <= kMaxScanValues);
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        Scanned<K> result;
#pragma unroll
        for (int i = 0; i < K; ++i) {
            const int32_t inclusive = warp_inclusive<Op>(value[i], lane), before = __shfl_up_sync(~0u, inclusive, 1);
            if (lane == 31) buffer_[turn_][i][warp] = inclusive;
            result.before[i] = lane == 0 ? Op::kIdentity : before;
        }
        return result;
    }

    template <class Op, int K>
    __device__ void end(Scanned<K>& result) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
        for (int i = 0; i < K; ++i) {
            const int32_t of_warp = lane < kWarps ? buffer_[turn_][i][lane] : Op::kIdentity;
            result.before[i] = Op::apply(Op::reduce(lane < warp ? of_warp : Op::kIdentity), result.before[i]);
            result.total[i] = Op::reduce(of_warp);
        }
        turn_ ^= 1;
    }

    Buffer& buffer_;
    int turn_ = 0;
};

}  // namespace varattn::device
