// Decode mode: at most 16 packed rows. mma.sync, with the keys of a block split over the warps of a warpgroup, and the
// blocks over two warpgroups, so that no warp waits for another inside a block. Bound by memory, not by products: a
// tile padded to the 128 rows of prefill mode would take three times as long on data that has already arrived.
#pragma once

#include "device/mma.cuh"
#include "device/pipeline.cuh"
#include "sm90/output.cuh"

namespace varattn::sm90 {

// Writes a warp's share of dims, kTiles of 8, of the rows that a thread has: lane / 4 and that + 8.
template <class C, int kTiles>
__device__ __forceinline__ void write_decode(const LaunchParams& p, const Work& w, const float (&o)[kTiles][4],
                                             const float (&top)[2], const float (&sum)[2], int warp, int lane,
                                             int dim) {
    using T = typename C::T;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const int row = lane / 4 + h * 8;
        if (row >= w.num_rows) break;
        const RowAddress at = row_address(p, w, row);
        const Denominator d = finish_row(p, at.head_q, top[h] * p.scale_log2, sum[h], w.item.num_splits == 1);
        auto write = [&](auto to_columns) {
#pragma unroll
            for (int i = 0; i < kTiles; ++i) {
                const int column = (warp * kTiles + i) * 8 + lane % 4 * 2;
                if (column < dim) to_columns(column, o[i][h * 2] * d.reciprocal, o[i][h * 2 + 1] * d.reciprocal);
            }
        };
        const bool writes_lse = warp == 0 && lane % 4 == 0;
        if (w.item.num_splits > 1) {
            const Partials partials(p, w);
            const int64_t to = int64_t{w.item.split} * tile_rows(w.item) + row;
            float* const out = partials.out + to * dim;
            write([&](int column, float x, float y) { *reinterpret_cast<float2*>(out + column) = {x, y}; });
            if (writes_lse) partials.lse[to] = d.lse;
        } else {
            T* const out = out_row<C>(p, at);
            write([&](int column, float x, float y) { *reinterpret_cast<uint32_t*>(out + column) = pack2<T>(x, y); });
            if (writes_lse) write_lse(p, at, d.lse);
        }
    }
}

// Merges the results of two warpgroups, of 16 rows each warp, and writes them. The second warpgroup leaves its own with the
// first and goes on, so that the stream of keys does not wait for the merge. `q`: the Q tile, which is read no more.
template <class C>
__device__ __forceinline__ void merge_warps(const LaunchParams& p, SharedMemory<C>& sm, const Work& w, uint8_t* q,
                                            float (&o)[C::kDim / 8][4], float (&top)[2], float (&sum)[2], int wg,
                                            uint32_t thread) {
    constexpr int kTiles = C::kDim / 8, kMine = kTiles / 4;  // of 8 dims: all, those that a warp writes
    const int warp = thread / 32 % 4, lane = thread % 32, row = lane / 4, dim = p.a.config.head_dim_v;  // and row + 8
    const bool exists = row < w.num_rows;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        sum[h] += __shfl_xor_sync(~0u, sum[h], 1);
        sum[h] += __shfl_xor_sync(~0u, sum[h], 2);
    }
    // (warp, 8 dims, lane), as the accumulators are: a thread finds its part of another warp's where its own would be.
    static_assert(4 * kTiles * 32 * sizeof(float4) <= C::kQBytes);
    float4* const outputs = reinterpret_cast<float4*>(q) + lane;
    auto leave_results = [&] {
        if (!exists) return;
#pragma unroll
        for (int i = 0; i < kTiles; ++i)
            outputs[(warp * kTiles + i) * 32] = {o[i][0], o[i][1], o[i][2], o[i][3]};
        if (lane % 4 == 0) sm.decode_rows[wg][warp][row] = {{top[0], top[1]}, {sum[0], sum[1]}};
    };
    if (wg == 1) {
        // The first has read Q, and what it was left before: the second is never ahead by a whole task.
        named_barrier_sync(kBarrierDecodeQ, 256);
        leave_results();
        fence_async_proxy();  // before the next Q
        named_barrier_arrive(kBarrierDecodeRows, C::kConsumerWarps * 32);
        return;
    }
    named_barrier_sync(kBarrierDecodeRows, C::kConsumerWarps * 32);
    if (wg > 1) return;  // a third one, which has only kept step with the ring

    // What rescales results relative to one maximum to those of another.
    auto factor = [&](float from, float to) {
        return exp2_approx(from * p.scale_log2 - (to == -INFINITY ? 0.f : to * p.scale_log2));
    };
    if (exists) {
        const DecodeRows other = sm.decode_rows[1][warp][row];
        float mine[2], theirs[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const float m = fmaxf(top[h], other.top[h]);
            mine[h] = factor(top[h], m);
            theirs[h] = factor(other.top[h], m);
            sum[h] = sum[h] * mine[h] + other.sum[h] * theirs[h];
            top[h] = m;
        }
#pragma unroll
        for (int i = 0; i < kTiles; ++i) {
            const float4 y = outputs[(warp * kTiles + i) * 32];
            o[i][0] = o[i][0] * mine[0] + y.x * theirs[0];
            o[i][1] = o[i][1] * mine[0] + y.y * theirs[0];
            o[i][2] = o[i][2] * mine[1] + y.z * theirs[1];
            o[i][3] = o[i][3] * mine[1] + y.w * theirs[1];
        }
    }
    leave_results();
    fence_async_proxy();
    named_barrier_sync(kBarrierWarpgroup, 128);
    if (!exists) return;
    DecodeRows rows[4];
    float m[2] = {-INFINITY, -INFINITY}, total[2] = {0.f, 0.f}, acc[kMine][4] = {};
#pragma unroll
    for (int x = 0; x < 4; ++x) {
        rows[x] = sm.decode_rows[0][x][row];
        m[0] = fmaxf(m[0], rows[x].top[0]);
        m[1] = fmaxf(m[1], rows[x].top[1]);
    }
#pragma unroll
    for (int x = 0; x < 4; ++x) {
        const float weight[2] = {factor(rows[x].top[0], m[0]), factor(rows[x].top[1], m[1])};
        total[0] += weight[0] * rows[x].sum[0];
        total[1] += weight[1] * rows[x].sum[1];
#pragma unroll
        for (int i = 0; i < kMine; ++i) {
            const float4 y = outputs[(x * kTiles + warp * kMine + i) * 32];
            acc[i][0] += weight[0] * y.x;
            acc[i][1] += weight[0] * y.y;
            acc[i][2] += weight[1] * y.z;
            acc[i][3] += weight[1] * y.w;
        }
    }
    write_decode<C, kMine>(p, w, acc, m, total, warp, lane, dim);
}

template <class C>
__device__ __forceinline__ void attend_decode(const LaunchParams& p, SharedMemory<C>& sm, const Work& w,
                                              RingPosition<C::kStages>& kv, RingPosition<C::kQSlots>& q_slot, int wg,
                                              uint32_t thread) {
    using T = typename C::T;
    constexpr int kKeys = C::kBlockN / 4, kTiles = kKeys / 16;  // of a warp, in tiles of 16
    const int warp = thread / 32 % 4, lane = thread % 32;

    // A block lies in shared memory as boxes of (64-dim part, key, 64 dims), as producer.cuh copies them.
    const int group_shift = p.group_shift, part_stride = 128 << group_shift;
    auto key_line = [&](int key) {
        return (key >> group_shift) * C::kParts * part_stride + (key & ((1 << group_shift) - 1)) * 128;
    };
    uint32_t k_line[kTiles], v_line[kTiles], k_chunk[4], v_chunk[4];
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
        k_line[t] = key_line(warp * kKeys + t * 16 + lane / 16 * 8 + lane % 8);
        v_line[t] = key_line(warp * kKeys + t * 16 + lane / 8 % 2 * 8 + lane % 8);
    }
#pragma unroll
    for (int c = 0; c < 4; ++c) {
        k_chunk[c] = (((lane / 8 % 2) ^ (lane % 8)) * 16) ^ c * 32;
        v_chunk[c] = (((lane / 16) ^ (lane % 8)) * 16) ^ c * 32;
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
        ldmatrix_x4(q_frag[kk], smem_address(q) + kk / 4 * C::kQPartBytes + lane % 16 * 128 + v_chunk[kk % 4]);
    if (wg == 0) named_barrier_arrive(kBarrierDecodeQ, 256);

    const int row = lane / 4;  // and row + 8
    const Range visible[2] = {visible_to_row(p, w, row), visible_to_row(p, w, row + 8)};
    const int whole_end = visible_to_row(p, w, 0).end / C::kBlockN;
    const int whole_begin = ceil_div(visible_to_row(p, w, w.num_rows - 1).begin, C::kBlockN);
    float o[C::kDim / 8][4] = {}, top[2] = {-INFINITY, -INFINITY}, sum[2] = {0.f, 0.f};

    // This warpgroup's next stages, at K(i) and V(i) of i = first, first + 2, ... in the order K0 K1 V0 K2 V1 ... V(n-1).
    // The second warpgroup is the first to be here, see merge_warps. A third one has none.
    const int n = w.num_blocks, first = wg ^ 1, end = wg < kDecodeWarps / 4 ? n : 0;
    RingPosition<C::kStages> k_at = kv, v_at = kv;
    if (first < end) {
        k_at.advance(first);
        v_at.advance(first == n - 1 ? 2 * n - 1 : 2 * first + 2);
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

    for (int i = first; i < end; i += 2) {
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
#pragma unroll 1
            for (int x = opaque(lane); x < kKeys * C::kParts * 8; x += 32) {
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
    __syncwarp();
    if (lane == 0) mbarrier_arrive(&sm.q_empty[q_slot.stage]);
    q_slot.advance();
}

}  // namespace varattn::sm90
