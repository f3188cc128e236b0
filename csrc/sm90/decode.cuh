// Decode mode: at most 16 packed rows. mma.sync, with the keys of a block split over the warps of a warpgroup, and the
// blocks over two warpgroups, so that no warp waits for another inside a block. Bound by memory, not by products: a
// tile padded to the 128 rows of prefill mode would take three times as long on data that has already arrived.
#pragma once

#include "device/mma.cuh"
#include "device/pipeline.cuh"
#include "sm90/output.cuh"

namespace varattn::sm90 {

// Merges the results of all warps, of 16 rows each, and writes them. `q`: the Q tile, which is read no more and holds
// eight rows of every warp at a time.
template <class C>
__device__ __forceinline__ void merge_warps(const LaunchParams& p, SharedMemory<C>& sm, const Work& w, uint8_t* q,
                                            const float (&o)[C::kDim / 8][4], const float (&top)[2], float (&sum)[2],
                                            int wg, int thread) {
    using T = typename C::T;
    const int warp = thread / 32 % 4, lane = thread % 32, row = lane / 4;  // and row + 8
    const bool computes = wg < kDecodeWarps / 4;
    sync_consumers<C>();  // everyone has read Q, and the last item's maxima
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        sum[h] += __shfl_xor_sync(~0u, sum[h], 1);
        sum[h] += __shfl_xor_sync(~0u, sum[h], 2);
        if (lane % 4 == 0 && computes) {
            sm.decode_max[wg * 4 + warp][row + h * 8] = top[h];
            sm.decode_sum[wg * 4 + warp][row + h * 8] = sum[h];
        }
    }
    // Rows 0 to 7, then the rest. (warp, row, dim), columns swizzled by row.
    static_assert(kDecodeWarps * 8 * C::kDim * sizeof(float) <= C::kQBytes);
    float* const partial = reinterpret_cast<float*>(q);
    const int dim = p.a.config.head_dim_v;
#pragma unroll 1
    for (int first = 0; first < w.num_rows; first += 8) {
        if (first > 0) sync_consumers<C>();  // the first rows have been read
        if (first + row < w.num_rows && computes)
#pragma unroll
            for (int i = 0; i < C::kDim / 8; ++i)
                *reinterpret_cast<float2*>(partial + ((wg * 4 + warp) * 8 + row) * C::kDim +
                                           ((i * 8 + lane % 4 * 2) ^ row * 8)) =
                    first == 0 ? float2{o[i][0], o[i][1]} : float2{o[i][2], o[i][3]};
        sync_consumers<C>();
        for (int i = thread; i < min_of(w.num_rows - first, 8) * C::kDim / 2; i += C::kConsumerWarps * 32) {
            const int local = i / (C::kDim / 2), r = first + local, column = i % (C::kDim / 2) * 2;
            float m = -INFINITY, total = 0.f;
#pragma unroll
            for (int x = 0; x < kDecodeWarps; ++x)
                m = fmaxf(m, sm.decode_max[x][r]);
            const float offset = m == -INFINITY ? 0.f : m * p.scale_log2;
            float2 acc{0.f, 0.f};
#pragma unroll
            for (int x = 0; x < kDecodeWarps; ++x) {
                const float weight = exp2_approx(sm.decode_max[x][r] * p.scale_log2 - offset);
                const float2 y =
                    *reinterpret_cast<const float2*>(partial + (x * 8 + local) * C::kDim + (column ^ local * 8));
                total += weight * sm.decode_sum[x][r];
                acc.x += weight * y.x;
                acc.y += weight * y.y;
            }
            const RowAddress at = row_address(p, w, r);
            const Denominator d = finish_row(p, at.head_q, m * p.scale_log2, total, w.item.num_splits == 1);
            acc.x *= d.reciprocal;
            acc.y *= d.reciprocal;
            if (w.item.num_splits > 1) {
                const Partials partials(p, w);
                const int64_t to = int64_t{w.item.split} * tile_rows(w.item) + r;
                if (column < dim) *reinterpret_cast<float2*>(partials.out + to * dim + column) = acc;
                if (column == 0) partials.lse[to] = d.lse;
            } else {
                if (column < dim) *reinterpret_cast<uint32_t*>(out_row<C>(p, at) + column) = pack2<T>(acc.x, acc.y);
                if (column == 0) write_lse(p, at, d.lse);
            }
        }
    }
}

template <class C>
__device__ __forceinline__ void attend_decode(const LaunchParams& p, SharedMemory<C>& sm, const Work& w,
                                              RingPosition<C::kStages>& kv, RingPosition<C::kQSlots>& q_slot, int wg,
                                              int thread) {
    using T = typename C::T;
    constexpr int kKeys = C::kBlockN / 4, kTiles = kKeys / 16;  // of a warp, in tiles of 16
    const int warp = thread / 32 % 4, lane = thread % 32;

    // A block lies in shared memory as boxes of (64-dim part, key, 64 dims), as producer.cuh copies them.
    const int box_shift = p.has_whole ? p.box_shift : log2_floor(C::kBlockN), part_stride = 128 << box_shift;
    auto key_line = [&](int key) {
        return (key >> box_shift) * C::kParts * part_stride + (key & ((1 << box_shift) - 1)) * 128;
    };
    uint32_t k_line[kTiles], v_line[kTiles], k_chunk[4], v_chunk[4];
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
        k_line[t] = key_line(warp * kKeys + t * 16 + lane / 16 * 8 + lane % 8);
        v_line[t] = key_line(warp * kKeys + t * 16 + lane / 8 % 2 * 8 + lane % 8);
    }
#pragma unroll
    for (int c = 0; c < 4; ++c) {
        k_chunk[c] = ((c * 2 + lane / 8 % 2) ^ (lane % 8)) * 16;
        v_chunk[c] = ((c * 2 + lane / 16) ^ (lane % 8)) * 16;
    }

    // Where the 64-dim parts of a stage start. Opaque, or the compiler would keep a register for every sum of offsets.
    auto find_parts = [&](uint32_t (&parts)[C::kParts], uint32_t stage) {
#pragma unroll
        for (int i = 0; i < C::kParts; ++i)
            parts[i] = opaque(stage + i * part_stride);
    };

    mbarrier_wait(&sm.q_full[q_slot.stage], q_slot.full_parity());
    uint8_t* const q = sm.q[q_slot.stage];
    uint32_t q_frag[C::kDim / 16][4];
#pragma unroll
    for (int kk = 0; kk < C::kDim / 16; ++kk)
        ldmatrix_x4(q_frag[kk], smem_address(q) + kk / 4 * C::kQPartBytes + lane % 16 * 128 +
                                    (((kk % 4 * 2 + lane / 16) ^ (lane % 8)) * 16));

    const int row = lane / 4;  // and row + 8
    const Range visible[2] = {visible_to_row(p, w, row), visible_to_row(p, w, row + 8)};
    const int whole_end = visible_to_row(p, w, 0).end / C::kBlockN;
    const int whole_begin = ceil_div(visible_to_row(p, w, w.num_rows - 1).begin, C::kBlockN);
    float o[C::kDim / 8][4] = {}, top[2] = {-INFINITY, -INFINITY}, sum[2] = {0.f, 0.f};

    // This warpgroup's next stages, at K(i) and V(i) of i = wg, wg + 2, ... in the order K0 K1 V0 K2 V1 ... V(n-1). A
    // third warpgroup has none, and waits in the merge.
    const int n = w.num_blocks, mine = wg < kDecodeWarps / 4 ? n : 0;
    RingPosition<C::kStages> k_at = kv, v_at = kv;
    if (wg < mine) {
        k_at.advance(wg);
        v_at.advance(wg == n - 1 ? 2 * n - 1 : 2 * wg + 2);
    }
    // A warpgroup skips the other's phases of a stage, and parity cannot tell phase n from n - 2: it first makes sure that
    // phase n - 1 was consumed.
    auto wait_full = [&](const RingPosition<C::kStages>& at) {
        mbarrier_wait(&sm.kv_empty[at.stage], at.empty_parity());
        mbarrier_wait(&sm.kv_full[at.stage], at.full_parity());
    };
    auto release = [&](int stage) {  // for all warpgroups: the others do not read this stage
        __syncwarp();
        if (lane == 0) mbarrier_arrive(&sm.kv_empty[stage], C::kConsumerWarpgroups);
    };

    for (int i = wg; i < mine; i += 2) {
        const int block = w.block_end - 1 - i, first_key = block * C::kBlockN + warp * kKeys;
        float s[kTiles * 2][4] = {};
        wait_full(k_at);
        uint32_t k_part[C::kParts], v_part[C::kParts];
        find_parts(k_part, smem_address(sm.kv[k_at.stage]));
#pragma unroll
        for (int kk = 0; kk < C::kDim / 16; ++kk)
#pragma unroll
            for (int t = 0; t < kTiles; ++t) {
                uint32_t b[4];
                ldmatrix_x4(b, k_part[kk / 4] + k_line[t] + k_chunk[kk % 4]);
                mma_m16n8k16<T>(s[t * 2], q_frag[kk], b[0], b[1]);
                mma_m16n8k16<T>(s[t * 2 + 1], q_frag[kk], b[2], b[3]);
            }
        release(k_at.stage);

        if (p.score_scale != 0.f)
#pragma unroll
            for (int x = 0; x < kTiles * 8; ++x)
                s[x / 4][x % 4] = tanh_fast(s[x / 4][x % 4] * p.score_scale);
        if (block >= whole_end || block < whole_begin)
#pragma unroll
            for (int x = 0; x < kTiles * 8; ++x) {
                const int key = first_key + x / 4 * 8 + lane % 4 * 2 + x % 2;
                if (key < visible[x / 2 % 2].begin || key >= visible[x / 2 % 2].end) s[x / 4][x % 4] = -INFINITY;
            }

        float rescale[2], offset[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float m = s[0][h * 2];
#pragma unroll
            for (int x = 1; x < kTiles * 4; ++x)
                m = fmaxf(m, s[x / 2][h * 2 + x % 2]);
            m = fmaxf(m, __shfl_xor_sync(~0u, m, 1));
            m = fmaxf(top[h], fmaxf(m, __shfl_xor_sync(~0u, m, 2)));
            offset[h] = m == -INFINITY ? 0.f : m * p.scale_log2;
            rescale[h] = exp2_approx(top[h] * p.scale_log2 - offset[h]);
            top[h] = m;
            sum[h] *= rescale[h];
        }
#pragma unroll
        for (int x = 0; x < kTiles * 8; ++x) {
            float& y = s[x / 4][x % 4];
            y = exp2_approx(fmaf(y, p.scale_log2, -offset[x / 2 % 2]));
            sum[x / 2 % 2] += y;
        }
        if (__any_sync(~0u, rescale[0] != 1.f || rescale[1] != 1.f))  // a factor of 1 changes no bits
#pragma unroll
            for (int x = 0; x < C::kDim / 2; ++x)
                o[x / 4][x % 4] *= rescale[x / 2 % 2];

        wait_full(v_at);
        uint8_t* const v = sm.kv[v_at.stage];
        if (first_key < w.key_begin || first_key + kKeys > w.key_end) {
            // Stale memory may hold NaN, and 0 x NaN is NaN.
            for (int x = lane; x < kKeys * C::kParts * 8; x += 32) {
                const int key = x / (C::kParts * 8), part = x / 8 % C::kParts;
                if (first_key + key < w.key_begin || first_key + key >= w.key_end)
                    *reinterpret_cast<uint4*>(v + key_line(warp * kKeys + key) + part * part_stride + x % 8 * 16) =
                        uint4{0, 0, 0, 0};
            }
            fence_async_proxy();
            __syncwarp();
        }
        find_parts(v_part, smem_address(v));
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
            const uint32_t prob[4] = {pack2<T>(s[t * 2][0], s[t * 2][1]), pack2<T>(s[t * 2][2], s[t * 2][3]),
                                      pack2<T>(s[t * 2 + 1][0], s[t * 2 + 1][1]),
                                      pack2<T>(s[t * 2 + 1][2], s[t * 2 + 1][3])};
#pragma unroll
            for (int d = 0; d < C::kDim / 16; ++d) {
                uint32_t b[4];
                ldmatrix_x4_trans(b, v_part[d / 4] + v_line[t] + v_chunk[d % 4]);
                mma_m16n8k16<T>(o[d * 2], prob, b[0], b[1]);
                mma_m16n8k16<T>(o[d * 2 + 1], prob, b[2], b[3]);
            }
        }
        release(v_at.stage);
        k_at.advance(i == 0 ? 3 : 4);
        v_at.advance(i + 2 == n - 1 ? 3 : 4);
    }
    kv.advance(2 * n);

    merge_warps<C>(p, sm, w, q, o, top, sum, wg, opaque(thread));
    fence_async_proxy();
    __syncwarp();
    if (lane == 0) mbarrier_arrive(&sm.q_empty[q_slot.stage]);
    q_slot.advance();
}

}  // namespace varattn::sm90
