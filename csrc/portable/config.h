// Tile shapes and shared memory of the portable kernel (compute capability 8.0 and newer). One row of the kernel table
// for each head dim.
#pragma once

#include <cstdint>

#include "core/kernel_table.h"
#include "varattn/params.h"

namespace varattn::portable {

inline constexpr int kWarps = 4, kThreads = 32 * kWarps;
inline constexpr int kWarpRows = 16;  // of an m16n8k16 product

constexpr KernelId kernel_of(int dim) {
    return dim == 64 ? kKernelPortableD64 : dim == 128 ? kKernelPortableD128 : kKernelPortableD256;
}

// kDim_: head dim, 64, 128 or 256; smaller ones are zero-filled.
template <class T_, int kDim_>
struct Config {
    using T = T_;
    static constexpr int kDim = kDim_;
    static constexpr KernelConfig kRow = kKernelTable[kernel_of(kDim)];
    static constexpr int kTileRows = kRow.tile_rows;
    static constexpr int kBlockN = kRow.block_n;
    static constexpr int kCtasPerSm = kRow.ctas_per_sm;
    static constexpr int kStages = kDim == 64 ? 3 : 2;  // of K and V: two CTAs fit the 164 KiB of an A100's SM
    static_assert(kRow.id == kernel_of(kDim) && kRow.max_head_dim == kDim && kRow.tile_rows_decode == 0);
    static_assert(kTileRows == kWarps * kWarpRows && 2 * kBlockN <= kThreads);
};

// A work item and the KV head that it is done for.
struct Task {
    WorkItem item;
    int32_t item_index;  // in the plan
    int32_t head_kv;     // -1: no more work
};

inline constexpr int64_t kNoRow = -1;  // in a table of row offsets: the row reads as zeros

template <class C>
struct alignas(128) SharedMemory {
    typename C::T q[C::kTileRows * C::kDim];
    typename C::T k[C::kStages][C::kBlockN * C::kDim];
    typename C::T v[C::kStages][C::kBlockN * C::kDim];
    int64_t q_rows[C::kTileRows];                    // offsets of rows in elements, or kNoRow
    int64_t k_rows[C::kBlockN], v_rows[C::kBlockN];  // of the block that is loaded next
    Task task;
    int32_t is_last_split;
};

}  // namespace varattn::portable
