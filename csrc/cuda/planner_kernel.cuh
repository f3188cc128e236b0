// The device planner: one launch. It evaluates the rules of core/schedule.h as plan_on_host does, and its result
// is equal byte for byte. Loops are flat over sequences, tiles or items, never nested: a thread's work does not depend on
// how long its sequence is. Small batches live in shared memory: all CTAs of a cluster read the lengths, and each sees to some
// of the tiles; what depends on all of them it works out from the others' reports. For larger ones, one CTA keeps its lists
// in the plan's scratch.
// It needs no CUDA header: tests/cpp/device_planner_test.cpp runs it on a CPU.
#pragma once

#include <cstddef>

#include "cuda/planner_few.cuh"
#include "cuda/planner_items.cuh"
#include "cuda/planner_lengths.cuh"
#include "cuda/planner_rounds.cuh"
#include "cuda/planner_splits.cuh"

namespace varattn::planner {

// Named barriers.
constexpr int kSortersBarrier = 1, kReadBarrier = 2, kSlotsBarrier = 3, kKeysBarrier = 4;

template <bool kIsShared>  // where the lists are
class Planner {
public:
    __device__ Planner(const PlannerParams& p, SharedMemory& s)
        : rank_(static_cast<int>(blockIdx.x)),
          c_(p.config),
          costs_(p.costs),
          shape_(p.shape),
          p_(p),
          s_(s),
          num_ctas_(kIsShared ? p.num_ctas : 1),
          scan_(s.scan),
          lists_(p, s) {}

    // False if there are too many tiles for shared memory.
    __device__ bool run() {
        const bool fits = read_lengths();
        if (kIsShared) cluster_wait();  // for the others' prepare()
        if (!fits) return false;
        __syncthreads();
        if (lists_.num_tiles <= kFewTiles) {
            if (threadIdx.x / 32 < kFewWarps) FewTilesPlanner<kIsShared>(p_, s_, lists_).run();
            return true;
        }
        cut_tiles();
        if (kIsShared)
            split_and_write_shared();
        else
            split_and_write_large();
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
            const int32_t first = tiles + sum.before[0], second = first + count[0], end = second + count[1];
            tiles += sum.total[0];
            if (kIsShared && tiles > kSharedTiles) return false;
            lists_.num_tiles = tiles;
            if (seq == 0) s_.header.q_begin = shapes[0].q_begin;
#pragma unroll
            for (int i = 0; i < kSeqsPerThread; ++i)
                if (seq + i == c_.max_seqs - 1) s_.header.q_end = shapes[i].q_begin + shapes[i].q_len;
            const Range own = own_tiles();
            if (!__any_sync(~0u, first < own.end && end > own.begin)) continue;
#pragma unroll
            for (int i = 0; i < kSeqsPerThread; ++i) {
                if (seq + i >= c_.max_seqs) continue;
                lists_.shapes[seq + i] = shapes[i];
                lists_.first_tiles[seq + i] = i == 0 ? first : second;
            }
            name_tiles(seq, max_of(first, own.begin), second, min_of(end, own.end));
        }
        status |= reader.status();
        if (status) atomicOr(&s_.header.status, status);
        return true;
    }

    // Tiles that this CTA sees to.
    __device__ Range own_tiles() const {
        const int32_t all = lists_.num_tiles;
        if (!kIsShared || all <= kFewTiles) return {0, all};
        const int32_t each = (all + num_ctas_ - 1) >> log2_floor(num_ctas_), begin = rank_ * each;
        return {min_of(begin, all), min_of(begin + each, all)};
    }

    // A warp writes the sequences of its threads' tiles, [begin, end), of which those from `second` on are of the second one.
    // Many tiles are shared out among the warp.
    __device__ void name_tiles(int32_t seq, int32_t begin, int32_t second, int32_t end) {
        constexpr int32_t kAlone = 16;
        const int32_t all = end - begin;
        if (all <= kAlone)  // in rotated order, against bank conflicts
#pragma unroll 1
            for (int32_t n = 0, i = min_of<int32_t>(threadIdx.x % 8, all - 1); n < all; ++n) {
                lists_.tiles[begin + i] = {static_cast<uint32_t>(seq + (begin + i >= second)), 0};
                i = i + 1 == all ? 0 : i + 1;
            }
#pragma unroll 1
        for (uint32_t shared = __ballot_sync(~0u, all > kAlone); shared != 0; shared &= shared - 1) {
            const int lane = __ffs(shared) - 1;
            const int32_t its_seq = __shfl_sync(~0u, seq, lane), its_begin = __shfl_sync(~0u, begin, lane),
                          its_second = __shfl_sync(~0u, second, lane), its_all = __shfl_sync(~0u, all, lane);
#pragma unroll 1
            for (int32_t t = its_begin + threadIdx.x % 32; t < its_begin + its_all; t += 32)
                lists_.tiles[t] = {static_cast<uint32_t>(its_seq + (t >= its_second)), 0};
        }
    }

    // Blocks of own tiles, and the sums that shares and targets depend on. In shared memory, tiles are counted as they are.
    __device__ void cut_tiles() {
        const Range own = own_tiles();
        Range mine{};
        if (threadIdx.x / 32 < kSorters<kIsShared>) mine = ItemCounts::tiles_of_warp(own, kSorters<kIsShared>);
        const int32_t lane = threadIdx.x % 32;
        uint32_t sum[2] = {}, most[2] = {}, decodes = 0;  // see Totals
#pragma unroll 1
        for (int32_t t = mine.begin + lane; t - lane < mine.end; t += 32) {
            PlannedTile tile{};
            if (t < mine.end) {
                tile = lists_.tiles[t];
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
            if (kIsShared) s_.counts.add(t - own.begin, tile.key(), t < mine.end);
        }
        decodes = __reduce_add_sync(~0u, decodes);
#pragma unroll
        for (int kind = 0; kind < 2; ++kind) {
            sum[kind] = __reduce_add_sync(~0u, sum[kind]);
            most[kind] = __reduce_max_sync(~0u, most[kind]);
        }
        if (lane == 0 && mine.begin < mine.end) {
            CtaReport& report = s_.reports.of_cta[rank_];
            atomicAdd(&report.decodes, decodes);
#pragma unroll
            for (int kind = 0; kind < 2; ++kind) {
                atomicAdd(&report.blocks[kind], sum[kind]);
                atomicMax(&report.most_blocks[kind], most[kind]);
            }
        }
        __syncthreads();
    }

    // Of all CTAs' reports, by a warp.
    __device__ void add_up_totals() {
        const int lane = threadIdx.x % 32;
        const CtaReport& report = s_.reports.of_cta[lane % kMaxCtas];
        const bool exists = lane < num_ctas_;
        totals_.tiles[1] = static_cast<int32_t>(__reduce_add_sync(~0u, exists ? report.decodes : 0));
        totals_.tiles[0] = lists_.num_tiles - totals_.tiles[1];
#pragma unroll
        for (int kind = 0; kind < 2; ++kind) {
            totals_.blocks[kind] = __reduce_add_sync(~0u, exists ? report.blocks[kind] : 0);
            totals_.most_blocks[kind] =
                static_cast<int32_t>(__reduce_max_sync(~0u, exists ? report.most_blocks[kind] : 0));
        }
    }

    // By the first warp; sections by the second.
    __device__ void share_out(const TileSplitter<kIsShared>& splitter) {
        if (threadIdx.x >= 64) return;
        add_up_totals();
        if (threadIdx.x >= 32) {
            if (threadIdx.x == 32) s_.header.section_heads = section_heads(c_, shape_, costs_, totals_);
            return;
        }
        Shares shares = share_ctas(c_, shape_, costs_, totals_);
        static_assert(uint64_t{kSharedTiles} * kMaxPricedBlocks >> 32 == 0);
        if (!kIsShared) limit_shares(totals_, shares);
        const Targets targets = splitter.first_targets(shares, totals_);
        if (threadIdx.x == 0) {
            s_.shares = shares;
            s_.targets = targets;
        }
    }

    // Most batches split no tile. So the writers make their first items of tiles as they are, while the first warp shares out
    // the CTAs; if some are split after all, items are made and counted again. Writers do not wait for the sorters: items are
    // made before it is known where they go.
    __device__ void split_and_write_shared() {
        const Range own = own_tiles();
        const int32_t num_own = own.end - own.begin, warp = threadIdx.x / 32;
        const bool writes = warp >= kSorters<kIsShared>;
        TileSplitter<kIsShared> splitter(p_, s_, lists_, num_ctas_);
        ItemWriter<kIsShared> writer(p_, s_, lists_, kWriters, warp % kWriters);
        report_items();
        __syncthreads();
        s_.reports.template send<kTilesPart>(num_ctas_);
        StagedAhead ahead;
        if (writes) ahead = writer.stage_ahead(writer.first_tile(own.begin, num_own), own.begin, num_own);
        s_.reports.template await<kTilesPart>(num_ctas_);
        share_out(splitter);
        place_keys();  // in vain if tiles are split: others may be telling so already
        __syncthreads();
        if (s_.targets.may_split) {
            const Targets targets = splitter.choose_targets(own);
            const Range mine = ItemCounts::tiles_of_warp(own, kSorters<kIsShared>);
            if (writes)
                s_.counts.clear(threadIdx.x - kSorterThreads, kThreads - kSorterThreads);
            else
                splitter.cut(mine, targets);
            __syncthreads();
            if (writes) {
                const PlannedTile first = writer.first_tile(own.begin, num_own);
                named_barrier_arrive(kReadBarrier, kThreads);
                ahead = writer.stage_ahead(first, own.begin, num_own);
                named_barrier_sync(kSlotsBarrier, kThreads);
                writer.update(ahead, own.begin, num_own);
            } else {
                tell_splits<kSplitsPart>(own);
                named_barrier_sync(kReadBarrier, kThreads);
                WarpSplits fitting;
                const bool all_fit = splitter.place(mine, fitting);
                named_barrier_arrive(kSlotsBarrier, kThreads);
                if (!all_fit) {
                    s_.counts.clear(threadIdx.x, kSorterThreads);
                    named_barrier_sync(kSortersBarrier, kSorterThreads);  // all have read the reports
                    s_.reports.template send<kNoPart>(num_ctas_);
                    s_.reports.template await<kNoPart>(num_ctas_);
                    splitter.report(fitting);
                    tell_splits<kFittingSplitsPart>(own);
                }
                place_keys();
                if (warp == kSorters<kIsShared> - 1) add_up_splits();
            }
            __syncthreads();
        }
        if (writes) writer.write_sorted(own.begin, num_own, ahead);
        if (rank_ == 0 && warp == 0) write_header();
    }

    // Items and splits, by the sorters.
    template <const ReportPart& kPart>
    __device__ void tell_splits(Range own) {
        count_items(own);
        named_barrier_sync(kSortersBarrier, kSorterThreads);
        report_items();
        named_barrier_sync(kSortersBarrier, kSorterThreads);
        s_.reports.template send<kPart>(num_ctas_);
        s_.reports.template await<kPart>(num_ctas_);
    }

    // The items of each key in this CTA's tiles.
    __device__ void report_items() {
        if (threadIdx.x < kNumOrderKeys)
            s_.reports.of_cta[rank_].items[threadIdx.x] =
                static_cast<uint16_t>(s_.counts.template sum_up<kSorters<kIsShared>>(threadIdx.x));
    }

    // Where the first items of each key go, by some of the sorters: a thread sees to two neighbours, in 16 bits each.
    __device__ void place_keys() {
        const int32_t pair = static_cast<int32_t>(threadIdx.x) - 32 * kFirstKeyWarp, lane = pair % 32;
        if (pair < 0 || pair >= kNumOrderKeys / 2) return;
        uint32_t before = 0, all = 0;
#pragma unroll
        for (int rank = 0; rank < kMaxCtas; ++rank) {
            const uint32_t items =
                rank < num_ctas_ ? reinterpret_cast<const uint32_t*>(s_.reports.of_cta[rank].items)[pair] : 0;
            before += rank < rank_ ? items : 0;
            all += items;
        }
        const int32_t first = all & 0xffff, both = first + (all >> 16), end = warp_inclusive<Sum>(both, lane);
        if (lane == 31) s_.keys_items[pair / 32] = end;
        named_barrier_sync(kKeysBarrier, 32 * kKeyWarps);
        int32_t position = end - both;
#pragma unroll
        for (int warp = 0; warp < kKeyWarps - 1; ++warp)
            position += warp < pair / 32 ? s_.keys_items[warp] : 0;
        s_.next_item[2 * pair] = position + (before & 0xffff);
        s_.next_item[2 * pair + 1] = position + first + (before >> 16);
        if (pair == kNumOrderKeys / 2 - 1) s_.num_items = position + both;
    }

    // Of all warps, by one.
    __device__ void add_up_splits() {
        uint32_t tiles = 0, rows = 0;
        for (int i = threadIdx.x % 32; i < num_ctas_ * kSorters<kIsShared>; i += 32) {
            const WarpSplits& its = s_.reports.of_cta[i / kSorters<kIsShared>].splits[i % kSorters<kIsShared>];
            tiles += its.split_tiles;
            rows += its.partial_rows;
        }
        s_.header.num_split_tiles = static_cast<int32_t>(__reduce_add_sync(~0u, tiles));
        s_.header.num_partial_rows = static_cast<int32_t>(__reduce_add_sync(~0u, rows));
    }

    // Sorts tiles, as many as counters take at a time. If that is not all, they are counted first.
    __device__ void split_and_write_large() {
        TileSplitter<kIsShared> splitter(p_, s_, lists_, num_ctas_);
        share_out(splitter);
        __syncthreads();
        if (s_.targets.may_split) {
            const Range own = own_tiles();
            const Range mine = ItemCounts::tiles_of_warp(own, kSorters<kIsShared>);
            splitter.cut(mine, splitter.choose_targets(own));
            __syncthreads();
            WarpSplits fitting;
            const bool all_fit = splitter.place(mine, fitting);
            __syncthreads();
            if (!all_fit) splitter.report(fitting);
        }
        const bool at_once = lists_.num_tiles <= kSortedTiles;
        int32_t items = 0;  // of this thread's key
#pragma unroll 1
        for (int32_t first = 0; !at_once && first < lists_.num_tiles; first += kSortedTiles)
            items += recount(sorted_from(first));
        int32_t position = 0;
        ItemWriter<kIsShared> writer(p_, s_, lists_, kWarps, threadIdx.x / 32);
#pragma unroll 1
        for (int32_t first = 0; first < lists_.num_tiles; first += kSortedTiles) {
            const Range sorted = sorted_from(first);
            const int32_t here = recount(sorted), num_tiles = sorted.end - sorted.begin;
            if (first == 0) {
                const int32_t of_key[1] = {at_once ? here : items};
                const auto sum = scan_.template exclusive<Sum>(of_key);
                position = sum.before[0];
                if (threadIdx.x == 0) s_.num_items = sum.total[0];
            }
            if (threadIdx.x < kNumOrderKeys) s_.next_item[threadIdx.x] = position;
            position += here;
            __syncthreads();
            if (first == 0 && threadIdx.x < 32) {
                add_up_splits();
                write_header();
            }
            writer.write_sorted(first, num_tiles,
                                writer.stage_ahead(writer.first_tile(first, num_tiles), first, num_tiles));
            __syncthreads();
        }
    }

    __device__ Range sorted_from(int32_t first) const {
        return {first, min_of(first + kSortedTiles, lists_.num_tiles)};
    }

    // Counts the items of these tiles.
    __device__ void count_items(Range sorted) {
        const Range mine = ItemCounts::tiles_of_warp(sorted, kSorters<kIsShared>);
        const int32_t lane = threadIdx.x % 32;
#pragma unroll 1
        for (int32_t t = mine.begin + lane; t - lane < mine.end; t += 32) {
            const PlannedTile tile = t < mine.end ? lists_.tiles[t] : PlannedTile{};
            s_.counts.add(t - sorted.begin, tile.key(), t < mine.end ? tile.num_splits() : 0);
        }
    }

    // And returns those of this thread's key.
    __device__ int32_t recount(Range sorted) {
        __syncthreads();
        s_.counts.clear(threadIdx.x, kThreads);
        __syncthreads();
        count_items(sorted);
        __syncthreads();
        return threadIdx.x < kNumOrderKeys ? s_.counts.template sum_up<kSorters<kIsShared>>(threadIdx.x) : 0;
    }

    // Of sorted items, by one warp.
    __device__ void write_header() {
        const Shares& shares = s_.shares;
        int32_t front_ctas = shares.front_ctas;
        if (shares.time > 0) {
            FrontChooser chooser(c_, shares);
            chooser.add_sorted(s_.next_item);
            front_ctas = chooser.choose();
        }
        planner::write_header(p_, s_, s_.num_items, s_.next_item[kNumOrderKeys / 2], front_ctas);
    }

    const int rank_;  // of this CTA
    const PlanConfig& c_;
    const CostModel& costs_;
    const TileShape& shape_;
    const PlannerParams& p_;
    SharedMemory& s_;
    const int num_ctas_;
    BlockScan<kWarps> scan_;
    Lists<kIsShared> lists_;
    static constexpr int kSorterThreads = 32 * kSorters<kIsShared>;
    static_assert(kNumOrderKeys <= kSorterThreads);
    static constexpr int kFirstKeyWarp = 2;  // after those that share out
    static constexpr int kKeyWarps = kNumOrderKeys / 64;
    static_assert(kFirstKeyWarp + kKeyWarps < kSorters<kIsShared>);
    // The same in every thread:
    Totals totals_{};
};

// What needs no lengths: before the kernel before has ended.
__device__ inline void prepare(const PlannerParams& p, SharedMemory& s) {
    s.counts.clear(threadIdx.x, kThreads);
    static_assert(sizeof(PlanHeader) / 4 <= kThreads);
    constexpr int kConfigBegin = offsetof(PlanHeader, config) / 4, kConfigEnd = kConfigBegin + kPlanConfigWords;
    const int word = threadIdx.x;
    if (word < int(sizeof(PlanHeader) / 4))
        reinterpret_cast<int32_t*>(&s.header)[word] =
            kConfigBegin <= word && word < kConfigEnd ? reinterpret_cast<const int32_t*>(&p.config)[word - kConfigBegin]
                                                      : 0;
    s.reports.open(p.num_ctas);
    if (p.config.max_seqs <= kSharedSeqs) cluster_arrive();
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
