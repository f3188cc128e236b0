// The device planner: one CTA, one launch. It evaluates the rules of core/schedule.h as plan_on_host does, and its result
// is equal byte for byte. Loops are flat over sequences, tiles or pieces, never nested: a thread's work does not depend on
// how long its sequence is. Sums over earlier tiles are block scans, in chunks of one tile a thread.
#include "core/check.h"
#include "core/schedule.h"
#include "cuda/cuda_check.h"
#include "device/scan.cuh"
#include "varattn/varattn.hpp"

namespace varattn {
namespace {

using namespace device;

constexpr int kThreads = 1024, kWarps = kThreads / 32;
static_assert(32 * kMaxNumSplits <= 0xffff, "items of 32 tiles are counted in 16 bits");

struct alignas(16) TileScratch {
    Tile tile;
    SequenceShape shape;
    int32_t seq, index;
    int32_t first_piece;  // if split; later the position of its first item
    int16_t num_splits;
    int16_t key;  // order key
};
static_assert(sizeof(TileScratch) == kTileScratchWords * 4);

// A piece of a split tile. Prefill's pieces are numbered from 0, decode's from max_pieces(prefill).
struct alignas(8) PieceScratch {
    int32_t tile, split;
};
static_assert(sizeof(PieceScratch) == kPieceScratchWords * 4);

constexpr int kSharedSeqs = 1024;  // up to here, sequences are kept in shared memory, else in the plan's scratch

struct SharedMemory {
    BlockScan<kWarps>::Buffer scan;
    union {
        int32_t seqs[kSeqScratchWords * kSharedSeqs];
        uint16_t warp_items[kWarps][kNumOrderKeys];  // of a chunk: items of a key in the tiles of a warp
    };
    uint32_t warps_with[kNumOrderKeys];          // of a chunk: bit w is set if warp w holds tiles of the key
    int32_t next_item[kNumOrderKeys];            // count of a key's items, then position of its next item
    unsigned long long kind_cost[2];
    int32_t kind_tiles[2];
    uint32_t status;
    int32_t wave_pieces[2][kNumWaveTargets];  // pieces that each target would make
    int32_t num_split_tiles, num_partial_rows, num_pieces[2];
    PlanHeader header;
};
static_assert(sizeof(SharedMemory) <= 48 * 1024);

// One warp's tiles of the same key as this thread's: items in the tiles before it, items in all, the first such lane.
struct KeyGroup {
    int32_t before, items;
    int leader;
};

__device__ KeyGroup group_by_key(int32_t key, int32_t num_splits) {
    int lane = threadIdx.x % 32;
    uint32_t peers = __match_any_sync(~0u, key);
    uint32_t earlier = peers & ((1u << lane) - 1);
    KeyGroup group{__popc(earlier), __popc(peers), __ffs(peers) - 1};
    if (__any_sync(~0u, num_splits > 1)) {
        group.before = group.items = 0;
#pragma unroll 4
        for (int other = 0; other < 32; ++other) {
            int32_t items = __shfl_sync(~0u, num_splits, other);
            if (peers >> other & 1) group.items += items;
            if (earlier >> other & 1) group.before += items;
        }
    }
    return group;
}

struct PlannerParams {
    PlanConfig config;
    CostModel costs;
    SequenceLengths lengths;
    PlanLayout layout;
    char* plan;
};

class Planner {
public:
    __device__ Planner(const PlannerParams& p, SharedMemory& s)
        : c_(p.config), costs_(p.costs), in_(p.lengths), p_(p), s_(s), scan_(s.scan) {}

    __device__ void run() {
        clear();
        __syncthreads();
        read_lengths();
        __syncthreads();
        cut_tiles();
        __syncthreads();
        choose_targets();
        choose_splits();
        __syncthreads();
        order_tiles();
        __syncthreads();
        write_pieces();
        write_header();
    }

private:
    __device__ void clear() {
        for (int key = threadIdx.x; key < kNumOrderKeys; key += kThreads) s_.warps_with[key] = s_.next_item[key] = 0;
        for (int word = threadIdx.x; word < int(sizeof(PlanHeader) / 4); word += kThreads)
            reinterpret_cast<int32_t*>(&s_.header)[word] = 0;
        if (threadIdx.x != 0) return;
        s_.status = 0;
        s_.num_split_tiles = s_.num_partial_rows = 0;
        for (int kind = 0; kind < 2; ++kind) {
            s_.kind_cost[kind] = 0;
            s_.kind_tiles[kind] = s_.num_pieces[kind] = 0;
            for (int32_t& pieces : s_.wave_pieces[kind]) pieces = 0;
        }
    }

    // Offsets become their running maximum. Each sequence's shape and first tile.
    __device__ void read_lengths() {
        constexpr int32_t kNoLimit = 0x7fffffff;
        uint32_t status = 0;
        int32_t q = 0, k = 0, tiles = 0;  // at the start of the chunk
        for (int32_t chunk = 0; chunk < c_.max_seqs; chunk += kThreads) {
            int32_t seq = chunk + threadIdx.x;
            bool exists = seq < c_.max_seqs;
            int32_t q_given = exists ? in_.cu_seqlens_q[seq + 1] : 0;
            int32_t k_given = exists && in_.cu_seqlens_k ? in_.cu_seqlens_k[seq + 1] : 0;
            int32_t used_given = exists && in_.seqused_k ? in_.seqused_k[seq] : 0;
            if (chunk == 0) {  // after the loads above, to wait for memory once
                int32_t q_first = in_.cu_seqlens_q[0], k_first = in_.cu_seqlens_k ? in_.cu_seqlens_k[0] : 0;
                q = clamp_offset(q_first, c_.max_total_q);
                k = clamp_offset(k_first, kNoLimit);
                if (q != q_first) status |= kStatusCuSeqlensQ;
                if (k != k_first) status |= kStatusCuSeqlensK;
                if (threadIdx.x == 0) s_.header.q_begin = q;
            }
            int32_t offsets[2] = {clamp_offset(q_given, c_.max_total_q), clamp_offset(k_given, kNoLimit)};
            auto running = scan_.exclusive<Max>(offsets);

            SequenceShape shape{};
            shape.q_begin = max_of(q, running.before[0]);
            shape.k_begin = max_of(k, running.before[1]);
            int32_t q_end = max_of(shape.q_begin, offsets[0]), k_end = max_of(shape.k_begin, offsets[1]);
            shape.q_len = q_end - shape.q_begin;
            int32_t longest = in_.cu_seqlens_k ? min_of(kMaxLength, k_end - shape.k_begin) : kMaxLength;
            shape.kv_len = in_.seqused_k ? clamp(used_given, 0, longest) : longest;
            if (exists && q_end != q_given) status |= kStatusCuSeqlensQ;
            if (exists && in_.cu_seqlens_k && k_end != k_given) status |= kStatusCuSeqlensK;
            if (exists && !in_.seqused_k && longest < k_end - shape.k_begin) status |= kStatusCuSeqlensK;
            if (exists && in_.seqused_k && shape.kv_len != used_given) status |= kStatusSequsedK;

            int32_t count[1] = {exists ? num_tiles(c_, shape.q_len) : 0};
            auto tile_sum = scan_.exclusive<Sum>(count);
            if (exists) {
                seq_word(0, seq) = shape.q_begin;
                seq_word(1, seq) = shape.q_len;
                seq_word(2, seq) = shape.k_begin;
                seq_word(3, seq) = shape.kv_len;
                first_tile(seq) = tiles + tile_sum.before[0];
            }
            q = max_of(q, running.total[0]);
            k = max_of(k, running.total[1]);
            tiles += tile_sum.total[0];
        }
        if (threadIdx.x == 0) s_.header.q_end = q;
        if (status) atomicOr(&s_.status, status);
        num_tiles_ = tiles;
    }

    // Each tile's rows, blocks and cost, and the totals that the targets depend on.
    __device__ void cut_tiles() {
        int64_t cost[2] = {};
        int32_t tiles[2] = {};
        const int32_t* first_tiles = &first_tile(0);
        for (int32_t t = threadIdx.x; t < num_tiles_; t += kThreads) {
            int32_t seq = 0;  // the last sequence whose first tile is not after t
            for (int32_t end = c_.max_seqs; end - seq > 1;) {
                int32_t middle = seq + (end - seq) / 2;
                (first_tiles[middle] <= t ? seq : end) = middle;
            }
            TileScratch tile{};
            tile.seq = seq;
            tile.shape = {seq_word(0, seq), seq_word(1, seq), seq_word(2, seq), seq_word(3, seq)};
            tile.index = t - first_tile(seq);
            tile.tile = tile_at(c_, tile.shape.q_len, tile.shape.kv_len, tile.index);
            store_tile(t, tile);
            const bool decode = is_decode(c_, tile.shape.q_len);
            cost[decode] += cost_of(tile);
            tiles[decode] += 1;
        }
        for (int kind = 0; kind < 2; ++kind) {
            tiles[kind] = __reduce_add_sync(~0u, tiles[kind]);
            if (tiles[kind] == 0) continue;
            cost[kind] = warp_sum(cost[kind]);
            if (threadIdx.x % 32 != 0) continue;
            atomicAdd(&s_.kind_tiles[kind], tiles[kind]);
            atomicAdd(&s_.kind_cost[kind], static_cast<unsigned long long>(cost[kind]));
        }
    }

    __device__ void choose_targets() {
        Totals totals{};
        for (int kind = 0; kind < 2; ++kind) {
            totals.cost[kind] = static_cast<int64_t>(s_.kind_cost[kind]);
            totals.tiles[kind] = s_.kind_tiles[kind];
        }
        const int32_t front = front_ctas(c_, costs_, totals);
        if (threadIdx.x == 0) s_.header.num_front_ctas = front;
        if (!may_split()) return;
        int64_t fair[2];
        bool may_be_wave[2];
        for (int kind = 0; kind < 2; ++kind) {
            const int32_t ctas = ctas_of(c_, front, kind);
            fair[kind] = fair_share(c_, costs_, totals, kind, ctas);
            target_[kind] = queue_target(costs_, fair[kind], kind);
            may_be_wave[kind] = totals.tiles[kind] > 0 && fits_one_wave(c_, totals.tiles[kind], ctas);
        }
        if (!may_be_wave[0] && !may_be_wave[1]) return;
        for (int32_t t = threadIdx.x; t < round_up(num_tiles_, 32); t += kThreads) {
            const TileScratch tile = load_tile(t);
            const bool exists = t < num_tiles_, decode = is_decode(c_, tile.shape.q_len);
            for (int kind = 0; kind < 2; ++kind) {
                if (!may_be_wave[kind]) continue;
                for (int i = 0; i < kNumWaveTargets; ++i) {
                    const int64_t target = wave_target(fair[kind], i);
                    const bool counts = exists && decode == (kind == 1);
                    int32_t pieces = counts ? splits_of(c_, cost_of(tile), num_blocks(tile), target) : 0;
                    pieces = __reduce_add_sync(~0u, pieces);
                    if (threadIdx.x % 32 == 0 && pieces > 0) atomicAdd(&s_.wave_pieces[kind][i], pieces);
                }
            }
        }
        __syncthreads();
        for (int kind = 0; kind < 2; ++kind)
            for (int i = kNumWaveTargets - 1; i >= 0 && may_be_wave[kind]; --i)
                if (fits_one_wave(c_, s_.wave_pieces[kind][i], ctas_of(c_, front, kind)))
                    target_[kind] = wave_target(fair[kind], i);
    }

    // Splits of each tile, while there is room for partial results: since tiles without room count too, those with room
    // come before those without. Counts the items of each order key.
    __device__ void choose_splits() {
        int32_t pieces_before[2] = {};  // of the chunk
        for (int32_t chunk = 0; chunk < num_tiles_; chunk += kThreads) {
            int32_t t = chunk + threadIdx.x;
            bool exists = t < num_tiles_;
            TileScratch tile = load_tile(t);
            const bool decode = is_decode(c_, tile.shape.q_len);
            int32_t splits = 1;
            if (may_split()) {
                if (exists) splits = splits_of(c_, cost_of(tile), num_blocks(tile), target_[decode]);
                const bool split = splits > 1;
                int32_t counts[2] = {split && !decode ? splits : 0, split && decode ? splits : 0};
                auto sum = scan_.exclusive<Sum>(counts);
                tile.first_piece = decode ? pieces_before[1] + sum.before[1] : pieces_before[0] + sum.before[0];
                if (split && tile.first_piece + splits <= max_pieces(c_, decode)) {
                    PieceScratch* pieces = pieces_of(decode) + tile.first_piece;
                    for (int32_t i = 0; i < splits; ++i) pieces[i] = {t, i};
                    atomicAdd(&s_.num_split_tiles, 1);
                    atomicAdd(&s_.num_partial_rows, splits * (tile.tile.rows.end - tile.tile.rows.begin));
                    atomicMax(&s_.num_pieces[decode], tile.first_piece + splits);
                } else {
                    splits = 1;
                }
                pieces_before[0] += sum.total[0];
                pieces_before[1] += sum.total[1];
            }
            if (!warp_has_tiles(chunk)) continue;
            tile.num_splits = splits;
            tile.key = exists ? order_key(costs_, decode, num_blocks(tile), splits) : -1;
            if (exists) store_tile(t, tile);
            KeyGroup group = group_by_key(tile.key, splits);
            if (exists && threadIdx.x % 32 == group.leader) atomicAdd(&s_.next_item[tile.key], group.items);
        }
    }

    // A stable counting sort: a tile's items come after all items of smaller keys and those of earlier tiles of its key.
    // Writes the items of tiles that are not split.
    __device__ void order_tiles() {
        constexpr int kKeys = max_of(kNumOrderKeys / kThreads, 1);  // of a thread
        int32_t counts[kKeys] = {}, sum[1] = {0};
        int first_key = threadIdx.x * kKeys;
        for (int i = 0; i < kKeys; ++i) {
            if (first_key < kNumOrderKeys) counts[i] = s_.next_item[first_key + i];
            sum[0] += counts[i];
        }
        auto scanned = scan_.exclusive<Sum>(sum);
        int32_t before = scanned.before[0];
        if (threadIdx.x == 0) s_.header.num_items = scanned.total[0];
        if (first_key == kNumOrderKeys / 2) s_.header.num_front_items = before;
        for (int i = 0; i < kKeys && first_key < kNumOrderKeys; before += counts[i++]) s_.next_item[first_key + i] = before;
        __syncthreads();

        int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        for (int32_t chunk = 0; chunk < num_tiles_; chunk += kThreads) {
            int32_t t = chunk + threadIdx.x;
            bool exists = t < num_tiles_;
            TileScratch tile = load_tile(t);
            if (!exists) tile.key = -1;
            KeyGroup group{};
            if (warp_has_tiles(chunk)) group = group_by_key(tile.key, tile.num_splits);
            bool leads = exists && lane == group.leader;
            if (leads) {
                s_.warp_items[warp][tile.key] = static_cast<uint16_t>(group.items);
                atomicOr(&s_.warps_with[tile.key], 1u << warp);
            }
            __syncthreads();
            int32_t position = 0;
            uint32_t warps = 0;
            if (leads) {
                position = s_.next_item[tile.key];
                warps = s_.warps_with[tile.key];
#pragma unroll
                for (int other = 0; other < kWarps; ++other)
                    if (other < warp && warps >> other & 1) position += s_.warp_items[other][tile.key];
            }
            __syncthreads();
            if (leads && warps >> warp == 1) {  // the last warp with this key
                s_.next_item[tile.key] = position + group.items;
                s_.warps_with[tile.key] = 0;
            }
            position = __shfl_sync(~0u, position, group.leader) + group.before;
            if (exists && tile.num_splits == 1) items()[position] = item_of(tile, 0, 0);
            if (exists && tile.num_splits > 1) {
                tile.first_piece = position;
                tiles()[t] = tile;
            }
            __syncthreads();
        }
    }

    // The items of split tiles, one a thread.
    __device__ void write_pieces() {
        for (int32_t i = threadIdx.x; i < s_.num_pieces[0] + s_.num_pieces[1]; i += kThreads) {
            const bool decode = i >= s_.num_pieces[0];
            const int32_t number = decode ? i - s_.num_pieces[0] : i;
            const PieceScratch piece = pieces_of(decode)[number];
            const TileScratch tile = tiles()[piece.tile];
            items()[tile.first_piece + piece.split] = item_of(tile, piece.split, number - piece.split);
        }
    }

    __device__ void write_header() {
        if (threadIdx.x == 0) {
            PlanHeader& header = s_.header;
            header.magic = kPlanMagic;
            header.status = s_.status;
            header.config = c_;
            header.num_split_tiles = s_.num_split_tiles;
            header.num_partial_rows = s_.num_partial_rows;
        }
        __syncthreads();
        for (int word = threadIdx.x; word < int(sizeof(PlanHeader) / 4); word += kThreads)
            reinterpret_cast<int32_t*>(p_.plan)[word] = reinterpret_cast<const int32_t*>(&s_.header)[word];
    }

    __device__ bool may_split() const { return c_.num_splits > 1 && !c_.batch_invariant; }
    __device__ static int32_t num_blocks(const TileScratch& t) { return t.tile.blocks.end - t.tile.blocks.begin; }

    __device__ bool warp_has_tiles(int32_t chunk) const {
        return chunk + static_cast<int32_t>(threadIdx.x) / 32 * 32 < num_tiles_;
    }
    // Tiles are thread t's own, t + kThreads', ...: where there is one a thread, it stays in registers.
    __device__ TileScratch load_tile(int32_t t) const {
        return num_tiles_ <= kThreads ? own_tile_ : t < num_tiles_ ? tiles()[t] : TileScratch{};
    }
    __device__ void store_tile(int32_t t, const TileScratch& tile) {
        if (num_tiles_ <= kThreads)
            own_tile_ = tile;
        else
            tiles()[t] = tile;
    }

    __device__ int32_t cost_of(const TileScratch& t) const {
        return item_cost(costs_, is_decode(c_, t.shape.q_len), num_blocks(t));
    }
    __device__ WorkItem item_of(const TileScratch& t, int32_t split, int32_t first_piece) const {
        return make_item(c_, costs_, t.seq, t.shape, t.index, t.tile, split, t.num_splits, first_piece);
    }

    // Arrays of the plan. Computed from kernel arguments where they are used: registers are scarce.
    template <class T>
    __device__ T* at(int64_t offset) const { return reinterpret_cast<T*>(p_.plan + offset); }
    __device__ WorkItem* items() const { return at<WorkItem>(p_.layout.items); }
    __device__ TileScratch* tiles() const { return at<TileScratch>(p_.layout.tiles); }
    __device__ PieceScratch* pieces_of(bool decode) const {
        return at<PieceScratch>(p_.layout.pieces) + (decode ? max_pieces(c_, false) : 0);
    }
    __device__ int32_t& seq_word(int word, int32_t seq) const {
        int32_t* words = c_.max_seqs <= kSharedSeqs ? s_.seqs : at<int32_t>(p_.layout.seqs);
        return words[word * c_.max_seqs + seq];
    }
    __device__ int32_t& first_tile(int32_t seq) const { return seq_word(4, seq); }

    const PlanConfig& c_;
    const CostModel& costs_;
    const SequenceLengths& in_;
    const PlannerParams& p_;
    SharedMemory& s_;
    BlockScan<kWarps> scan_;
    int32_t num_tiles_ = 0;      // the same in every thread
    int64_t target_[2] = {1, 1};  // likewise
    TileScratch own_tile_{};
};

__global__ void __launch_bounds__(kThreads) plan_kernel(const __grid_constant__ PlannerParams params) {
    __shared__ SharedMemory shared;
    Planner(params, shared).run();
}

}  // namespace

void make_plan_cuda(const PlanConfig& config, const SequenceLengths& lengths, void* plan, cudaStream_t stream) {
    const KernelConfig& kernel = check_plan_arguments(config, lengths, plan, DeviceType::kCuda, "plan");
    PlannerParams params{config, cost_model(kernel), lengths, plan_layout(config), static_cast<char*>(plan)};
    plan_kernel<<<1, kThreads, 0, stream>>>(params);
    check_cuda(cudaGetLastError(), "plan", "launch of the planner");
}

}  // namespace varattn
