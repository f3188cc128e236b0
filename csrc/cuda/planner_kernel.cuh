// The device planner: one launch. It evaluates the rules of core/schedule.h as plan_on_host does, and its result
// is equal byte for byte. Loops are flat over sequences, tiles or items, never nested: a thread's work does not depend on
// how long its sequence is. Small batches live in shared memory: a few CTAs compute the same, and each writes a part of
// the items. For larger ones, one CTA keeps its lists in the plan's scratch.
// It needs no CUDA header: tests/cpp/device_planner_test.cpp runs it on a CPU.
#pragma once

#include <cstring>

#include "cuda/planner_order.cuh"

namespace varattn::planner {

struct alignas(8) PlannedTile {
    uint32_t seq : 24, key : 8;  // order key; of a decode from kNumOrderKeys / 2
    // Blocks (2^24 are a block less, which changes nothing); once splits are chosen, the first slot of a split tile.
    uint32_t blocks_or_slot : 24, more_splits : 8;
    __device__ bool is_decode() const { return key >= kNumOrderKeys / 2; }
    __device__ int32_t num_splits() const { return static_cast<int32_t>(more_splits) + 1; }
};
static_assert(sizeof(PlannedTile) == kTileScratchWords * 4);
static_assert(kMaxSeqs <= 1 << 24 && kMaxNumSplits <= 256 && kArrivalCounters < 1 << 24 && kNumOrderKeys == 256);
constexpr int32_t kMaxTileBlocks = (1 << 24) - 1;

// Up to here, lists are kept in shared memory.
constexpr int kSharedSeqs = kChunkSeqs, kSharedTiles = kSortedTiles;

struct PlannerParams {
    PlanConfig config;
    CostModel costs;
    TileShape shape;
    SequenceLengths lengths;
    PlanLayout layout;
    char* plan;
    int32_t num_ctas;
};

// CTAs of the launch: so many that each warp has few items to write.
inline int32_t num_ctas(const PlanConfig& c) {
    if (c.max_seqs > kSharedSeqs) return 1;
    return max_tiles(c) <= 1024 ? 4 : max_tiles(c) <= 2048 ? 8 : 16;
}

constexpr int kItemParts = sizeof(WorkItem) / sizeof(uint4), kStagedItems = 16;

struct SharedMemory {
    SequenceShape shapes[kSharedSeqs];
    int32_t first_tiles[kSharedSeqs];
    PlannedTile tiles[kSharedTiles];
    ItemCounts counts;
    uint4 staging[kWarps][kStagedItems][kItemParts];  // a warp's items on their way to memory
    int32_t next_item[kNumOrderKeys];                 // position of the key's next item
    BlockScan<kWarps>::Buffer scan;
    uint32_t sums[5][kWarps];                 // see Totals
    int32_t wave_pieces[2][kNumWaveTargets];  // pieces that each target would make
    PlanHeader header;
};
static_assert(sizeof(SharedMemory) <= 98 * 1024, "compute capability 8.6 has 99 KiB for a CTA");

template <bool kIsShared>  // where the lists are
class Planner {
public:
    __device__ Planner(const PlannerParams& p, SharedMemory& s)
        : c_(p.config), costs_(p.costs), shape_(p.shape), p_(p), s_(s), scan_(s.scan) {
        if constexpr (kIsShared) {
            shapes_ = s.shapes;
            first_tiles_ = s.first_tiles;
            tiles_ = s.tiles;
        } else {
            shapes_ = reinterpret_cast<SequenceShape*>(p.plan + p.layout.seqs);
            first_tiles_ = reinterpret_cast<int32_t*>(shapes_ + c_.max_seqs);
            tiles_ = reinterpret_cast<PlannedTile*>(p.plan + p.layout.tiles);
        }
    }

    // False if there are too many tiles for shared memory.
    __device__ bool run() {
        if (!read_lengths()) return false;
        __syncthreads();
        cut_tiles();
        choose_splits();
        write_items();
        return true;
    }

private:
    // Each sequence's shape and first tile; each tile's sequence.
    __device__ bool read_lengths() {
        LengthReader reader(c_, p_.lengths, scan_);
        int32_t tiles = 0;  // before the chunk
        GivenLengths next = reader.load(0);
#pragma unroll 1
        for (int32_t chunk = 0; chunk < c_.max_seqs; chunk += kChunkSeqs) {
            const GivenLengths given = next;
            if (!kIsShared) next = reader.load(chunk + kChunkSeqs);
            SequenceShape shapes[kSeqsPerThread];
            reader.clamp(chunk, given, shapes);
            const int32_t seq = LengthReader::first_of_thread(chunk);
            int32_t count[kSeqsPerThread];
#pragma unroll
            for (int i = 0; i < kSeqsPerThread; ++i)
                count[i] = seq + i < c_.max_seqs ? num_tiles(shape_, shapes[i].q_len) : 0;
            const int32_t counts[1] = {count[0] + count[1]};
            const auto sum = scan_.exclusive<Sum>(counts);
            int32_t first = tiles + sum.before[0];
            tiles += sum.total[0];
            if (kIsShared && tiles > kSharedTiles) return false;
#pragma unroll
            for (int i = 0; i < kSeqsPerThread; ++i) {
                if (seq + i < c_.max_seqs) {
                    shapes_[seq + i] = shapes[i];
                    first_tiles_[seq + i] = first;
                    if (seq + i == 0) s_.header.q_begin = shapes[i].q_begin;
                    if (seq + i == c_.max_seqs - 1) s_.header.q_end = shapes[i].q_begin + shapes[i].q_len;
                }
                name_tiles(seq + i, first, count[i]);
                first += count[i];
            }
        }
        if (reader.status()) atomicOr(&s_.header.status, reader.status());
        num_tiles_ = tiles;
        return true;
    }

    // A warp writes the sequence of its threads' tiles. Many tiles are shared out among the warp.
    __device__ void name_tiles(int32_t seq, int32_t first, int32_t count) {
        constexpr int32_t kAlone = 16;
#pragma unroll 1
        for (int32_t i = 0; i < min_of(count, kAlone); ++i)
            tiles_[first + i] = {static_cast<uint32_t>(seq), 0, 0, 0};
#pragma unroll 1
        for (uint32_t long_ones = __ballot_sync(~0u, count > kAlone); long_ones != 0; long_ones &= long_ones - 1) {
            const int lane = __ffs(long_ones) - 1;
            const int32_t its_seq = __shfl_sync(~0u, seq, lane), its_first = __shfl_sync(~0u, first, lane),
                          its_count = __shfl_sync(~0u, count, lane);
#pragma unroll 1
            for (int32_t i = kAlone + threadIdx.x % 32; i < its_count; i += 32)
                tiles_[its_first + i] = {static_cast<uint32_t>(its_seq), 0, 0, 0};
        }
    }

    // Each tile's blocks, the totals that shares and targets depend on, and the most blocks of a tile.
    __device__ void cut_tiles() {
        uint32_t sums[3] = {};  // blocks of prefills, of decodes; decodes
        uint32_t most[2] = {};
#pragma unroll 1
        for (int32_t t = threadIdx.x; t < num_tiles_; t += kThreads) {
            PlannedTile tile = tiles_[t];
            const SequenceShape seq = shapes_[tile.seq];
            const bool decode = is_decode(shape_, seq.q_len);
            const Range blocks = cut(t, tile, seq).blocks;
            const int32_t num_blocks = blocks.end - blocks.begin;
            tile.key = order_key(costs_, decode, num_blocks);
            tile.blocks_or_slot = min_of(num_blocks, kMaxTileBlocks);
            tiles_[t] = tile;
            const uint32_t priced = min_of(num_blocks, kMaxPricedBlocks);
            sums[0] += decode ? 0 : priced;
            sums[1] += decode ? priced : 0;
            sums[2] += decode;
            most[0] = max_of(most[0], decode ? 0 : priced);
            most[1] = max_of(most[1], decode ? priced : 0);
        }
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
        for (int i = 0; i < 5; ++i) {
            const uint32_t of_warp = i < 3 ? __reduce_add_sync(~0u, sums[i]) : __reduce_max_sync(~0u, most[i - 3]);
            if (lane == 0) s_.sums[i][warp] = of_warp;
        }
        __syncthreads();
        uint32_t all[5];
#pragma unroll
        for (int i = 0; i < 5; ++i) {
            const uint32_t of_warp = lane < kWarps ? s_.sums[i][lane] : 0;
            all[i] = i < 3 ? __reduce_add_sync(~0u, of_warp) : __reduce_max_sync(~0u, of_warp);
        }
        const auto decodes = static_cast<int32_t>(all[2]);
        totals_ = {{all[0], all[1]}, {num_tiles_ - decodes, decodes}};
        most_blocks_[0] = static_cast<int32_t>(all[3]);
        most_blocks_[1] = static_cast<int32_t>(all[4]);
    }

    __device__ Tile cut(int32_t t, const PlannedTile& tile, const SequenceShape& seq) const {
        return tile_at(c_, shape_, seq.q_len, seq.kv_len, t - first_tiles_[tile.seq]);
    }

    // Splits of each tile, while there is room for partial results.
    __device__ void choose_splits() {
        const Shares shares = share_ctas(c_, costs_, totals_);
        front_ctas_ = shares.front_ctas;
        int32_t targets[2];
        bool may_split[2], counts[2];
#pragma unroll
        for (int kind = 0; kind < 2; ++kind) {
            const bool wave = shares.may_be_wave[kind];
            targets[kind] = wave ? wave_target(costs_, shares.fair_share[kind], kind, 0)
                                 : queue_target(costs_, shares.fair_share[kind], kind);
            may_split[kind] = c_.num_splits > 1 && totals_.tiles[kind] > 0 &&
                              item_cost(costs_, kind, most_blocks_[kind]) > targets[kind];
            counts[kind] = wave && may_split[kind];
        }
        if (!may_split[0] && !may_split[1]) return;
        if (counts[0] || counts[1]) {
            count_wave_pieces(shares, counts);
            __syncthreads();
#pragma unroll
            for (int kind = 0; kind < 2; ++kind) {
                if (!counts[kind]) continue;
                targets[kind] = queue_target(costs_, shares.fair_share[kind], kind);
#pragma unroll 1
                for (int i = kNumWaveTargets - 1; i >= 0; --i)
                    if (fits_one_wave(c_, s_.wave_pieces[kind][i], shares.ctas[kind]))
                        targets[kind] = wave_target(costs_, shares.fair_share[kind], kind, i);
            }
        }
        place_pieces(targets);
        __syncthreads();
    }

    // Blocks are segments, but for batch invariance.
    __device__ int32_t segments(int32_t t, const PlannedTile& tile) const {
        if (shape_.segment_log2 == 0) return tile.blocks_or_slot;
        return segments_of(shape_, cut(t, tile, shapes_[tile.seq]).blocks);
    }
    __device__ int32_t cost_of(const PlannedTile& t) const {
        return item_cost(costs_, t.is_decode(), t.blocks_or_slot);
    }

    __device__ void count_wave_pieces(const Shares& shares, const bool (&counts)[2]) {
        const int lane = threadIdx.x % 32;
#pragma unroll 1
        for (int32_t t = threadIdx.x; t - lane < num_tiles_; t += kThreads) {
            PlannedTile tile{};
            bool decode = false, counted = false;
            if (t < num_tiles_) {
                tile = tiles_[t];
                decode = tile.is_decode();
                counted = decode ? counts[1] : counts[0];
            }
            if (!__any_sync(~0u, counted)) continue;
            const int32_t cost = cost_of(tile), its_segments = counted ? segments(t, tile) : 0,
                          fair = decode ? shares.fair_share[1] : shares.fair_share[0];
            int32_t prefills = 0, decodes = 0;
#pragma unroll
            for (int i = 0; i < kNumWaveTargets; ++i) {
                int32_t pieces = splits_of(c_, cost, its_segments, wave_target(costs_, fair, decode, i));
                if (!counted) pieces = 0;
                const int32_t of_prefills = __reduce_add_sync(~0u, decode ? 0 : pieces),
                              of_decodes = __reduce_add_sync(~0u, decode ? pieces : 0);
                if (lane == i) prefills = of_prefills, decodes = of_decodes;
            }
            if (lane >= kNumWaveTargets) continue;
            if (prefills > 0) atomicAdd(&s_.wave_pieces[0][lane], prefills);
            if (decodes > 0) atomicAdd(&s_.wave_pieces[1][lane], decodes);
        }
    }

    // Hands out slots to split tiles, at each end. Since tiles without room count too, those with room come before those
    // without.
    __device__ void place_pieces(const int32_t (&targets)[2]) {
        int32_t before[2] = {};  // the chunk
#pragma unroll 1
        for (int32_t chunk = 0; chunk < num_tiles_; chunk += kThreads) {
            const int32_t t = chunk + threadIdx.x;
            PlannedTile tile{};
            bool decode = false;
            int32_t its_segments = 0, splits = 1, slots = 0;
            if (t < num_tiles_) {
                tile = tiles_[t];
                decode = tile.is_decode();
                its_segments = segments(t, tile);
                splits = splits_of(c_, cost_of(tile), its_segments, decode ? targets[1] : targets[0]);
                if (splits > 1) slots = slots_of(c_, shape_, decode, splits, its_segments);
            }
            const int32_t counts[2] = {decode ? 0 : slots, decode ? slots : 0};
            const auto sum = scan_.exclusive<Sum>(counts);
            const int32_t first_slot = decode ? before[1] + sum.before[1] : before[0] + sum.before[0];
            before[0] += sum.total[0];
            before[1] += sum.total[1];
            if (splits == 1 || first_slot + slots > shape_.max_slots[decode]) continue;
            const int32_t largest = largest_piece(shape_, tile.blocks_or_slot, its_segments, splits);
            tile.key = order_key(costs_, decode, largest);
            tile.more_splits = splits - 1;
            tile.blocks_or_slot = first_slot;
            tiles_[t] = tile;
            const Range rows = cut(t, tile, shapes_[tile.seq]).rows;
            atomicAdd(&s_.header.num_split_tiles, 1);
            atomicAdd(&s_.header.num_partial_rows, slots * (rows.end - rows.begin));
        }
    }

    // Sorts tiles, as many as counters take at a time. If that is not all, they are counted first.
    __device__ void write_items() {
        int32_t items = 0;  // of this thread's key
        const bool at_once = kIsShared || num_tiles_ <= kSortedTiles;
#pragma unroll 1
        for (int32_t first = 0; !at_once && first < num_tiles_; first += kSortedTiles)
            items += count_items(first);
        int32_t position = 0;
#pragma unroll 1
        for (int32_t first = 0; first == 0 || first < num_tiles_; first += kSortedTiles) {
            const int32_t here = count_items(first);
            if (first == 0) {
                const int32_t of_key[1] = {at_once ? here : items};
                const auto sum = scan_.exclusive<Sum>(of_key);
                position = sum.before[0];
                if (threadIdx.x == kNumOrderKeys / 2) s_.header.num_front_items = position;
                num_items_ = sum.total[0];
            }
            if (threadIdx.x < kNumOrderKeys) s_.next_item[threadIdx.x] = position;
            position += here;
            __syncthreads();
            write_items_of(first);
            if (!kIsShared) __syncthreads();
        }
        if (blockIdx.x == 0 && threadIdx.x < 32) write_header();
    }

    // Of kSortedTiles tiles. Returns the items of this thread's key.
    __device__ int32_t count_items(int32_t first) {
        if (!kIsShared) {
            __syncthreads();
            s_.counts.clear();
            __syncthreads();
        }
        const int32_t count = min_of(num_tiles_ - first, kSortedTiles), rounds = num_rounds(count);
#pragma unroll 1
        for (int round = 0; round < rounds; ++round) {
            const int32_t i = (threadIdx.x / 32 * rounds + round) * 32 + threadIdx.x % 32;
            if (i - static_cast<int32_t>(threadIdx.x % 32) >= count) break;
            const PlannedTile tile = i < count ? tiles_[first + i] : PlannedTile{};
            s_.counts.add(i, tile.key, i < count ? tile.num_splits() : 0);
        }
        __syncthreads();
        return threadIdx.x < kNumOrderKeys ? s_.counts.sum_up(threadIdx.x) : 0;
    }
    __device__ static int32_t num_rounds(int32_t count) { return max_of(ceil_div(count, kThreads), 1); }

    // Warps of all CTAs take 32 tiles at a time, or, if these are few, a share of their items.
    __device__ void write_items_of(int32_t first) {
        const int lane = threadIdx.x % 32;
        const int32_t count = min_of(num_tiles_ - first, kSortedTiles), groups = max_of(ceil_div(count, 32), 1),
                      rounds = num_rounds(count), num_ctas = kIsShared ? p_.num_ctas : 1, warps = num_ctas * kWarps;
        int shares_log2 = 0;
        while (groups << (shares_log2 + 1) <= warps)
            ++shares_log2;
#pragma unroll 1
        for (int32_t at = threadIdx.x / 32 * num_ctas + blockIdx.x; at < groups << shares_log2; at += warps) {
            const int32_t group = at >> shares_log2, share = at & ((1 << shares_log2) - 1), i = group * 32 + lane;
            int32_t splits = 0, position = 0;
            PlannedTile tile{};
            if (i < count) {
                tile = tiles_[first + i];
                splits = tile.num_splits();
                position = s_.next_item[tile.key] + s_.counts.of_warp[tile.key][group / rounds] + s_.counts.earlier[i];
            }
            const bool whole = !__any_sync(~0u, splits > 1);
            const int32_t end = whole ? lane + 1 : warp_inclusive<Sum>(splits, lane),
                          num_items = whole ? min_of(count - group * 32, 32) : __shfl_sync(~0u, end, 31);
#pragma unroll 1
            for (int32_t item = share * 32 + lane; item - lane < num_items; item += 32 << shares_log2) {
                int owner = lane;  // of the item's tile: the first lane whose end is past the item
                if (!whole) {
                    owner = 0;
#pragma unroll 1
                    for (int step = 16; step > 0; step /= 2)
                        if (__shfl_sync(~0u, end, owner + step - 1) <= item) owner += step;
                    tile = item < num_items ? tiles_[first + group * 32 + owner] : PlannedTile{};
                }
                const int32_t split = whole ? 0 : item - __shfl_sync(~0u, end - splits, owner),
                              to = __shfl_sync(~0u, position, owner) + split;
                write(first + group * 32 + owner, tile, split, item < num_items ? to : -1);
            }
        }
    }

    // A warp's items, to these positions if not negative, by way of shared memory: four threads write an item.
    __device__ void write(int32_t t, const PlannedTile& tile, int32_t split, int32_t position) {
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        uint4(&staging)[kStagedItems][kItemParts] = s_.staging[warp];
        uint4 parts[kItemParts];
        if (position >= 0) {
            const SequenceShape seq = shapes_[tile.seq];
            const int32_t index = t - first_tiles_[tile.seq];
            const WorkItem item = make_item(c_, costs_, shape_, tile.seq, seq, tile.is_decode(), index,
                                            tile_at(c_, shape_, seq.q_len, seq.kv_len, index), split, tile.num_splits(),
                                            tile.blocks_or_slot);
            memcpy(parts, &item, sizeof item);
        }
        auto* items = reinterpret_cast<uint4*>(p_.plan + p_.layout.items);
#pragma unroll
        for (int half = 0; half < 32; half += kStagedItems) {
            __syncwarp();
            if (position >= 0 && lane / kStagedItems == half / kStagedItems)
#pragma unroll
                for (int part = 0; part < kItemParts; ++part)
                    staging[lane % kStagedItems][part ^ (lane / 2 % kItemParts)] = parts[part];
            __syncwarp();
#pragma unroll
            for (int from = lane / kItemParts; from < kStagedItems; from += 32 / kItemParts) {
                const int32_t to = __shfl_sync(~0u, position, half + from), part = lane % kItemParts;
                if (to >= 0) items[int64_t{to} * kItemParts + part] = staging[from][part ^ (from / 2 % kItemParts)];
            }
        }
    }

    // By one warp.
    __device__ void write_header() {
        PlanHeader& header = s_.header;
        if (threadIdx.x == 0) {
            header.magic = kPlanMagic;
            header.num_items = num_items_;
            header.num_front_ctas = front_ctas_;
        }
        __syncwarp();
        constexpr int kParts = sizeof(PlanHeader) / sizeof(uint4);
        if (threadIdx.x < kParts)
            reinterpret_cast<uint4*>(p_.plan)[threadIdx.x] = reinterpret_cast<const uint4*>(&header)[threadIdx.x];
    }

    const PlanConfig& c_;
    const CostModel& costs_;
    const TileShape& shape_;
    const PlannerParams& p_;
    SharedMemory& s_;
    BlockScan<kWarps> scan_;
    SequenceShape* shapes_;
    int32_t* first_tiles_;
    PlannedTile* tiles_;
    // The same in every thread:
    int32_t num_tiles_ = 0, num_items_ = 0, front_ctas_ = 0, most_blocks_[2] = {};
    Totals totals_{};
};

// What needs no lengths: before the kernel before has ended.
__device__ inline void prepare(const PlannerParams& p, SharedMemory& s) {
    s.counts.clear();
    static_assert(sizeof(PlanHeader) / 4 <= kThreads && 2 * kNumWaveTargets <= kThreads);
    constexpr int kConfigBegin = offsetof(PlanHeader, config) / 4, kConfigEnd = kConfigBegin + kPlanConfigWords;
    const int word = threadIdx.x;
    if (word < int(sizeof(PlanHeader) / 4))
        reinterpret_cast<int32_t*>(&s.header)[word] =
            kConfigBegin <= word && word < kConfigEnd ? reinterpret_cast<const int32_t*>(&p.config)[word - kConfigBegin]
                                                      : 0;
    if (word < 2 * kNumWaveTargets) s.wave_pieces[0][word] = 0;
}

__device__ inline void run(const PlannerParams& p, SharedMemory& s) {
    if (p.config.max_seqs <= kSharedSeqs && Planner<true>(p, s).run()) return;
    if (blockIdx.x == 0) Planner<false>(p, s).run();
}

}  // namespace varattn::planner
