// Rows of a prefill tile on their way out.
#pragma once

#include "sm90/output.cuh"

namespace varattn::sm90 {

__device__ __forceinline__ uint4 load_shared(uint32_t address) {
    uint4 x;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "r"(address)
                 : "memory");
    return x;
}

// 16 bytes in one store, without a branch.
__device__ __forceinline__ void store_global_if(bool condition, void* to, const uint4& x) {
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %0, 0; @p st.global.v4.b32 [%1], {%2, %3, %4, %5}; }" ::"r"(
                     static_cast<int>(condition)),
                 "l"(to), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w)
                 : "memory");
}

// The accumulated rows of a thread, written as final rows or as a split's partials. `q`: the warpgroup's 64 rows of the
// item's Q tile, which nothing reads any more; `q_empty`: its barrier.
template <class C, int kOutGroups, int kOutRegs>
__device__ __forceinline__ void write_prefill(const LaunchParams& p, const Work& w, uint8_t* q, uint64_t* q_empty,
                                              const float (&o)[kOutGroups][kOutRegs], const float (&top)[2],
                                              const float (&sum)[2], int wg, int thread) {
    using T = typename C::T;
    const int warp = thread / 32 % 4, lane = thread % 32, row = wg * 64 + warp * 16 + lane / 4;
    Denominator denominator[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        float total = sum[h];
        total += __shfl_xor_sync(~0u, total, 1);
        total += __shfl_xor_sync(~0u, total, 2);
        const int head_q = row_address(p, w, row + h * 8).head_q;
        denominator[h] = finish_row(p, head_q, top[h] * p.scale_log2, total, w.item.num_splits == 1);
    }
    auto release = [&] {
        __syncwarp();
        if (lane == 0) mbarrier_arrive(q_empty);
    };
    if (w.item.num_splits > 1) {
        release();
        const Partials partials(p, w);
        const int dim = p.a.config.head_dim_v;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            if (row + h * 8 >= w.num_rows) continue;
            const int64_t at = int64_t{w.item.split} * tile_rows(w.item) + row + h * 8;
            if (lane % 4 == 0) partials.lse[at] = denominator[h].lse;
#pragma unroll
            for (int i = 0; i < C::kDim / 8; ++i) {
                const int c = i * 8 + lane % 4 * 2;
                const float* x = &o[i / (kOutRegs / 4)][i % (kOutRegs / 4) * 4 + h * 2];
                if (c < dim)
                    *reinterpret_cast<float2*>(partials.out + at * dim + c) =
                        float2{x[0] * denominator[h].reciprocal, x[1] * denominator[h].reciprocal};
            }
        }
        return;
    }
    // Through the warp's own 16 rows of the Q tile, so that rows are written 16 bytes a lane. The same swizzle as Q keeps
    // both sides free of bank conflicts.
    uint8_t* const tile = q + warp * 16 * 128;
    const int tile_row = lane % 16, line = tile_row * 128;
#pragma unroll
    for (int i = 0; i < C::kDim / 16; ++i) {
        const float* x = &o[i * 8 / kOutRegs][i * 8 % kOutRegs];
        uint32_t r[4];
#pragma unroll
        for (int k = 0; k < 4; ++k)
            r[k] = pack2<T>(x[k * 2] * denominator[k % 2].reciprocal, x[k * 2 + 1] * denominator[k % 2].reciprocal);
        const uint32_t at =
            smem_address(tile) + i / 4 * C::kQPartBytes + line + (((i % 4 * 2 + lane / 16) ^ (tile_row % 8)) * 16);
        asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(r[0]), "r"(r[1]),
                     "r"(r[2]), "r"(r[3])
                     : "memory");
    }
    fence_async_proxy();  // the copy engine will write there next
    __syncwarp();
    constexpr int kChunks = C::kDim / 8, kRows = 32 / kChunks;  // 16-byte chunks of a row; rows of a step
    const uint32_t first_row = static_cast<uint32_t>(lane) / kChunks, chunk = static_cast<uint32_t>(lane) % kChunks;
    const uint32_t from =
        smem_address(tile) + chunk / 8 * C::kQPartBytes + first_row * 128 + (chunk % 8 ^ first_row) * 16;
    T* const to = out_row<C>(p, {w.q_row, w.head_kv * p.group}) + chunk * 8;
    const int rows_left = chunk * 8 < p.a.config.head_dim_v ? w.num_rows - wg * 64 - warp * 16 - first_row : 0;
    uint4 x[16 / kRows];
#pragma unroll
    for (int i = 0; i < 16; i += kRows)
        x[i / kRows] = load_shared((from ^ i % 8 * 16) + i * 128);
    release();
#pragma unroll
    for (int i = 0; i < 16; i += kRows) {
        const int tile_row = wg * 64 + warp * 16 + first_row + i, token = token_of_row(p, tile_row);
        store_global_if(i < rows_left,
                        to + token * p.a.out_row_stride + (tile_row - token * p.group) * p.a.out_head_stride,
                        x[i / kRows]);
    }
#pragma unroll
    for (int h = 0; h < 2; ++h)
        if (lane % 4 == 0 && row + h * 8 < w.num_rows) write_lse(p, row_address(p, w, row + h * 8), denominator[h].lse);
}

}  // namespace varattn::sm90
