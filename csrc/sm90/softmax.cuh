// Softmax of prefill mode, on the accumulators of a product with keys: a thread holds kScores scores of two rows, score i of
// row i / 2 % 2 and column i / 4 * 8 + i % 2 from the thread's first.
#pragma once

#include "device/math.cuh"

namespace varattn::sm90 {

using namespace device;

inline constexpr float kLargeProbabilities = 16384.f;  // the sum of a thread's; float16 ends at 65504

// Online softmax of the two rows of a thread, in base 2. Probabilities are relative to a reference: the maximum of the row's
// first block. It stays until the probabilities of a block turn out large, which their sum tells: so later blocks need no
// maxima, and the output no rescaling. Every decision is a row's own: its bits do not depend on the other rows of the tile.
template <int kScores>
struct RowSoftmax {
    float top[2] = {-INFINITY, -INFINITY};  // the reference, a raw score
    float offset[2] = {0.f, 0.f};           // the same as an exponent of 2, or 0 if there is none yet
    float sum[2] = {0.f, 0.f};              // this thread's share

    // Probabilities of kCount scores from kFirst on, and the block's sums, which those from 0 on begin. Of use unless the block
    // turns out late.
    template <int kFirst, int kCount>
    __device__ __forceinline__ void exponentiate(const float (&s)[kScores], float scale_log2, float (&x)[kCount],
                                                 float (&block_sum)[2]) const {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            x[i] = exp2_approx(fmaf(s[kFirst + i], scale_log2, -offset[i / 2 % 2]));
            float& sum = block_sum[i / 2 % 2];
            sum = kFirst == 0 && (i == 0 || i == 2) ? x[i] : sum + x[i];
        }
    }
    // Whether a row needs another reference for this block.
    __device__ __forceinline__ bool is_late(int h, const float (&block_sum)[2]) const {
        return !(block_sum[h] <= kLargeProbabilities) || top[h] == -INFINITY;
    }
    // Raises the row's reference to its maximum, if it is late. Returns the factor for what was accumulated before.
    __device__ __forceinline__ float raise(int h, bool late, const float (&s)[kScores], float scale_log2) {
        float m4[4] = {s[h * 2], s[h * 2 + 1], s[h * 2 + 4], s[h * 2 + 5]};  // four chains, which overlap
#pragma unroll
        for (int i = 4; i < kScores / 2; ++i)
            m4[i % 4] = fmaxf(m4[i % 4], s[i / 2 * 4 + h * 2 + i % 2]);
        float m = fmaxf(fmaxf(m4[0], m4[1]), fmaxf(m4[2], m4[3]));
        m = fmaxf(m, __shfl_xor_sync(~0u, m, 1));
        m = fmaxf(top[h], fmaxf(m, __shfl_xor_sync(~0u, m, 2)));
        if (!late) m = top[h];
        const float factor = m == top[h] ? 1.f : exp2_approx((top[h] - m) * scale_log2);
        top[h] = m;
        offset[h] = m == -INFINITY ? 0.f : m * scale_log2;
        sum[h] *= factor;
        return factor;
    }
};

// Raw scores after softcap, as tanh(score * score_scale).
template <int kScores>
__device__ __forceinline__ void cap_scores(float (&s)[kScores], float score_scale) {
#pragma unroll
    for (int i = 0; i < kScores; ++i)
        s[i] = tanh_fast(s[i] * score_scale);
}
// Masks keys at or past the end of what each row sees, or before its beginning, relative to the thread's first column.
template <int kScores>
__device__ __forceinline__ void mask_end(float (&s)[kScores], int32_t end, int32_t next_end) {
#pragma unroll
    for (int i = 0; i < kScores; ++i)
        if (i / 4 * 8 + i % 2 >= (i / 2 % 2 ? next_end : end)) s[i] = -INFINITY;
}
template <int kScores>
__device__ __forceinline__ void mask_begin(float (&s)[kScores], int32_t begin, int32_t next_begin) {
#pragma unroll
    for (int i = 0; i < kScores; ++i)
        if (i / 4 * 8 + i % 2 < (i / 2 % 2 ? next_begin : begin)) s[i] = -INFINITY;
}

}  // namespace varattn::sm90
