// Rows of a prefill tile on their way out.
#pragma once

#include "sm90/output.cuh"

namespace varattn::sm90 {

// Stores four columns a lane of a final row, of the two groups of eight in which it has two each. Neighbouring lanes exchange
// half of them, after which four lanes hold 32 bytes of a row that lie side by side: whole sectors, without a trip through
// shared memory. A lane's columns are of the first group if it is even, of the second if it is odd.
__device__ __forceinline__ void store_columns_if(bool condition, void* to, uint32_t first, uint32_t second, bool odd) {
    const uint32_t mine = odd ? second : first, other = __shfl_xor_sync(~0u, odd ? first : second, 1);
    store_global_if(condition, to, odd ? other : mine, odd ? mine : other);
}

// What a thread keeps of its two rows of a tile while the CTA folds the tile's segments. Nobody else reads it, so that it lies
// as is best for the thread.
template <class C>
class KeptRows {
public:
    __device__ KeptRows(const LaunchParams& p, int thread)
        : own_(reinterpret_cast<float*>(static_cast<char*>(p.a.workspace) + p.workspace.kept) +
               blockIdx.x * p.workspace.kept_floats + thread * 4) {}

    // Its columns of groups 2 * i and 2 * i + 1 of eight, of row h.
    __device__ float4& columns(int h, int i) const {
        return *reinterpret_cast<float4*>(own_ + (h * kPairs + i) * kThreads * 4);
    }
    __device__ float& lse(int h) const { return own_[2 * kPairs * kThreads * 4 + h]; }

private:
    static constexpr int kPairs = C::kDim / 16, kThreads = C::kConsumerWarps * 32;
    static_assert((2 * kPairs + 1) * kThreads * 4 == C::kTileRows * (C::kDim + 8), "see kept_row_floats");
    float* own_;
};

// Row h of a thread in a tile that is folded; value(i, k) is its normalised segment in column i * 8 + k from the thread's first.
// It takes in what is kept of the segments before, and is kept itself; if it is the last, it is the final row.
template <class C, class Value>
__device__ __forceinline__ void fold_row(const LaunchParams& p, const Work& w, int h, int row, float lse, int thread,
                                         const Value& value) {
    using T = typename C::T;
    constexpr int kPairs = C::kDim / 16, kAhead = C::kDim == 256 ? 2 : kPairs;  // loads ahead: more would spill
    const int lane = thread % 32;
    if (row - lane / 4 >= w.num_rows) return;  // as all of the warp's
    const bool odd = lane % 2, exists = row < w.num_rows;
    const int first_column = odd * 8 + lane % 4 / 2 * 4;
    const int columns = exists && w.closes ? p.a.config.head_dim_v - first_column : 0;
    const RowAddress at = row_address(p, w, row);
    T* const to = out_row<C>(p, at) + first_column;
    const KeptRows<C> kept(p, thread);

    const Fold fold(w.opens ? -INFINITY : kept.lse(h), lse);
    const Denominator result = finish_fold(p, at.head_q, fold.lse);
    float4 before[kAhead];
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
        if (i % kAhead == 0)
#pragma unroll
            for (int k = 0; k < kAhead; ++k)
                before[k] = w.opens ? float4{} : kept.columns(h, i + k);
        const float4 x = before[i % kAhead];
        const float4 y = {fold(x.x, value(i * 2, 0)), fold(x.y, value(i * 2, 1)), fold(x.z, value(i * 2 + 1, 0)),
                          fold(x.w, value(i * 2 + 1, 1))};
        if (!w.closes) kept.columns(h, i) = y;
        store_columns_if(i * 16 < columns, to + i * 16, pack2<T>(y.x * result.reciprocal, y.y * result.reciprocal),
                         pack2<T>(y.z * result.reciprocal, y.w * result.reciprocal), odd);
    }
    if (!w.closes)
        kept.lse(h) = fold.lse;
    else if (lane % 4 == 0 && exists)
        write_lse(p, at, result.lse);
}

// The accumulated rows of a thread, written as final rows, or as partials of a split or of a segment. A thread has two columns
// of every eight. kMaySplit: the task may be one of a split.
template <class C, bool kMaySplit, int kOutGroups, int kOutRegs>
__device__ __forceinline__ void write_prefill(const LaunchParams& p, const Work& w,
                                              const float (&o)[kOutGroups][kOutRegs], const float (&top)[2],
                                              const float (&sum)[2], int wg, int thread) {
    using T = typename C::T;
    const int lane = thread % 32, first_row = wg * 64 + thread / 32 % 4 * 16 + lane / 4, dim = p.a.config.head_dim_v;
    const bool is_split = kMaySplit && w.item.num_splits > 1;
    const bool odd = lane % 2;
    // Of both rows at once: it is all latency.
    float total[2] = {sum[0], sum[1]};
#pragma unroll
    for (int lanes = 1; lanes < 4; lanes *= 2)
#pragma unroll
        for (int h = 0; h < 2; ++h)
            total[h] += __shfl_xor_sync(~0u, total[h], lanes);
    Denominator result[2];
    RowAddress at[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        at[h] = row_address(p, w, first_row + h * 8);
        result[h] = finish_row(p, at[h].head_q, top[h] * p.scale_log2, total[h], !is_split && !C::kFoldsSegments);
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const int row = first_row + h * 8;
        const bool exists = row < w.num_rows;
        auto value = [&](int i, int k) {
            return o[i / (kOutRegs / 4)][i % (kOutRegs / 4) * 4 + h * 2 + k] * result[h].reciprocal;
        };
        if (is_split) {
            const Partials partials(p, w);
            const int64_t at_row = int64_t{partial_slot<C>(w)} * tile_rows(w.item) + row;
            if (lane % 4 == 0 && exists) partials.lse[at_row] = result[h].lse;
            const int first_column = lane % 4 * 2, columns = exists ? dim - first_column : 0;
            float* const to = partials.out + at_row * dim + first_column;
#pragma unroll
            for (int i = 0; i < C::kDim / 8; ++i)
                store_global_if(i * 8 < columns, to + i * 8, __float_as_uint(value(i, 0)),
                                __float_as_uint(value(i, 1)));
            continue;
        }
        if constexpr (C::kFoldsSegments) {
            fold_row<C>(p, w, h, row, result[h].lse, thread, value);
            continue;
        }
        const int first_column = odd * 8 + lane % 4 / 2 * 4, columns = exists ? dim - first_column : 0;
        T* const to = out_row<C>(p, at[h]) + first_column;
#pragma unroll
        for (int i = 0; i < C::kDim / 8; i += 2)
            store_columns_if(i * 8 < columns, to + i * 8, pack2<T>(value(i, 0), value(i, 1)),
                             pack2<T>(value(i + 1, 0), value(i + 1, 1)), odd);
        if (p.a.lse && lane % 4 == 0 && exists) write_lse(p, at[h], result[h].lse);
    }
}

}  // namespace varattn::sm90
