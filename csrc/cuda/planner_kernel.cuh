// The device planner: one launch. It evaluates the rules of core/schedule.h as plan_on_host does, and its result
// is equal byte for byte. Loops are flat over sequences, tiles or items, never nested: a thread's work does not depend on
// how long its sequence is. Small batches live in shared memory: a few CTAs compute the same, and each writes a part of
// the items. For larger ones, one CTA uses the plan's scratch.
// It needs no CUDA header: tests/cpp/device_planner_test.cpp runs it on a CPU.
#pragma once

#include <cstring>

#include "core/schedule.h"
#include "device/scan.cuh"

namespace varattn::planner {

using namespace device;

constexpr int kThreads = 512, kWarps = kThreads / 32;
static_assert(kThreads == kNumOrderKeys, "a thread scans a key");
constexpr int kWriters = 4;                       // CTAs
constexpr int kRounds = 3;                        // of the sort: a thread's tiles
constexpr int kSortedTiles = kThreads * kRounds;  // that are sorted at a time
static_assert(kSortedTiles + 2 * kArrivalCounters <= 0xffff, "items of as many tiles are counted in 16 bits");

struct alignas(16) TileScratch {
    int32_t seq;
    int32_t num_blocks;
    int16_t num_splits;
    int16_t key;         // order key; of a decode from kNumOrderKeys / 2
    int32_t first_slot;  // if split; before slots are handed out: segments of the tile
    __device__ bool is_decode() const { return key >= kNumOrderKeys / 2; }
};
static_assert(sizeof(TileScratch) == kTileScratchWords * 4);

struct alignas(8) ItemScratch {
    int32_t tile, split;
};
static_assert(sizeof(ItemScratch) == kItemScratchWords * 4);

// Up to here, lists are kept in shared memory.
constexpr int kSharedSeqs = 1024, kSharedTiles = kSortedTiles, kSharedItems = kSortedTiles;

inline int32_t num_ctas(const PlanConfig& c) { return c.max_seqs <= kSharedSeqs ? kWriters : 1; }

struct SharedMemory {
    SequenceShape shapes[kSharedSeqs];
    int32_t first_tiles[kSharedSeqs];
    TileScratch tiles[kSharedTiles];
    ItemScratch order[kSharedItems];
    union {
        uint16_t warp_items[kWarps][kNumOrderKeys];  // items of a key in a warp's tiles, then in those of earlier warps
        uint4 staging[kWarps][32][sizeof(WorkItem) / sizeof(uint4)];  // a warp's items on their way to memory
    };
    uint16_t ranks[kSortedTiles];      // items of a tile's key in earlier tiles of its warp
    int32_t next_item[kNumOrderKeys];  // count of a key's items, then position of its next item
    BlockScan<kWarps>::Buffer scan;
    long long warp_cost[2][kWarps];
    int32_t warp_tiles[2][kWarps];
    Shares shares;
    int32_t wave_pieces[2][kNumWaveTargets];  // pieces that each target would make
    uint32_t status;
    PlanHeader header;
};

// One warp's tiles of the same key as this thread's: items in the tiles before it, items in all, the first such lane.
struct KeyGroup {
    int32_t before, items;
    int leader;
};

__device__ inline KeyGroup group_by_key(int32_t key, int32_t num_splits) {
    const int lane = threadIdx.x % 32;
    const uint32_t peers = __match_any_sync(~0u, key), earlier = peers & ((1u << lane) - 1);
    KeyGroup group{__popc(earlier), __popc(peers), __ffs(peers) - 1};
    if (__any_sync(~0u, num_splits > 1)) {
        group.before = group.items = 0;
#pragma unroll 4
        for (int other = 0; other < 32; ++other) {
            const int32_t items = __shfl_sync(~0u, num_splits, other);
            if (peers >> other & 1) group.items += items;
            if (earlier >> other & 1) group.before += items;
        }
    }
    return group;
}

struct PlannerParams {
    PlanConfig config;
    CostModel costs;
    TileShape shape;
    SequenceLengths lengths;
    PlanLayout layout;
    char* plan;
};

// What a thread reads: two sequences.
struct GivenLengths {
    int32_t q[3], k[3], used[2];
};

class Planner {
public:
    __device__ Planner(const PlannerParams& p, SharedMemory& s)
        : c_(p.config), costs_(p.costs), shape_(p.shape), in_(p.lengths), p_(p), s_(s), scan_(s.scan) {}

    __device__ void run() {
        clear();
        read_lengths();
        __syncthreads();
        if (blockIdx.x > 0 && !is_small()) return;
        cut_tiles();
        __syncthreads();
        share();
        __syncthreads();
        choose_splits();
        __syncthreads();
        order_tiles();
        if (blockIdx.x > 0 && !is_small()) return;
        __syncthreads();
        write_items();
    }

private:
    __device__ void clear() {
        for (int word = threadIdx.x; word < int(sizeof(PlanHeader) / 4); word += kThreads)
            reinterpret_cast<int32_t*>(&s_.header)[word] = 0;
        if (threadIdx.x == 0) s_.status = 0;
        if (threadIdx.x < 2 * kNumWaveTargets) s_.wave_pieces[0][threadIdx.x] = 0;
    }

    __device__ GivenLengths load_lengths(int32_t seq) const {
        GivenLengths g{};
        if (seq >= c_.max_seqs) return g;
        const bool two = seq + 1 < c_.max_seqs;
        g.q[0] = in_.cu_seqlens_q[seq];
        g.q[1] = in_.cu_seqlens_q[seq + 1];
        g.q[2] = two ? in_.cu_seqlens_q[seq + 2] : g.q[1];
        if (in_.cu_seqlens_k) {
            g.k[0] = in_.cu_seqlens_k[seq];
            g.k[1] = in_.cu_seqlens_k[seq + 1];
            g.k[2] = two ? in_.cu_seqlens_k[seq + 2] : g.k[1];
        }
        if (in_.seqused_k) {
            g.used[0] = in_.seqused_k[seq];
            if (two) g.used[1] = in_.seqused_k[seq + 1];
        }
        return g;
    }

    // Each sequence's shape and first tile.
    __device__ void read_lengths() {
        uint32_t status = 0;
        int32_t tiles = 0;               // before the chunk
        bool monotone = true;            // so far: offsets can be taken as they are
        int32_t last_q = 0, last_k = 0;  // else: their running maximum
        GivenLengths next = load_lengths(2 * threadIdx.x);
        for (int32_t chunk = 0; chunk < c_.max_seqs; chunk += 2 * kThreads) {
            const int32_t seq = chunk + 2 * static_cast<int32_t>(threadIdx.x);
            GivenLengths g = next;
            next = load_lengths(seq + 2 * kThreads);
            const bool in_order = 0 <= g.q[0] && g.q[0] <= g.q[1] && g.q[1] <= g.q[2] && g.q[2] <= c_.max_total_q &&
                                  0 <= g.k[0] && g.k[0] <= g.k[1] && g.k[1] <= g.k[2];
            if (!__syncthreads_and(in_order) || !monotone) clamp_offsets(chunk, monotone, last_q, last_k, g, status);

            int32_t count[2];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const bool exists = seq + i < c_.max_seqs;
                SequenceShape shape{g.q[i], g.q[i + 1] - g.q[i], g.k[i], kMaxLength};
                if (in_.cu_seqlens_k) {
                    shape.kv_len = min_of(kMaxLength, g.k[i + 1] - g.k[i]);
                    if (!in_.seqused_k && shape.kv_len < g.k[i + 1] - g.k[i]) status |= kStatusCuSeqlensK;
                }
                if (in_.seqused_k) {
                    shape.kv_len = clamp(g.used[i], 0, shape.kv_len);
                    if (exists && shape.kv_len != g.used[i]) status |= kStatusSequsedK;
                }
                count[i] = exists ? num_tiles(shape_, shape.q_len) : 0;
                if (exists) shapes()[seq + i] = shape;
                if (seq + i == 0) s_.header.q_begin = g.q[0];
                if (seq + i == c_.max_seqs - 1) s_.header.q_end = g.q[i + 1];
            }
            const int32_t counts[1] = {count[0] + count[1]};
            const auto sum = scan_.exclusive<Sum>(counts);
            const int32_t first = tiles + sum.before[0];
            if (seq < c_.max_seqs) first_tiles()[seq] = first;
            if (seq + 1 < c_.max_seqs) first_tiles()[seq + 1] = first + count[0];
            tiles += sum.total[0];
        }
        if (status) atomicOr(&s_.status, status);
        num_tiles_ = tiles;
    }

    // Some offset is out of order: all become the running maximum of what was given.
    __device__ void clamp_offsets(int32_t chunk, bool& monotone, int32_t& last_q, int32_t& last_k, GivenLengths& g,
                                  uint32_t& status) {
        constexpr int32_t kNoLimit = 0x7fffffff;
        if (monotone) {  // until here
            const int32_t q = in_.cu_seqlens_q[chunk], k = in_.cu_seqlens_k ? in_.cu_seqlens_k[chunk] : 0;
            last_q = clamp_offset(q, c_.max_total_q);
            last_k = clamp_offset(k, kNoLimit);
            if (last_q != q) status |= kStatusCuSeqlensQ;
            if (last_k != k) status |= kStatusCuSeqlensK;
            monotone = false;
        }
        const GivenLengths given = g;
        for (int i = 1; i < 3; ++i) {
            g.q[i] = clamp_offset(g.q[i], c_.max_total_q);
            g.k[i] = clamp_offset(g.k[i], kNoLimit);
        }
        const int32_t offsets[2] = {max_of(g.q[1], g.q[2]), max_of(g.k[1], g.k[2])};
        const auto running = scan_.exclusive<Max>(offsets);
        g.q[0] = max_of(last_q, running.before[0]);
        g.k[0] = max_of(last_k, running.before[1]);
        const int32_t seq = chunk + 2 * static_cast<int32_t>(threadIdx.x);
        for (int i = 1; i < 3; ++i) {
            g.q[i] = max_of(g.q[i - 1], g.q[i]);
            g.k[i] = max_of(g.k[i - 1], g.k[i]);
            if (seq + i <= c_.max_seqs && g.q[i] != given.q[i]) status |= kStatusCuSeqlensQ;
            if (seq + i <= c_.max_seqs && g.k[i] != given.k[i]) status |= kStatusCuSeqlensK;
        }
        last_q = max_of(last_q, running.total[0]);
        last_k = max_of(last_k, running.total[1]);
    }

    // Each tile's sequence and blocks, and the totals that shares and targets depend on.
    __device__ void cut_tiles() {
        long long cost[2] = {};
        int32_t tiles[2] = {};
        for (int32_t t = threadIdx.x; t < num_tiles_; t += kThreads) {
            TileScratch tile{};
            tile.seq = sequence_of(t);
            const SequenceShape seq = shapes()[tile.seq];
            const bool decode = is_decode(shape_, seq.q_len);
            const Tile cut = tile_at(c_, shape_, seq.q_len, seq.kv_len, t - first_tiles()[tile.seq]);
            tile.num_blocks = cut.blocks.end - cut.blocks.begin;
            tile.num_splits = 1;
            tile.first_slot = segments_of(shape_, cut.blocks);
            tile.key = static_cast<int16_t>(order_key(costs_, decode, tile.num_blocks));
            this->tiles()[t] = tile;
            const int32_t tile_cost = item_cost(costs_, decode, tile.num_blocks);
            cost[0] += decode ? 0 : tile_cost;
            cost[1] += decode ? tile_cost : 0;
            tiles[0] += !decode;
            tiles[1] += decode;
        }
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
        for (int kind = 0; kind < 2; ++kind) {
            const int32_t warp_tiles = __reduce_add_sync(~0u, tiles[kind]);
            const long long warp_cost = warp_tiles > 0 ? warp_sum(cost[kind]) : 0;
            if (lane != 0) continue;
            s_.warp_tiles[kind][warp] = warp_tiles;
            s_.warp_cost[kind][warp] = warp_cost;
        }
    }

    // The last sequence whose first tile is not after t.
    __device__ int32_t sequence_of(int32_t t) const {
        const int32_t* first = first_tiles();
        if (t < c_.max_seqs && first[t] == t && (t + 1 == c_.max_seqs || first[t + 1] == t + 1)) return t;
        int32_t seq = 0;
        for (int32_t end = c_.max_seqs; end - seq > 1;) {
            const int32_t middle = seq + (end - seq) / 2;
            (first[middle] <= t ? seq : end) = middle;
        }
        return seq;
    }

    __device__ void share() {
        if (threadIdx.x >= 32) return;
        Totals totals{};
#pragma unroll
        for (int kind = 0; kind < 2; ++kind) {
            const bool has = threadIdx.x < kWarps;
            totals.tiles[kind] = __reduce_add_sync(~0u, has ? s_.warp_tiles[kind][threadIdx.x] : 0);
            totals.cost[kind] = warp_sum(has ? s_.warp_cost[kind][threadIdx.x] : 0);
        }
        if (threadIdx.x == 0) s_.shares = share_ctas(c_, costs_, totals);
    }

    // Splits of each tile, while there is room for partial results: since tiles without room count too, those with room
    // come before those without.
    __device__ void choose_splits() {
        if (c_.num_splits == 1) return;
        const Shares& shares = s_.shares;
        if (shares.may_be_wave[0] || shares.may_be_wave[1]) {
            count_wave_pieces();
            __syncthreads();
        }
        int32_t targets[2];
#pragma unroll
        for (int kind = 0; kind < 2; ++kind) {
            targets[kind] = queue_target(costs_, shares.fair_share[kind], kind);
            for (int i = kNumWaveTargets - 1; i >= 0 && shares.may_be_wave[kind]; --i)
                if (fits_one_wave(c_, s_.wave_pieces[kind][i], shares.ctas[kind]))
                    targets[kind] = wave_target(costs_, shares.fair_share[kind], kind, i);
        }
        bool any_split = false;
        for (int32_t t = threadIdx.x; t < num_tiles_; t += kThreads) {
            TileScratch& tile = tiles()[t];
            const int32_t target = tile.is_decode() ? targets[1] : targets[0];
            const int32_t splits = splits_of(c_, cost_of(tile), tile.first_slot, target);
            if (splits > 1) {
                tile.num_splits = static_cast<int16_t>(splits);
                any_split = true;
            }
        }
        if (__syncthreads_or(any_split)) place_pieces();
    }

    __device__ void count_wave_pieces() {
        const Shares& shares = s_.shares;
        for (int32_t t = threadIdx.x; t < round_up(num_tiles_, 32); t += kThreads) {
            const bool exists = t < num_tiles_;
            const TileScratch tile = exists ? tiles()[t] : TileScratch{};
            for (int kind = 0; kind < 2; ++kind) {
                const bool counts = exists && tile.is_decode() == (kind == 1);
                if (!shares.may_be_wave[kind] || !__any_sync(~0u, counts)) continue;
                int32_t mine = 0;
#pragma unroll
                for (int i = 0; i < kNumWaveTargets; ++i) {
                    const int32_t target = wave_target(costs_, shares.fair_share[kind], kind, i);
                    const int32_t pieces = counts ? splits_of(c_, cost_of(tile), tile.first_slot, target) : 0;
                    const int32_t sum = __reduce_add_sync(~0u, pieces);
                    if (static_cast<int>(threadIdx.x % 32) == i) mine = sum;
                }
                if (threadIdx.x % 32 < kNumWaveTargets) atomicAdd(&s_.wave_pieces[kind][threadIdx.x % 32], mine);
            }
        }
    }

    // Hands out slots to split tiles, at each end.
    __device__ void place_pieces() {
        int32_t before[2] = {};  // the chunk
        for (int32_t chunk = 0; chunk < num_tiles_; chunk += kThreads) {
            const int32_t t = chunk + threadIdx.x;
            TileScratch tile = t < num_tiles_ ? tiles()[t] : TileScratch{};
            const bool split = tile.num_splits > 1, decode = tile.is_decode();
            const int32_t segments = tile.first_slot,
                          slots = split ? slots_of(c_, decode, tile.num_splits, segments) : 0;
            const int32_t counts[2] = {decode ? 0 : slots, decode ? slots : 0};
            const auto sum = scan_.exclusive<Sum>(counts);
            if (split) {
                tile.first_slot = decode ? before[1] + sum.before[1] : before[0] + sum.before[0];
                if (tile.first_slot + slots <= max_slots(c_, decode)) {
                    const int32_t largest = largest_piece(shape_, tile.num_blocks, segments, tile.num_splits);
                    tile.key = static_cast<int16_t>(order_key(costs_, decode, largest));
                    const int32_t rows = shapes()[tile.seq].q_len * shape_.group, index = t - first_tiles()[tile.seq];
                    atomicAdd(&s_.header.num_split_tiles, 1);
                    atomicAdd(&s_.header.num_partial_rows,
                              slots * (decode ? rows : min_of(rows - index * shape_.rows, shape_.rows)));
                } else {
                    tile.num_splits = 1;
                }
                tiles()[t] = tile;
            }
            before[0] += sum.total[0];
            before[1] += sum.total[1];
        }
    }

    // A stable counting sort: a tile's items come after all items of smaller keys and those of earlier tiles of its key.
    __device__ void order_tiles() {
        const bool at_once = num_tiles_ <= kSortedTiles;  // else keys are counted first, then tiles placed
        const int key = threadIdx.x;
        int32_t counts[1] = {0};
        int32_t first = 0;
        for (bool placing = at_once;;) {
            const int32_t count = rank_tiles(first);
            const bool last = first + kSortedTiles >= num_tiles_;
            if (at_once || !placing) counts[0] += count;
            if (at_once || (!placing && last)) {
                const auto scanned = scan_.exclusive<Sum>(counts);
                s_.next_item[key] = scanned.before[0];
                if (key == kNumOrderKeys / 2) s_.header.num_front_items = scanned.before[0];
                num_items_ = scanned.total[0];
                if (blockIdx.x > 0 && !is_small()) return;
            }
            __syncthreads();
            if (placing) {
                place_tiles(first);
                if (last) break;
                __syncthreads();
                s_.next_item[key] += count;
            }
            first = last ? 0 : first + kSortedTiles;
            placing |= last;
        }
    }

    __device__ void place_tiles(int32_t first) {
        for (int32_t i = sorted_tile(0), round = 0; round < num_rounds() && first + i < num_tiles_; ++round, i += 32) {
            const TileScratch tile = tiles()[first + i];
            const int32_t begin = s_.next_item[tile.key] + s_.warp_items[threadIdx.x / 32][tile.key] + s_.ranks[i];
            for (int32_t split = 0; split < tile.num_splits; ++split)
                order()[begin + split] = {first + i, split};
        }
    }

    // Of kSortedTiles tiles: items of the same key in earlier tiles of the warp. Leaves those of earlier warps in warp_items,
    // and returns the items of this thread's key.
    __device__ int32_t rank_tiles(int32_t first) {
        const int lane = threadIdx.x % 32;
        uint16_t* const warp_items = s_.warp_items[threadIdx.x / 32];
        for (int i = lane; i < kNumOrderKeys / 8; i += 32)
            reinterpret_cast<uint4*>(warp_items)[i] = uint4{};
        __syncwarp();
#pragma unroll 1
        for (int round = 0; round < num_rounds(); ++round) {
            const int32_t i = sorted_tile(round);
            if (first + i - lane >= num_tiles_) break;
            const bool exists = first + i < num_tiles_;
            const int32_t splits = exists ? tiles()[first + i].num_splits : 1,
                          key = exists ? tiles()[first + i].key : -1;
            const KeyGroup group = group_by_key(key, splits);
            const int32_t before = exists ? warp_items[key] : 0;
            s_.ranks[i] = static_cast<uint16_t>(before + group.before);
            __syncwarp();
            if (exists && lane == group.leader) warp_items[key] = static_cast<uint16_t>(before + group.items);
            __syncwarp();
        }
        __syncthreads();
        int32_t total = 0;
#pragma unroll
        for (int other = 0; other < kWarps; ++other) {
            const int32_t items = s_.warp_items[other][threadIdx.x];
            s_.warp_items[other][threadIdx.x] = static_cast<uint16_t>(total);
            total += items;
        }
        return total;
    }
    // A thread's tiles, of those that are sorted at a time. A warp's are neighbours.
    __device__ int32_t num_rounds() const { return clamp(ceil_div(num_tiles_, kThreads), 1, kRounds); }
    __device__ int32_t sorted_tile(int32_t round) const {
        return (static_cast<int32_t>(threadIdx.x) / 32 * num_rounds() + round) * 32 +
               static_cast<int32_t>(threadIdx.x) % 32;
    }

    // Header and items. A warp gathers 32 items in shared memory, so that it writes whole lines.
    __device__ void write_items() {
        if (threadIdx.x == 0) {
            PlanHeader& header = s_.header;
            header.magic = kPlanMagic;
            header.status = s_.status;
            header.config = c_;
            header.num_items = num_items_;
            header.num_front_ctas = s_.shares.front_ctas;
        }
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        constexpr int kParts = sizeof(WorkItem) / sizeof(uint4);
        uint4(&staging)[32][kParts] = s_.staging[warp];
        const int32_t step = is_small() ? kThreads * kWriters : kThreads;
        for (int32_t first = blockIdx.x * kThreads + warp * 32; first < num_items_; first += step) {
            const int32_t i = first + lane;
            if (i < num_items_) {
                const ItemScratch at = order()[i];
                const TileScratch tile = tiles()[at.tile];
                const SequenceShape seq = shapes()[tile.seq];
                const int32_t index = at.tile - first_tiles()[tile.seq];
                const Tile cut = tile_at(c_, shape_, seq.q_len, seq.kv_len, index);
                const WorkItem item = make_item(c_, costs_, shape_, tile.seq, seq, tile.is_decode(), index, cut,
                                                at.split, tile.num_splits, tile.first_slot);
                uint4 parts[kParts];
                memcpy(parts, &item, sizeof item);
#pragma unroll
                for (int part = 0; part < kParts; ++part)
                    staging[lane][part ^ (lane / 2 % kParts)] = parts[part];
            }
            __syncwarp();
            auto* to = reinterpret_cast<uint4*>(items() + first);
#pragma unroll
            for (int round = 0; round < kParts; ++round) {
                const int at = round * 32 + lane, from = at / kParts;
                if (first + from < num_items_) to[at] = staging[from][at % kParts ^ (from / 2 % kParts)];
            }
            __syncwarp();
        }
        if (blockIdx.x > 0) return;
        __syncthreads();
        for (int word = threadIdx.x; word < int(sizeof(PlanHeader) / 4); word += kThreads)
            reinterpret_cast<int32_t*>(p_.plan)[word] = reinterpret_cast<const int32_t*>(&s_.header)[word];
    }

    // All of it is in shared memory.
    __device__ bool is_small() const {
        return c_.max_seqs <= kSharedSeqs && num_tiles_ <= kSharedTiles && num_items_ <= kSharedItems;
    }
    __device__ int32_t cost_of(const TileScratch& t) const { return item_cost(costs_, t.is_decode(), t.num_blocks); }

    template <class T>
    __device__ T* scratch(int64_t offset) const {
        return reinterpret_cast<T*>(p_.plan + offset);
    }
    __device__ WorkItem* items() const { return scratch<WorkItem>(p_.layout.items); }
    __device__ SequenceShape* shapes() const {
        return c_.max_seqs <= kSharedSeqs ? s_.shapes : scratch<SequenceShape>(p_.layout.seqs);
    }
    __device__ int32_t* first_tiles() const {
        constexpr int64_t kShapeBytes = sizeof(SequenceShape);
        return c_.max_seqs <= kSharedSeqs ? s_.first_tiles
                                          : scratch<int32_t>(p_.layout.seqs + c_.max_seqs * kShapeBytes);
    }
    __device__ TileScratch* tiles() const {
        return num_tiles_ <= kSharedTiles ? s_.tiles : scratch<TileScratch>(p_.layout.tiles);
    }
    __device__ ItemScratch* order() const {
        return num_items_ <= kSharedItems ? s_.order : scratch<ItemScratch>(p_.layout.order);
    }

    const PlanConfig& c_;
    const CostModel& costs_;
    const TileShape& shape_;
    const SequenceLengths& in_;
    const PlannerParams& p_;
    SharedMemory& s_;
    BlockScan<kWarps> scan_;
    int32_t num_tiles_ = 0, num_items_ = 0;  // the same in every thread
};

static_assert(sizeof(SharedMemory) <= 98 * 1024, "compute capability 8.6 has 99 KiB for a CTA");

}  // namespace varattn::planner
