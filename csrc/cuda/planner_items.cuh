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
        if (units.has(writer_))
            write(tile_group(0, units.num_tiles, tile), position, units.first_item(writer_), units.item_step());
    }

    // This thread's in the first group of this warp, among sorted tiles.
    __device__ PlannedTile first_tile(int32_t first, int32_t num_tiles) const {
        const int32_t i = units_of(num_tiles).group(writer_) * 32 + threadIdx.x % 32;
        return i < num_tiles ? lists_.tiles[first + i] : PlannedTile{};
    }
    // That group and its first items, whose positions are not known yet.
    __device__ StagedAhead stage_ahead(const PlannedTile& tile, int32_t first, int32_t num_tiles) {
        const Units units = units_of(num_tiles);
        if (!units.has(writer_)) return {};
        const int32_t begin = units.group(writer_) * 32, item = units.first_item(writer_);
        StagedAhead ahead{tile_group(first + begin, min_of(num_tiles - begin, 32), tile), {}};
        if (item - static_cast<int32_t>(threadIdx.x % 32) < ahead.group.num_items)
            ahead.items = stage(ahead.group, item);
        return ahead;
    }
    // Now that it is known where partial results go, or that there is no room for some.
    __device__ void update(StagedAhead& ahead, int32_t first, int32_t num_tiles) {
        TileGroup& g = ahead.group;
        if (g.whole || g.num_items == 0) return;
        const int32_t lane = threadIdx.x % 32, expected = g.tile.num_splits();
        g.tile = first_tile(first, num_tiles);
        if (__any_sync(~0u, g.tile.num_splits() != expected)) {
            ahead = stage_ahead(g.tile, first, num_tiles);
            return;
        }
        const PlannedTile its = shuffle(g.tile, ahead.items.owner);
        if (ahead.items.exists && its.num_splits() > 1) {
            auto word = [&](size_t offset) -> int32_t& {
                return reinterpret_cast<int32_t*>(&staged_part(lane, offset / sizeof(uint4)))[offset / 4 % 4];
            };
            const int32_t slot = its.blocks_or_slot();
            word(offsetof(WorkItem, split_tile)) = split_tile_of(p_.shape, its.is_decode(), slot);
            word(offsetof(WorkItem, partial_row)) = partial_row_of(p_.config, p_.shape, its.is_decode(), slot);
        }
        __syncwarp();
    }

    // Sorted tiles, from the first on.
    __device__ void write_sorted(int32_t first, int32_t num_tiles, const StagedAhead& ahead) {
        if (!ahead.items.any) return;
        const Units units = units_of(num_tiles);
        TileGroup g = ahead.group;
        int32_t position = sorted_position(g, first, num_tiles);
        flush(ahead.items, position);
        int32_t unit = writer_, item = units.first_item(unit) + units.item_step();
#pragma unroll 1
        while (true) {
            write(g, position, item, units.item_step());
            unit += num_writers_;
            if (!units.has(unit)) return;
            g = sorted_group(first, units, units.group(unit));
            position = sorted_position(g, first, num_tiles);
            item = units.first_item(unit);
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

    // Of this thread's tile.
    __device__ int32_t sorted_position(const TileGroup& g, int32_t first, int32_t num_tiles) const {
        const int32_t group_begin = g.first - first, i = group_begin + threadIdx.x % 32;
        if (i >= num_tiles) return 0;
        const int32_t key = g.tile.key(),
                      warp = group_begin / 32 >> ItemCounts::rounds_log2(num_tiles, kSorters<kIsShared>);
        return s_.next_item[key] + s_.counts.of_warp[key][warp] + s_.counts.earlier[i];
    }

    // A group's items from this one on.
    __device__ void write(const TileGroup& g, int32_t position, int32_t item, int32_t step) {
#pragma unroll 1
        for (; item - static_cast<int32_t>(threadIdx.x % 32) < g.num_items; item += step)
            flush(stage(g, item), position);
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
                staged_part(lane, part) = parts[part];
        }
        __syncwarp();
        return staged;
    }

    // Writes what is staged. `position` is that of this thread's tile. Four threads write an item.
    __device__ void flush(const StagedItem& staged, int32_t position) {
        position = __shfl_sync(~0u, position, staged.owner) + staged.split;
        if (!staged.exists) position = -1;
        const int lane = threadIdx.x % 32, part = lane % kItemParts;
        auto* items = reinterpret_cast<uint4*>(p_.plan + p_.layout.items);
        int32_t to[kItemParts];
        uint4 parts[kItemParts];
#pragma unroll
        for (int i = 0; i < kItemParts; ++i) {
            const int from = i * (32 / kItemParts) + lane / kItemParts;
            to[i] = __shfl_sync(~0u, position, from);
            parts[i] = staged_part(from, part);
        }
#pragma unroll
        for (int i = 0; i < kItemParts; ++i)
            if (to[i] >= 0) items[int64_t{to[i]} * kItemParts + part] = parts[i];
        __syncwarp();
    }

    // Swizzled against bank conflicts.
    __device__ uint4& staged_part(int item, int part) {
        auto& staging = kIsShared ? s_.staging[threadIdx.x / 32 % kWriters] : s_.large_staging[threadIdx.x / 32];
        return staging[item][part ^ (item / 2 % kItemParts)];
    }

    const PlannerParams& p_;
    SharedMemory& s_;
    const Lists<kIsShared>& lists_;
    const int32_t num_writers_, writer_;
};

// What is known of the plan at last, by one warp.
__device__ inline void write_header(const PlannerParams& p, SharedMemory& s, int32_t num_items, int32_t num_front_items,
                                    int32_t num_front_ctas) {
    if (blockIdx.x > 0) return;
    const int lane = threadIdx.x % 32;
    PlanHeader& header = s.header;
    if (lane == 0) {
        header.magic = kPlanMagic;
        header.num_items = num_items;
        header.num_front_items = num_front_items;
        header.num_front_ctas = final_front_ctas(p.config, num_front_ctas, num_front_items, num_items);
    }
    __syncwarp();
    constexpr int kParts = sizeof(PlanHeader) / sizeof(uint4);
    if (lane < kParts) reinterpret_cast<uint4*>(p.plan)[lane] = reinterpret_cast<const uint4*>(&header)[lane];
}

}  // namespace varattn::planner
