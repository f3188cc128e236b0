// The device planner's splits: targets for the cost of a piece, and which tiles are cut for them.
#pragma once

#include "cuda/planner_memory.cuh"

namespace varattn::planner {

constexpr int kTargetWarps = 8;  // a team, of which each tries a target
static_assert(kNumWaveTargets <= kTargetWarps && kWarps % kTargetWarps == 0);

template <bool kIsShared>
class TileSplitter {
public:
    __device__ TileSplitter(const PlannerParams& p, SharedMemory& s, BlockScan<kWarps>& scan,
                            const Lists<kIsShared>& lists, const Totals& totals)
        : c_(p.config), costs_(p.costs), shape_(p.shape), s_(s), scan_(scan), lists_(lists), totals_(totals) {}

    // As far as they are known without counting pieces.
    __device__ Targets first_targets(const Shares& shares) const {
        Targets t{};
#pragma unroll
        for (int kind = 0; kind < 2; ++kind) {
            const bool wave = shares.may_be_wave[kind];
            t.cost[kind] = wave ? wave_target(shares, kind, 0) : queue_target(costs_, shares, kind);
            const bool may_split = c_.num_splits > 1 && totals_.tiles[kind] > 0 &&
                                   blocks_cost(costs_, kind, totals_.most_blocks[kind]) > t.cost[kind];
            t.may_split |= may_split;
            t.may_be_wave[kind] = wave && may_split;
        }
        return t;
    }

    // Finds those of waves. `count_pieces` counts pieces that targets for prefills and decodes would make of this thread's tiles.
    template <class CountPieces>
    __device__ void choose_targets(const Shares& shares, Targets& targets, const CountPieces& count_pieces) {
        if (!targets.may_be_wave[0] && !targets.may_be_wave[1]) return;
        // A warp tries one target, on all tiles if they are few, else on every other 32 of them.
        const int lane = threadIdx.x % 32, i = threadIdx.x / 32 % kTargetWarps;
        if (i < kNumWaveTargets) {
            int32_t pieces[2];
            count_pieces(wave_target(shares, false, i), wave_target(shares, true, i), pieces);
#pragma unroll
            for (int kind = 0; kind < 2; ++kind) {
                if (!targets.may_be_wave[kind]) continue;
                const int32_t sum = __reduce_add_sync(~0u, pieces[kind]);
                if (lane == 0) atomicAdd(&s_.sums.wave_pieces[kind][i], sum);
            }
        }
        __syncthreads();
#pragma unroll
        for (int kind = 0; kind < 2; ++kind) {
            if (!targets.may_be_wave[kind]) continue;
            const bool fits = lane < kNumWaveTargets &&
                              fits_one_wave(c_, s_.sums.wave_pieces[kind][lane % kNumWaveTargets], shares.ctas[kind]);
            const uint32_t fitting = __ballot_sync(~0u, fits);
            targets.cost[kind] =
                fitting ? wave_target(shares, kind, __ffs(fitting) - 1) : queue_target(costs_, shares, kind);
        }
    }

    // Splits of each tile by s_.shares and s_.targets, while there is room for partial results.
    __device__ void split() {
        Targets targets = s_.targets;
        choose_targets(s_.shares, targets, [&](int32_t prefill_target, int32_t decode_target, int32_t (&pieces)[2]) {
            pieces[0] = pieces[1] = 0;
#pragma unroll 1
            for (int32_t t = threadIdx.x / (32 * kTargetWarps) * 32 + threadIdx.x % 32; t < lists_.num_tiles;
                 t += kThreads / kTargetWarps) {
                const PlannedTile tile = lists_.tiles[t];
                const bool decode = tile.is_decode();
                const int32_t n =
                    splits_of(c_, cost_of(tile), segments(t, tile), decode ? decode_target : prefill_target);
                pieces[0] += decode ? 0 : n;
                pieces[1] += decode ? n : 0;
            }
        });
        place_pieces(targets);
    }

private:
    // Blocks are segments, but for batch invariance.
    __device__ int32_t segments(int32_t t, const PlannedTile& tile) const {
        if (shape_.segment_log2 == 0) return tile.blocks_or_slot();
        return segments_of(shape_, lists_.cut(t, tile, lists_.shapes[tile.seq()]).blocks);
    }
    __device__ int32_t cost_of(const PlannedTile& t) const {
        return blocks_cost(costs_, t.is_decode(), t.blocks_or_slot());
    }

    // Hands out slots to split tiles, at each end, in order. Since tiles without room count too, those with room come before
    // those without.
    __device__ void place_pieces(const Targets& targets) {
        // Most batches split few tiles: a warp sees to these alone.
#pragma unroll 1
        for (int32_t t = threadIdx.x; t < lists_.num_tiles; t += kThreads) {
            const PlannedTile tile = lists_.tiles[t];
            if (cost_of(tile) <= targets.of(tile.is_decode())) continue;
            const uint32_t place = atomicAdd(&s_.sums.large_tiles, 1u);
            if (place < kFewTiles) s_.large_tiles[place] = t;
        }
        __syncthreads();
        const auto num_large = static_cast<int32_t>(s_.sums.large_tiles);
        if (num_large <= kFewTiles) {
            if (threadIdx.x < 32) place_few(targets, num_large);
            return;
        }
        int32_t before[2] = {};  // the chunk
#pragma unroll 1
        for (int32_t chunk = 0; chunk < lists_.num_tiles; chunk += kThreads) {
            const int32_t t = chunk + threadIdx.x;
            const Pieces p = t < lists_.num_tiles ? pieces_of(t, targets) : Pieces{};
            const int32_t counts[2] = {p.decode ? 0 : p.slots, p.decode ? p.slots : 0};
            const auto sum = scan_.template exclusive<Sum>(counts);
            if (p.slots > 0) place(t, p, p.decode ? before[1] + sum.before[1] : before[0] + sum.before[0]);
            before[0] += sum.total[0];
            before[1] += sum.total[1];
        }
    }

    // Those of s_.large_tiles, which are in no order, by a warp.
    __device__ void place_few(const Targets& targets, int32_t num_large) {
        const int32_t lane = threadIdx.x, t = lane < num_large ? s_.large_tiles[lane] : 0;
        const Pieces p = lane < num_large ? pieces_of(t, targets) : Pieces{};
        int32_t first_slot = 0;
#pragma unroll 1
        for (int other = 0; other < num_large; ++other) {
            const int32_t its_tile = __shfl_sync(~0u, t, other), its_slots = __shfl_sync(~0u, p.slots, other);
            const bool its_decode = __shfl_sync(~0u, p.decode, other);
            if (its_tile < t && its_decode == p.decode) first_slot += its_slots;
        }
        if (p.slots > 0) place(t, p, first_slot);
    }

    struct Pieces {
        PlannedTile tile;
        bool decode;
        int32_t segments, splits, slots;  // no slots: the tile is not split
    };
    __device__ Pieces pieces_of(int32_t t, const Targets& targets) const {
        Pieces p{};
        p.tile = lists_.tiles[t];
        p.decode = p.tile.is_decode();
        p.segments = segments(t, p.tile);
        p.splits = splits_of(c_, cost_of(p.tile), p.segments, targets.of(p.decode));
        if (p.splits > 1) p.slots = slots_of(c_, shape_, p.decode, p.splits, p.segments);
        return p;
    }
    __device__ void place(int32_t t, Pieces p, int32_t first_slot) {
        if (first_slot + p.slots > shape_.max_slots[p.decode]) return;
        const int32_t largest = largest_piece(shape_, p.tile.blocks_or_slot(), p.segments, p.splits);
        p.tile.set_key(order_key(costs_, p.decode, largest));
        p.tile.set_pieces(first_slot, p.splits);
        lists_.tiles[t] = p.tile;
        const Range rows = rows_at(shape_, lists_.shapes[p.tile.seq()].q_len, t - lists_.first_tiles[p.tile.seq()]);
        atomicAdd(&s_.header.num_split_tiles, 1);
        atomicAdd(&s_.header.num_partial_rows, p.slots * (rows.end - rows.begin));
    }

    const PlanConfig& c_;
    const CostModel& costs_;
    const TileShape& shape_;
    SharedMemory& s_;
    BlockScan<kWarps>& scan_;
    const Lists<kIsShared>& lists_;
    const Totals& totals_;
};

}  // namespace varattn::planner
