// What a role needs to know of a work item, clipped to the buffers of this launch.
#pragma once

#include "core/schedule.h"
#include "sm90/config.h"

namespace varattn::sm90 {

struct Work {
    const WorkItem* item;  // in shared memory until the role releases the slot
    int32_t head_kv;
    int32_t q_row;     // row of q of packed row 0 of the tile
    int32_t num_rows;  // packed rows, of tokens that exist in this launch
    int32_t diagonal;  // key on the diagonal of packed row 0
    int32_t k_begin;
    int32_t key_begin, key_end;  // keys of the sequence that any of its rows may see: outside, memory may hold anything
    int32_t block_end, num_blocks;  // blocks are visited downwards: block_end - 1 first
    uint32_t status;
    bool decode;
};

__device__ __forceinline__ int32_t tile_rows(const WorkItem& item) { return item.row_end - item.row_begin; }

template <class C>
__device__ __forceinline__ Work read_work(const LaunchParams& p, const ItemSlot& slot) {
    const WorkItem& item = slot.item;
    const PlanConfig& c = p.a.config;
    const int32_t group = group_size(c);
    Work w;
    w.item = &item;
    w.head_kv = slot.head_kv;
    w.decode = C::kHasDecode && (item.flags & kItemDecode);
    const int32_t token = item.row_begin / group;
    w.q_row = item.q_begin + token;
    w.diagonal = item.kv_len - item.q_len + token;
    w.num_rows = clamp((p.a.total_q - w.q_row) * group, 0, tile_rows(item));
    w.status = w.num_rows < tile_rows(item) ? kStatusRowsPastEnd : 0;
    w.k_begin = item.k_begin;
    int64_t capacity = p.a.block_table ? int64_t{p.a.max_pages_per_seq} * p.a.page_size : p.a.total_k - item.k_begin;
    w.key_end = static_cast<int32_t>(clamp<int64_t>(capacity, 0, item.kv_len));
    if (w.key_end < item.kv_len) w.status |= kStatusKeysPastEnd;
    w.key_begin = visible_keys(c, item.q_len, item.kv_len, 0).begin;
    w.block_end = min_of(item.block_end, ceil_div(w.key_end, C::kBlockN));
    w.num_blocks = max_of(w.block_end - item.block_begin, 0);
    return w;
}

// Whether the item is one of a chain of prefill items: the first keys of the next one are multiplied together with the last
// values of this one. Both sides of the KV ring go by it.
template <class C>
__device__ __forceinline__ bool is_chained(const Work& w) {
    return C::kQSlots > 1 && !w.decode && w.item->num_splits == 1 && w.num_rows > 0 && w.num_blocks > 0;
}

// Producer warps that have boxes to copy.
template <class C>
__device__ __forceinline__ int num_producer_warps(const LaunchParams& p) {
    return min_of(kProducerWarps, C::kBlockN / p.box_rows);
}

// Token of a packed row, relative to the tile's first: row / group.
__device__ __forceinline__ int32_t token_of_row(const LaunchParams& p, uint32_t row) {
    return static_cast<int32_t>(row * p.group_reciprocal >> 16);
}

// Keys that packed row `row` of the tile sees.
__device__ __forceinline__ Range visible_to_row(const LaunchParams& p, const Work& w, int32_t row) {
    const PlanConfig& c = p.a.config;
    const int32_t diagonal = w.diagonal + token_of_row(p, row);
    return {c.window_left < 0 ? 0 : max_of(0, diagonal - c.window_left),
            c.window_right < 0 ? w.key_end : min_of(w.key_end, diagonal + c.window_right + 1)};
}

// Token (row of q) and head of a packed row of the tile.
struct RowAddress {
    int32_t q_row, head_q;
};
__device__ __forceinline__ RowAddress row_address(const LaunchParams& p, const Work& w, int32_t row) {
    const int32_t group = group_size(p.a.config), token = token_of_row(p, row);
    return {w.q_row + token, w.head_kv * group + row - token * group};
}

}  // namespace varattn::sm90
