// What follows from a work item: its clipping to the buffers of the launch, the keys that its rows see, their addresses.
#pragma once

#include "core/schedule.h"
#include "sm90/config.h"

namespace varattn::sm90 {

__device__ __forceinline__ int32_t tile_rows(const WorkItem& item) { return item.row_end - item.row_begin; }

// Keys of the item's sequence that exist in this launch.
__device__ __forceinline__ int32_t existing_keys(const LaunchParams& p, const WorkItem& item) {
    const int64_t capacity =
        p.a.block_table ? int64_t{p.a.max_pages_per_seq} * p.a.page_size : p.a.total_k - item.k_begin;
    return static_cast<int32_t>(clamp<int64_t>(capacity, 0, item.kv_len));
}

// Segments of the item's whole tile.
__device__ __forceinline__ Range tile_segments(const LaunchParams& p, const WorkItem& item) {
    const int32_t first_token = item.row_begin / p.group, last_token = (item.row_end - 1) / p.group;
    return {visible_keys(p.a.config, item.q_len, item.kv_len, first_token).begin / kSegmentKeys,
            ceil_div(visible_keys(p.a.config, item.q_len, item.kv_len, last_token).end, kSegmentKeys)};
}

// Whether the item ends with this task: always, unless the kernel folds segments.
template <class C>
__device__ __forceinline__ bool closes_item(const Work& w) {
    return !C::kFoldsSegments || w.closes;
}

// Where its result belongs among the partial ones of its tile.
template <class C>
__device__ __forceinline__ int32_t partial_slot(const Work& w) {
    return C::kFoldsSegments ? w.segment : w.item.split;
}

// Narrows the item to its segment that begins at block `begin`. Returns where the next one does.
template <class C>
__device__ __forceinline__ int32_t take_segment(const LaunchParams& p, Work& w, int32_t begin) {
    constexpr int32_t kBlocks = kSegmentKeys / C::kBlockN;
    // Every segment of a split tile has a slot to be filled, if it has keys or not.
    const int32_t end = w.item.num_splits > 1
                            ? w.item.block_end
                            : min_of(w.item.block_end, ceil_div(existing_keys(p, w.item), C::kBlockN));
    const int32_t next = (begin / kBlocks + 1) * kBlocks;
    w.segment = begin / kBlocks - tile_segments(p, w.item).begin;
    w.opens = begin == w.item.block_begin;
    w.closes = next >= end;
    w.item.block_begin = begin;
    w.item.block_end = min_of(next, end);
    return next;
}

// Sets what follows from the item, by one thread. Returns what was clipped, as bits of the plan's status.
template <class C>
__device__ __forceinline__ uint32_t clip_work(const LaunchParams& p, Work& w) {
    const PlanConfig& c = p.a.config;
    const WorkItem item = w.item;
    const int32_t group = p.group, token = item.row_begin / group;
    w.decode = C::kHasDecode && (item.flags & kItemDecode);
    w.q_row = item.q_begin + token;
    w.diagonal = item.kv_len - item.q_len + token;
    const int32_t num_rows = clamp((p.a.total_q - w.q_row) * group, 0, tile_rows(item));
    const int32_t key_end = existing_keys(p, item);
    const int32_t block_end = min_of(item.block_end, ceil_div(key_end, C::kBlockN));
    const int32_t num_blocks = max_of(block_end - item.block_begin, 0);
    w.num_rows = num_rows;
    w.key_begin = visible_keys(c, item.q_len, item.kv_len, 0).begin;
    w.key_end = key_end;
    w.block_end = block_end;
    w.num_blocks = num_blocks;
    const int32_t first_block = block_end - num_blocks;
    w.first_is_dirty = block_end * C::kBlockN > key_end || (block_end - 1) * C::kBlockN < w.key_begin;
    w.last_is_dirty = (first_block + 1) * C::kBlockN > key_end || first_block * C::kBlockN < w.key_begin;
    w.decode_row_tiles = w.decode && num_blocks > 0 ? ceil_div(num_rows, 8) : 0;
    w.chained = C::kQSlots > 1 && !w.decode && item.num_splits == 1 && num_blocks > 0 &&
                num_rows > 64 * (C::kConsumerWarpgroups - 1);  // every warpgroup has some
    return (num_rows < tile_rows(item) ? kStatusRowsPastEnd : 0) | (key_end < item.kv_len ? kStatusKeysPastEnd : 0);
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

// Sets what a warpgroup's rows see in full, by one thread.
template <class C>
__device__ __forceinline__ void find_whole_blocks(const LaunchParams& p, Work& w, int wg) {
    w.whole_begin[wg] = ceil_div(visible_to_row(p, w, min_of(wg * 64 + 63, w.num_rows - 1)).begin, C::kBlockN);
    w.whole_end[wg] = visible_to_row(p, w, wg * 64).end / C::kBlockN;
}

// Token (row of q) and head of a packed row of the tile.
struct RowAddress {
    int32_t q_row, head_q;
};
__device__ __forceinline__ RowAddress row_address(const LaunchParams& p, const Work& w, int32_t row) {
    const int32_t token = token_of_row(p, row);
    return {w.q_row + token, w.head_kv * p.group + row - token * p.group};
}

}  // namespace varattn::sm90
