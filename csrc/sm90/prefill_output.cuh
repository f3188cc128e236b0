// Rows of a prefill tile on their way out.
#pragma once

#include "sm90/output.cuh"

namespace varattn::sm90 {

// 8 bytes in one store, without a branch.
__device__ __forceinline__ void store_global_if(bool condition, void* to, uint32_t x, uint32_t y) {
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %0, 0; @p st.global.v2.b32 [%1], {%2, %3}; }" ::"r"(
                     static_cast<int>(condition)),
                 "l"(to), "r"(x), "r"(y)
                 : "memory");
}

// The accumulated rows of a thread, written as final rows or as a split's partials.
//
// A thread has two columns of every eight. Neighbouring lanes exchange half of two groups of eight, after which four lanes
// hold 32 bytes of a row that lie side by side: whole sectors, without a trip through shared memory.
template <class C, int kOutGroups, int kOutRegs>
__device__ __forceinline__ void write_prefill(const LaunchParams& p, const Work& w,
                                              const float (&o)[kOutGroups][kOutRegs], const float (&top)[2],
                                              const float (&sum)[2], int wg, int thread) {
    using T = typename C::T;
    const int lane = thread % 32, first_row = wg * 64 + thread / 32 % 4 * 16 + lane / 4, dim = p.a.config.head_dim_v;
    const bool is_split = w.item.num_splits > 1;
    const bool odd = lane % 2;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const int row = first_row + h * 8;
        const bool exists = row < w.num_rows;
        float total = sum[h];
        total += __shfl_xor_sync(~0u, total, 1);
        total += __shfl_xor_sync(~0u, total, 2);
        const RowAddress at = row_address(p, w, row);
        const Denominator denominator = finish_row(p, at.head_q, top[h] * p.scale_log2, total, !is_split);
        auto column = [&](int i) { return &o[i / (kOutRegs / 4)][i % (kOutRegs / 4) * 4 + h * 2]; };
        if (is_split) {
            const Partials partials(p, w);
            const int64_t at_row = int64_t{w.item.split} * tile_rows(w.item) + row;
            if (lane % 4 == 0 && exists) partials.lse[at_row] = denominator.lse;
            const int first_column = lane % 4 * 2, columns = exists ? dim - first_column : 0;
            float* const to = partials.out + at_row * dim + first_column;
#pragma unroll
            for (int i = 0; i < C::kDim / 8; ++i)
                store_global_if(i * 8 < columns, to + i * 8, __float_as_uint(column(i)[0] * denominator.reciprocal),
                                __float_as_uint(column(i)[1] * denominator.reciprocal));
            continue;
        }
        // The lane's four columns of groups i and i + 1: of the first if it is even, of the second if it is odd.
        const int first_column = odd * 8 + lane % 4 / 2 * 4, columns = exists ? dim - first_column : 0;
        T* const to = out_row<C>(p, at) + first_column;
#pragma unroll
        for (int i = 0; i < C::kDim / 8; i += 2) {
            uint32_t x[2];
#pragma unroll
            for (int k = 0; k < 2; ++k)
                x[k] = pack2<T>(column(i + k)[0] * denominator.reciprocal, column(i + k)[1] * denominator.reciprocal);
            const uint32_t mine = odd ? x[1] : x[0], other = __shfl_xor_sync(~0u, odd ? x[0] : x[1], 1);
            store_global_if(i * 8 < columns, to + i * 8, odd ? other : mine, odd ? mine : other);
        }
        if (lane % 4 == 0 && exists) write_lse(p, at, denominator.lse);
    }
}

}  // namespace varattn::sm90
