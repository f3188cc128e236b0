// The device planner's splits: targets for the cost of a piece, and which tiles are cut for them.
#pragma once

#include "cuda/planner_memory.cuh"

namespace varattn::planner {

constexpr int kTargetWarps = 8;  // a team, of which each tries a target
static_assert(kNumWaveTargets <= kTargetWarps && kWarps % kTargetWarps == 0);

template <bool kIsShared>
class TileSplitter {
public:
    __device__ TileSplitter(const PlannerParams& p, SharedMemory& s, const Lists<kIsShared>& lists, int num_ctas)
        : rank_(static_cast<int>(blockIdx.x)),
          num_ctas_(num_ctas),
          c_(p.config),
          costs_(p.costs),
          shape_(p.shape),
          s_(s),
          lists_(lists) {}

    // As far as they are known without counting pieces.
    __device__ Targets first_targets(const Shares& shares, const Totals& totals) const {
        Targets t{};
#pragma unroll
        for (int kind = 0; kind < 2; ++kind) {
            const bool wave = shares.may_be_wave[kind];
            t.cost[kind] = wave ? wave_target(shares, kind, 0) : queue_target(costs_, shares, kind);
            const bool may_split = c_.num_splits > 1 && totals.tiles[kind] > 0 &&
                                   blocks_cost(costs_, kind, totals.most_blocks[kind]) > t.cost[kind];
            t.may_split |= may_split;
            t.may_be_wave[kind] = wave && may_split;
        }
        return t;
    }

    // For waves, whose targets it chooses among some: `count_pieces` counts the pieces that targets for prefills and decodes
    // would make of this thread's tiles.
    template <class CountPieces>
    __device__ void try_targets(const Shares& shares, const Targets& targets, const CountPieces& count_pieces) {
        // A warp tries one target, on all tiles if they are few, else on every other 32 of them.
        const int lane = threadIdx.x % 32, i = threadIdx.x / 32 % kTargetWarps;
        if (i < kNumWaveTargets) {
            int32_t pieces[2];
            count_pieces(wave_target(shares, false, i), wave_target(shares, true, i), pieces);
#pragma unroll
            for (int kind = 0; kind < 2; ++kind) {
                if (!targets.may_be_wave[kind]) continue;
                const int32_t sum = __reduce_add_sync(~0u, pieces[kind]);
                if (lane == 0) atomicAdd(&s_.reports.of_cta[rank_].wave_pieces[kind][i], sum);
            }
        }
        __syncthreads();
    }

    // The least that fit, by the reports of CTAs that have tried them.
    __device__ void choose_targets(const Shares& shares, Targets& targets, const CtaReport* reports,
                                   int num_reports) const {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int kind = 0; kind < 2; ++kind) {
            if (!targets.may_be_wave[kind]) continue;
            int32_t pieces = 0;
#pragma unroll
            for (int i = 0; i < kMaxCtas; ++i)
                pieces += i < num_reports ? reports[i].wave_pieces[kind][lane % kNumWaveTargets] : 0;
            const bool fits = lane < kNumWaveTargets && fits_one_wave(c_, pieces, shares.ctas[kind]);
            const uint32_t fitting = __ballot_sync(~0u, fits);
            targets.cost[kind] =
                fitting ? wave_target(shares, kind, __ffs(fitting) - 1) : queue_target(costs_, shares, kind);
        }
    }

    // The targets that all CTAs use; these are this one's tiles. By all threads.
    __device__ Targets choose_targets(Range own) {
        Targets targets = s_.targets;
        if (!targets.may_be_wave[0] && !targets.may_be_wave[1]) return targets;
        try_targets(s_.shares, targets, [&](int32_t prefill_target, int32_t decode_target, int32_t (&pieces)[2]) {
            pieces[0] = pieces[1] = 0;
#pragma unroll 1
            for (int32_t t = own.begin + threadIdx.x / (32 * kTargetWarps) * 32 + threadIdx.x % 32; t < own.end;
                 t += kThreads / kTargetWarps) {
                const PlannedTile tile = lists_.tiles[t];
                const bool decode = tile.is_decode();
                const int32_t n = splits(t, tile, decode ? decode_target : prefill_target);
                pieces[0] += decode ? 0 : n;
                pieces[1] += decode ? n : 0;
            }
        });
        s_.reports.template send<kWavesPart>(num_ctas_);
        s_.reports.template await<kWavesPart>(num_ctas_);
        choose_targets(s_.shares, targets, s_.reports.of_cta, num_ctas_);
        return targets;
    }

    // How many splits each of this warp's tiles gets, if there is room for all partial results.
    __device__ void cut(Range mine, const Targets& targets) {
        const int32_t lane = threadIdx.x % 32;
        WarpSplits sum{};
#pragma unroll 1
        for (int32_t t = mine.begin + lane; t < mine.end; t += 32) {
            PlannedTile tile = lists_.tiles[t];
            const bool decode = tile.is_decode();
            const int32_t n = splits(t, tile, targets.of(decode));
            if (n == 1) continue;
            const int32_t num_blocks = tile.blocks_or_slot(), its_segments = segments(t, tile);
            add(t, tile, slots_of(c_, shape_, decode, n, its_segments), sum);
            tile.set_key(order_key(costs_, decode, largest_piece(shape_, num_blocks, its_segments, n)));
            tile.set_pieces(num_blocks, n);
            lists_.tiles[t] = tile;
        }
        report(sum);
    }

    // Hands out slots to split tiles, at each end, in order, while there are some: since tiles without room count too, those
    // with room come before those without, which get no splits after all. False if there are any; then `fitting` is to be
    // reported, as soon as all have read the reports.
    __device__ bool place(Range mine, WarpSplits& fitting) {
        const int32_t lane = threadIdx.x % 32;
        int32_t before[2];
        const bool all_fit = add_up_slots(before);
        fitting = {};
#pragma unroll 1
        for (int32_t t = mine.begin + lane; t - lane < mine.end; t += 32) {
            PlannedTile tile = t < mine.end ? lists_.tiles[t] : PlannedTile{};
            const bool is_split = tile.num_splits() > 1, decode = tile.is_decode();
            const uint32_t split_lanes = __ballot_sync(~0u, is_split);
            if (split_lanes == 0) continue;
            const int32_t slots = is_split ? slots_of(c_, shape_, decode, tile.num_splits(), segments(t, tile)) : 0;
            int32_t ends[2] = {decode ? 0 : slots, decode ? slots : 0};
            if (__popc(split_lanes) > 1)
                for (int32_t& end : ends)
                    end = warp_inclusive<Sum>(end, lane);
            const int32_t end = decode ? before[1] + ends[1] : before[0] + ends[0];
            if (is_split && end <= shape_.max_slots[decode]) {
                if (!all_fit) add(t, tile, slots, fitting);
                tile.set_pieces(end - slots, tile.num_splits());
            } else if (is_split) {
                const int32_t num_blocks = tile.blocks_or_slot();
                tile.set_key(order_key(costs_, decode, num_blocks));
                tile.set_pieces(num_blocks, 1);
            }
            if (is_split) lists_.tiles[t] = tile;
            const int last = log2_floor(split_lanes);
            before[0] += __shfl_sync(~0u, ends[0], last);
            before[1] += __shfl_sync(~0u, ends[1], last);
        }
        return all_fit;
    }

    // This warp's splits, if these are its threads'.
    __device__ void report(const WarpSplits& its) {
        const WarpSplits sum{{__reduce_add_sync(~0u, its.slots[0]), __reduce_add_sync(~0u, its.slots[1])},
                             __reduce_add_sync(~0u, its.split_tiles),
                             __reduce_add_sync(~0u, its.partial_rows)};
        if (threadIdx.x % 32 == 0) s_.reports.of_cta[rank_].splits[threadIdx.x / 32] = sum;
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

    __device__ int32_t splits(int32_t t, const PlannedTile& tile, int32_t target) const {
        const int32_t cost = cost_of(tile);
        return cost > target ? splits_of(c_, cost, segments(t, tile), target) : 1;
    }

    // Adds a split tile.
    __device__ void add(int32_t t, const PlannedTile& tile, uint32_t slots, WarpSplits& sum) const {
        const bool decode = tile.is_decode();
        const Range rows = rows_at(shape_, lists_.shapes[tile.seq()].q_len, t - lists_.first_tiles[tile.seq()]);
        sum.slots[0] += decode ? 0 : slots;
        sum.slots[1] += decode ? slots : 0;
        sum.split_tiles += 1;
        sum.partial_rows += slots * (rows.end - rows.begin);
    }

    // Slots that earlier CTAs and warps take. False if all together take more than there are.
    __device__ bool add_up_slots(int32_t (&before)[2]) const {
        constexpr int kWarpsHere = kSorters<kIsShared>;  // of a CTA
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        uint32_t sum[2] = {}, all[2] = {};
#pragma unroll
        for (int i = lane; i < lane + kMaxCtas * kSorters<true>; i += 32) {
            const bool exists = i < num_ctas_ * kWarpsHere, is_before = i < rank_ * kWarpsHere + warp;
            const WarpSplits& its = s_.reports.of_cta[exists ? i / kWarpsHere : 0].splits[i % kWarpsHere];
#pragma unroll
            for (int kind = 0; kind < 2; ++kind) {
                sum[kind] += is_before ? its.slots[kind] : 0;
                all[kind] += exists ? its.slots[kind] : 0;
            }
        }
        static_assert(kWarps <= kMaxCtas * kSorters<true>);
        bool all_fit = true;
#pragma unroll
        for (int kind = 0; kind < 2; ++kind) {
            before[kind] = static_cast<int32_t>(__reduce_add_sync(~0u, sum[kind]));
            all_fit &= static_cast<int32_t>(__reduce_add_sync(~0u, all[kind])) <= shape_.max_slots[kind];
        }
        return all_fit;
    }

    const int rank_, num_ctas_;
    const PlanConfig& c_;
    const CostModel& costs_;
    const TileShape& shape_;
    SharedMemory& s_;
    const Lists<kIsShared>& lists_;
};

}  // namespace varattn::planner
