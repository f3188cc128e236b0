// The device planner: one launch. It evaluates the rules of core/schedule.h as plan_on_host does, and its result
// is equal byte for byte. Loops are flat over sequences, tiles or items, never nested: a thread's work does not depend on
// how long its sequence is. Small batches live in shared memory: a few CTAs compute the same, and each writes a part of
// the items. For larger ones, one CTA keeps its lists in the plan's scratch.
// It needs no CUDA header: tests/cpp/device_planner_test.cpp runs it on a CPU.
#pragma once

#include <cstddef>

#include "cuda/planner_items.cuh"
#include "cuda/planner_lengths.cuh"
#include "cuda/planner_rounds.cuh"
#include "cuda/planner_splits.cuh"

namespace varattn::planner {

constexpr int kFewWarps = kWriters;  // plan a batch of few tiles, each for itself
static_assert(kTargetWarps <= kFewWarps);

template <bool kIsShared>  // where the lists are
class Planner {
public:
    __device__ Planner(const PlannerParams& p, SharedMemory& s)
        : c_(p.config), costs_(p.costs), shape_(p.shape), p_(p), s_(s), scan_(s.scan), lists_(p, s) {}

    // False if there are too many tiles for shared memory.
    __device__ bool run() {
        if (!read_lengths()) return false;
        __syncthreads();
        if (lists_.num_tiles <= kFewTiles) {
            if (threadIdx.x / 32 < kFewWarps) plan_few();
            return true;
        }
        cut_tiles();
        count_and_split();
        write_items();
        return true;
    }

private:
    // Each sequence's shape and first tile; each tile's sequence.
    __device__ bool read_lengths() {
        LengthReader reader(c_, p_.lengths, scan_);
        uint32_t status = 0;
        int32_t tiles = 0;  // before the chunk
        GivenLengths next = reader.load(0);
#pragma unroll 1
        for (int32_t chunk = 0; chunk < c_.max_seqs; chunk += kChunkSeqs) {
            GivenLengths g = next;
            if (!kIsShared) next = reader.load(chunk + kChunkSeqs);
            const int32_t seq = LengthReader::first_of_thread(chunk);
            SequenceShape shapes[kSeqsPerThread]{};
            int32_t count[kSeqsPerThread]{};
            uint32_t status_here = 0;
            Scanned<1> sum;
#pragma unroll 1
            for (bool in_order = reader.is_in_order(g), all_are = false;; in_order = true) {
                if (in_order) status_here = reader.shapes_of(g, shapes);
#pragma unroll
                for (int i = 0; i < kSeqsPerThread; ++i)
                    count[i] = num_tiles(shape_, shapes[i].q_len);
                const int32_t counts[1] = {count[0] + count[1]};
                sum = scan_.template exclusive<Sum>(counts, in_order, all_are);
                if (all_are) break;
                reader.clamp_offsets(chunk, g);
            }
            status |= status_here;
            int32_t first = tiles + sum.before[0];
            tiles += sum.total[0];
            if (kIsShared && tiles > kSharedTiles) return false;
#pragma unroll
            for (int i = 0; i < kSeqsPerThread; ++i) {
                if (seq + i < c_.max_seqs) {
                    lists_.shapes[seq + i] = shapes[i];
                    lists_.first_tiles[seq + i] = first;
                    if (seq + i == 0) s_.header.q_begin = shapes[i].q_begin;
                    if (seq + i == c_.max_seqs - 1) s_.header.q_end = shapes[i].q_begin + shapes[i].q_len;
                }
                first += count[i];
            }
            name_tiles(seq, first - count[0] - count[1], count);
        }
        status |= reader.status();
        if (status) atomicOr(&s_.header.status, status);
        lists_.num_tiles = tiles;
        return true;
    }

    // A warp writes the sequences of its threads' tiles. Many tiles are shared out among the warp.
    __device__ void name_tiles(int32_t seq, int32_t first, const int32_t (&count)[kSeqsPerThread]) {
        constexpr int32_t kAlone = 16;
        const int32_t all = count[0] + count[1];
        if (all <= kAlone)  // in rotated order, against bank conflicts
#pragma unroll 1
            for (int32_t n = 0, i = min_of<int32_t>(threadIdx.x % 8, all - 1); n < all; ++n) {
                lists_.tiles[first + i] = {static_cast<uint32_t>(seq + (i >= count[0])), 0};
                i = i + 1 == all ? 0 : i + 1;
            }
#pragma unroll 1
        for (uint32_t shared = __ballot_sync(~0u, all > kAlone); shared != 0; shared &= shared - 1) {
            const int lane = __ffs(shared) - 1;
            const int32_t its_seq = __shfl_sync(~0u, seq, lane), its_first = __shfl_sync(~0u, first, lane),
                          its_count = __shfl_sync(~0u, count[0], lane), its_all = __shfl_sync(~0u, all, lane);
#pragma unroll 1
            for (int32_t i = threadIdx.x % 32; i < its_all; i += 32)
                lists_.tiles[its_first + i] = {static_cast<uint32_t>(its_seq + (i >= its_count)), 0};
        }
    }

    // Each tile's blocks, and the totals that shares and targets depend on.
    __device__ void cut_tiles() {
        uint32_t sum[2] = {}, most[2] = {}, decodes = 0;  // see Sums
#pragma unroll 1
        for (int32_t t = threadIdx.x; t < lists_.num_tiles; t += kThreads) {
            PlannedTile tile = lists_.tiles[t];
            const SequenceShape seq = lists_.shapes[tile.seq()];
            const bool decode = is_decode(shape_, seq.q_len);
            const Range blocks = lists_.cut(t, tile, seq).blocks;
            const int32_t num_blocks = blocks.end - blocks.begin;
            tile.set_key(order_key(costs_, decode, num_blocks));
            tile.set_pieces(min_of(num_blocks, kMaxTileBlocks), 1);
            lists_.tiles[t] = tile;
            const uint32_t priced = min_of(num_blocks, kMaxPricedBlocks);
            decodes += decode;
#pragma unroll
            for (int kind = 0; kind < 2; ++kind) {
                const uint32_t of_kind = decode == (kind == 1) ? priced : 0;
                sum[kind] += of_kind;
                most[kind] = max_of(most[kind], of_kind);
            }
        }
        decodes = __reduce_add_sync(~0u, decodes);
#pragma unroll
        for (int kind = 0; kind < 2; ++kind) {
            sum[kind] = __reduce_add_sync(~0u, sum[kind]);
            most[kind] = __reduce_max_sync(~0u, most[kind]);
        }
        if (threadIdx.x % 32 == 0) {
            atomicAdd(&s_.sums.decodes, decodes);
#pragma unroll
            for (int kind = 0; kind < 2; ++kind) {
                atomicAdd(&s_.sums.blocks[kind], sum[kind]);
                atomicMax(&s_.sums.most_blocks[kind], most[kind]);
            }
        }
        __syncthreads();
        const auto num_decodes = static_cast<int32_t>(s_.sums.decodes);
        totals_ = {{s_.sums.blocks[0], s_.sums.blocks[1]},
                   {lists_.num_tiles - num_decodes, num_decodes},
                   {static_cast<int32_t>(s_.sums.most_blocks[0]), static_cast<int32_t>(s_.sums.most_blocks[1])}};
    }

    // A batch of few tiles: each warp has them all, a tile a thread, and plans for itself.
    __device__ void plan_few() {
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
        totals_.tiles[0] = lists_.num_tiles - decodes;
        totals_.tiles[1] = decodes;
#pragma unroll
        for (int kind = 0; kind < 2; ++kind) {
            if (totals_.tiles[kind] == 0) continue;
            const uint32_t of_kind = decode == (kind == 1) ? priced : 0;
            totals_.blocks[kind] = __reduce_add_sync(~0u, of_kind);
            totals_.most_blocks[kind] = static_cast<int32_t>(__reduce_max_sync(~0u, of_kind));
        }
        const int32_t cost = blocks_cost(costs_, decode, num_blocks);
        int32_t splits = 1, largest = num_blocks;
        auto count_pieces = [&](int32_t prefill_target, int32_t decode_target, int32_t (&pieces)[2]) {
            const int32_t n = splits_of(c_, cost, its_segments, decode ? decode_target : prefill_target);
            pieces[0] = exists && !decode ? n : 0;
            pieces[1] = exists && decode ? n : 0;
        };
        TileSplitter<kIsShared> splitter(p_, s_, scan_, lists_, totals_);
        const Shares shares = share_ctas(c_, shape_, costs_, totals_);
        Targets targets = splitter.first_targets(shares);
        if (targets.may_split) {
            splitter.choose_targets(shares, targets, count_pieces);
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
        const int32_t ctas = kIsShared ? p_.num_ctas : 1;
        ItemWriter<kIsShared>(p_, s_, lists_, ctas * kFewWarps, warp * ctas + blockIdx.x).write_only(tile, position);
        if (warp == kFewWarps - 1) {
            int32_t front_ctas = shares.front_ctas;
            if (shares.time > 0) {
                FrontChooser chooser(c_, shares);
                chooser.add_few(exists ? tile.key() : kNumOrderKeys, items);
                front_ctas = chooser.choose();
            }
            const int32_t front_items = __reduce_add_sync(~0u, decode ? 0 : items);
            if (lane == 0) s_.header.section_heads = section_heads(c_, shape_, costs_, totals_);
            write_header(__reduce_add_sync(~0u, items), front_items, front_ctas);
        }
    }

    // Most batches split no tile. So the first warp shares out the CTAs while all others count the tiles of shared memory as
    // they are; if some are split after all, tiles are counted again.
    __device__ void count_and_split() {
        TileSplitter<kIsShared> splitter(p_, s_, scan_, lists_, totals_);
        if (threadIdx.x < 32) {
            const Shares shares = share_ctas(c_, shape_, costs_, totals_);
            const Targets targets = splitter.first_targets(shares);
            if (threadIdx.x == 0) {
                s_.shares = shares;
                s_.targets = targets;
            }
        }
#pragma unroll 1
        for (int first_warp = 1;; first_warp = 0) {
            if (kIsShared) add_items(sorted_from(0), first_warp);
            __syncthreads();
            if (first_warp == 0 || !s_.targets.may_split) return;
            splitter.split();
            if (!kIsShared) return;
            s_.counts.clear();
            __syncthreads();
        }
    }

    // Sorts tiles, as many as counters take at a time. If that is not all, they are counted first. Tiles in shared memory
    // are shared out among CTAs: what others sort is only counted.
    __device__ void write_items() {
        int32_t items = 0;  // of this thread's key
        const bool at_once = kIsShared || lists_.num_tiles <= kSortedTiles;
#pragma unroll 1
        for (int32_t first = 0; !at_once && first < lists_.num_tiles; first += kSortedTiles)
            items += count_items(sorted_from(first));
        int32_t position = 0, front_ctas = 0;
        const int32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        ItemWriter<kIsShared> writer(p_, s_, lists_, kTeam, warp % kTeam);
#pragma unroll 1
        for (int32_t first = 0; first < lists_.num_tiles; first += kSortedTiles) {
            const Range sorted = sorted_from(first);
            const int32_t here = count_items(sorted), num_tiles = sorted.end - sorted.begin;
            const StagedAhead ahead =
                warp >= kFirstOfTeam ? writer.stage_ahead(sorted.begin, num_tiles) : StagedAhead{};
            if (threadIdx.x < kNumOrderKeys) {
                if (first == 0) {
                    const int32_t before = kIsShared ? s_.counts.elsewhere[0][threadIdx.x] : 0,
                                  after = kIsShared ? s_.counts.elsewhere[1][threadIdx.x] : 0,
                                  of_key = at_once ? before + here + after : items;
                    const int32_t inclusive = warp_inclusive<Sum>(of_key, lane);
                    position = inclusive - of_key + before;
                    if (lane == 31) s_.keys_items[warp] = inclusive;
                }
                s_.next_item[threadIdx.x] = position;
                position += here;
            }
            const bool makes_header = first == 0 && blockIdx.x == 0;
            if (makes_header && threadIdx.x == 32) s_.header.section_heads = section_heads(c_, shape_, costs_, totals_);
            __syncthreads();
            if (makes_header && warp == 0) {
                front_ctas = s_.shares.front_ctas;
                if (s_.shares.time > 0) {
                    FrontChooser chooser(c_, s_.shares);
                    chooser.add_sorted(s_);
                    front_ctas = chooser.choose();
                }
            }
            if (warp >= kFirstOfTeam) writer.write_sorted(sorted.begin, num_tiles, ahead);
            if (!kIsShared) __syncthreads();
        }
        if (warp == 0) {
            const int32_t num_front_items = keys_items_before(s_, kNumOrderKeys / 2);
            write_header(keys_items_before(s_, kNumOrderKeys), num_front_items, front_ctas);
        }
    }

    __device__ Range sorted_from(int32_t first) const {
        const int32_t all = lists_.num_tiles;
        if (!kIsShared) return {first, min_of(first + kSortedTiles, all)};
        const int32_t each = (all + p_.num_ctas - 1) >> log2_floor(p_.num_ctas), begin = blockIdx.x * each;
        return {min_of(begin, all), min_of(begin + each, all)};
    }

    // Counts the items of these tiles and, if there are others, of those that other CTAs sort. Warps before the first take no
    // part.
    __device__ void add_items(Range sorted, int first_warp) {
        const int32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        if (warp >= first_warp && warp < kFirstOfTeam) {
#pragma unroll 1
            for (int32_t t = threadIdx.x - 32 * first_warp; t < lists_.num_tiles;
                 t += 32 * (kFirstOfTeam - first_warp)) {
                const PlannedTile tile = lists_.tiles[t];
                const bool after = t >= sorted.end;
                if (t < sorted.begin || after) s_.counts.add_elsewhere(after, tile.key(), tile.num_splits());
            }
        }
        if (warp >= kFirstOfTeam) {
            const int32_t num_tiles = sorted.end - sorted.begin, rounds = ItemCounts::num_rounds(num_tiles),
                          column = warp - kFirstOfTeam, begin = column * rounds * 32,
                          end = min_of(begin + rounds * 32, num_tiles);
#pragma unroll 1
            for (int32_t i = begin + lane; i - lane < end; i += 32) {
                const PlannedTile tile = i < end ? lists_.tiles[sorted.begin + i] : PlannedTile{};
                s_.counts.add(column, i, tile.key(), i < end ? tile.num_splits() : 0);
            }
        }
    }

    // The items of this thread's key in the tiles that are sorted; in shared memory, these have been counted.
    __device__ int32_t count_items(Range sorted) {
        if (!kIsShared) {
            __syncthreads();
            s_.counts.clear();
            __syncthreads();
            add_items(sorted, 0);
            __syncthreads();
        }
        return threadIdx.x < kNumOrderKeys ? s_.counts.sum_up(threadIdx.x) : 0;
    }

    // By one warp.
    __device__ void write_header(int32_t num_items, int32_t num_front_items, int32_t num_front_ctas) {
        if (blockIdx.x > 0) return;
        const int lane = threadIdx.x % 32;
        PlanHeader& header = s_.header;
        if (lane == 0) {
            header.magic = kPlanMagic;
            header.num_items = num_items;
            header.num_front_items = num_front_items;
            header.num_front_ctas = final_front_ctas(c_, num_front_ctas, num_front_items, num_items);
        }
        __syncwarp();
        constexpr int kParts = sizeof(PlanHeader) / sizeof(uint4);
        if (lane < kParts) reinterpret_cast<uint4*>(p_.plan)[lane] = reinterpret_cast<const uint4*>(&header)[lane];
    }

    const PlanConfig& c_;
    const CostModel& costs_;
    const TileShape& shape_;
    const PlannerParams& p_;
    SharedMemory& s_;
    BlockScan<kWarps> scan_;
    Lists<kIsShared> lists_;
    // Warps that sort and write: not those that have the keys, if others suffice.
    static constexpr int kTeam = kIsShared ? kWriters : kWarps, kFirstOfTeam = kWarps - kTeam;
    static_assert(!kIsShared || 32 * kFirstOfTeam >= kNumOrderKeys);
    // The same in every thread:
    Totals totals_{};
};

// What needs no lengths: before the kernel before has ended.
__device__ inline void prepare(const PlannerParams& p, SharedMemory& s) {
    s.counts.clear();
    static_assert(sizeof(PlanHeader) / 4 <= kThreads && sizeof(Sums) / 4 <= kThreads);
    constexpr int kConfigBegin = offsetof(PlanHeader, config) / 4, kConfigEnd = kConfigBegin + kPlanConfigWords;
    const int word = threadIdx.x;
    if (word < int(sizeof(PlanHeader) / 4))
        reinterpret_cast<int32_t*>(&s.header)[word] =
            kConfigBegin <= word && word < kConfigEnd ? reinterpret_cast<const int32_t*>(&p.config)[word - kConfigBegin]
                                                      : 0;
    if (word < int(sizeof(Sums) / 4)) reinterpret_cast<int32_t*>(&s.sums)[word] = 0;
}

__device__ inline void run(const PlannerParams& p, SharedMemory& s) {
    if (p.config.max_seqs <= kSharedSeqs) {
        if (Planner<true>(p, s).run()) return;
        if (blockIdx.x > 0) return;
        __syncthreads();  // the next planner scans in the same memory
    }
    Planner<false>(p, s).run();
}

}  // namespace varattn::planner
