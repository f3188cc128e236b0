// From a row's sums to its result: the denominator, the head's sink, and the fold over segments (core/layout.h).
#pragma once

#include "device/math.cuh"
#include "sm90/work.cuh"

namespace varattn::sm90 {

using namespace device;

// A row's denominator with its head's sink, in units of 2^max_log2, and the natural log of the whole.
struct Denominator {
    float reciprocal, lse;
};
__device__ __forceinline__ Denominator finish_row(const LaunchParams& p, int head_q, float max_log2, float sum,
                                                  bool apply_sink) {
    if (apply_sink && p.a.sinks) {
        const float sink = p.a.sinks[head_q] * kLog2e;
        if (sum == 0.f) return {0.f, p.a.sinks[head_q]};
        sum += exp2f(sink - max_log2);
    }
    if (sum == 0.f) return {0.f, -INFINITY};
    return {reciprocal_approx(sum), (max_log2 + log2_approx(sum)) * kLn2};
}

// Folding: the result of a row so far takes in that of its next segment. All operations are named, so that the bits are the
// same wherever it happens. A segment of which the row sees no key changes nothing.
struct Fold {
    float running, next;  // weights
    float lse;            // natural log, of both

    __device__ Fold(float running_lse, float next_lse) : running(1.f), next(0.f), lse(running_lse) {
        if (next_lse == -INFINITY) return;
        if (running_lse == -INFINITY) {
            running = 0.f, next = 1.f, lse = next_lse;
            return;
        }
        const float top = fmaxf(running_lse, next_lse);
        running = weight(running_lse, top), next = weight(next_lse, top);
        const float sum = __fadd_rn(running, next), reciprocal = reciprocal_approx(sum);
        running = __fmul_rn(running, reciprocal), next = __fmul_rn(next, reciprocal);
        lse = __fmaf_rn(log2_approx(sum), kLn2, top);
    }
    // That of another lane.
    __device__ Fold of_lane(int lane) const {
        Fold f = *this;
        f.running = __shfl_sync(~0u, running, lane), f.next = __shfl_sync(~0u, next, lane);
        return f;
    }
    __device__ float operator()(float so_far, float segment) const {
        const float both = __fmaf_rn(running, so_far, __fmul_rn(next, segment));
        return next == 0.f ? so_far : both;
    }

private:
    __device__ static float weight(float lse, float top) {
        return exp2_approx(__fmul_rn(__fadd_rn(lse, -top), kLog2e));
    }
};
// A folded row takes its head's sink.
__device__ __forceinline__ Denominator finish_fold(const LaunchParams& p, int head_q, float lse) {
    if (!p.a.sinks) return {1.f, lse};
    const Fold fold(lse, p.a.sinks[head_q]);
    return {fold.running, fold.lse};
}

}  // namespace varattn::sm90
