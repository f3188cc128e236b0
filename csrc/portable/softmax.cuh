// Scores to weights: scaling, softcap, mask and online softmax, all in base 2. A thread holds parts of two rows of its
// warp's 16 (see mma_m16n8k16). Nothing here depends on another row, and products and sums are written so that they
// round the same way in every block: a row's bits do not depend on the tile that it is in.
#pragma once

#include "device/math.cuh"
#include "device/mma.cuh"
#include "portable/work.cuh"

namespace varattn::portable {

// Over the four lanes that hold one row of an accumulator.
__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
    return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}

using namespace device;

// To logits in units of log2. The product is not fused into a later subtraction, which masked blocks could not do.
template <int kTiles>
__device__ __forceinline__ void scale_scores(float (&scores)[kTiles][4], float softmax_scale, float softcap) {
    if (softcap > 0.f) {
        const float inner = softmax_scale / softcap, outer = softcap * kLog2e;
#pragma unroll
        for (auto& tile : scores)
#pragma unroll
            for (float& x : tile)
                x = __fmul_rn(tanh_fast(__fmul_rn(x, inner)), outer);
    } else {
        const float scale = softmax_scale * kLog2e;
#pragma unroll
        for (auto& tile : scores)
#pragma unroll
            for (float& x : tile)
                x = __fmul_rn(x, scale);
    }
}

// The two rows' visible keys.
struct RowBounds {
    Range row[2];

    template <class C>
    __device__ static RowBounds of(const AttentionParams& p, const Task& task, const Work& work, int warp_row) {
        RowBounds bounds;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int row = warp_row + i * 8;
            const int32_t token = (task.item.row_begin + row) / group_size(p.config);
            bounds.row[i] = visible_keys(p.config, task.item.q_len, task.item.kv_len, token);
            bounds.row[i].end = row < work.num_rows ? min_of(bounds.row[i].end, work.key_limit) : 0;
        }
        return bounds;
    }
};

template <int kTiles>
__device__ __forceinline__ void mask_scores(float (&scores)[kTiles][4], const RowBounds& bounds, int32_t first_key) {
    const int32_t first = first_key + threadIdx.x % 4 * 2;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int32_t key = first + tile * 8 + i % 2;
            const Range& visible = bounds.row[i / 2];
            if (key < visible.begin || key >= visible.end) scores[tile][i] = -INFINITY;
        }
}

struct OnlineSoftmax {
    float max[2] = {-INFINITY, -INFINITY};
    float sum[2] = {};  // of this thread's columns

    // Scores become weights; the output so far is rescaled to them.
    template <int kTiles, int kOutTiles>
    __device__ __forceinline__ void update(float (&scores)[kTiles][4], float (&out)[kOutTiles][4]) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            float top = -INFINITY;
#pragma unroll
            for (int tile = 0; tile < kTiles; ++tile)
                top = fmaxf(top, fmaxf(scores[tile][i * 2], scores[tile][i * 2 + 1]));
            top = fmaxf(max[i], quad_max(top));
            const float base = top == -INFINITY ? 0.f : top;  // no key seen yet: all weights 0
            const float rescale = exp2_approx(max[i] - base);
            max[i] = top;
            float total = 0.f;
#pragma unroll
            for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
                for (int j = i * 2; j < i * 2 + 2; ++j) {
                    scores[tile][j] = exp2_approx(scores[tile][j] - base);
                    total += scores[tile][j];
                }
            sum[i] = fmaf(sum[i], rescale, total);
#pragma unroll
            for (int tile = 0; tile < kOutTiles; ++tile) {
                out[tile][i * 2] *= rescale;
                out[tile][i * 2 + 1] *= rescale;
            }
        }
    }
};

}  // namespace varattn::portable
