// The device planner of few tiles.
#pragma once

#include "cuda/planner_items.cuh"
#include "cuda/planner_rounds.cuh"
#include "cuda/planner_splits.cuh"

namespace varattn::planner {

constexpr int kFewTiles = 32;        // which a warp can hold, a tile a thread
constexpr int kFewWarps = kWriters;  // of each CTA plan them, each for itself, and write a part of the items
static_assert(kTargetWarps <= kFewWarps);

template <bool kIsShared>
class FewTilesPlanner {
public:
    __device__ FewTilesPlanner(const PlannerParams& p, SharedMemory& s, const Lists<kIsShared>& lists)
        : c_(p.config), costs_(p.costs), shape_(p.shape), p_(p), s_(s), lists_(lists) {}

    // The first kFewWarps warps.
    __device__ void run() {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        const bool exists = lane < lists_.num_tiles;
        PlannedTile tile{};
        bool decode = false;
        int32_t num_blocks = 0, its_segments = 0, rows = 0;
        if (exists) {
            tile = lists_.tiles[lane];
            const SequenceShape seq = lists_.shapes[tile.seq()];
            decode = is_decode(shape_, seq.q_len);
            const Tile its = lists_.cut(lane, tile, seq);
            num_blocks = its.blocks.end - its.blocks.begin;
            its_segments = segments_of(shape_, its.blocks);
            rows = its.rows.end - its.rows.begin;
        }
        const uint32_t priced = min_of(num_blocks, kMaxPricedBlocks);
        const int32_t decodes = __popc(__ballot_sync(~0u, decode));
        Totals totals{{}, {lists_.num_tiles - decodes, decodes}, {}};
#pragma unroll
        for (int kind = 0; kind < 2; ++kind) {
            if (totals.tiles[kind] == 0) continue;
            const uint32_t of_kind = decode == (kind == 1) ? priced : 0;
            totals.blocks[kind] = __reduce_add_sync(~0u, of_kind);
            totals.most_blocks[kind] = static_cast<int32_t>(__reduce_max_sync(~0u, of_kind));
        }
        const int32_t cost = blocks_cost(costs_, decode, num_blocks);
        int32_t splits = 1, largest = num_blocks;
        auto count_pieces = [&](int32_t prefill_target, int32_t decode_target, int32_t (&pieces)[2]) {
            const int32_t n = splits_of(c_, cost, its_segments, decode ? decode_target : prefill_target);
            pieces[0] = exists && !decode ? n : 0;
            pieces[1] = exists && decode ? n : 0;
        };
        TileSplitter<kIsShared> splitter(p_, s_, lists_, 1);
        const Shares shares = share_ctas(c_, shape_, costs_, totals);
        Targets targets = splitter.first_targets(shares, totals);
        if (targets.may_split) {
            if (targets.may_be_wave[0] || targets.may_be_wave[1]) {
                splitter.try_targets(shares, targets, count_pieces);
                splitter.choose_targets(shares, targets, &s_.reports.of_cta[blockIdx.x], 1);
            }
            splits = splits_of(c_, cost, its_segments, targets.of(decode));
            const int32_t slots = splits > 1 ? slots_of(c_, shape_, decode, splits, its_segments) : 0;
            const int32_t ends[2] = {warp_inclusive<Sum>(decode ? 0 : slots, lane),
                                     warp_inclusive<Sum>(decode ? slots : 0, lane)};
            const int32_t end = decode ? ends[1] : ends[0];
            if (end > shape_.max_slots[decode]) splits = 1;
            if (splits > 1) {
                largest = largest_piece(shape_, num_blocks, its_segments, splits);
                tile.set_pieces(end - slots, splits);
            }
            if (warp == kFewWarps - 1) {
                const int32_t partial_rows = __reduce_add_sync(~0u, splits > 1 ? slots * rows : 0);
                s_.header.num_split_tiles = __popc(__ballot_sync(~0u, splits > 1));
                s_.header.num_partial_rows = partial_rows;
            }
        }
        tile.set_key(order_key(costs_, decode, largest));
        // Its items come after those of smaller keys, and of the same key in earlier threads.
        const int32_t items = exists ? splits : 0, place = tile.key() * 32 + lane;
        int32_t position = 0;
#pragma unroll 4
        for (int other = 0; other < lists_.num_tiles; ++other) {
            const int32_t its = __shfl_sync(~0u, place << 16 | items, other);
            if (its >> 16 < place) position += its & 0xffff;
        }
        const int ctas = kIsShared ? p_.num_ctas : 1;
        ItemWriter<kIsShared>(p_, s_, lists_, kFewWarps * ctas, warp * ctas + blockIdx.x).write_only(tile, position);
        if (warp == kFewWarps - 1) {
            int32_t front_ctas = shares.front_ctas;
            if (shares.time > 0) {
                FrontChooser chooser(c_, shares);
                chooser.add_few(exists ? tile.key() : kNumOrderKeys, items);
                front_ctas = chooser.choose();
            }
            const int32_t front_items = __reduce_add_sync(~0u, decode ? 0 : items);
            if (lane == 0) s_.header.section_heads = section_heads(c_, shape_, costs_, totals);
            write_header(p_, s_, __reduce_add_sync(~0u, items), front_items, front_ctas);
        }
    }

private:
    const PlanConfig& c_;
    const CostModel& costs_;
    const TileShape& shape_;
    const PlannerParams& p_;
    SharedMemory& s_;
    const Lists<kIsShared>& lists_;
};

}  // namespace varattn::planner
