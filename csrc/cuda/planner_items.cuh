// The device planner's last phase: warps make the items of their tiles, and write them where the order puts them.
#pragma once

#include <cstring>

#include "cuda/planner_memory.cuh"

namespace varattn::planner {

// A warp's 32 tiles, whose items it writes.
struct TileGroup {
    int32_t first;
    PlannedTile tile;          // this thread's
    int32_t begin, num_items;  // items before this thread's tile; all of them
    bool whole;                // every tile
};

__device__ inline TileGroup tile_group(int32_t first, int32_t count, const PlannedTile& tile) {
    const int lane = threadIdx.x % 32;
    const int32_t more = lane < count ? tile.num_splits() - 1 : 0;  // than one item
    TileGroup g{first, tile, lane, count, !__any_sync(~0u, more > 0)};
    if (!g.whole) {
        const int32_t end = warp_inclusive<Sum>(more, lane);
        g.begin += end - more;
        g.num_items += __shfl_sync(~0u, end, 31);
    }
    return g;
}

// 32 items in shared memory, on their way to the plan: this thread's is a piece of the tile of thread `owner`.
struct StagedItem {
    int32_t owner = 0, split = 0;
    bool exists = false, any = false;
};
struct StagedAhead {
    TileGroup group;
    StagedItem items;
};

__device__ inline PlannedTile shuffle(const PlannedTile& tile, int lane) {
    uint32_t words[2];
    memcpy(words, &tile, sizeof tile);
    for (uint32_t& word : words)
        word = __shfl_sync(~0u, word, lane);
    PlannedTile result;
    memcpy(&result, words, sizeof result);
    return result;
}

// This warp is one of `num_writers`. Each takes groups of tiles one by one, or, if groups are few, a share of a group's items.
template <bool kIsShared>
class ItemWriter {
public:
    __device__ ItemWriter(const PlannerParams& p, SharedMemory& s, const Lists<kIsShared>& lists, int32_t num_writers,
                          int32_t writer)
        : p_(p), s_(s), lists_(lists), num_writers_(num_writers), writer_(writer) {}

    // All tiles, which are one group. `position` is that of this thread's tile.
    __device__ void write_only(const PlannedTile& tile, int32_t position) {
        const Units units = units_of(lists_.num_tiles);
        if (units.has(writer_)) write(tile_group(0, units.num_tiles, tile), position, units, writer_, {});
    }

    // The first tiles of this warp among sorted ones, and their first items. Their positions are not known yet.
    __device__ StagedAhead stage_ahead(int32_t first, int32_t num_tiles) {
        const Units units = units_of(num_tiles);
        if (!units.has(writer_)) return {};
        const int32_t item = units.first_item(writer_);
        StagedAhead ahead{sorted_group(first, units, units.group(writer_)), {}};
        if (item - static_cast<int32_t>(threadIdx.x % 32) < ahead.group.num_items)
            ahead.items = stage(ahead.group, item);
        return ahead;
    }

    // Sorted tiles, from the first on.
    __device__ void write_sorted(int32_t first, int32_t num_tiles, const StagedAhead& ahead) {
        const Units units = units_of(num_tiles);
        const int32_t rounds = ItemCounts::num_rounds(num_tiles), lane = threadIdx.x % 32;
#pragma unroll 1
        for (int32_t unit = writer_; units.has(unit); unit += num_writers_) {
            const int32_t group = units.group(unit), i = group * 32 + lane;
            const TileGroup g = unit == writer_ ? ahead.group : sorted_group(first, units, group);
            int32_t position = 0;
            if (i < num_tiles) {
                const int32_t warp = rounds == 1 ? group : group / rounds, key = g.tile.key();
                position = keys_items_before(s_, key) + s_.next_item[key] + s_.counts.of_warp[key][warp] +
                           s_.counts.earlier[i];
            }
            write(g, position, units, unit, unit == writer_ ? ahead.items : StagedItem{});
        }
    }

private:
    // Pairs of a group and a share of its items.
    struct Units {
        int32_t num_tiles, groups, shares_log2;
        __device__ int32_t group(int32_t unit) const { return unit >> shares_log2; }
        __device__ int32_t first_item(int32_t unit) const {
            return (unit & ((1 << shares_log2) - 1)) * 32 + threadIdx.x % 32;
        }
        __device__ int32_t item_step() const { return 32 << shares_log2; }
        __device__ bool has(int32_t unit) const { return group(unit) < groups; }
    };

    __device__ Units units_of(int32_t num_tiles) const {
        const int32_t groups = ceil_div(num_tiles, 32), groups_log2 = groups > 1 ? log2_floor(groups - 1) + 1 : 0;
        return {num_tiles, groups, max_of(log2_floor(num_writers_) - groups_log2, 0)};
    }

    __device__ TileGroup sorted_group(int32_t first, const Units& units, int32_t group) const {
        const int32_t begin = group * 32, i = begin + threadIdx.x % 32;
        return tile_group(first + begin, min_of(units.num_tiles - begin, 32),
                          i < units.num_tiles ? lists_.tiles[first + i] : PlannedTile{});
    }

    // A unit, whose first items may be staged.
    __device__ void write(const TileGroup& g, int32_t position, const Units& units, int32_t unit, StagedItem staged) {
        const int32_t lane = threadIdx.x % 32;
#pragma unroll 1
        for (int32_t item = units.first_item(unit); item - lane < g.num_items; item += units.item_step()) {
            if (!staged.any) staged = stage(g, item);
            const int32_t to = __shfl_sync(~0u, position, staged.owner) + staged.split;
            flush(staged.exists ? to : -1);
            staged = {};
        }
    }

    __device__ StagedItem stage(const TileGroup& g, int32_t item) {
        const int lane = threadIdx.x % 32;
        StagedItem staged{lane, 0, item < g.num_items, true};
        PlannedTile tile = g.tile;
        if (!g.whole) {
            const int32_t begin = g.begin - (item - lane);  // among the 32 items
            const uint32_t here = begin > 0 && begin < 32 ? 1u << begin : 0, all_here = __reduce_add_sync(~0u, here);
            staged.owner = __popc(__ballot_sync(~0u, begin <= 0)) - 1 + __popc(all_here & ((2u << lane) - 1));
            tile = shuffle(g.tile, staged.owner);
            staged.split = item - __shfl_sync(~0u, g.begin, staged.owner);
        }
        if (staged.exists) {
            const SequenceShape seq = lists_.shapes[tile.seq()];
            const int32_t index = g.first + staged.owner - lists_.first_tiles[tile.seq()];
            const WorkItem made = make_item(p_.config, p_.costs, p_.shape, tile.seq(), seq, tile.is_decode(), index,
                                            tile_at(p_.config, p_.shape, seq.q_len, seq.kv_len, index), staged.split,
                                            tile.num_splits(), tile.blocks_or_slot());
            uint4 parts[kItemParts];
            memcpy(parts, &made, sizeof made);
#pragma unroll
            for (int part = 0; part < kItemParts; ++part)
                staging()[lane][part ^ (lane / 2 % kItemParts)] = parts[part];
        }
        __syncwarp();
        return staged;
    }

    // Writes what is staged to these positions, if not negative. Four threads write an item.
    __device__ void flush(int32_t position) {
        const int lane = threadIdx.x % 32, part = lane % kItemParts;
        auto* items = reinterpret_cast<uint4*>(p_.plan + p_.layout.items);
        int32_t to[kItemParts];
        uint4 parts[kItemParts];
#pragma unroll
        for (int i = 0; i < kItemParts; ++i) {
            const int from = i * (32 / kItemParts) + lane / kItemParts;
            to[i] = __shfl_sync(~0u, position, from);
            parts[i] = staging()[from][part ^ (from / 2 % kItemParts)];
        }
#pragma unroll
        for (int i = 0; i < kItemParts; ++i)
            if (to[i] >= 0) items[int64_t{to[i]} * kItemParts + part] = parts[i];
        __syncwarp();
    }

    __device__ uint4 (&staging())[32][kItemParts] {
        return kIsShared ? s_.staging[threadIdx.x / 32 % kWriters] : s_.large_staging[threadIdx.x / 32];
    }

    const PlannerParams& p_;
    SharedMemory& s_;
    const Lists<kIsShared>& lists_;
    const int32_t num_writers_, writer_;
};

}  // namespace varattn::planner
