// The device planner: one CTA, one launch. It evaluates the rules of core/schedule.h as plan_on_host does, and its result
// is equal byte for byte. Loops are flat over sequences, tiles or items, never nested: a thread's work does not depend on
// how long its sequence is. What fits is kept in shared memory, else in the plan's scratch.
#include <atomic>

#include "core/check.h"
#include "core/schedule.h"
#include "cuda/cuda_check.h"
#include "device/scan.cuh"
#include "varattn/varattn.hpp"

namespace varattn {
namespace {

using namespace device;

constexpr int kThreads = 512, kWarps = kThreads / 32;
static_assert(kThreads == kNumOrderKeys, "a thread scans a key");
constexpr int kRounds = 2;                        // of the sort: tiles of a thread
constexpr int kSortedTiles = kThreads * kRounds;  // that are sorted at a time
static_assert(kSortedTiles + 2 * kArrivalCounters <= 0xffff, "items of as many tiles are counted in 16 bits");

struct alignas(16) TileScratch {
    Range blocks;
    int32_t seq, index;   // of the tile in its sequence
    int32_t first_piece;  // if split
    int32_t first_item;
    int16_t num_splits;
    int16_t decode;
    int32_t unused;
};
static_assert(sizeof(TileScratch) == kTileScratchWords * 4);

// Up to here, lists are kept in shared memory.
constexpr int kSharedSeqs = 1024, kSharedTiles = 1024, kSharedItems = 2048;
static_assert(kSharedTiles <= kSortedTiles);

struct SharedMemory {
    SequenceShape shapes[kSharedSeqs];
    int32_t first_tiles[kSharedSeqs];
    TileScratch tiles[kSharedTiles];
    int32_t order[kSharedItems];
    union {
        uint16_t warp_items[kWarps][kNumOrderKeys];  // items of a key in a warp's tiles, then in those of earlier warps
        uint4 staging[kWarps][32][sizeof(WorkItem) / sizeof(uint4)];  // a warp's items on their way to memory
    };
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

__device__ KeyGroup group_by_key(int32_t key, int32_t num_splits) {
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

// What a thread reads of a sequence.
struct GivenLengths {
    int32_t q_begin, q_end, k_begin, k_end, used;
};

class Planner {
public:
    __device__ Planner(const PlannerParams& p, SharedMemory& s)
        : c_(p.config), costs_(p.costs), shape_(p.shape), in_(p.lengths), p_(p), s_(s), scan_(s.scan) {}

    __device__ void run() {
        clear();
        read_lengths();
        __syncthreads();
        cut_tiles();
        __syncthreads();
        share();
        __syncthreads();
        choose_splits();
        __syncthreads();
        order_tiles();
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
        g.q_begin = in_.cu_seqlens_q[seq];
        g.q_end = in_.cu_seqlens_q[seq + 1];
        if (in_.cu_seqlens_k) {
            g.k_begin = in_.cu_seqlens_k[seq];
            g.k_end = in_.cu_seqlens_k[seq + 1];
        }
        if (in_.seqused_k) g.used = in_.seqused_k[seq];
        return g;
    }

    // Each sequence's shape and first tile.
    __device__ void read_lengths() {
        uint32_t status = 0;
        int32_t tiles = 0;               // before the chunk
        bool monotone = true;            // so far: offsets can be taken as they are
        int32_t last_q = 0, last_k = 0;  // else: their running maximum
        GivenLengths next = load_lengths(threadIdx.x);
        for (int32_t chunk = 0; chunk < c_.max_seqs; chunk += kThreads) {
            const int32_t seq = chunk + threadIdx.x;
            const bool exists = seq < c_.max_seqs;
            GivenLengths g = next;
            next = load_lengths(seq + kThreads);
            const bool in_order = 0 <= g.q_begin && g.q_begin <= g.q_end && g.q_end <= c_.max_total_q &&
                                  0 <= g.k_begin && g.k_begin <= g.k_end;
            if (!__syncthreads_and(in_order) || !monotone)
                clamp_offsets(chunk, exists, monotone, last_q, last_k, g, status);

            SequenceShape shape{g.q_begin, g.q_end - g.q_begin, g.k_begin, kMaxLength};
            if (in_.cu_seqlens_k) {
                shape.kv_len = min_of(kMaxLength, g.k_end - g.k_begin);
                if (!in_.seqused_k && shape.kv_len < g.k_end - g.k_begin) status |= kStatusCuSeqlensK;
            }
            if (in_.seqused_k) {
                shape.kv_len = clamp(g.used, 0, shape.kv_len);
                if (exists && shape.kv_len != g.used) status |= kStatusSequsedK;
            }
            if (seq == 0) s_.header.q_begin = g.q_begin;
            if (seq == c_.max_seqs - 1) s_.header.q_end = g.q_end;

            const int32_t count[1] = {exists ? num_tiles(shape_, shape.q_len) : 0};
            const auto sum = scan_.exclusive<Sum>(count);
            if (exists) {
                shapes()[seq] = shape;
                first_tiles()[seq] = tiles + sum.before[0];
            }
            tiles += sum.total[0];
        }
        if (status) atomicOr(&s_.status, status);
        num_tiles_ = tiles;
    }

    // Some offset is out of order: all become the running maximum of what was given.
    __device__ void clamp_offsets(int32_t chunk, bool exists, bool& monotone, int32_t& last_q, int32_t& last_k,
                                  GivenLengths& g, uint32_t& status) {
        constexpr int32_t kNoLimit = 0x7fffffff;
        const GivenLengths given = g;
        if (monotone) {  // until here
            const int32_t q = in_.cu_seqlens_q[chunk], k = in_.cu_seqlens_k ? in_.cu_seqlens_k[chunk] : 0;
            last_q = clamp_offset(q, c_.max_total_q);
            last_k = clamp_offset(k, kNoLimit);
            if (last_q != q) status |= kStatusCuSeqlensQ;
            if (last_k != k) status |= kStatusCuSeqlensK;
            monotone = false;
        }
        const int32_t offsets[2] = {clamp_offset(g.q_end, c_.max_total_q), clamp_offset(g.k_end, kNoLimit)};
        const auto running = scan_.exclusive<Max>(offsets);
        g.q_begin = max_of(last_q, running.before[0]);
        g.k_begin = max_of(last_k, running.before[1]);
        g.q_end = max_of(g.q_begin, offsets[0]);
        g.k_end = max_of(g.k_begin, offsets[1]);
        last_q = max_of(last_q, running.total[0]);
        last_k = max_of(last_k, running.total[1]);
        if (exists && g.q_end != given.q_end) status |= kStatusCuSeqlensQ;
        if (exists && g.k_end != given.k_end) status |= kStatusCuSeqlensK;
    }

    // Each tile's sequence and blocks, and the totals that shares and targets depend on.
    __device__ void cut_tiles() {
        long long cost[2] = {};
        int32_t tiles[2] = {};
        for (int32_t t = threadIdx.x; t < num_tiles_; t += kThreads) {
            TileScratch tile{};
            tile.seq = sequence_of(t);
            tile.index = t - first_tiles()[tile.seq];
            const SequenceShape seq = shapes()[tile.seq];
            const bool decode = is_decode(shape_, seq.q_len);
            tile.decode = decode;
            tile.num_splits = 1;
            tile.blocks = tile_at(c_, shape_, seq.q_len, seq.kv_len, tile.index).blocks;
            this->tiles()[t] = tile;
            const int32_t tile_cost = cost_of(tile);
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
        if (c_.num_splits == 1 || c_.batch_invariant) return;
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
            const int32_t splits =
                splits_of(c_, cost_of(tile), num_blocks(tile), tile.decode ? targets[1] : targets[0]);
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
                if (!shares.may_be_wave[kind] || !__any_sync(~0u, exists && tile.decode == kind)) continue;
                for (int i = 0; i < kNumWaveTargets; ++i) {
                    const int32_t target = wave_target(costs_, shares.fair_share[kind], kind, i);
                    const bool counts = exists && tile.decode == kind;
                    const int32_t pieces = counts ? splits_of(c_, cost_of(tile), num_blocks(tile), target) : 0;
                    const int32_t sum = __reduce_add_sync(~0u, pieces);
                    if (threadIdx.x % 32 == 0) atomicAdd(&s_.wave_pieces[kind][i], sum);
                }
            }
        }
    }

    // Numbers the pieces of split tiles, at each end.
    __device__ void place_pieces() {
        int32_t before[2] = {};  // the chunk
        for (int32_t chunk = 0; chunk < num_tiles_; chunk += kThreads) {
            const int32_t t = chunk + threadIdx.x;
            const TileScratch tile = t < num_tiles_ ? tiles()[t] : TileScratch{};
            const bool split = tile.num_splits > 1, decode = tile.decode;
            const int32_t counts[2] = {split && !decode ? tile.num_splits : 0, split && decode ? tile.num_splits : 0};
            const auto sum = scan_.exclusive<Sum>(counts);
            if (split) {
                const int32_t first_piece = decode ? before[1] + sum.before[1] : before[0] + sum.before[0];
                const bool has_room = first_piece + tile.num_splits <= max_pieces(c_, decode);
                tiles()[t].first_piece = first_piece;
                if (!has_room) tiles()[t].num_splits = 1;
                if (has_room) {
                    const Range rows = rows_of(tile);
                    atomicAdd(&s_.header.num_split_tiles, 1);
                    atomicAdd(&s_.header.num_partial_rows, tile.num_splits * (rows.end - rows.begin));
                }
            }
            before[0] += sum.total[0];
            before[1] += sum.total[1];
        }
    }

    // A stable counting sort: a tile's items come after all items of smaller keys and those of earlier tiles of its key.
    __device__ void order_tiles() {
        const int key = threadIdx.x;
        int32_t rank[kRounds], tile_key[kRounds];
        int32_t counts[1] = {0};
        for (int32_t first = 0; first < num_tiles_ || first == 0; first += kSortedTiles) {
            counts[0] += rank_tiles(first, rank, tile_key);
            if (num_tiles_ > kSortedTiles) __syncthreads();
        }
        const auto scanned = scan_.exclusive<Sum>(counts);
        s_.next_item[key] = scanned.before[0];
        if (key == 0) s_.header.num_items = num_items_ = scanned.total[0];
        if (key == kNumOrderKeys / 2) s_.header.num_front_items = scanned.before[0];
        num_items_ = scanned.total[0];
        __syncthreads();
        for (int32_t first = 0; first < num_tiles_; first += kSortedTiles) {
            int32_t count = 0;
            if (num_tiles_ > kSortedTiles) {
                count = rank_tiles(first, rank, tile_key);
                __syncthreads();
            }
#pragma unroll
            for (int round = 0; round < kRounds; ++round) {
                const int32_t t = sorted_tile(first, round);
                if (t >= num_tiles_) continue;
                const int32_t begin =
                    s_.next_item[tile_key[round]] + s_.warp_items[threadIdx.x / 32][tile_key[round]] + rank[round];
                tiles()[t].first_item = begin;
                for (int32_t i = 0; i < tiles()[t].num_splits; ++i)
                    order()[begin + i] = t;
            }
            if (num_tiles_ > kSortedTiles) {
                __syncthreads();
                s_.next_item[key] += count;
            }
        }
    }

    // Of kSortedTiles tiles: keys, and items of the same key in earlier tiles of the warp. Leaves those of earlier warps in
    // warp_items, and returns the items of this thread's key.
    __device__ int32_t rank_tiles(int32_t first, int32_t (&rank)[kRounds], int32_t (&tile_key)[kRounds]) {
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        uint16_t* const warp_items = s_.warp_items[warp];
        for (int i = lane; i < kNumOrderKeys / 8; i += 32)
            reinterpret_cast<uint4*>(warp_items)[i] = uint4{};
        __syncwarp();
#pragma unroll
        for (int round = 0; round < kRounds; ++round) {
            const int32_t t = sorted_tile(first, round);
            if (t - lane >= num_tiles_) break;
            int32_t splits = 1;
            tile_key[round] = -1;
            if (t < num_tiles_) {
                const TileScratch tile = tiles()[t];
                splits = tile.num_splits;
                tile_key[round] = order_key(costs_, tile.decode, num_blocks(tile), splits);
            }
            const KeyGroup group = group_by_key(tile_key[round], splits);
            const int32_t before = tile_key[round] >= 0 ? warp_items[tile_key[round]] : 0;
            rank[round] = before + group.before;
            __syncwarp();
            if (lane == group.leader && tile_key[round] >= 0)
                warp_items[tile_key[round]] = static_cast<uint16_t>(before + group.items);
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
    // A warp's tiles are neighbours.
    __device__ static int32_t sorted_tile(int32_t first, int round) {
        return first + static_cast<int32_t>(threadIdx.x / 32 * 32 * kRounds + round * 32 + threadIdx.x % 32);
    }

    // Header and items. A warp gathers 32 items in shared memory, so that it writes whole lines.
    __device__ void write_items() {
        if (threadIdx.x == 0) {
            PlanHeader& header = s_.header;
            header.magic = kPlanMagic;
            header.status = s_.status;
            header.config = c_;
            header.num_front_ctas = s_.shares.front_ctas;
        }
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        constexpr int kParts = sizeof(WorkItem) / sizeof(uint4);
        uint4(&staging)[32][kParts] = s_.staging[warp];
        for (int32_t first = warp * 32; first < num_items_; first += kThreads) {
            const int32_t i = first + lane;
            if (i < num_items_) {
                const TileScratch tile = tiles()[order()[i]];
                const SequenceShape seq = shapes()[tile.seq];
                const Tile whole{rows_of(tile), tile.blocks};
                const WorkItem item = make_item(c_, costs_, tile.seq, seq, tile.decode, tile.index, whole,
                                                i - tile.first_item, tile.num_splits, tile.first_piece);
                const auto* parts = reinterpret_cast<const uint4*>(&item);
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
        __syncthreads();
        for (int word = threadIdx.x; word < int(sizeof(PlanHeader) / 4); word += kThreads)
            reinterpret_cast<int32_t*>(p_.plan)[word] = reinterpret_cast<const int32_t*>(&s_.header)[word];
    }

    __device__ static int32_t num_blocks(const TileScratch& t) { return t.blocks.end - t.blocks.begin; }
    __device__ int32_t cost_of(const TileScratch& t) const { return item_cost(costs_, t.decode, num_blocks(t)); }
    __device__ Range rows_of(const TileScratch& t) const {
        const int32_t rows = shapes()[t.seq].q_len * shape_.group;
        if (t.decode) return {0, rows};
        return {t.index * shape_.rows, min_of(rows, (t.index + 1) * shape_.rows)};
    }

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
    __device__ int32_t* order() const {
        return num_items_ <= kSharedItems ? s_.order : scratch<int32_t>(p_.layout.order);
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

__global__ void __launch_bounds__(kThreads) plan_kernel(const __grid_constant__ PlannerParams params) {
    extern __shared__ uint4 shared[];
    Planner(params, *reinterpret_cast<SharedMemory*>(shared)).run();
}

// Once for each device.
void prepare_kernel() {
    static std::atomic<uint64_t> ready{0};
    int device = 0;
    check_cuda(cudaGetDevice(&device), "plan", "cudaGetDevice");
    const uint64_t bit = uint64_t{1} << (device % 64);
    if (ready.load(std::memory_order_relaxed) & bit) return;
    check_cuda(cudaFuncSetAttribute(plan_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(SharedMemory)),
               "plan", "cudaFuncSetAttribute");
    ready.fetch_or(bit, std::memory_order_relaxed);
}

}  // namespace

void make_plan_cuda(const PlanConfig& config, const SequenceLengths& lengths, void* plan, cudaStream_t stream) {
    const KernelConfig& kernel = check_plan_arguments(config, lengths, plan, DeviceType::kCuda, "plan");
    PlannerParams params{config,  cost_model(kernel),  tile_shape(config),
                         lengths, plan_layout(config), static_cast<char*>(plan)};
    prepare_kernel();
    plan_kernel<<<1, kThreads, sizeof(SharedMemory), stream>>>(params);
    check_cuda(cudaGetLastError(), "plan", "launch of the planner");
}

}  // namespace varattn
