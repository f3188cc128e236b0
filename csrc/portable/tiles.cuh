// Tiles in shared memory: where their rows lie in global memory, loading them, and their products.
#pragma once

#include "device/cp_async.cuh"
#include "device/mma.cuh"
#include "portable/work.cuh"

namespace varattn::portable {

using namespace device;

// A tile is rows of kDim elements in 16-byte chunks. A chunk's place in its row is xored with the row, so that the same
// chunk of eight consecutive rows lies in eight different groups of banks.
template <class C>
__device__ __forceinline__ int chunk_at(int row, int chunk) {
    return row * C::kDim + ((chunk ^ (row & 7)) * 8);
}

// All threads: starts copies of kRows rows, of num_dims elements, from base + rows[i].
template <class C, int kRows>
__device__ __forceinline__ void load_tile(typename C::T* tile, const int64_t* rows, const void* base,
                                          int32_t num_dims) {
    constexpr int kChunks = C::kDim / 8, kRowsAtOnce = kThreads / kChunks;
    const int chunk = threadIdx.x % kChunks;
    const auto* from = static_cast<const typename C::T*>(base) + chunk * 8;
#pragma unroll
    for (int first = 0; first < kRows; first += kRowsAtOnce) {
        const int row = first + threadIdx.x / kChunks;
        const int64_t offset = rows[row];
        const bool valid = offset != kNoRow && chunk * 8 < num_dims;
        cp_async_16(tile + chunk_at<C>(row, chunk), valid ? from + offset : base, valid);
    }
}

template <class C>
__device__ __forceinline__ void locate_q_rows(const AttentionParams& p, SharedMemory<C>& sm, const Work& work) {
    const int row = threadIdx.x;
    if (row >= C::kTileRows) return;
    const RowAddress at = row_address(p, sm.task, row);
    sm.q_rows[row] = row < work.num_rows ? at.q_row * p.q_row_stride + at.head * p.q_head_stride : kNoRow;
}

// Finds the rows of a KV block, one a thread: the first kBlockN threads those of K, the next those of V. In two steps,
// since a page id takes a trip to memory.
template <class C>
class KvRows {
public:
    __device__ KvRows(const AttentionParams& p, SharedMemory<C>& sm, const Work& work)
        : p_(p), sm_(sm), keys_(work.keys) {}

    __device__ void fetch_page_ids(int32_t block) {
        const int32_t key = key_of_thread(block);
        if (!p_.block_table || !is_visible(key)) return;
        page_ = __ldg(p_.block_table + sm_.task.item.seq * p_.block_table_stride + key / p_.page_size);
    }

    // After fetch_page_ids of the same block.
    __device__ void locate(int32_t block) {
        if (threadIdx.x >= 2 * C::kBlockN) return;
        const bool is_k = threadIdx.x < C::kBlockN;
        const int64_t row_stride = is_k ? p_.k_row_stride : p_.v_row_stride;
        const int32_t key = key_of_thread(block);
        int64_t* const rows = is_k ? sm_.k_rows : sm_.v_rows;
        int64_t& offset = rows[threadIdx.x % C::kBlockN];
        offset = kNoRow;
        if (!is_visible(key)) return;
        if (!p_.block_table)
            offset = (int64_t{sm_.task.item.k_begin} + key) * row_stride;
        else if (page_ >= 0 && page_ < p_.num_pages)
            offset = page_ * (is_k ? p_.k_page_stride : p_.v_page_stride) + key % p_.page_size * row_stride;
        else
            report(p_, kStatusPageId);
    }

private:
    __device__ static int32_t key_of_thread(int32_t block) { return block * C::kBlockN + threadIdx.x % C::kBlockN; }
    __device__ bool is_visible(int32_t key) const { return key >= keys_.begin && key < keys_.end; }

    const AttentionParams& p_;
    SharedMemory<C>& sm_;
    Range keys_;
    int32_t page_ = 0;
};

// Starts the copies of a located KV block: one group for K, one for V, also where there is nothing left to load.
template <class C>
__device__ __forceinline__ void load_kv(const AttentionParams& p, SharedMemory<C>& sm, int32_t stage, bool exists) {
    using T = typename C::T;
    const int64_t head = sm.task.head_kv;
    if (exists)
        load_tile<C, C::kBlockN>(sm.k[stage], sm.k_rows, static_cast<const T*>(p.k) + head * p.k_head_stride,
                                 p.config.head_dim);
    cp_async_commit();
    if (exists)
        load_tile<C, C::kBlockN>(sm.v[stage], sm.v_rows, static_cast<const T*>(p.v) + head * p.v_head_stride,
                                 p.config.head_dim_v);
    cp_async_commit();
}

// A warp's 16 rows of q times a K block.
template <class C>
__device__ __forceinline__ void multiply_qk(float (&scores)[C::kBlockN / 8][4], const typename C::T* q,
                                            const typename C::T* k) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (auto& s : scores)
        s[0] = s[1] = s[2] = s[3] = 0.f;
#pragma unroll
    for (int dim = 0; dim < C::kDim / 16; ++dim) {
        uint32_t a[4];
        ldmatrix_x4(a, q + chunk_at<C>(warp * kWarpRows + lane % 16, dim * 2 + lane / 16));
#pragma unroll
        for (int key = 0; key < C::kBlockN / 16; ++key) {
            uint32_t b[4];
            ldmatrix_x4(b, k + chunk_at<C>(key * 16 + lane / 16 * 8 + lane % 8, dim * 2 + lane / 8 % 2));
            mma_m16n8k16<typename C::T>(scores[key * 2], a, b[0], b[1]);
            mma_m16n8k16<typename C::T>(scores[key * 2 + 1], a, b[2], b[3]);
        }
    }
}

// out += weights times a V block.
template <class C>
__device__ __forceinline__ void multiply_pv(float (&out)[C::kDim / 8][4], const float (&weights)[C::kBlockN / 8][4],
                                            const typename C::T* v) {
    using T = typename C::T;
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int key = 0; key < C::kBlockN / 16; ++key) {
        const float (&low)[4] = weights[key * 2], (&high)[4] = weights[key * 2 + 1];
        const uint32_t a[4] = {pack2<T>(low[0], low[1]), pack2<T>(low[2], low[3]), pack2<T>(high[0], high[1]),
                               pack2<T>(high[2], high[3])};
#pragma unroll
        for (int dim = 0; dim < C::kDim / 16; ++dim) {
            uint32_t b[4];
            ldmatrix_x4_trans(b, v + chunk_at<C>(key * 16 + lane % 16, dim * 2 + lane / 16));
            mma_m16n8k16<T>(out[dim * 2], a, b[0], b[1]);
            mma_m16n8k16<T>(out[dim * 2 + 1], a, b[2], b[3]);
        }
    }
}

}  // namespace varattn::portable
